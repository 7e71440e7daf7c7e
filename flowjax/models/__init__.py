"""Networks, what they are built of, and averages of their parameters."""

from flowjax.models.dit import SIZES, dit
from flowjax.models.mlp import mlp
from flowjax.models.mmdit import DEPTHS, mmdit
from flowjax.models.presets import preset
from flowjax.models.unet import unet

FIT = {"feed_forward": "swiglu", "qk_norm": "layer", "modulation": "lora", "position": "rope"}  # FiTv2's blocks
NETWORKS = {
    "mlp": mlp,
    "unet": unet,
    "dit": dit,
    **{f"dit_{size}": preset(dit, width=w, depth=d, heads=h) for size, (w, d, h) in SIZES.items()},
    "fit_xl": preset(dit, defaults=FIT, width=1152, depth=36, heads=16),
    "mmdit": mmdit,
    **{f"mmdit_d{depth}": preset(mmdit, depth=depth, width=64 * depth, heads=depth) for depth in DEPTHS},
}

"""Networks, what they are built of, and averages of their parameters."""

from flowjax.models.dit import dit, preset
from flowjax.models.mlp import mlp
from flowjax.models.unet import unet

NETWORKS = {
    "mlp": mlp,
    "unet": unet,
    "dit": dit,
    "dit_s": preset("s"),
    "dit_b": preset("b"),
    "dit_l": preset("l"),
    "dit_xl": preset("xl"),
}

r"""EfficientNet-Lite0: a small ImageNet network of inverted residual blocks without squeeze-and-excite.
(Tan & Le 2019; the Lite variants, 2020, use relu6 so that they quantise well)

    stem 3 x 3 / 2, then sixteen blocks, then a 1 x 1 head to 1280 channels and the average over places.
    block: expand 1 x 1 (but the first), depthwise k x k, project 1 x 1; relu6 after the first two, the input added
    where shapes agree. Padding is TensorFlow's SAME: at stride 2 on an even side one cell more at the end.

Images in [-1, 1] become (255 (x + 1) / 2 - 127) / 128, what the published weights were trained with. Layers: 'b2'
(24 channels, a quarter of the side), 'b4' (40, an eighth), 'b10' (112, a sixteenth), 'b15' (320, a thirty-second) and
'pooled' (1280). Distances use b10: with deeper layers they are about ImageNet's classes rather than about pictures.
"""

import jax
import jax.numpy as jnp

from flowjax.models.features.extractor import (
    FeatureExtractor,
    Images,
    Tree,
    Unit,
    convolve,
    convolve_depthwise,
    resized,
)

# For each stage: how many blocks, kernel, stride of the first, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
BLOCKS = tuple(
    (kernel, stride if index == 0 else 1, expansion, channels)
    for count, kernel, stride, expansion, channels in STAGES
    for index in range(count)
)
LAYERS = {"b2": 24, "b4": 40, "b10": 112, "b15": 320, "pooled": 1280}


def _units() -> tuple[Unit, ...]:
    units, taken = [Unit("stem", (3, 3, 3, 32), "_conv_stem", "_bn0")], 32
    for index, (kernel, _, expansion, given) in enumerate(BLOCKS):
        here, inner = f"_blocks.{index}.", taken * expansion
        if expansion > 1:
            units.append(Unit(f"b{index}_expand", (1, 1, taken, inner), here + "_expand_conv", here + "_bn0"))
        units.append(Unit(f"b{index}_depthwise", (kernel, kernel, 1, inner), here + "_depthwise_conv", here + "_bn1"))
        units.append(Unit(f"b{index}_project", (1, 1, inner, given), here + "_project_conv", here + "_bn2"))
        taken = given
    return (*units, Unit("head", (1, 1, taken, 1280), "_conv_head", "_bn1"))


def _layers(tree: Tree, x: Images) -> dict[str, jax.Array]:
    x = jax.nn.relu6(convolve(x, tree["stem"], stride=2))
    found = {}
    for index, (_, stride, expansion, channels) in enumerate(BLOCKS):
        y = jax.nn.relu6(convolve(x, tree[f"b{index}_expand"])) if expansion > 1 else x
        y = jax.nn.relu6(convolve_depthwise(y, tree[f"b{index}_depthwise"], stride))
        y = convolve(y, tree[f"b{index}_project"])
        x = x + y if stride == 1 and x.shape[-1] == channels else y
        if f"b{index}" in LAYERS:
            found[f"b{index}"] = x
    return {**found, "pooled": jax.nn.relu6(convolve(x, tree["head"])).mean(axis=(1, 2))}


def efficientnet_lite0(input_size: int = 224, antialias: bool = True) -> FeatureExtractor:
    """EfficientNet-Lite0.

    Args:
      input_size: the side that images are resized to, bicubic; 224 is what the weights were trained at. The time goes
        with its square, and so do b10 and b15's places: compare figures of one size only.
      antialias: smooth images that are larger before they shrink.
    """
    if input_size < 32:
        raise ValueError(f"input_size={input_size}: EfficientNet-Lite0 halves the side five times. Use at least 32.")

    def apply(tree: Tree, images: Images) -> dict[str, jax.Array]:
        x = jnp.clip(resized(images, input_size, "cubic", antialias), -1, 1)  # cubic weights overshoot at edges
        return _layers(tree, (127.5 * x + 0.5) / 128)

    return FeatureExtractor("efficientnet_lite0", input_size, dict(LAYERS), "b10", _units(), 1e-3, apply)

r"""VGG16 and AlexNet: convolutions, rectifiers and max pooling, the eyes of LPIPS (Simonyan & Zisserman 2014;
Krizhevsky 2014, in the form of torchvision).

Layers are what stands after a rectifier. VGG16: 'relu1_2' (64 channels, the image's side), 'relu2_2' (128, a half),
'relu3_3' (256), 'relu4_3' (512), 'relu5_3' (512, a sixteenth). AlexNet: 'relu1' (64, a quarter), 'relu2' (192), 'relu3' (384),
'relu4' (256), 'relu5' (256). Images in [-1, 1] are scaled by ImageNet's means and deviations. Files are torchvision's state
dictionaries, in which the convolutions are called features.N; the classifier behind them is left out.
"""

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.models.features.extractor import FeatureExtractor, Images, Tree, Unit, convolve, resized

# ImageNet's means and deviations of values in [0, 1], for values in [-1, 1].
SHIFT, SCALE = np.array([-0.030, -0.088, -0.188], np.float32), np.array([0.458, 0.448, 0.450], np.float32)
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# channels, kernel, stride, padding, and whether a pooling comes before
ALEXNET = (
    (64, 11, 4, 2, False),
    (192, 5, 1, 2, True),
    (384, 3, 1, 1, True),
    (256, 3, 1, 1, False),
    (256, 3, 1, 1, False),
)


def _pool(x: Images, side: int) -> Images:
    """The largest of side x side cells, at every second place."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, side, side, 1), (1, 2, 2, 1), "VALID")


def _prepared(images: Images, size: int) -> Images:
    x = jnp.asarray(images, jnp.float32)
    x = jnp.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x
    return ((resized(x, size, antialias=False) if size else x) - SHIFT) / SCALE


def vgg16(input_size: int = 0) -> FeatureExtractor:
    """VGG16 up to its last rectifier.

    Args:
      input_size: the side that images are resized to, bilinear and without smoothing, as LPIPS does where it resizes; 0 for
        images as they are. At least 16.
    """
    units, place, taken = [], 0, 3
    for stage, widths in enumerate(VGG16, 1):
        for index, given in enumerate(widths, 1):
            units.append(Unit(f"conv{stage}_{index}", (3, 3, taken, given), f"features.{place}"))
            place, taken = place + 2, given  # a convolution and its rectifier
        place += 1  # the pooling
    layers = {f"relu{stage}_{len(widths)}": widths[-1] for stage, widths in enumerate(VGG16, 1)}

    def apply(tree: Tree, images: Images) -> dict[str, jax.Array]:
        x, found = _prepared(images, input_size), {}
        for stage, widths in enumerate(VGG16, 1):
            x = _pool(x, 2) if stage > 1 else x
            for index in range(1, len(widths) + 1):
                x = jax.nn.relu(convolve(x, tree[f"conv{stage}_{index}"]))
            found[f"relu{stage}_{len(widths)}"] = x
        return found

    return FeatureExtractor("vgg16", input_size, layers, "relu4_3", tuple(units), 0.0, apply)


def alexnet(input_size: int = 0) -> FeatureExtractor:
    """AlexNet up to its last rectifier.

    Args:
      input_size: as of `vgg16`; at least 63, or the second pooling has nothing left.
    """
    units, taken, places = [], 3, (0, 3, 6, 8, 10)
    for index, (given, side, *_) in enumerate(ALEXNET, 1):
        units.append(Unit(f"conv{index}", (side, side, taken, given), f"features.{places[index - 1]}"))
        taken = given
    layers = {f"relu{index}": row[0] for index, row in enumerate(ALEXNET, 1)}

    def apply(tree: Tree, images: Images) -> dict[str, jax.Array]:
        x, found = _prepared(images, input_size), {}
        for index, (_, _, stride, padding, pooled) in enumerate(ALEXNET, 1):
            x = _pool(x, 3) if pooled else x
            x = jax.nn.relu(convolve(x, tree[f"conv{index}"], stride, ((padding, padding),) * 2))
            found[f"relu{index}"] = x
        return found

    return FeatureExtractor("alexnet", input_size, layers, "relu5", tuple(units), 0.0, apply)

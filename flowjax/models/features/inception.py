r"""Inception-v3 as it is used for FID: the TensorFlow graph of 2015, which differs from the one of image libraries.
(Szegedy et al. 2015; Heusel et al. 2017)

    to 35 x 35   five convolutions and two max pools; 192 channels
    A x 3        1x1 | 1x1 5x5 | 1x1 3x3 3x3 | average pool 1x1                              288 channels
    B            3x3 / 2 | 1x1 3x3 3x3 / 2 | max pool / 2                                    768 channels, 17 x 17
    C x 4        1x1 | 1x1 1x7 7x1 | 1x1 7x1 1x7 7x1 1x7 | average pool 1x1                  768 channels
    D            1x1 3x3 / 2 | 1x1 1x7 7x1 3x3 / 2 | max pool / 2                            1280 channels, 8 x 8
    E x 2        1x1 | 1x1 (1x3, 3x1) | 1x1 3x3 (1x3, 3x1) | pool 1x1                        2048 channels

Two habits of that graph are kept, because every published FID has them: average pools count real cells only, not the
padding, and the pool of the last E is a maximum. Layers: 'pool1' (64), 'pool2' (192), 'mixed_6e' (768), 'mixed_7c'
(2048) and 'pooled', its average, on which FID is measured. Images in [-1, 1] go in as they are.

The unit names are those of the published weights (a state dictionary "pt_inception-2015-12-05" of 1008 classes).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from flowjax.models.features.extractor import FeatureExtractor, Images, Tree, Unit, convolve, resized

LAYERS = {"pool1": 64, "pool2": 192, "mixed_6e": 768, "mixed_7c": 2048, "pooled": 2048}


def _block_a(taken: int, pool: int) -> dict[str, tuple]:
    return {
        "branch1x1": (1, 1, taken, 64), "branch5x5_1": (1, 1, taken, 48), "branch5x5_2": (5, 5, 48, 64),
        "branch3x3dbl_1": (1, 1, taken, 64), "branch3x3dbl_2": (3, 3, 64, 96), "branch3x3dbl_3": (3, 3, 96, 96),
        "branch_pool": (1, 1, taken, pool),
    }  # fmt: skip


def _block_c(inner: int) -> dict[str, tuple]:
    return {
        "branch1x1": (1, 1, 768, 192), "branch7x7_1": (1, 1, 768, inner), "branch7x7_2": (1, 7, inner, inner),
        "branch7x7_3": (7, 1, inner, 192), "branch7x7dbl_1": (1, 1, 768, inner), "branch7x7dbl_2": (7, 1, inner, inner),
        "branch7x7dbl_3": (1, 7, inner, inner), "branch7x7dbl_4": (7, 1, inner, inner),
        "branch7x7dbl_5": (1, 7, inner, 192), "branch_pool": (1, 1, 768, 192),
    }  # fmt: skip


def _block_e(taken: int) -> dict[str, tuple]:
    return {
        "branch1x1": (1, 1, taken, 320), "branch3x3_1": (1, 1, taken, 384), "branch3x3_2a": (1, 3, 384, 384),
        "branch3x3_2b": (3, 1, 384, 384), "branch3x3dbl_1": (1, 1, taken, 448), "branch3x3dbl_2": (3, 3, 448, 384),
        "branch3x3dbl_3a": (1, 3, 384, 384), "branch3x3dbl_3b": (3, 1, 384, 384), "branch_pool": (1, 1, taken, 192),
    }  # fmt: skip


STEM = {
    "Conv2d_1a_3x3": (3, 3, 3, 32), "Conv2d_2a_3x3": (3, 3, 32, 32), "Conv2d_2b_3x3": (3, 3, 32, 64),
    "Conv2d_3b_1x1": (1, 1, 64, 80), "Conv2d_4a_3x3": (3, 3, 80, 192),
}  # fmt: skip
BLOCKS = {
    "Mixed_5b": _block_a(192, 32), "Mixed_5c": _block_a(256, 64), "Mixed_5d": _block_a(288, 64),
    "Mixed_6a": {
        "branch3x3": (3, 3, 288, 384), "branch3x3dbl_1": (1, 1, 288, 64), "branch3x3dbl_2": (3, 3, 64, 96),
        "branch3x3dbl_3": (3, 3, 96, 96),
    },
    "Mixed_6b": _block_c(128), "Mixed_6c": _block_c(160), "Mixed_6d": _block_c(160), "Mixed_6e": _block_c(192),
    "Mixed_7a": {
        "branch3x3_1": (1, 1, 768, 192), "branch3x3_2": (3, 3, 192, 320), "branch7x7x3_1": (1, 1, 768, 192),
        "branch7x7x3_2": (1, 7, 192, 192), "branch7x7x3_3": (7, 1, 192, 192), "branch7x7x3_4": (3, 3, 192, 192),
    },
    "Mixed_7b": _block_e(1280), "Mixed_7c": _block_e(2048),
}  # fmt: skip


def _units() -> tuple[Unit, ...]:
    kernels = {
        **STEM,
        **{f"{block}.{name}": kernel for block, inner in BLOCKS.items() for name, kernel in inner.items()},
    }
    return tuple(Unit(name, kernel, f"{name}.conv", f"{name}.bn") for name, kernel in kernels.items())


def _max_pool(x: Images, stride: int, padding: str) -> Images:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def _average_pool(x: Images) -> Images:
    """3 x 3 means that count only cells of the image."""
    total = lambda y: jax.lax.reduce_window(y, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


class _Block:
    """The units of one block: `block(x, 'a', 'b')` runs x through a, then b."""

    def __init__(self, tree: Tree, name: str):
        self._units: Mapping = {
            key.rpartition(".")[2]: unit for key, unit in tree.items() if key.startswith(name + ".")
        }

    def __call__(self, x: Images, *names: str, last_stride: int = 1) -> Images:
        for name in names:
            stride = last_stride if name == names[-1] else 1
            x = jax.nn.relu(convolve(x, self._units[name], stride, "VALID" if stride == 2 else "SAME"))
        return x


def _chain(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}_{index}" for index in range(1, count + 1))


def _join(*branches: Images) -> Images:
    return jnp.concatenate(branches, axis=-1)


def _apply_a(block: _Block, x: Images) -> Images:
    return _join(
        block(x, "branch1x1"),
        block(x, *_chain("branch5x5", 2)),
        block(x, *_chain("branch3x3dbl", 3)),
        block(_average_pool(x), "branch_pool"),
    )


def _apply_b(block: _Block, x: Images) -> Images:
    double = block(x, *_chain("branch3x3dbl", 3), last_stride=2)
    return _join(block(x, "branch3x3", last_stride=2), double, _max_pool(x, 2, "VALID"))


def _apply_c(block: _Block, x: Images) -> Images:
    return _join(
        block(x, "branch1x1"),
        block(x, *_chain("branch7x7", 3)),
        block(x, *_chain("branch7x7dbl", 5)),
        block(_average_pool(x), "branch_pool"),
    )


def _apply_d(block: _Block, x: Images) -> Images:
    single = block(x, *_chain("branch3x3", 2), last_stride=2)
    return _join(single, block(x, *_chain("branch7x7x3", 4), last_stride=2), _max_pool(x, 2, "VALID"))


def _apply_e(block: _Block, x: Images, pooled: Images) -> Images:
    single, double = block(x, "branch3x3_1"), block(x, *_chain("branch3x3dbl", 2))
    return _join(
        block(x, "branch1x1"),
        block(single, "branch3x3_2a"),
        block(single, "branch3x3_2b"),
        block(double, "branch3x3dbl_3a"),
        block(double, "branch3x3dbl_3b"),
        block(pooled, "branch_pool"),
    )


def _layers(tree: Tree, x: Images) -> dict[str, jax.Array]:
    found = {}
    stem = lambda x, name, stride=1, padding="VALID": jax.nn.relu(convolve(x, tree[name], stride, padding))
    x = stem(stem(stem(x, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3"), "Conv2d_2b_3x3", padding="SAME")
    found["pool1"] = x = _max_pool(x, 2, "VALID")
    found["pool2"] = x = _max_pool(stem(stem(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"), 2, "VALID")
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = _apply_a(_Block(tree, name), x)
    x = _apply_b(_Block(tree, "Mixed_6a"), x)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = _apply_c(_Block(tree, name), x)
    found["mixed_6e"] = x
    x = _apply_d(_Block(tree, "Mixed_7a"), x)
    x = _apply_e(_Block(tree, "Mixed_7b"), x, _average_pool(x))
    found["mixed_7c"] = x = _apply_e(_Block(tree, "Mixed_7c"), x, _max_pool(x, 1, "SAME"))
    return {**found, "pooled": x.mean(axis=(1, 2))}


def inception_v3(input_size: int = 299, antialias: bool = True) -> FeatureExtractor:
    """Inception-v3, FID's variant.

    Args:
      input_size: the side that images are resized to, bilinear. FID is measured at 299.
      antialias: smooth larger images before they shrink. pytorch-fid does not: with antialias=False this is its
        figure; images that grow come out the same either way.
    """
    if input_size < 75:
        raise ValueError(f"input_size={input_size}: Inception-v3 has no cells left below 75.")

    def apply(tree: Tree, images: Images) -> dict[str, jax.Array]:
        return _layers(tree, resized(images, input_size, "bilinear", antialias))

    return FeatureExtractor("inception_v3", input_size, dict(LAYERS), "pooled", _units(), 1e-3, apply)

"""Feature extractors: structure, folding, resizing, layers. Parity with PyTorch is in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.models import weights
from flowjax.models.features import EXTRACTORS, inception
from flowjax.models.features.extractor import convolve_depthwise, resized
from flowjax.models.torch_files import RefusedFile

NATIVE = {
    "efficientnet_lite0": {"b2": (56, 24), "b4": (28, 40), "b10": (14, 112), "b15": (7, 320)},
    "inception_v3": {"pool1": (73, 64), "pool2": (35, 192), "mixed_6e": (17, 768), "mixed_7c": (8, 2048)},
}
# Published counts of trainable numbers: with the classifier (1280 x 1000; 2048 x 1000 for the usual Inception-v3
# without its second head) and with a scale for every normalised channel, which folding leaves out.
COUNTS = {"efficientnet_lite0": (4_652_008, 1281 * 1000), "inception_v3": (23_834_568, 2049 * 1000)}


@pytest.mark.parametrize("name", sorted(NATIVE))
def test_shapes_of_layers_and_numbers_of_parameters(name):
    extractor = EXTRACTORS[name]()
    tree = jax.eval_shape(extractor.init, jax.random.key(0))
    found = jax.eval_shape(extractor.apply, tree, jax.ShapeDtypeStruct((2, 64, 48, 3), jnp.float32))
    pooled = extractor.channels["pooled"]
    expected = {layer: (2, side, side, channels) for layer, (side, channels) in NATIVE[name].items()}
    assert {layer: value.shape for layer, value in found.items()} == {**expected, "pooled": (2, pooled)}
    assert extractor.channels == {layer: shape[-1] for layer, shape in {**expected, "pooled": (2, pooled)}.items()}
    leaves = jax.tree.leaves(tree)
    total, classifier = COUNTS[name]
    scales = sum(leaf.shape[0] for leaf in leaves if leaf.ndim == 1)
    assert sum(leaf.size for leaf in leaves) + scales == total - classifier


# Sides of the layers for images of 224, and published counts of numbers before the classifier.
PLAIN = {
    "vgg16": ((224, 112, 56, 28, 14), 14_714_688),
    "alexnet": ((55, 27, 13, 13, 13), 2_469_696),
}


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_plain_networks_see_images_as_they_are_or_resized(name):
    (sides, count), extractor = PLAIN[name], EXTRACTORS[name]()
    tree = jax.eval_shape(extractor.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == count
    images = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    native = jax.eval_shape(extractor.apply, tree, images(2, 224, 224, 3))
    shapes = {layer: (2, side, side, c) for side, (layer, c) in zip(sides, extractor.channels.items(), strict=True)}
    assert {layer: value.shape for layer, value in native.items()} == shapes
    wide = jax.eval_shape(extractor.apply, tree, images(2, 64, 128, 1))
    assert all(value.shape[2] > value.shape[1] for value in wide.values())
    resized = jax.eval_shape(EXTRACTORS[name](input_size=224).apply, tree, images(2, 64, 128, 1))
    assert {layer: value.shape for layer, value in resized.items()} == shapes


@pytest.fixture(scope="module")
def small():
    extractor = EXTRACTORS["efficientnet_lite0"](input_size=32)
    tree = extractor.init(jax.random.key(0))
    return extractor, tree, jax.jit(extractor.apply)


def test_random_weights_neither_die_nor_explode_and_layers_are_per_example(small):
    extractor, tree, apply = small
    x = np.random.default_rng(0).uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32)
    found = apply(tree, x)
    for layer, value in found.items():
        assert 0.01 < float(jnp.std(value)) < 100, layer
        assert extractor.vector(found, layer).shape == (4, extractor.channels[layer])
    np.testing.assert_allclose(extractor.vector(found, "b2"), np.mean(found["b2"], (1, 2)), rtol=1e-5)
    again = apply(tree, x[::-1].copy())
    np.testing.assert_allclose(again["pooled"][::-1], found["pooled"], rtol=1e-3, atol=1e-4)


def test_folding_is_the_normalisation_after_the_convolution(small):
    extractor = small[0]
    generator = np.random.default_rng(0)
    tensors = {}
    for unit in extractor.units:
        rows, columns, taken, given = unit.kernel
        tensors[f"{unit.convolution}.weight"] = generator.standard_normal((given, taken, rows, columns), np.float32)
        for part in ("weight", "bias", "running_mean"):
            tensors[f"{unit.norm}.{part}"] = generator.standard_normal(given, np.float32)
        tensors[f"{unit.norm}.running_var"] = generator.uniform(0.2, 2, given).astype(np.float32)
    tree = extractor.fold(tensors)
    unit = next(unit for unit in extractor.units if unit.name == "b1_project")
    x = generator.standard_normal((5, unit.kernel[2]))
    part = lambda name: tensors[f"{unit.norm}.{name}"].astype(np.float64)
    y = x @ tensors[f"{unit.convolution}.weight"][:, :, 0, 0].T
    expected = (y - part("running_mean")) / np.sqrt(part("running_var") + 1e-3) * part("weight") + part("bias")
    np.testing.assert_allclose(
        x @ tree["b1_project"]["kernel"][0, 0] + tree["b1_project"]["bias"], expected, rtol=1e-4, atol=1e-4
    )
    assert jax.tree.map(np.shape, tree) == jax.tree.map(jnp.shape, small[1])

    with pytest.raises(RefusedFile, match="need a tensor '_conv_stem.weight', which the file lacks"):
        extractor.fold({"other": np.zeros(3)})
    tensors["_conv_stem.weight"] = np.zeros((32, 3, 5, 5), np.float32)
    with pytest.raises(RefusedFile, match=r"'_conv_stem.weight' has shape \(32, 3, 5, 5\)"):
        extractor.fold(tensors)


@pytest.mark.parametrize("side, taps, stride", [(8, 3, 1), (8, 3, 2), (7, 3, 2), (9, 5, 2), (8, 5, 2), (3, 5, 1)])
def test_depthwise_convolution_is_the_grouped_one(side, taps, stride):
    x, kernel = (
        jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(2, side, side, 6), (taps, taps, 1, 6)])
    )
    bias = jnp.arange(6.0)
    expected = bias + jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=6
    )
    found = convolve_depthwise(x, {"kernel": kernel, "bias": bias}, stride)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_average_pools_count_the_image_only():
    x = np.random.default_rng(0).standard_normal((1, 4, 5, 2)).astype(np.float32)
    expected = np.zeros_like(x)
    for i in range(4):
        for j in range(5):
            expected[:, i, j] = x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean((1, 2))
    np.testing.assert_allclose(inception._average_pool(x), expected, atol=1e-6)


def test_grey_images_are_repeated_and_shrinking_smooths():
    grey = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 1)).astype(np.float32)
    np.testing.assert_array_equal(resized(grey, 16), np.repeat(grey, 3, -1))
    checks = np.tile(np.float32([[1, -1], [-1, 1]]), (16, 16))[None, :, :, None]
    assert float(jnp.abs(resized(checks, 8)[:, 1:-1, 1:-1]).max()) < 1e-5  # means of as many ones as minus ones
    assert float(jnp.abs(resized(checks, 11, antialias=False)).max()) > 0.5
    with pytest.raises(ValueError, match=r"\[b, h, w, 1 or 3\].*got shape \(2, 4, 4, 2\)"):
        resized(np.zeros((2, 4, 4, 2), np.float32), 8)


def test_too_small_inputs_are_refused():
    with pytest.raises(ValueError, match="input_size=16"):
        EXTRACTORS["efficientnet_lite0"](input_size=16)
    with pytest.raises(ValueError, match="input_size=64"):
        EXTRACTORS["inception_v3"](input_size=64)


def test_weights_are_found_by_name_or_the_message_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWJAX_DATA", str(tmp_path))
    with pytest.raises(weights.MissingWeights, match="prepare efficientnet_lite0"):
        weights.find_weights("efficientnet_lite0")
    with pytest.raises(weights.MissingWeights, match="FID weights"):
        weights.find_weights("inception_v3")
    folder = weights.weights_folder("inception_v3")
    folder.mkdir(parents=True)
    (folder / "readme.txt").write_text("")
    (folder / "w.pth").write_bytes(b"")
    assert weights.find_weights("inception_v3") == folder / "w.pth"
    (folder / "v.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="holds 2 weights files"):
        weights.find_weights("inception_v3")

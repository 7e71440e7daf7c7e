"""LPIPS and feature distances: zero for equal images, the formula by hand, the files of published weights, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.models import perceptual
from flowjax.models.features import EXTRACTORS
from flowjax.models.perceptual import make_perceptual, read_linear

RNG = np.random.default_rng(0)
IMAGES, OTHERS = RNG.uniform(-1, 1, (2, 2, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def lpips():
    made = make_perceptual(dict(name="lpips", network="vgg", weights="random"))
    return made, made.role.init(jax.random.key(0)), jax.jit(made.distance)


def test_lpips_is_zero_for_equal_images_symmetric_and_the_formula_by_hand(lpips):
    _, tree, distance = lpips
    np.testing.assert_array_equal(distance(tree, IMAGES, IMAGES), 0)
    found = distance(tree, IMAGES, OTHERS)
    np.testing.assert_allclose(found, distance(tree, OTHERS, IMAGES), rtol=1e-5)
    eye = EXTRACTORS["vgg16"]()
    expected = np.zeros(2)
    one, other = (jax.jit(eye.apply)(tree["network"], x) for x in (IMAGES, OTHERS))
    for layer, weight in tree["linear"].items():
        unit = [
            np.asarray(m[layer]) / np.linalg.norm(m[layer], axis=-1, keepdims=True).clip(1e-9) for m in (one, other)
        ]
        expected += ((unit[0] - unit[1]) ** 2 @ np.asarray(weight)).mean(axis=(1, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert (np.asarray(found) > 1e-4).all()


def test_its_gradient_is_finite_where_images_are_equal_or_empty(lpips):
    _, tree, distance = lpips
    slope = jax.grad(lambda x: jnp.sum(distance(tree, x, jnp.zeros_like(x))))
    for images in (jnp.zeros((1, 16, 16, 3)), jnp.asarray(IMAGES[:1])):
        assert np.isfinite(slope(images)).all()


def test_grey_images_and_other_sizes(lpips):
    made = make_perceptual(dict(name="lpips", network="alex", weights="random", input_size=64))
    tree = made.role.init(jax.random.key(1))
    grey, other = jnp.asarray(IMAGES[..., :1]), jnp.asarray(OTHERS[..., :1])
    colour = made.distance(tree, jnp.repeat(grey, 3, -1), jnp.repeat(other, 3, -1))
    np.testing.assert_allclose(made.distance(tree, grey, other), colour, rtol=1e-5)
    assert made.label == "LPIPS 0.1 (alex), random weights"


def test_learnt_weights_of_another_network_are_refused(monkeypatch):
    tensors = {f"lin{i}.model.1.weight": np.ones((1, 64, 1, 1), np.float32) for i in range(5)}
    monkeypatch.setattr(perceptual, "read_tensors", lambda path: tensors)
    with pytest.raises(ValueError, match="lin1.model.1.weight.*same network, version 0.1"):
        read_linear(EXTRACTORS["vgg16"](), "weights.pth")


def test_published_weights_that_are_not_there_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("FLOWJAX_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="weights of vgg16 are not in .*torchvision"):
        make_perceptual(dict(name="lpips"))
    with pytest.raises(ValueError, match="Unknown map of efficientnet_lite0 'b5'"):
        make_perceptual(dict(name="features", layers=("b5",), weights="random"))

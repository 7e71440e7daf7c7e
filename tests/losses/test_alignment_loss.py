"""Representation alignment against closed forms: cosines, gradients, grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.losses.alignment import alignment_loss, contrast, on_grid, token_cosine

SHAPE = (3, 2, 4, 5)


def normal(seed, shape=SHAPE):
    return jax.random.normal(jax.random.key(seed), shape)


def test_equal_directions_give_minus_one_opposite_one_and_right_angles_zero():
    tokens = normal(0)
    lengths = jnp.exp(normal(1, (*SHAPE[:3], 1)))
    np.testing.assert_allclose(alignment_loss(tokens, lengths * tokens), -np.ones(3), rtol=1e-6)
    np.testing.assert_allclose(alignment_loss(tokens, -lengths * tokens), np.ones(3), rtol=1e-6)
    pairs = normal(2, (*SHAPE[:3], 2))
    turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1)
    np.testing.assert_allclose(alignment_loss(pairs, turned), np.zeros(3), atol=1e-6)


def test_the_loss_is_the_mean_over_places_of_one_example():
    tokens, features = np.asarray(normal(3), np.float64), np.asarray(normal(4), np.float64)
    norms = np.linalg.norm(tokens, axis=-1) * np.linalg.norm(features, axis=-1)
    expected = -((tokens * features).sum(-1) / norms).reshape(3, -1).mean(-1)
    np.testing.assert_allclose(alignment_loss(jnp.float32(tokens), jnp.float32(features)), expected, rtol=1e-5)


def test_the_gradient_is_the_closed_form_and_stands_at_right_angles_to_the_token():
    tokens, features = normal(5), normal(6)
    gradient = jax.grad(lambda tokens: alignment_loss(tokens, features).sum())(tokens)
    length = jnp.linalg.norm(tokens, axis=-1, keepdims=True)
    unit = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
    cosine = jnp.sum(tokens / length * unit, axis=-1, keepdims=True)
    expected = -(unit - cosine * tokens / length) / length / 8
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(jnp.sum(gradient * tokens, axis=-1), np.zeros(SHAPE[:3]), atol=1e-6)
    # A step against the gradient turns the token towards its feature.
    assert bool(jnp.all(token_cosine(tokens - 0.1 * gradient, features) > token_cosine(tokens, features)))


def test_a_zero_token_has_cosine_zero_and_a_finite_gradient():
    features = normal(7)
    value, gradient = jax.value_and_grad(lambda x: alignment_loss(x, features).sum())(jnp.zeros(SHAPE))
    assert value == 0 and bool(jnp.all(jnp.isfinite(gradient)))


def test_hidden_places_do_not_count():
    tokens, features = normal(8), normal(9)
    visible = jnp.zeros(SHAPE[:3], bool).at[:, 0, :2].set(True).at[2].set(False)
    value = alignment_loss(tokens, features, visible)
    np.testing.assert_allclose(value[:2], alignment_loss(tokens[:2, :1, :2], features[:2, :1, :2]), rtol=1e-6)
    assert value[2] == 0


@pytest.mark.parametrize("rows, columns", [(8, 8), (2, 4), (3, 5)])
def test_a_constant_map_stays_constant_on_every_grid(rows, columns):
    features = jnp.broadcast_to(jnp.array([1.0, -2.0]), (2, 4, 4, 2))
    expected = np.broadcast_to([1.0, -2.0], (2, rows, columns, 2))
    np.testing.assert_allclose(on_grid(features, rows, columns), expected, rtol=1e-6)


def test_a_finer_grid_is_linear_between_centres():
    """Centres of 8 cells on [0, 1] are (i + 1/2) / 8; a ramp is met exactly between the outer centres of the 4."""
    ramp = jnp.broadcast_to((jnp.arange(4.0)[:, None] + 0.5) / 4, (1, 4, 4))[..., None]
    finer = on_grid(ramp, 8, 8)
    expected = np.clip((np.arange(8) + 0.5) / 8, 0.125, 0.875)
    np.testing.assert_allclose(finer[0, :, 3, 0], expected, rtol=1e-6)


def test_a_coarser_grid_averages_with_the_widened_kernel():
    """Halving: the triangle of width 2 cells has the weights 1, 3, 3, 1 eighths, renormalised at the border."""
    row = jnp.array([1.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0])
    coarser = on_grid(jnp.broadcast_to(row, (1, 2, 8))[..., None], 2, 4)
    np.testing.assert_allclose(coarser[0, 0, :, 0], [3 / 7, 0, 2 * 3 / 8, 2 * 1 / 7], rtol=1e-5)


def test_contrast_takes_out_the_mean_over_places():
    features = normal(10) + 5.0
    plain = contrast(features, 1.0)
    np.testing.assert_allclose(jnp.mean(plain, axis=(1, 2)), np.zeros((3, 5)), atol=1e-5)
    np.testing.assert_allclose(jnp.std(plain, axis=(1, 2)), np.ones((3, 5)), rtol=1e-4)
    mean, std = jnp.mean(features, axis=(1, 2)), jnp.std(features, axis=(1, 2))
    np.testing.assert_allclose(jnp.mean(contrast(features, 0.6), axis=(1, 2)), 0.4 * mean / std, rtol=1e-4)

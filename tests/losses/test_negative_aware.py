"""The loss of DiffusionNFT has its minimum at the formula of the page's head, on a mixture whose posteriors are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from flowjax.losses.negative_aware import goodness, negative_aware_loss

MEANS, STD, T = np.array([-1.0, 1.5]), 0.5, 0.6
POINTS = np.linspace(-1.5, 2.0, 8)


def posteriors(x):
    """P(component | x_t) and E[x1 | x_t, component] of an even mixture of two on the linear path, from Bayes' rule."""
    variance = T**2 * STD**2 + (1 - T) ** 2
    weights = norm.pdf(x[:, None], T * MEANS, np.sqrt(variance))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights, MEANS + T * STD**2 / variance * (x[:, None] - T * MEANS)


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_the_minimum_is_guidance_towards_the_good(strength):
    weights, means = posteriors(POINTS)
    old = (weights * means).sum(axis=1)
    # p is 1 for the second component and 0.2 for the first.
    p = np.array([0.2, 1.0])
    mean_p = weights @ p
    good = (weights * means) @ p / mean_p
    expected = old + 2 / strength * mean_p * (good - old)
    draw = np.random.default_rng(0)
    component = (draw.random((len(POINTS), 40_000)) > weights[:, :1]).astype(int)
    spread = np.sqrt(STD**2 * (1 - T) ** 2 / (T**2 * STD**2 + (1 - T) ** 2))
    data = np.take_along_axis(means, component, axis=1) + spread * draw.normal(size=component.shape)

    @jax.jit
    def slope(clean):
        def mean_loss(clean):
            flat = lambda array: jnp.broadcast_to(jnp.asarray(array, jnp.float32), data.shape).reshape(-1, 1)
            good = flat(p[component])[:, 0]
            value, _ = negative_aware_loss(flat(clean[:, None]), flat(old[:, None]), flat(data), good, strength, False)
            return value.reshape(data.shape).mean(axis=1).sum()

        return jax.grad(mean_loss)(clean)

    # A quadratic: its minimum is one step of Newton from anywhere. The second derivative is 2 b (p + 1 - p) b / b = 2 b.
    start = jnp.zeros(len(POINTS))
    found = start - slope(start) / (2 * strength)
    error = 2 / strength * 2.0 / np.sqrt(data.shape[1])  # a posterior is at most two wide
    np.testing.assert_allclose(found, expected, atol=3 * error)


def test_with_adaptive_weights_the_gradient_of_a_sample_does_not_depend_on_how_far_it_is():
    slope = jax.grad(lambda x, d: negative_aware_loss(x, jnp.zeros((1, 3)), d, jnp.ones(1))[0].sum())
    for far in (0.1, 1.0, 100.0):
        # d/dX of mean (X - d)^2 / mean |X - d| at X = 0, where all elements are as far away: -2 / 3.
        np.testing.assert_allclose(slope(jnp.zeros((1, 3)), jnp.full((1, 3), far)), -2 / 3, rtol=1e-5)


def test_at_the_old_policy_a_sample_that_is_neither_good_nor_bad_teaches_nothing():
    x, data = jnp.ones((2, 4)), jnp.arange(8.0).reshape(2, 4)
    loss = lambda clean, p, **options: negative_aware_loss(clean, x, data, p, **options)[0].sum()
    for options in ({}, dict(strength=0.1), dict(adaptive=False)):
        np.testing.assert_allclose(jax.grad(loss)(x, jnp.full(2, 0.5), **options), 0, atol=1e-6)
    # Good ones draw towards the sample, bad ones push away as hard.
    pull = jax.grad(loss)(x, jnp.ones(2), adaptive=False)
    np.testing.assert_allclose(pull, -jax.grad(loss)(x, jnp.zeros(2), adaptive=False), atol=1e-6)
    assert (np.sign(pull) == np.sign(x - data)).all()
    assert negative_aware_loss(x + 2, x, data, jnp.ones(2))[1]["moved"] == pytest.approx(4.0)


def test_no_gradient_reaches_the_old_policy():
    slope = jax.grad(lambda old: negative_aware_loss(jnp.ones((2, 3)), old, jnp.zeros((2, 3)), jnp.ones(2))[0].sum())
    assert not np.any(slope(jnp.full((2, 3), 0.3)))


def test_goodness_by_hand():
    np.testing.assert_allclose(goodness(jnp.array([-9.0, -5.0, 0.0, 2.5, 7.0]), 5.0), [0, 0, 0.5, 0.75, 1])

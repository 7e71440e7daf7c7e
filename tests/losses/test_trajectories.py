"""Distances of end points: the formulas, finite where points meet."""

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.losses.trajectories import pseudo_huber, squared_distance

RNG = np.random.default_rng(0)


def test_distances_are_the_formulas_and_finite_at_zero():
    x, y = jnp.asarray(RNG.normal(size=(2, 5, 3, 2)), jnp.float32)
    square = np.asarray((x - y) ** 2).reshape(5, -1).sum(1)
    np.testing.assert_allclose(squared_distance(x, y), square / 6, rtol=1e-5)
    c = 0.5 * np.sqrt(6)
    np.testing.assert_allclose(pseudo_huber(x, y, 0.5), (np.sqrt(square + c**2) - c) / 6, rtol=1e-5)
    small = pseudo_huber(x, x + 1e-6, 0.5)
    np.testing.assert_allclose(small, 6e-12 / (2 * c * 6), rtol=0.2)  # no cancellation
    gradient = jax.grad(lambda x: pseudo_huber(x, y, 1e-3).sum())(y)
    np.testing.assert_array_equal(gradient, 0)

"""Pairs that a flow connects, against its closed form; distances of end points: the formulas, finite where points meet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.losses.trajectories import matched_pair, pseudo_huber, squared_distance
from flowjax.paths.closed_forms import flow_map
from flowjax.paths.ode import solve
from flowjax.paths.oracles import ring
from flowjax.paths.path import make_path
from flowjax.samplers.field import Field, last_time

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


@pytest.mark.parametrize("prediction", ["velocity", "data"])
@pytest.mark.parametrize("path_name", ["linear", "trigonometric", "vp_cosine"])
def test_real_examples_find_their_noise_whatever_a_teacher_predicts(path_name, prediction):
    """A data prediction fixes no velocity at the clean end, where these pairs begin."""
    path, exact = make_path(path_name), ring(1, 0.7, 0.4)
    noise = jax.random.normal(jax.random.key(0), (64, 2))
    data = exact.means + 0.4 * jax.random.normal(jax.random.key(1), (64, 2))
    field = Field(lambda x, t: exact.prediction(path, prediction, x, t), prediction, path)
    onward = lambda x, t, s: solve(field.velocity, x, t, s, 64, "midpoint")
    backwards = jnp.arange(64) % 2 == 0
    began, sample = matched_pair(path, onward, noise, data, backwards, last_time(path, prediction))
    np.testing.assert_array_equal(sample[::2], data[::2])
    full = lambda t: jnp.full(64, t, jnp.float32)
    start = flow_map(exact, path, data, full(path.end), full(path.start)) / path.sigma(jnp.float32(path.start))
    np.testing.assert_allclose(began[::2], start[::2], atol=0.02)  # the way begins a thousandth before the end
    landed = flow_map(exact, path, path.sigma(jnp.float32(path.start)) * noise, full(path.start), full(path.end))
    np.testing.assert_allclose(sample[1::2], landed[1::2], atol=0.02)  # 64 steps of the midpoint rule

"""Two short jumps make a long one: exactly for exact maps, as an average of velocities on the linear path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.losses.shortcuts import two_jumps
from flowjax.paths.closed_forms import average_velocity, flow_map
from flowjax.paths.flow_maps import jump_target
from flowjax.paths.oracles import gaussian, three_modes_1d
from flowjax.paths.path import make_path

RNG = np.random.default_rng(0)
X, T = RNG.normal(size=(6, 1)), np.linspace(0.05, 0.5, 6)


@pytest.mark.parametrize("prediction", ["velocity", "data"])
@pytest.mark.parametrize("path_name", ["linear", "trigonometric"])
def test_the_exact_map_is_its_own_target(path_name, prediction):
    with jax.enable_x64(True):
        path, mixture = make_path(path_name), gaussian(0.4, 0.5)
        x, t = jnp.asarray(X), jnp.asarray(T)
        exact = lambda x, t, s: jump_target(path, prediction, x, t, flow_map(mixture, path, x, t, s), s)
        found = two_jumps(exact, path, prediction, x, t, t + 0.25, smallest=0.01)
        np.testing.assert_allclose(found, exact(x, t, t + 0.25), rtol=1e-8)


def test_on_the_linear_path_it_is_the_average_of_two_average_velocities():
    with jax.enable_x64(True):
        path, mixture = make_path("linear"), three_modes_1d()
        x, t, d = jnp.asarray(X), jnp.asarray(T), 0.125
        average = lambda x, t, s: average_velocity(mixture, path, x, t, s)
        found = two_jumps(average, path, "velocity", x, t, t + 2 * d, smallest=0.01)
        np.testing.assert_allclose(found, average(x, t, t + 2 * d), atol=1e-6)
        first = average(x, t, t + d)
        np.testing.assert_allclose(found, (first + average(x + d * first, t + d, t + 2 * d)) / 2, atol=1e-9)


def test_the_shortest_halves_are_euler_steps_and_nothing_has_a_gradient():
    path, x, t = make_path("linear"), jnp.asarray(X, jnp.float32), jnp.full(6, 0.25)
    told = []

    def predict(x, t, s):
        told.append(s - t)
        return jnp.cos(x)

    found = two_jumps(predict, path, "velocity", x, t, t + 2 / 128, smallest=1 / 128)
    assert all((gap == 0).all() for gap in told)
    np.testing.assert_allclose(found, (jnp.cos(x) + jnp.cos(x + jnp.cos(x) / 128)) / 2, rtol=1e-4)
    two_jumps(predict, path, "velocity", x, t, t + 4 / 128, smallest=1 / 128)
    np.testing.assert_allclose(told[-1], 2 / 128, rtol=1e-5)
    scaled = lambda scale: jnp.sum(two_jumps(lambda x, t, s: scale * jnp.cos(x), path, "velocity", x, t, t + 0.1, 0.01))
    assert jax.grad(scaled)(1.0) == 0

"""Jumps of a prediction: exact on a pair, the identity at s = t, and moving with the velocity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.paths.closed_forms import average_velocity, flow_map
from flowjax.paths.flow_maps import flow_jump, jump_target, pair_through
from flowjax.paths.oracles import three_modes_1d
from flowjax.paths.path import PATHS, make_path
from flowjax.paths.predictions import PREDICTIONS, convert, target

RNG = np.random.default_rng(0)
NOISE, DATA = RNG.normal(size=(2, 6, 3)).astype(np.float32)


def inside(path, count):
    """Times well inside the path, in float64."""
    return jnp.asarray(path.start + (path.end - path.start) * np.linspace(0.1, 0.9, count))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path_name", PATHS)
def test_a_pair_is_put_where_the_path_has_it(path_name, prediction):
    with jax.enable_x64(True):
        path = make_path(path_name)
        noise, data = jnp.asarray(NOISE, jnp.float64), jnp.asarray(DATA, jnp.float64)
        t = inside(path, 6)
        s = t[::-1]
        x = path.sample(noise, data, t)
        value = target(path, prediction, noise, data, t)
        np.testing.assert_allclose(
            flow_jump(path, prediction, value, x, t, s), path.sample(noise, data, s), rtol=1e-7, atol=1e-7
        )
        np.testing.assert_allclose(flow_jump(path, prediction, value, x, t, t), x, rtol=1e-9, atol=1e-9)
        moved = jax.jvp(lambda s: flow_jump(path, prediction, value, x, t, s), (t,), (jnp.ones_like(t),))[1]
        velocity = convert(path, prediction, "velocity", value, x, t)
        np.testing.assert_allclose(moved, velocity, rtol=1e-6, atol=1e-6)


def test_on_the_linear_path_a_velocity_is_the_average_velocity():
    path, mixture = make_path("linear"), three_modes_1d()
    x = jnp.asarray(RNG.normal(size=(9, 1)), jnp.float32)
    t, s = jnp.linspace(0, 0.8, 9), jnp.linspace(1, 0.2, 9)
    mean = average_velocity(mixture, path, x, t, s)
    jumped = flow_jump(path, "velocity", mean, x, t, s)
    np.testing.assert_allclose(jumped, x + (s - t)[:, None] * mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(jumped, flow_map(mixture, path, x, t, s), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", ["velocity", "data", "v"])
@pytest.mark.parametrize("path_name", PATHS)
def test_two_points_say_which_prediction_and_which_pair_lead_from_one_to_the_other(path_name, prediction):
    with jax.enable_x64(True):
        path = make_path(path_name)
        x, y = jnp.asarray(NOISE, jnp.float64), jnp.asarray(DATA, jnp.float64)
        t = inside(path, 6)
        s = t + 0.05 * (path.end - path.start)
        value = jump_target(path, prediction, x, t, y, s)
        np.testing.assert_allclose(flow_jump(path, prediction, value, x, t, s), y, rtol=1e-7, atol=1e-9)
        noise, data = pair_through(path, x, t, y, s)
        np.testing.assert_allclose(path.sample(noise, data, t), x, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(path.sample(noise, data, s), y, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(target(path, prediction, noise, data, t), value, rtol=1e-6, atol=1e-6)


def test_on_the_linear_path_both_are_the_slope():
    path = make_path("linear")
    x, y = jnp.asarray(NOISE), jnp.asarray(DATA)
    slope = (y - x) / 0.4
    np.testing.assert_allclose(jump_target(path, "velocity", x, 0.3, y, 0.7), slope, rtol=1e-4, atol=1e-5)
    noise, data = pair_through(path, x, 0.3, y, 0.7)
    np.testing.assert_allclose(data - noise, slope, rtol=1e-4, atol=1e-4)

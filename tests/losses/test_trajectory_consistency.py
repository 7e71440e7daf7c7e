"""Soft consistency: no loss at the exact map, gradient through the judge but not into it, the closed form of a Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.losses.trajectories import squared_distance
from flowjax.losses.trajectory_consistency import jump_between, soft_ends
from flowjax.paths.closed_forms import flow_map
from flowjax.paths.flow_maps import jump_target
from flowjax.paths.ode import solve
from flowjax.paths.oracles import gaussian
from flowjax.paths.path import make_path

RNG = np.random.default_rng(0)


def soft_consistency_loss(*arguments):
    return squared_distance(*soft_ends(*arguments))


T = jnp.linspace(0.1, 0.5, 6)


def exact_of(mixture, path, prediction):
    def predict(x, t, s):
        apart = jnp.where(t == s, 0.5 * (path.start + path.end) - 0.25, t)  # any pair of different times will do there
        return jump_target(path, prediction, x, apart, flow_map(mixture, path, x, apart, s), s)

    return predict


@pytest.mark.parametrize("prediction", ["velocity", "data"])
@pytest.mark.parametrize("path_name", ["linear", "edm"])
def test_the_exact_map_has_no_loss(path_name, prediction):
    with jax.enable_x64(True):
        path, mixture = make_path(path_name), gaussian(0.0, 0.5, 2)
        x, t = jnp.asarray(RNG.normal(size=(6, 2))), jnp.asarray(T, jnp.float64)
        s, u = t + 0.4, t + 0.2
        exact = exact_of(mixture, path, prediction)
        if path_name == "edm":  # G = x sqrt((sd^2 + s^2) / (sd^2 + sigma^2))
            level, to = path.sigma(t)[:, None], path.sigma(s)[:, None]
            expected = x * np.sqrt((0.25 + to**2) / (0.25 + level**2))
            np.testing.assert_allclose(jump_between(exact, path, prediction, x, t, s), expected, rtol=1e-8)
        y = solve(lambda x, t: mixture.prediction(path, "velocity", x, t), x, t, u, 200, "rk4")
        loss = soft_consistency_loss(exact, exact, exact, path, prediction, x, t, y, u, s)
        np.testing.assert_allclose(loss, 0, atol=1e-12)
        off = lambda x, t, s: exact(x, t, s) + 0.1
        assert (soft_consistency_loss(off, exact, exact, path, prediction, x, t, y, u, s) > 1e-6).all()


def test_the_gradient_goes_through_the_judge_and_not_through_the_target():
    path, (x, y) = make_path("linear"), jnp.asarray(RNG.normal(size=(2, 6, 2)), jnp.float32)
    u, s = T + 0.1, T + 0.3

    def loss(own, still, slope):
        predict = lambda scale: lambda x, t, s: scale * x
        return jnp.sum(
            soft_consistency_loss(predict(own), predict(still), predict(slope), path, "velocity", x, T, y, u, s)
        )

    assert jax.grad(loss, argnums=1)(0.5, 0.4, 0.3) == 0
    # With a linear judge the gradient of a squared distance is multiplied by the square of its slope 1 + (1 - s) k.
    factor = (1 + (1 - s) * 0.3) ** 2
    moved, kept = x * (1 + 0.3 * 0.5), y * (1 + 0.2 * 0.4)
    expected = jnp.sum(factor[:, None] * (moved - kept) * 0.3 * x)  # 2 / D with D = 2
    np.testing.assert_allclose(jax.grad(loss)(0.5, 0.4, 0.3), expected, rtol=1e-4)


def test_points_at_their_goal_stay():
    path, x = make_path("linear"), jnp.asarray(RNG.normal(size=(2, 2)), jnp.float32)
    end = jnp.ones(2)
    np.testing.assert_array_equal(jump_between(lambda x, t, s: 9 * x, path, "data", x, end, end), x)
    slope = jax.grad(lambda x: jnp.sum(jump_between(lambda x, t, s: x, path, "data", x, end, end)))(x)
    np.testing.assert_array_equal(slope, 1)

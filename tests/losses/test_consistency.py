"""The consistency loss: zero at the exact function, a boundary that holds, targets without gradient, weights as published."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.losses.consistency import consistency_loss, jump_to_end
from flowjax.paths.closed_forms import flow_map
from flowjax.paths.flow_maps import jump_target
from flowjax.paths.ode import solve
from flowjax.paths.oracles import gaussian, three_modes_1d
from flowjax.paths.path import make_path

RNG = np.random.default_rng(0)


def exact(mixture, path, prediction):
    """The prediction whose jump to the end is the exact flow map."""
    end = lambda t: jnp.full_like(t, path.end)
    return lambda x, t: jump_target(path, prediction, x, t, flow_map(mixture, path, x, t, end(t)), end(t))


def points(path, count=10):
    width = path.end - path.start
    ends = np.sort(RNG.uniform(path.start + 0.05 * width, path.end - 0.05 * width, (2, count)), axis=0)
    return jnp.asarray(RNG.normal(size=(count, 1))), jnp.asarray(ends[0]), jnp.asarray(ends[1])


@pytest.mark.parametrize("prediction", ["velocity", "data"])
@pytest.mark.parametrize("path_name", ["linear", "trigonometric", "edm"])
def test_the_exact_function_of_a_gaussian_has_no_loss(path_name, prediction):
    with jax.enable_x64(True):
        path, mixture = make_path(path_name), gaussian(0.0, 0.5)
        x, t, s = points(path)
        y = flow_map(mixture, path, x, t, s)
        predict = exact(mixture, path, prediction)
        loss, _ = consistency_loss(predict, predict, path, prediction, x, t, y, s, "uniform")
        np.testing.assert_allclose(loss, 0, atol=1e-16)
        if path_name == "edm":  # sd x / sqrt(sd^2 + sigma^2), up to the path's last noise of 0.002
            found = jump_to_end(predict, path, prediction, x, t)
            np.testing.assert_allclose(found, 0.5 * x / np.sqrt(0.25 + path.sigma(t)[:, None] ** 2), rtol=1e-4)
        off = lambda x, t: predict(x, t) + 0.1
        assert (consistency_loss(off, predict, path, prediction, x, t, y, s)[0] > 0).all()


def test_a_step_of_the_exact_teacher_leads_along_the_trajectory():
    with jax.enable_x64(True):
        path, mixture = make_path("linear"), three_modes_1d()
        x, t, _ = points(path)
        s = t + 0.02
        y = solve(lambda x, t: mixture.prediction(path, "velocity", x, t), x, t, s, 1, "heun")
        predict = exact(mixture, path, "velocity")
        # Heun's error of one step, h^3, in both ends of the comparison.
        np.testing.assert_allclose(
            jump_to_end(predict, path, "velocity", y, s), jump_to_end(predict, path, "velocity", x, t), atol=3e-3
        )


@pytest.mark.parametrize("prediction", ["velocity", "data"])  # a data prediction determines nothing at t = 1
def test_the_end_of_the_path_stays_put_and_has_finite_gradients(prediction):
    path, x = make_path("linear"), jnp.asarray(RNG.normal(size=(2, 3)), jnp.float32)
    t = jnp.array([1.0, 0.4])
    moved = lambda scale: jump_to_end(lambda x, t: scale * x, path, prediction, x, t)
    np.testing.assert_array_equal(moved(7.0)[0], x[0])
    assert np.isfinite(jax.grad(lambda scale: jnp.sum(moved(scale)))(7.0))


def test_no_gradient_flows_through_the_target_and_weights_are_as_published():
    path, x = make_path("linear"), jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)
    t, s = jnp.full(4, 0.2), jnp.full(4, 0.5)
    y = x + 0.3

    def loss(own, other, weight="uniform"):
        predict = lambda scale: lambda x, t: scale * jnp.sin(x + t[:, None])
        return consistency_loss(predict(own), predict(other), path, "velocity", x, t, y, s, weight)[0]

    assert jax.grad(lambda scale: jnp.sum(loss(1.0, scale)))(0.7) == 0
    assert abs(jax.grad(lambda scale: jnp.sum(loss(scale, 0.7)))(1.0)) > 1e-3
    plain = loss(1.0, 0.7)
    np.testing.assert_allclose(loss(1.0, 0.7, "gap"), plain / 0.3, rtol=1e-5)
    np.testing.assert_allclose(loss(1.0, 0.7, "noise_gap"), plain / (4.0 - 1.0), rtol=1e-5)  # (1 - t) / t

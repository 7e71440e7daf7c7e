"""BOOT against the average velocity in closed form, its rectified-flow formula, and where its gradient flows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.losses.boot import boot_loss, boot_target, boundary_loss
from flowjax.paths.closed_forms import average_velocity, flow_map
from flowjax.paths.flow_maps import jump_target
from flowjax.paths.ode import solve
from flowjax.paths.oracles import gaussian
from flowjax.paths.path import make_path

RNG = np.random.default_rng(0)
EXACT = gaussian(0.7, 0.4, 2)
X = jnp.asarray(RNG.normal(size=(6, 2)), jnp.float32)
S = jnp.linspace(0.1, 0.9, 6)
T = jnp.maximum(S - 0.2, 0.0)


def teacher_step(path):
    velocity = lambda x, t: EXACT.prediction(path, "velocity", x, t)
    return lambda x, t, s: solve(velocity, x, t, s, 8, "rk4")


@pytest.mark.parametrize("prediction", ["velocity", "data"])
@pytest.mark.parametrize("path_name", ["linear", "trigonometric"])
def test_the_exact_flow_map_has_no_loss(path_name, prediction):
    path = make_path(path_name)

    def exact(x, t, s):
        s = jnp.maximum(s, 1e-3)
        return jump_target(path, prediction, x, t, flow_map(EXACT, path, x, t, s), s)

    np.testing.assert_allclose(boot_loss(exact, path, prediction, X, T, S, teacher_step(path)), 0, atol=1e-5)
    wrong = lambda x, t, s: exact(x, t, s) + 0.3 * s[:, None]
    assert (np.asarray(boot_loss(wrong, path, prediction, X, T, S, teacher_step(path))) > 1e-4).all()
    field = EXACT.prediction(path, prediction, X, jnp.zeros(6))
    np.testing.assert_allclose(boundary_loss(exact, path, X, field), 0, atol=1e-4)


def test_on_the_linear_path_it_is_the_average_velocity_and_the_published_target():
    path = make_path("linear")
    student = lambda x, t, s: jnp.sin(x + s[:, None])
    velocity = lambda x, t: EXACT.prediction(path, "velocity", x, t)
    euler = lambda x, t, s: x + (s - t)[:, None] * velocity(x, t)
    before = student(X, 0 * T, T)
    reached = X + T[:, None] * before
    expected = before + ((S - T) / S)[:, None] * (velocity(reached, T) - before)
    found = boot_target(student, path, "velocity", X, T, S, euler)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    average = lambda x, t, s: average_velocity(EXACT, path, x, t, s)
    np.testing.assert_allclose(boot_loss(average, path, "velocity", X, T, S, teacher_step(path)), 0, atol=1e-6)


def test_only_the_jump_to_s_is_moved():
    path, step = make_path("linear"), teacher_step(make_path("linear"))
    student = lambda scale: lambda x, t, s: scale * x * s[:, None]
    loss = lambda scale: jnp.sum(boot_loss(student(scale), path, "velocity", X, T, S, step))
    numbers = boot_target(student(0.4), path, "velocity", X, T, S, step)
    regression = lambda scale: jnp.sum(jnp.mean((student(scale)(X, T, S) - numbers) ** 2, axis=1))
    np.testing.assert_allclose(jax.grad(loss)(0.4), jax.grad(regression)(0.4), rtol=1e-5)
    np.testing.assert_array_equal(
        jax.grad(lambda field: jnp.sum(boundary_loss(student(0.4), path, X, field)))(X), jnp.zeros_like(X)
    )

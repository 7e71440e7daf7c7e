"""Progressive distillation against closed forms: halving after halving, one step becomes 2^k steps of the first teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.losses.progressive import jump_of, landing_loss, two_steps
from flowjax.paths.flow_maps import jump_target
from flowjax.paths.ode import solve
from flowjax.paths.oracles import gaussian
from flowjax.paths.path import make_path

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(6, 2)), jnp.float32)
AT = lambda t: jnp.full(6, t)


def field(path, prediction):
    return lambda x, t: gaussian(0.7, 0.4, 2).prediction(path, prediction, x, t)


def student_of(predict, path, prediction, h):
    """The exact student of a teacher of half its step h."""
    step = jump_of(predict, path, prediction)
    landed = lambda x, t: two_steps(step, x, t, t + h / 2, t + h)
    return lambda x, t: jump_target(path, prediction, x, t, landed(x, t), t + h)


@pytest.mark.parametrize("prediction", ["velocity", "data"])
@pytest.mark.parametrize("path_name", ["linear", "trigonometric"])
def test_three_halvings_are_eight_steps_of_the_first_teacher(path_name, prediction):
    path = make_path(path_name)
    first = predict = field(path, prediction)
    expected, step = X, jump_of(first, path, prediction)
    for index in range(8):
        expected = step(expected, AT(0.2 + 0.075 * index), AT(0.2 + 0.075 * (index + 1)))
    for h in (0.15, 0.3, 0.6):
        predict = student_of(predict, path, prediction, h)
    t, s = AT(0.2), AT(0.8)
    np.testing.assert_allclose(jump_of(predict, path, prediction)(X, t, s), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(landing_loss(predict, path, prediction, X, t, expected, s), 0, atol=1e-6)
    if (path_name, prediction) == ("linear", "velocity"):  # there a step is one of Euler
        np.testing.assert_allclose(expected, solve(first, X, 0.2, 0.8, 8, "euler"), rtol=1e-4, atol=1e-5)


def test_on_the_linear_path_the_target_is_the_mean_of_two_velocities():
    """And the data it points to is x + (1 - t) times that mean."""
    path = make_path("linear")
    velocity, t, h = field(path, "velocity"), AT(0.3), 0.25
    one = velocity(X, t)
    two = velocity(X + 0.5 * h * one, t + 0.5 * h)
    mean = student_of(velocity, path, "velocity", h)(X, t)
    np.testing.assert_allclose(mean, 0.5 * (one + two), rtol=1e-4, atol=1e-5)
    landed = two_steps(jump_of(velocity, path, "velocity"), X, t, t + h / 2, t + h)
    np.testing.assert_allclose(jump_target(path, "data", X, t, landed, t + h), X + 0.7 * mean, rtol=1e-4, atol=1e-4)


def test_the_gradient_is_that_of_a_regression_on_numbers():
    path, t, s = make_path("linear"), AT(0.3), AT(0.6)
    landed = X + 0.1
    loss = lambda scale, landed: jnp.sum(landing_loss(lambda x, t: scale * x, path, "velocity", X, t, landed, s))
    target = 0.1 / 0.3
    expected = jax.grad(lambda scale: jnp.sum((scale * X - target) ** 2) / 2)(0.4)
    np.testing.assert_allclose(jax.grad(loss)(0.4, landed), expected, rtol=1e-4)
    np.testing.assert_array_equal(jax.grad(loss, argnums=1)(0.4, landed), 0)

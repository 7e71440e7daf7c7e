"""The tangent of sCM: nothing at the exact function, the published formula elsewhere, the learnt weight at its minimum."""

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.losses.continuous_consistency import normalised_tangent, tangent_loss
from flowjax.losses.flow_maps import flow_map_tangent
from flowjax.models.uncertainty import LogVariance
from flowjax.paths.closed_forms import flow_map
from flowjax.paths.flow_maps import flow_jump, jump_target
from flowjax.paths.oracles import gaussian
from flowjax.paths.path import make_path

RNG = np.random.default_rng(0)
X, T = RNG.normal(size=(9, 2)), np.linspace(0.05, 0.95, 9)


def test_the_exact_function_has_no_tangent_and_a_wrong_one_is_pulled_to_it():
    with jax.enable_x64(True):
        path, mixture = make_path("trigonometric"), gaussian(0.5, 0.4, 2)
        x, t = jnp.asarray(X), jnp.asarray(T)
        end = jnp.ones_like(t)
        exact = lambda x, t, s: jump_target(path, "velocity", x, t, flow_map(mixture, path, x, t, s), s)
        velocity = mixture.prediction(path, "velocity", x, t)
        tangent = flow_map_tangent(exact, path, "velocity", x, t, end, velocity)
        np.testing.assert_allclose(normalised_tangent(tangent), 0, atol=1e-6)
        # An error that is the same at every time: the tangent points from the wrong value to the right one.
        off = lambda x, t, s: exact(x, t, s) + 0.2
        step = normalised_tangent(flow_map_tangent(off, path, "velocity", x, t, end, velocity), 0.0)
        assert (step < 0).all()


def test_it_is_the_derivative_of_the_consistency_function_along_the_trajectory():
    with jax.enable_x64(True):
        path, (x, velocity) = make_path("trigonometric"), jnp.asarray(RNG.normal(size=(2, 9, 2)))
        t = jnp.asarray(T)
        network = lambda x, t: jnp.sin(2 * x + t[:, None]) + x * t[:, None]
        f = lambda x, t: flow_jump(path, "velocity", network(x, t), x, t, jnp.ones_like(t))
        slope = jax.jvp(f, (x, t), (velocity, jnp.ones_like(t)))[1]
        g = np.cos(0.5 * np.pi * (1 - t))[:, None] * slope
        expected = g / (np.sqrt((g**2).mean(1, keepdims=True)) + 0.1)
        predict = lambda x, t, s: network(x, t)
        tangent = flow_map_tangent(predict, path, "velocity", x, t, jnp.ones_like(t), velocity)
        np.testing.assert_allclose(normalised_tangent(tangent), expected, rtol=1e-9)


def test_the_loss_and_its_learnt_weight():
    value, tangent = jnp.asarray(RNG.normal(size=(2, 4, 3)), jnp.float32)
    plain, metrics = tangent_loss(value, tangent)
    np.testing.assert_allclose(plain, jnp.mean(tangent**2, axis=1), rtol=1e-5)
    gradient = jax.grad(lambda value: jnp.sum(tangent_loss(value, tangent)[0]))(value)
    np.testing.assert_allclose(gradient, -2 * tangent / 3, rtol=1e-4)
    best = jnp.log(plain)
    slope = jax.grad(lambda u: jnp.sum(tangent_loss(value, tangent, u)[0]))(best)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    np.testing.assert_allclose(metrics["error"], plain)
    head = LogVariance()
    np.testing.assert_array_equal(head.apply(head.init(jax.random.key(0), jnp.ones(1)), jnp.linspace(0.0, 1.0, 5)), 0)

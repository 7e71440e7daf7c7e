"""Rollouts sample as the sampler does, and score what they drew: exactly, and under other fields by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.arrays import example_keys, normal_rows
from flowjax.paths.oracles import gaussian, three_modes_1d
from flowjax.paths.path import linear_path
from flowjax.samplers.field import Field
from flowjax.samplers.loop import integrate
from flowjax.samplers.rollouts import actions, roll_out, step_divergences, step_log_probs, step_transitions
from flowjax.samplers.steppers import Heun
from flowjax.samplers.stochastic import DDIM, dance_grpo, flow_grpo

PATH, COUNT = linear_path(), 64
GRID = np.linspace(0, 1, 9)
STEPPERS = {
    "flow_grpo": flow_grpo(),
    "noisy_to_the_end": flow_grpo(last_step="noise"),
    "dance_grpo": dance_grpo(last_step="tweedie"),
    "ddim": DDIM(last_step="mean", eta=0.7),
}


def field_of(mixture):
    return Field(lambda x, t: mixture.prediction(PATH, "velocity", x, t), "velocity", PATH)


def start():
    keys = example_keys(jax.random.key(0), jnp.arange(COUNT))
    return normal_rows(keys, (1,)), example_keys(jax.random.key(1), jnp.arange(COUNT))


@pytest.mark.parametrize("name", STEPPERS)
def test_samples_are_the_samplers_and_densities_those_of_the_draws(name):
    stepper, field, (x, keys) = STEPPERS[name], field_of(three_modes_1d()), start()
    rollout = roll_out(stepper, field, GRID, x, keys)
    expected, trajectory = integrate(stepper, field, GRID, x, keys, outputs=True)
    np.testing.assert_allclose(rollout.samples, expected, atol=1e-6)
    drawn = actions(stepper, GRID)
    assert drawn == 8 - (stepper.last_step != "noise")
    np.testing.assert_allclose(rollout.x, jnp.moveaxis(trajectory["x"][:drawn], 0, 1), atol=1e-6)
    np.testing.assert_allclose(rollout.x_next, jnp.moveaxis(trajectory["x"][1 : drawn + 1], 0, 1), atol=1e-6)
    np.testing.assert_allclose(rollout.clean, trajectory["data"][-1], atol=1e-5)
    again = step_log_probs(step_transitions(stepper, field, GRID, rollout.x), rollout.x_next)
    np.testing.assert_allclose(again, rollout.log_prob, atol=2e-5)  # the ratio is 1 before the first update


def test_densities_by_hand():
    stepper, (x, keys), a = flow_grpo(a=0.7), start(), 0.7
    mean, other = field_of(gaussian(1.5, 0.5)), field_of(gaussian(1.0, 0.5))
    rollout = roll_out(stepper, mean, GRID, x, keys)
    first, second = (step_transitions(stepper, field, GRID, rollout.x) for field in (mean, other))
    found = step_log_probs(second, rollout.x_next)
    for step in range(7):
        t, h, x = GRID[step], 1 / 8, np.asarray(rollout.x[:, step])
        at = jnp.asarray(x), jnp.asarray(t, jnp.float32)
        velocity, right = np.asarray(other.velocity(*at)), np.asarray(mean.velocity(*at))
        # dx = [(1 + a^2/2) v - (a^2/(2t)) x] dt + a sqrt((1-t)/t) dW; at t = 0 the noise is that of the next time, std a
        divisor = t or GRID[1]
        drift = velocity + a**2 / (2 * divisor) * (t * velocity - x)
        std = a * np.sqrt((1 - t) / divisor * h)
        expected = -0.5 * ((rollout.x_next[:, step] - x - h * drift) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))
        np.testing.assert_allclose(found[:, step], expected[:, 0], rtol=1e-3, atol=1e-3)
        gap = h * (1 + a**2 * t / (2 * divisor)) * (right - velocity)
        divergence = step_divergences(first, second)[:, step]
        np.testing.assert_allclose(divergence, gap[:, 0] ** 2 / (2 * std**2), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(step_divergences(first, first), 0)


def test_only_the_window_is_drawn_and_kept():
    stepper, field, (x, keys) = flow_grpo(), field_of(three_modes_1d()), start()
    whole = roll_out(stepper, field, GRID, x, keys)
    windowed = jax.jit(lambda first, keys: roll_out(stepper, field, GRID, x, keys, (first, 2)))
    part = windowed(3, keys)
    assert part.x.shape == (COUNT, 2, 1) and part.log_prob.shape == (COUNT, 2)
    before = integrate(flow_grpo(a=1e-6), field, GRID[:4], x, keys)
    np.testing.assert_allclose(part.x[:, 0], before, atol=1e-4)  # Euler's method up to the window
    other = windowed(3, example_keys(jax.random.key(7), jnp.arange(COUNT)))
    np.testing.assert_array_equal(other.x[:, 0], part.x[:, 0])
    assert (jnp.abs(other.samples - part.samples) > 1e-4).mean() > 0.9
    again = step_log_probs(step_transitions(stepper, field, GRID, part.x, 3), part.x_next)
    np.testing.assert_allclose(again, part.log_prob, atol=2e-5)
    full = roll_out(stepper, field, GRID, x, keys, (0, 7))
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, atol=1e-6), full, whole)


def test_what_has_no_density_is_refused():
    field, (x, keys) = field_of(gaussian()), start()
    with pytest.raises(ValueError, match="Heun does not. Use 'flow_grpo'"):
        roll_out(Heun(), field, GRID, x, keys)
    with pytest.raises(ValueError, match="A window of 8 steps does not lie within the 7 steps"):
        roll_out(flow_grpo(), field, GRID, x, keys, (0, 8))

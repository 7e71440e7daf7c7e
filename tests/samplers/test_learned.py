"""Euler's steps with noise of a learned size: Euler's without it, with it the Gaussians they say, and their entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax.arrays import example_keys, normal_rows
from flowjax.paths.path import linear_path
from flowjax.samplers.field import Field
from flowjax.samplers.learned import LearnedNoise
from flowjax.samplers.loop import integrate
from flowjax.samplers.rollouts import roll_out, step_log_probs, step_transitions
from flowjax.samplers.steppers import Euler
from flowjax.samplers.transition import Transition

FIELD = Field(lambda x, t: jnp.sin(2 * x) + t[:, None], "velocity", linear_path())
GRID = np.linspace(0, 1, 5)
KEYS = example_keys(jax.random.key(0), jnp.arange(32))
X = normal_rows(KEYS, (3,))


def spread(t):
    return (0.1 + 0.2 * t) * (1 + jnp.arange(3)) * jnp.ones((32, 1))


def test_without_noise_it_is_eulers_method():
    still = LearnedNoise(std=lambda t: jnp.zeros((32, 3)))
    np.testing.assert_allclose(
        integrate(still, FIELD, GRID, X, KEYS), integrate(Euler(), FIELD, GRID, X, KEYS), atol=1e-6
    )


def test_a_chain_is_scored_as_it_was_drawn_and_as_scipy_scores_it():
    stepper = LearnedNoise(std=spread)
    chain = roll_out(stepper, FIELD, GRID, X, KEYS)
    assert chain.x.shape == (32, 4, 3)
    np.testing.assert_array_equal(chain.x_next[:, -1], chain.samples)
    steps = step_transitions(stepper, FIELD, GRID, chain.x)
    np.testing.assert_allclose(step_log_probs(steps, chain.x_next), chain.log_prob, atol=1e-5)
    for step, t in enumerate((0.0, 0.25, 0.5, 0.75)):  # never at t = 1
        x = np.asarray(chain.x[:, step], np.float64)
        law = stats.norm(x + 0.25 * (np.sin(2 * x) + t), np.asarray(spread(t), np.float64))
        np.testing.assert_allclose(chain.log_prob[:, step], law.logpdf(chain.x_next[:, step]).sum(axis=1), atol=1e-3)
        entropy = Transition(steps.mean[step], steps.std[step]).entropy()
        np.testing.assert_allclose(entropy, law.entropy().sum(axis=1), rtol=1e-5)


def test_the_entropy_of_one_deviation_for_all_or_for_each():
    mean = jnp.zeros((2, 3))
    expected = 3 * stats.norm(0, 0.5).entropy()
    np.testing.assert_allclose(Transition(mean, jnp.float32(0.5)).entropy(), [expected, expected], rtol=1e-6)
    each = Transition(mean, jnp.array([0.5, 2.0])).entropy("mean")
    np.testing.assert_allclose(each, stats.norm(0, [0.5, 2.0]).entropy(), rtol=1e-6)


def test_means_are_kept_within_the_limit():
    chain = step_transitions(LearnedNoise(std=spread, limit=0.5), FIELD, GRID, jnp.stack([X, 3 * X, X, X], axis=1))
    assert np.abs(chain.mean).max() == pytest.approx(0.5)

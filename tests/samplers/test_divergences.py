"""The divergence along paths is the closed-form divergence of tilted mixtures, on every path whose noise end is noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.paths.closed_forms import distance_reward, linear_reward, tilt
from flowjax.paths.oracles import gaussian, ring
from flowjax.paths.path import PATHS
from flowjax.samplers.divergences import memoryless_rate, path_divergence
from flowjax.samplers.field import Field


def exact(mixture, path):
    return Field(lambda x, t: mixture.prediction(path, "velocity", x, t), "velocity", path)


def test_on_the_linear_path_the_rate_is_noise_over_data():
    t = jnp.linspace(0.05, 1.0, 9)
    np.testing.assert_allclose(memoryless_rate(PATHS["linear"](), t), (1 - t) / t, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "trigonometric"])
def test_a_gaussian_that_was_moved(name):
    """Moving the mean by d is a tilt, and costs d^2 / 2 S whatever the sample."""
    path, std, d = PATHS[name](), 0.5, 0.7
    field, reference = exact(gaussian(d, std), path), exact(gaussian(0.0, std), path)
    _, found = jax.jit(lambda x: path_divergence(field, reference, np.linspace(0, 1, 129), x))(jnp.ones((3, 1)))
    np.testing.assert_allclose(found, d**2 / 2 / std**2, rtol=2e-3)


@pytest.mark.parametrize("reward", [linear_reward(jnp.array([1.0, 0.5])), distance_reward(jnp.array([1.0, 1.0]))])
def test_a_tilted_mixture(reward):
    path, mixture = PATHS["linear"](), ring(4, 1.0, 0.4, "uneven")
    tilted = tilt(mixture, reward, beta=0.8)
    x = jax.random.normal(jax.random.key(0), (4096, 2))
    run = jax.jit(
        lambda x: path_divergence(exact(tilted.mixture, path), exact(mixture, path), np.linspace(0, 1, 65), x)
    )
    samples, found = run(x)
    assert float(reward(samples).mean()) == pytest.approx(float(tilted.expected_reward), abs=0.06)
    error = float(found.std()) / np.sqrt(len(x))
    assert float(found.mean()) == pytest.approx(float(tilted.kl), abs=4 * error + 0.01 * float(tilted.kl))
    same = path_divergence(exact(mixture, path), exact(mixture, path), np.linspace(0, 1, 3), x[:2])[1]
    assert not same.any()

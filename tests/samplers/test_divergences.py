"""The divergence along paths is the closed-form divergence of tilted mixtures, on every path whose noise end is noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.paths.closed_forms import distance_reward, linear_reward, tilt
from flowjax.paths.oracles import gaussian, ring
from flowjax.paths.path import PATHS
from flowjax.samplers.divergences import likelihood_divergence, memoryless_rate, path_divergence
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
    exact_divergence = jax.jit(
        lambda samples: likelihood_divergence(
            exact(tilted.mixture, path), exact(mixture, path), np.linspace(0, 1, 17), samples
        )
    )(tilted.mixture.sample(jax.random.key(1), 4096))
    error = float(exact_divergence.std()) / np.sqrt(len(x))
    assert float(exact_divergence.mean()) == pytest.approx(float(tilted.kl), abs=4 * error)
    same = path_divergence(exact(mixture, path), exact(mixture, path), np.linspace(0, 1, 3), x[:2])[1]
    assert not same.any()


def test_a_push_near_the_noise_end_is_cheap_along_the_path_and_not_by_likelihood():
    """A push that falls as 1 / t moves what the ODE draws, and the SDE, which forgets its noise, is hardly charged for it."""
    path, std = PATHS["linear"](), 0.5
    grid = np.concatenate([[0.0], np.geomspace(0.002, 1.0, 96)])
    mixture = gaussian(0.0, std)
    strength = lambda t: jnp.where((t > 0.002) & (t < 0.2), 0.13 / jnp.maximum(t, 1e-6), 0.0)
    push = lambda x, t: mixture.prediction(path, "velocity", x, t) + strength(t)[:, None]
    pushed, reference = Field(push, "velocity", path), exact(mixture, path)
    noise = jax.random.normal(jax.random.key(0), (512, 1))
    samples, along = jax.jit(lambda x: path_divergence(pushed, reference, grid, x))(noise)
    shift = float(jnp.mean(samples - path_divergence(reference, reference, grid, noise)[0]))
    found = jax.jit(lambda x: likelihood_divergence(pushed, reference, grid, x))(samples)
    # The push is the same everywhere and the flow is affine: what is drawn is a Gaussian that was moved.
    assert float(found.mean()) == pytest.approx(shift**2 / 2 / std**2, abs=4 * float(found.std()) / np.sqrt(512))
    assert float(along.mean()) < 0.6 * shift**2 / 2 / std**2


def test_an_estimate_with_probes_is_unbiased():
    path, mixture = PATHS["linear"](), ring(3, 1.0, 0.4)
    moved = Field(lambda x, t: mixture.prediction(path, "velocity", x, t) + jnp.sin(3 * x[:, ::-1]), "velocity", path)
    samples = jax.random.normal(jax.random.key(0), (1, 2))
    run = lambda keys, probes, x: likelihood_divergence(
        moved, exact(mixture, path), np.linspace(0, 1, 9), x, keys, probes
    )
    one = run(None, None, samples)
    many = run(jax.random.split(jax.random.key(2), 2048), 1, jnp.broadcast_to(samples, (2048, 2)))
    assert float(many.std()) > 0.01
    assert float(many.mean()) == pytest.approx(float(one[0]), abs=4 * float(many.std()) / np.sqrt(2048))

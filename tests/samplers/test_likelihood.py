"""Likelihood and inversion on distributions whose density and flow are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax.paths.noises import pfgmpp
from flowjax.paths.oracles import GaussianMixture
from flowjax.paths.path import make_path
from flowjax.samplers.adaptive import dopri5
from flowjax.samplers.field import Field
from flowjax.samplers.inversion import invert
from flowjax.samplers.likelihood import adaptive_log_likelihood, bits_per_dim, log_likelihood
from flowjax.samplers.loop import integrate
from flowjax.samplers.steppers import Euler, Heun, RungeKutta4

MIXTURE = GaussianMixture(jnp.asarray([0.4, 0.6]), jnp.asarray([[-1.0, 0.5], [1.0, -0.3]]), jnp.asarray([0.5, 0.7]))
X = jnp.asarray([[-1.2, 0.4], [0.0, 0.0], [1.5, -1.0]])


def field_of(path):
    return Field(lambda x, t: MIXTURE.prediction(path, "velocity", x, t), "velocity", path)


@pytest.mark.parametrize("path_name", ["linear", "trigonometric", "vp"])
def test_exact_likelihood(path_name):
    path = make_path(path_name)
    grid = np.linspace(path.start, path.end, 201)
    got, _ = log_likelihood(field_of(path), X, grid)
    # The prior neglects alpha(start) x1, which is 0.0066 x1 on the vp path.
    tolerance = 1e-3 + float(path.alpha(jnp.float32(path.start)))
    np.testing.assert_allclose(got, MIXTURE.log_density(path, X, path.end), atol=tolerance)


def test_adaptive_likelihood():
    path = make_path("linear")
    got, _ = adaptive_log_likelihood(dopri5(1e-6, 1e-6), lambda c: field_of(path), X, 0.0, 1.0)
    np.testing.assert_allclose(got, MIXTURE.log_density(path, X, 1.0), atol=1e-3)


def test_likelihood_with_heavy_tailed_noise():
    """Two points seen through PFGM++ noise: at t = 0.8 the density is a mixture of two Student t laws (scipy's)."""
    path, end, dimensions = make_path("linear"), 0.8, 3.0
    points = jnp.asarray([[-1.0, 0.5], [1.0, -0.3]])

    def velocity(x, t):
        noise = (x[:, None] - t[:, None, None] * points) / (1 - t[:, None, None])
        kernel = (1 + jnp.sum(noise**2, -1) / dimensions) ** (-(dimensions + 2) / 2)
        return jnp.einsum("bk,bkd->bd", kernel / kernel.sum(1, keepdims=True), points - noise)

    field, grid = Field(velocity, "velocity", path), np.linspace(0, end, 161)
    law = stats.multivariate_t(np.zeros(2), 0.2**2 * np.eye(2), dimensions)
    expected = np.log(np.mean([law.pdf(np.asarray(X - end * point, np.float64)) for point in points], axis=0))
    got, noise = log_likelihood(field, X, grid, law=pfgmpp(dimensions))
    np.testing.assert_allclose(got, expected, atol=2e-3)
    adaptive, _ = adaptive_log_likelihood(dopri5(1e-6, 1e-6), lambda c: field, X, 0.0, end, law=pfgmpp(dimensions))
    np.testing.assert_allclose(adaptive, expected, atol=2e-3)
    # A Gaussian prior would be wrong by far more than the tolerance.
    gap = stats.norm.logpdf(noise).sum(1) - stats.multivariate_t(np.zeros(2), np.eye(2), dimensions).logpdf(noise)
    assert np.abs(gap).min() > 0.02


def test_hutchinson_is_unbiased():
    path, count = make_path("linear"), 2000
    x = jnp.broadcast_to(X[:1], (count, 2))
    keys = jax.random.split(jax.random.key(0), count)
    got, _ = log_likelihood(field_of(path), x, np.linspace(0, 1, 41), keys, probes=1)
    got, exact = np.asarray(got), float(MIXTURE.log_density(path, X[:1], 1.0)[0])
    assert got.std() > 1e-3  # the probes differ
    assert abs(got.mean() - exact) < 4 * got.std() / np.sqrt(count) + 1e-4


def test_bits_per_dim_of_uniform_data():
    """Uniform density on [-1, 1]^d is 8 bits for 256 levels."""
    size = 12
    np.testing.assert_allclose(bits_per_dim(jnp.full((1,), -size * np.log(2.0)), size), 8.0, rtol=1e-6)


def test_inversion_finds_the_noise_of_a_gaussian():
    """The flow of N(m, s^2 I) is x_t = t m + std_t x0: inverting data gives (x1 - m)/s."""
    oracle = GaussianMixture(jnp.ones(1), jnp.asarray([[0.5, -0.2]]), jnp.asarray([0.4]))
    path = make_path("linear")
    field = Field(lambda x, t: oracle.prediction(path, "velocity", x, t), "velocity", path)
    got = invert(RungeKutta4(), field, np.linspace(0, 1, 101), X)
    np.testing.assert_allclose(got, (X - oracle.means) / 0.4, atol=2e-3)


@pytest.mark.parametrize("stepper, order", [(Euler(), 1), (Heun(), 2)])
def test_round_trip_closes_at_the_order(stepper, order):
    path = make_path("linear")
    keys = jax.random.split(jax.random.key(0), len(X))
    errors = []
    for steps in (40, 80):
        grid = np.linspace(0, 1, steps + 1)
        noise = invert(stepper, field_of(path), grid, X)
        errors.append(float(jnp.abs(integrate(stepper, field_of(path), grid, noise, keys) - X).mean()))
    assert np.log2(errors[0] / errors[1]) > order - 0.3
    assert errors[1] < 0.1


def test_inversion_refuses_undetermined_ends():
    path = make_path("linear")
    field = Field(lambda x, t: MIXTURE.prediction(path, "data", x, t), "data", path)
    with pytest.raises(ValueError, match="end=0.999"):
        invert(Euler(), field, np.linspace(0, 1, 5), X)

"""PFGM++ noise against its definition (1), which the code does not use, and against scipy's multivariate t."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax.arrays import example_keys
from flowjax.paths.noises import NOISES, gaussian, pfgmpp, pfgmpp_radius

KEYS = example_keys(jax.random.key(0), jnp.arange(4096))
CRITICAL = 1.63 / 64  # Kolmogorov-Smirnov, 4096 draws, 1%


def radii(noise, shape=(2, 3)):
    x = np.asarray(noise.sample(KEYS, shape), np.float64).reshape(len(KEYS), -1)
    return x, np.linalg.norm(x, axis=1)


@pytest.mark.parametrize("dimensions", [1, 5, 128, 2048, 1_000_000])
def test_radius_and_direction(dimensions):
    """|n|^2 / D = B / (1 - B) with B ~ Beta(N/2, D/2), that is |n|^2 / N ~ F(N, D); the direction is uniform."""
    x, radius = radii(pfgmpp(dimensions))
    assert stats.kstest(radius**2 / 6, stats.f(6, dimensions).cdf).statistic < CRITICAL
    b = radius**2 / (radius**2 + dimensions)
    assert stats.kstest(b, stats.beta(3, dimensions / 2).cdf).statistic < CRITICAL
    # A coordinate c of a uniform direction in N dimensions has (c + 1) / 2 ~ Beta((N - 1)/2, (N - 1)/2).
    assert stats.kstest((x[:, 0] / radius + 1) / 2, stats.beta(2.5, 2.5).cdf).statistic < CRITICAL


def test_many_dimensions_in_float32():
    """N = 3072 and D = 10^6: the radius has a spread of 1.3%, and float32 must resolve it."""
    keys = KEYS[:1024]
    x = np.asarray(pfgmpp(1_000_000).sample(keys, (3072,)), np.float64)
    assert stats.kstest(np.sum(x**2, axis=1) / 3072, stats.f(3072, 1_000_000).cdf).statistic < 1.63 / 32


def test_large_dimensions_are_gaussian():
    x, _ = radii(pfgmpp(1_000_000))
    assert stats.kstest(x[:, 0], stats.norm.cdf).statistic < CRITICAL
    points = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)
    np.testing.assert_allclose(pfgmpp(1e6).log_density(points), gaussian().log_density(points), atol=1e-4)


@pytest.mark.parametrize("dimensions", [1, 3.5, 128, 1_000_000])
def test_log_density_is_the_multivariate_t(dimensions):
    points = np.random.default_rng(1).normal(size=(7, 2, 3)).astype(np.float32) * 3
    expected = stats.multivariate_t(np.zeros(6), np.eye(6), dimensions).logpdf(points.reshape(7, 6).astype(np.float64))
    np.testing.assert_allclose(pfgmpp(dimensions).log_density(jnp.asarray(points)), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("noise", [gaussian(), pfgmpp(5.0), pfgmpp(1.0)], ids=["gaussian", "5", "1"])
def test_log_density_integrates_to_one(noise):
    """On the line, with x = tan(w) so that the tails of the Cauchy law (D = 1) are inside."""
    w = (np.arange(20_000) + 0.5) / 20_000 * np.pi - np.pi / 2
    density = np.exp(np.asarray(noise.log_density(jnp.asarray(np.tan(w), jnp.float32)[:, None]), np.float64))
    assert np.sum(density / np.cos(w) ** 2) * np.pi / 20_000 == pytest.approx(1.0, abs=1e-4)


def test_variance():
    noise = pfgmpp(12)
    x, _ = radii(noise)
    assert noise.variance == 1.2
    assert np.mean(x**2) == pytest.approx(1.2, rel=0.04)
    assert gaussian().variance == 1.0 and pfgmpp(2).variance == np.inf


def test_clip_bounds_the_radius_and_leaves_the_rest():
    dimensions, clip = 8, 0.2
    exact, clipped = radii(pfgmpp(dimensions))[0], radii(pfgmpp(dimensions, clip))[0]
    b = lambda x: np.sum(x**2, axis=1) / (np.sum(x**2, axis=1) + dimensions)
    np.testing.assert_allclose(b(clipped), np.clip(b(exact), clip, 1 - clip), rtol=1e-5)
    assert np.mean(b(exact) < clip) > 0.01  # the clip did something
    with pytest.raises(ValueError, match="no density"):
        pfgmpp(dimensions, clip).log_density(jnp.ones((1, 2)))


def test_radius_alignment():
    """x = x1 + R u at r = sigma sqrt(D) and x = x1 + sigma n have the same radii: sigma is a factor of both."""
    _, radius = radii(pfgmpp(128))
    r = pfgmpp_radius(3.0, 128)
    assert r == pytest.approx(3 * np.sqrt(128))
    b = stats.beta(3, 64).rvs(4096, random_state=0)
    assert stats.ks_2samp(3.0 * radius, r * np.sqrt(b / (1 - b))).pvalue > 0.01


@pytest.mark.parametrize("name, options", [("gaussian", {}), ("pfgmpp", dict(dimensions=16))])
def test_a_draw_depends_on_its_own_key_alone(name, options):
    noise = NOISES[name](**options)
    np.testing.assert_array_equal(noise.sample(KEYS[:8], (3,))[4:], noise.sample(KEYS[4:8], (3,)))


def test_refusals():
    with pytest.raises(ValueError, match="positive number"):
        pfgmpp(0)
    with pytest.raises(ValueError, match="clip=0.7"):
        pfgmpp(8, clip=0.7)

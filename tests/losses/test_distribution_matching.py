"""Distribution matching against closed forms: with exact denoisers of Gaussians its gradient is that of a KL divergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.losses.distribution_matching import (
    DIVERGENCES,
    divergence_weight,
    kl_weight,
    matching_loss,
    posterior_scale,
    score_identity_loss,
)
from flowjax.paths.oracles import GaussianMixture, gaussian
from flowjax.paths.path import make_path

COUNT = 200_000
MEAN, STD = 0.4, 0.7  # of the data


def normals(seed):
    """Antithetic unit normals [COUNT, 1]: odd moments are exact."""
    half = jax.random.normal(jax.random.key(seed), (COUNT // 2, 1))
    return jnp.concatenate([half, -half])


def exact(path, mean, std, y, t):
    return GaussianMixture(jnp.ones(1), jnp.reshape(mean, (1, 1)), jnp.reshape(std, (1,))).prediction(
        path, "data", y, t
    )


def kl(path, t, theta):
    """KL(q_t | p_t) of two Gaussians on the line, with q of mean theta[0] and log-std theta[1]."""
    alpha, sigma = path.alpha(jnp.asarray(t)), path.sigma(jnp.asarray(t))
    own = alpha**2 * jnp.exp(2 * theta[1]) + sigma**2
    data = alpha**2 * STD**2 + sigma**2
    shift = alpha * (theta[0] - MEAN)
    return 0.5 * (own / data + shift**2 / data - 1 - jnp.log(own / data))


@pytest.mark.parametrize("path_name, t", [("linear", 0.3), ("linear", 0.7), ("vp_cosine", 0.5)])
def test_the_expected_gradient_is_that_of_the_divergence(path_name, t):
    path, theta = make_path(path_name), jnp.array([-0.2, 0.3])
    z, noise, times = normals(0), normals(1)[::-1], jnp.full(COUNT, t)

    def objective(theta):
        x = theta[0] + jnp.exp(theta[1]) * z
        y = path.sample(noise, jax.lax.stop_gradient(x), times)
        now = jax.lax.stop_gradient(theta)
        fake, real = (exact(path, *moments, y, times) for moments in ((now[0], jnp.exp(now[1])), (MEAN, STD)))
        weight = kl_weight(path, times)
        return matching_loss(x, fake, real, scale=jnp.ones(COUNT), weight=weight)[0].mean()

    np.testing.assert_allclose(jax.grad(objective)(theta), jax.grad(lambda p: kl(path, t, p))(theta), rtol=0.03)


def test_a_generator_above_its_target_is_pulled_down():
    path, t = make_path("linear"), jnp.full(4, 0.5)
    x = jnp.array([[1.0], [1.5], [2.0], [2.5]])
    y = path.sample(jnp.zeros((4, 1)), x, t)
    fake, real = exact(path, jnp.array(2.0), jnp.array(STD), y, t), gaussian(0.0, STD).prediction(path, "data", y, t)
    slope = jax.grad(lambda x: matching_loss(x, fake, real)[0].sum())(x)
    assert (np.asarray(slope) > 0).all()


def test_the_gradient_is_the_normalised_difference_and_nothing_else():
    x, fake, real = (jax.random.normal(key, (5, 3)) for key in jax.random.split(jax.random.key(0), 3))
    weight = jnp.linspace(0.5, 2.0, 5)
    slopes = jax.grad(lambda *a: matching_loss(*a[:3], weight=a[3])[0].sum(), argnums=(0, 1, 2, 3))(
        x, fake, real, weight
    )
    scale = np.abs(np.asarray(x - real)).mean(axis=1)
    np.testing.assert_allclose(slopes[0], (fake - real) * (weight / scale)[:, None] / 3, rtol=1e-4)
    for other in slopes[1:]:
        np.testing.assert_array_equal(other, 0)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_the_score_identity_at_the_right_denoiser(alpha):
    """E L = (1 - a) E|r - f|^2; and by default L is taken over mean |x - r|."""
    path, t, own = make_path("linear"), 0.6, (jnp.array(-0.5), jnp.array(1.1))
    x, times = own[0] + own[1] * normals(0), jnp.full(COUNT, t)
    y = path.sample(normals(1)[::-1], x, times)
    fake, real = exact(path, *own, y, times), exact(path, jnp.array(MEAN), jnp.array(STD), y, times)
    product, _ = score_identity_loss(x, fake, real, alpha, scale=jnp.ones(COUNT))
    few = [array[:50] for array in (x, fake, real)]
    np.testing.assert_allclose(score_identity_loss(*few, alpha)[0], product[:50] / jnp.abs(x - real)[:50, 0], rtol=1e-3)
    expected = (1 - alpha) * jnp.mean((real - fake) ** 2)
    tolerance = 4 * float(product.std()) / np.sqrt(COUNT)
    assert abs(float(product.mean() - expected)) < tolerance < 0.01
    if alpha > 1:
        assert float(product.mean()) < 0


@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_the_score_identity_has_the_gradient_of_the_toy_problem(alpha):
    path, t, theta, std = make_path("linear"), 0.6, 0.8, 0.7
    z, noise, times = normals(0)[:1000], normals(1)[1000:2000], jnp.full(1000, t)

    def objective(mean):
        x = mean + std * z
        y = path.sample(noise, x, times)
        fake = exact(path, jnp.array(theta), jnp.array(std), y, times)  # right for theta, and frozen
        real = exact(path, jnp.array(0.0), jnp.array(std), y, times)
        return jnp.mean(score_identity_loss(x, fake, real, alpha, scale=jnp.ones(1000))[0])

    c = (1 - t) ** 2 / (t**2 * std**2 + (1 - t) ** 2)
    np.testing.assert_allclose(jax.grad(objective)(theta), c**2 * theta, rtol=1e-3)


def test_the_score_identity_is_differentiated_through_the_noised_point():
    """Denoisers that read y alone pass a gradient on; for matching they pass none."""
    path, t = make_path("linear"), jnp.full(3, 0.5)
    x, noise = jnp.array([[0.5], [1.0], [-1.0]]), jnp.array([[0.1], [-0.3], [0.2]])

    def both(loss):
        def through(shift):  # moves y, not x
            y = path.sample(noise, x + shift, t)
            fake, real = exact(path, jnp.array(0.3), jnp.array(1.2), y, t), gaussian(0.0, STD)
            return loss(x, fake, real.prediction(path, "data", y, t))[0].sum()

        return float(jax.grad(through)(0.0))

    assert abs(both(score_identity_loss)) > 1e-2
    assert both(matching_loss) == 0.0


@pytest.mark.parametrize("t", [0.2, 0.8])
def test_the_scale_of_gaussian_data_is_the_deviation_of_the_posterior(t):
    path, law = make_path("linear"), gaussian(0.0, STD)
    times = jnp.full(1, t)
    variance = law.posterior_variance(path, jnp.zeros((1, 1)), times, prediction="data")
    np.testing.assert_allclose(posterior_scale(path, times, STD), np.sqrt(variance), rtol=1e-5)


def test_divergences_by_hand():
    log_ratio = jnp.array([-1.0, 0.0, 2.0, 50.0])
    ratio = np.exp(np.minimum(np.asarray(log_ratio), 3.0))
    expected = dict(reverse_kl=np.ones(4), forward_kl=ratio, jensen_shannon=ratio / (1 + ratio))
    assert set(expected) == set(DIVERGENCES)
    for name, value in expected.items():
        np.testing.assert_allclose(divergence_weight(name, log_ratio), value, rtol=1e-5)
    with pytest.raises(ValueError, match="Unknown divergence 'forward_k'"):
        divergence_weight("forward_k", log_ratio)


def test_forward_kl_has_the_gradient_of_the_forward_divergence():
    """Equation (5) on the line: weights rho turn KL(q | p) into KL(p | q)."""
    path, t, theta = make_path("linear"), 0.5, jnp.array([0.1, -0.2])
    z, noise, times = normals(0), normals(1)[::-1], jnp.full(COUNT, t)
    law = lambda mean, std: GaussianMixture(jnp.ones(1), jnp.reshape(mean, (1, 1)), jnp.reshape(std, (1,)))

    def objective(theta):
        x = theta[0] + jnp.exp(theta[1]) * z
        y = path.sample(noise, jax.lax.stop_gradient(x), times)
        now = jax.lax.stop_gradient(theta)
        own, data = law(now[0], jnp.exp(now[1])), law(jnp.array(MEAN), jnp.array(STD))
        log_ratio = data.log_density(path, y, times) - own.log_density(path, y, times)
        weight = kl_weight(path, times) * divergence_weight("forward_kl", log_ratio, largest=30.0)
        means = (m.prediction(path, "data", y, times) for m in (own, data))
        return matching_loss(x, *means, scale=jnp.ones(COUNT), weight=weight)[0].mean()

    def forward(theta):
        own = (t * jnp.exp(theta[1])) ** 2 + (1 - t) ** 2
        data, shift = (t * STD) ** 2 + (1 - t) ** 2, t * (theta[0] - MEAN)
        return 0.5 * (data / own + shift**2 / own - 1 - jnp.log(data / own))

    np.testing.assert_allclose(jax.grad(objective)(theta), jax.grad(forward)(theta), rtol=0.05)

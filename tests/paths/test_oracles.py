"""The oracles against brute force: quadrature on the line, autodiff, the continuity equation and random draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.paths import oracles
from flowjax.paths.path import PATHS, GaussianPath, make_path
from flowjax.paths.predictions import PREDICTIONS, target

MIXTURES = {
    "three_modes_1d": oracles.three_modes_1d(),
    "eight_modes": oracles.eight_modes(num_classes=2),
    "diagonal": oracles.GaussianMixture(
        jnp.array([0.6, 0.4]), jnp.array([[-1.0, 0.5], [0.8, 0.2]]), jnp.array([[0.3, 0.9], [1.2, 0.1]])
    ),
}
LINEAR = make_path("linear")


def points(mixture: oracles.GaussianMixture, path: GaussianPath, t: float, count: int = 40):
    key_data, key_noise = jax.random.split(jax.random.key(3))
    data = mixture.sample(key_data, count)
    noise = jax.random.normal(key_noise, data.shape)
    return path.sample(noise, data, jnp.full(count, t))


def compiled(function, *arrays):
    """function(*arrays) as one program: dispatched one by one, each operation would be compiled on its own."""
    return jax.jit(function)(*arrays)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("path_name", ["linear", "vp", "edm"])
def test_score_is_the_gradient_of_the_log_density(name: str, path_name: str):
    mixture, path, t = MIXTURES[name], make_path(path_name), 0.6
    x = points(mixture, path, t)

    def scores(x):
        gradient = jax.vmap(jax.grad(lambda row: mixture.log_density(path, row[None], t)[0]))(x)
        return gradient, mixture.score(path, x, t), mixture.prediction(path, "score", x, t)

    gradient, score, prediction = compiled(scores, x)
    assert float(jnp.std(gradient)) > 0.05
    np.testing.assert_allclose(score, gradient, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(prediction, gradient, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("path_name", ["linear", "trigonometric", "sub_vp"])
def test_velocity_solves_the_continuity_equation(name: str, path_name: str):
    """d/dt log p + div v + v . grad log p = 0, the divergence by autodiff and by its own formula."""
    mixture, path, t = MIXTURES[name], make_path(path_name), 0.55
    x = points(mixture, path, t)

    def terms(x):
        _, rate = jax.jvp(lambda time: mixture.log_density(path, x, time), (jnp.float32(t),), (jnp.float32(1.0),))
        velocity = mixture.prediction(path, "velocity", x, t)
        jacobian = jax.vmap(jax.jacfwd(lambda row: mixture.prediction(path, "velocity", row[None], t)[0]))(x)
        divergence = jnp.trace(jacobian, axis1=1, axis2=2)
        transport = divergence + jnp.sum(velocity * mixture.score(path, x, t), axis=1)
        return rate, divergence, transport, mixture.divergence(path, x, t)

    rate, divergence, transport, formula = compiled(terms, x)
    scale = float(jnp.max(jnp.abs(rate)))
    assert scale > 0.5
    np.testing.assert_allclose(rate, -transport, atol=2e-4 * scale)
    np.testing.assert_allclose(formula, divergence, atol=2e-4 * scale)


def quadrature_posterior(mixture: oracles.GaussianMixture, path: GaussianPath, x: float, t: float):
    """Mean and variance of x1 given x_t = x on the line in float64, by a fine Riemann sum over x1."""
    x1 = np.linspace(-8, 8, 80001)
    alpha, sigma = float(path.alpha(jnp.float32(t))), float(path.sigma(jnp.float32(t)))
    weights, means, stds = (
        np.asarray(part, np.float64).ravel() for part in (mixture.weights, mixture.means, mixture.stds)
    )
    prior = sum(w * np.exp(-0.5 * ((x1 - m) / s) ** 2) / s for w, m, s in zip(weights, means, stds, strict=True))
    likelihood = np.exp(-0.5 * ((x - alpha * x1) / sigma) ** 2)
    posterior = prior * likelihood
    posterior /= posterior.sum()
    mean = (posterior * x1).sum()
    return alpha, sigma, mean, (posterior * (x1 - mean) ** 2).sum()


@pytest.mark.parametrize("path_name", sorted(PATHS))
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_posterior_of_every_prediction_against_quadrature(path_name: str, prediction: str):
    mixture, path = oracles.three_modes_1d(), make_path(path_name)
    for t, x in [(0.35, 0.3), (0.7, -0.9), (0.9, 1.1)]:
        alpha, sigma, mean, variance = quadrature_posterior(mixture, path, x, t)
        # The target is affine in x1 at fixed x_t: two pairs on the line x_t = x give its slope and value.
        x1 = np.array([[mean], [mean + 1.0]])
        x0 = (x - alpha * x1) / sigma
        value, shifted = np.asarray(
            target(path, prediction, jnp.asarray(x0, jnp.float32), jnp.asarray(x1, jnp.float32), jnp.full(2, t))
        ).ravel()
        slope = shifted - value
        at = jnp.full((1, 1), x)
        scale = max(1.0, abs(slope))
        np.testing.assert_allclose(
            mixture.prediction(path, prediction, at, t)[0, 0], value, rtol=1e-3, atol=1e-3 * scale
        )
        got = mixture.posterior_covariance(path, at, t, prediction=prediction)[0, 0, 0]
        np.testing.assert_allclose(got, slope**2 * variance, rtol=2e-3, atol=1e-6)


def test_posterior_covariance_against_the_jacobian_of_the_posterior_mean():
    """Second-order Tweedie: Cov[x1 | x_t] = (sigma^2 / alpha) d E[x1 | x_t] / dx."""
    for mixture in MIXTURES.values():

        def parts(x, mixture=mixture):
            jacobian = jax.vmap(jax.jacfwd(lambda row: mixture.expected_pair(LINEAR, row[None], 0.6)[0][0]))(x)
            return (
                jacobian,
                mixture.posterior_covariance(LINEAR, x, 0.6),
                mixture.posterior_variance(LINEAR, x, 0.6),
            )

        x = points(mixture, LINEAR, 0.6)
        jacobian, covariance, variance = compiled(parts, x)
        np.testing.assert_allclose(covariance, 0.4**2 / 0.6 * jacobian, atol=2e-5)
        trace = jnp.trace(covariance, axis1=1, axis2=2) / x.shape[1]
        np.testing.assert_allclose(variance, trace, rtol=1e-5)


def test_ends_of_the_path_are_finite():
    """At t = 1 the posterior is the point, at t = 0 the prior; the velocity there is x - E[x0] and E[x1] - x."""
    mixture, x = oracles.three_modes_1d(), jnp.array([[-1.0], [0.2], [1.7]])
    np.testing.assert_allclose(mixture.prediction(LINEAR, "data", x, 1.0), x, atol=1e-6)
    np.testing.assert_allclose(mixture.prediction(LINEAR, "velocity", x, 1.0), x, atol=1e-6)
    np.testing.assert_allclose(mixture.prediction(LINEAR, "velocity", x, 0.0), mixture.mean() - x, atol=1e-6)
    np.testing.assert_allclose(mixture.posterior_covariance(LINEAR, x, 1.0), 0.0, atol=1e-6)
    prior = jnp.broadcast_to(mixture.covariance(), (3, 1, 1))
    np.testing.assert_allclose(mixture.posterior_covariance(LINEAR, x, 0.0), prior, rtol=1e-5)
    assert bool(jnp.all(jnp.isfinite(mixture.floor(LINEAR, "velocity", jnp.array([0.0, 1.0]), jax.random.key(0)))))


def test_moments_of_samples():
    for mixture in MIXTURES.values():
        x = np.asarray(compiled(lambda key, m=mixture: m.sample(key, 40000), jax.random.key(1)), np.float64)
        spread = np.sqrt(np.diag(mixture.covariance()) / len(x))
        assert np.all(np.abs(x.mean(0) - mixture.mean()) < 5 * spread)
        centred = x - x.mean(0)
        products = centred[:, :, None] * centred[:, None]  # their spread is the error that sampling allows
        error = np.abs(products.mean(0) - mixture.covariance())
        assert np.all(error < 5 * products.std(0) / np.sqrt(len(x)) + 1e-6), error


def test_floor_of_one_gaussian_and_of_a_mixture():
    t = jnp.linspace(0.0, 0.99, 7)
    s = 0.7
    variance = t**2 * s**2 + (1 - t) ** 2
    expected = {"velocity": s**2, "noise": t**2 * s**2, "data": (1 - t) ** 2 * s**2}
    for prediction, numerator in expected.items():
        oracle = oracles.gaussian(0.4, s, 3)
        floor = compiled(lambda t, o=oracle, p=prediction: o.floor(LINEAR, p, t, jax.random.key(0)), t)
        np.testing.assert_allclose(floor, numerator / variance, rtol=2e-5)
    # A mixture: the loss of the exact field on fresh pairs is the floor, within Monte-Carlo error.
    mixture, count = oracles.eight_modes(), 20000
    t = jnp.full(count, 0.6)
    key_data, key_noise, key_floor = jax.random.split(jax.random.key(5), 3)

    def squares(t):
        data = mixture.sample(key_data, count)
        noise = jax.random.normal(key_noise, data.shape)
        error = mixture.prediction(LINEAR, "velocity", LINEAR.sample(noise, data, t), 0.6) - (data - noise)
        return jnp.mean(error**2, axis=1), mixture.floor(LINEAR, "velocity", t, key_floor)

    loss, floor = (np.asarray(value, np.float64) for value in compiled(squares, t))
    assert abs(loss.mean() - floor.mean()) < 5 * np.hypot(loss.std(), floor.std()) / np.sqrt(count)
    assert floor.mean() > 0.1


def test_labels_condition_and_the_null_label_does_not():
    mixture = oracles.eight_modes(num_classes=2)
    x = points(mixture, LINEAR, 0.4, 12)
    assert mixture.num_classes == 2
    for label in (0, 1):
        labels = jnp.full(12, label)
        alone = mixture.conditional(label)
        np.testing.assert_allclose(
            mixture.prediction(LINEAR, "velocity", x, 0.4, labels),
            alone.prediction(LINEAR, "velocity", x, 0.4),
            rtol=1e-5,
        )
        density = mixture.log_density(LINEAR, x, 0.4, labels)
        np.testing.assert_allclose(density, alone.log_density(LINEAR, x, 0.4), rtol=1e-5)
    null = mixture.prediction(LINEAR, "velocity", x, 0.4, jnp.full(12, 2))
    np.testing.assert_allclose(null, mixture.prediction(LINEAR, "velocity", x, 0.4), rtol=1e-6)
    # Bayes: log p(x | c) - log p(x) = log p(c | x) - log p(c).
    log_ratio = mixture.log_density(LINEAR, x, 0.4, jnp.zeros(12, int)) - mixture.log_density(LINEAR, x, 0.4)
    np.testing.assert_allclose(
        jnp.exp(log_ratio) * 0.5, mixture.class_probabilities(LINEAR, x, 0.4)[:, 0], rtol=1e-4, atol=1e-6
    )
    with pytest.raises(ValueError, match="no classes"):
        oracles.gaussian().conditional(0)
    with pytest.raises(ValueError, match="Classes: 0 to 1"):
        mixture.conditional(7)


def test_empirical_posterior_is_the_softmax_weighted_mean_of_the_data():
    images = jax.random.normal(jax.random.key(0), (6, 2, 2, 1))
    mixture = oracles.empirical(images, jnp.arange(6) % 3)
    rows = np.asarray(images, np.float64).reshape(6, 4)
    x = np.asarray(points(mixture, LINEAR, 0.5, 5), np.float64)
    logits = -0.5 * ((x[:, None] - 0.5 * rows) ** 2).sum(-1) / 0.25
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    np.testing.assert_allclose(
        mixture.expected_pair(LINEAR, jnp.asarray(x, jnp.float32), 0.5)[0], weights @ rows, atol=1e-5
    )

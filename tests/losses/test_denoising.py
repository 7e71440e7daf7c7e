"""Every loss has its minimum at the closed-form field, on every path, for every prediction and loss space.

The mean loss of `field + theta phi` is differentiated at theta = 0, example by example, for several features phi(x, t).
At the exact field each derivative is zero within Monte-Carlo error; at a wrong field at least one is not.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.losses import denoising
from flowjax.paths import oracles
from flowjax.paths.path import PATHS, make_path
from flowjax.paths.predictions import PREDICTIONS, determinant, prediction_row

MIXTURE = oracles.GaussianMixture(
    jnp.array([0.4, 0.6]), jnp.array([[-0.9, 0.3], [0.7, -0.2]]), jnp.array([[0.3, 0.5], [0.6, 0.2]])
)
COUNT = 20_000


@functools.cache
def draws():
    keys = jax.random.split(jax.random.key(11), 3)
    data = MIXTURE.sample(keys[0], COUNT)
    return data, jax.random.normal(keys[1], data.shape), jax.random.uniform(keys[2], (COUNT,), minval=0.05, maxval=0.95)


def features(x, t):
    """Five directions in function space: constant, linear, nonlinear, time-dependent, and mixing the coordinates."""
    u = x / jnp.sqrt(1 + jnp.mean(x**2, axis=1, keepdims=True))  # of order 1 on noise-exploding paths too
    t = t[:, None]
    return jnp.stack([jnp.ones_like(x), u, jnp.sin(3 * u), jnp.cos(4 * t) * u, u[:, ::-1] * t])


def slopes(path, prediction: str):
    """field_error -> [space, feature]: t-statistics of the loss's derivative, at the exact field plus an error."""
    data, noise, u = draws()
    t = path.start + (path.end - path.start) * u
    x = path.sample(noise, data, t)
    spread = {space: jnp.abs(determinant(path, space, t) / prediction_row(path, space, t)[2]) for space in PREDICTIONS}
    # Steps in units in which an error of order one means the same at every time: no time rules the statistics.
    directions = spread[prediction][:, None] * features(x, t)
    exact = MIXTURE.prediction(path, prediction, x, t)

    errors = spread[prediction][:, None] * jnp.sin(2 * features(x, t)[1])
    weights = {space: 1 / (spread[space] + 1e-3) ** 2 for space in PREDICTIONS}
    arrays = dict(noise=noise, data=data, t=t, exact=exact, errors=errors, directions=directions, weights=weights)
    # Arguments rather than constants, which XLA would spend its time folding.
    return lambda field_error: jitted_statistics(path, prediction)(arrays, jnp.float32(field_error))


@functools.cache
def jitted_statistics(path, prediction: str):
    @jax.jit
    def statistics(arrays, field_error):
        field = arrays["exact"] + field_error * arrays["errors"]

        def per_example(theta):
            predict = lambda *_: field + jnp.einsum("f,fbd->bd", theta, arrays["directions"])
            pair = arrays["noise"], arrays["data"], arrays["t"]
            loss = lambda space: denoising.prediction_loss(
                predict, path, prediction, *pair, space, arrays["weights"][space]
            )
            return jnp.stack([loss(space)[0] for space in PREDICTIONS])

        derivative = jax.jacfwd(per_example)(jnp.zeros(5))
        return derivative.mean(1) / (derivative.std(1) / jnp.sqrt(COUNT))

    return statistics


@pytest.mark.parametrize("path_name", sorted(PATHS))
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_minimum_is_the_closed_form_field(path_name: str, prediction: str):
    statistics = slopes(make_path(path_name), prediction)
    for space, right, wrong in zip(PREDICTIONS, statistics(0.0), statistics(0.1), strict=True):
        assert np.all(np.abs(right) < 5), (space, right)
        assert np.max(np.abs(wrong)) > 10, (space, wrong)


def exact_loss(loss, path, prediction: str, mixture: oracles.GaussianMixture, t, **options):
    """The value per example of a named loss at the mixture's exact field."""
    keys = jax.random.split(jax.random.key(7))
    data = mixture.sample(keys[0], t.shape[0])
    noise = jax.random.normal(keys[1], data.shape)
    return np.asarray(loss(lambda x, t: mixture.prediction(path, prediction, x, t), noise, data, t, **options)[0])


def assert_close_to(values: np.ndarray, expected: float):
    error = values.std() / math.sqrt(len(values))
    assert error < 0.02 * max(expected, 0.1)
    assert abs(values.mean() - expected) < 5 * error


def test_flow_matching_ends_at_pi_std_over_two():
    t = (jnp.arange(COUNT) + 0.5) / COUNT
    mixture = oracles.gaussian(0.4, 0.7, 2)
    assert_close_to(
        exact_loss(denoising.flow_matching_loss, make_path("linear"), "velocity", mixture, t), math.pi * 0.7 / 2
    )


def test_edm_loss_ends_at_one_at_every_noise_level():
    path, mixture = make_path("edm"), oracles.gaussian(0.0, 0.5, 2)
    for sigma in (0.02, 0.5, 20.0):
        t = jnp.full(COUNT, 1 / (1 + sigma))
        assert_close_to(exact_loss(denoising.edm_loss, path, "data", mixture, t, data_std=0.5), 1.0)


@pytest.mark.parametrize(
    "loss, prediction", [("noise_loss", "noise"), ("score_matching_loss", "score"), ("v_loss", "v")]
)
def test_diffusion_losses_end_at_their_floors(loss: str, prediction: str):
    """Data of std s on VP: noise and score matching end at alpha^2 s^2 / V, v at s^2 / V, V = alpha^2 s^2 + sigma^2."""
    path, s, t = make_path("vp"), 0.5, 0.8
    alpha2 = math.exp(-0.5 * 0.2**2 * 19.9 - 0.2 * 0.1)
    variance = alpha2 * s**2 + 1 - alpha2
    expected = (1.0 if prediction == "v" else alpha2) * s**2 / variance
    mixture = oracles.gaussian(0.3, s, 2)
    assert_close_to(exact_loss(getattr(denoising, loss), path, prediction, mixture, jnp.full(COUNT, t)), expected)


def test_loss_space_equals_the_converted_error():
    """The ratio form against converting prediction and target, both in float64 by hand on the linear path."""
    rng = np.random.default_rng(0)
    x0, x1, output = rng.normal(size=(3, 6, 4))
    t = rng.uniform(0.1, 0.9, 6)
    x = t[:, None] * x1 + (1 - t[:, None]) * x0
    weight = rng.uniform(1, 2, 6)
    arrays = [jnp.asarray(array, jnp.float32) for array in (x0, x1, t)]

    def predict(at, time):
        np.testing.assert_allclose(at, x, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(time, t, rtol=1e-6)
        return jnp.asarray(output, jnp.float32)

    value, metrics = denoising.prediction_loss(
        predict, make_path("linear"), "velocity", *arrays, "data", jnp.asarray(weight, jnp.float32)
    )
    assert set(metrics) == {"t", "error"}
    implied_data = x + (1 - t[:, None]) * output
    np.testing.assert_allclose(value, weight * ((implied_data - x1) ** 2).mean(1), rtol=1e-5)
    np.testing.assert_allclose(metrics["error"], ((output - (x1 - x0)) ** 2).mean(1), rtol=1e-5)
    np.testing.assert_allclose(metrics["t"], t, rtol=1e-6)

"""Weights mean the same whatever is predicted: METHODS A6, and closed forms in each space."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.choices import build
from flowjax.paths.path import PATHS, linear_path, make_path, vp_path
from flowjax.paths.predictions import PREDICTIONS, convert, target
from flowjax.paths.times import TIMES
from flowjax.paths.weights import WEIGHTS, loss_weight, over_times

SPECS = [dict(name=name) for name in WEIGHTS if name != "uniform"] + [dict(name="uniform", space="v")]
T = jnp.linspace(0.1, 0.9, 9)


@pytest.mark.parametrize("path_name", PATHS)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec["name"])
def test_gradient_on_a_shared_data_prediction_is_the_same_in_every_space(spec, path_name):
    weight = build("weight", spec, WEIGHTS)
    with jax.enable_x64(True):
        path = make_path(path_name)
        t = path.start + (path.end - path.start) * jnp.linspace(0.1, 0.9, 9, dtype=jnp.float64)
        noise, data, error = jnp.asarray(np.random.default_rng(0).normal(size=(3, 9, 4)))
        x = path.sample(noise, data, t)

        def loss(guess, space):
            """The loss in `space` of a network whose output amounts to the data prediction `guess`."""
            output = convert(path, "data", space, guess, x, t)
            difference = output - target(path, space, noise, data, t)
            return jnp.sum(loss_weight(weight, path, space, t)[:, None] * difference**2)

        gradients = [jax.grad(loss)(data + error, space) for space in PREDICTIONS]
    assert np.all(np.abs(gradients[0]) > 0)
    for gradient in gradients[1:]:
        np.testing.assert_allclose(gradient, gradients[0], rtol=1e-6)


@pytest.mark.parametrize("space", ["data", "noise", "v"])
def test_min_snr_in_the_forms_of_its_authors(space):
    path, gamma = make_path("vp"), 5.0
    snr = np.asarray(path.alpha(T) / path.sigma(T), np.float64) ** 2
    assert snr.min() < gamma < snr.max()
    capped = np.minimum(snr, gamma)
    expected = {"data": capped, "noise": capped / snr, "v": capped / (snr + 1)}[space]
    np.testing.assert_allclose(loss_weight(WEIGHTS["min_snr"](gamma), path, space, T), expected, rtol=1e-5)


def test_min_snr_on_the_linear_velocity():
    t = np.asarray(T, np.float64)
    expected = np.minimum(t**2 / (1 - t) ** 2, 5) * (1 - t) ** 2
    np.testing.assert_allclose(
        loss_weight(WEIGHTS["min_snr"](), make_path("linear"), "velocity", T), expected, rtol=1e-5
    )


def test_edm_weight_and_its_meaning():
    """lambda c_out^2 = 1: the weight on the output of the preconditioned network is one."""
    path, std = make_path("edm"), 0.5
    sigma = np.asarray(path.sigma(T), np.float64)
    c_out = sigma * std / np.sqrt(sigma**2 + std**2)
    np.testing.assert_allclose(loss_weight(WEIGHTS["edm"](std), path, "data", T) * c_out**2, 1.0, rtol=1e-5)


def test_truncated_snr():
    path = make_path("linear")
    snr = np.asarray(T / (1 - T), np.float64) ** 2
    np.testing.assert_allclose(loss_weight(WEIGHTS["truncated_snr"](), path, "data", T), np.maximum(snr, 1), rtol=1e-5)


def test_sigmoid_on_the_data_error():
    """sigmoid(b - l) on the noise error is e^b sigmoid(l - b) on the data error (Hoogeboom et al. 2024)."""
    path, bias = make_path("linear"), -1.0
    t = np.asarray(T, np.float64)
    log_snr = 2 * np.log(t / (1 - t))
    expected = np.exp(bias) / (1 + np.exp(bias - log_snr))
    plain = WEIGHTS["sigmoid"](bias, per_log_snr=False)
    np.testing.assert_allclose(loss_weight(plain, path, "data", T), expected, rtol=1e-5)
    slope = 2 / (t * (1 - t))
    np.testing.assert_allclose(loss_weight(WEIGHTS["sigmoid"](bias), path, "data", T), expected * slope, rtol=1e-5)


def test_sigmoid_per_log_snr_does_not_depend_on_the_path():
    """Integrated over uniform times between two log-SNRs, the loss of one error curve is the same on two paths."""
    integrals = []
    for name in ("linear", "trigonometric"):
        path = make_path(name)
        t = jnp.linspace(0.0005, 0.9995, 20001)
        log_snr = path.log_snr(t)
        inside = (log_snr > -6) & (log_snr < 6)
        integrals.append(float(jnp.sum(jnp.where(inside, WEIGHTS["sigmoid"]().function(path, t), 0)) * (t[1] - t[0])))
    expected = np.logaddexp(0, 6 - 1) - np.logaddexp(0, -6 - 1)  # integral of sigmoid(-1 - l) over [-6, 6]
    np.testing.assert_allclose(integrals, expected, rtol=2e-3)


def test_cosmap_weight_in_their_time():
    tau = 1 - np.asarray(T, np.float64)
    expected = 2 / (np.pi * (1 - 2 * tau + 2 * tau**2))
    np.testing.assert_allclose(
        loss_weight(WEIGHTS["cosmap"](), make_path("linear"), "velocity", T), expected, rtol=1e-5
    )


def test_uniform_is_one_in_the_space_of_the_loss_or_in_its_own():
    path = make_path("linear")
    for space in PREDICTIONS:
        np.testing.assert_array_equal(loss_weight(WEIGHTS["uniform"](), path, space, T), 1.0)
    np.testing.assert_allclose(
        loss_weight(WEIGHTS["uniform"]("velocity"), path, "data", T), 1 / (1 - T) ** 2, rtol=1e-5
    )
    with pytest.raises(ValueError, match="Did you mean 'velocity'"):
        WEIGHTS["uniform"]("velocty")


def test_evidence_is_signal_over_noise_on_the_velocity_and_charges_what_a_diffusion_does():
    path, t = linear_path(), jnp.linspace(0.05, 0.95, 7)
    weight = WEIGHTS["evidence"]()
    np.testing.assert_allclose(loss_weight(weight, path, "velocity", t), t / (1 - t), rtol=1e-5)
    # Whatever the path, an integral over log-SNR of half the squared error of the noise (Kingma et al. 2021).
    for other in (path, vp_path()):
        slope = jax.vmap(jax.grad(other.log_snr))(t)
        np.testing.assert_allclose(loss_weight(weight, other, "noise", t), 0.5 * slope, rtol=1e-4)


@pytest.mark.parametrize("law", [dict(name="beta", a=4.0, b=2.5), dict(name="logit_normal", mean=0.5)])
def test_with_importance_the_law_of_times_does_not_change_the_loss(law):
    """The average of w(t) t (1 - t)^2 over equally likely quantiles is its integral: t^2 (1 - t) for the evidence."""
    path, weight = linear_path(), WEIGHTS["evidence"]()
    times = build("time", dict(law, high=0.98, importance=True), TIMES)
    t = times.quantile((jnp.arange(20_000) + 0.5) / 20_000)
    loss = t * (1 - t) ** 2
    integral = 0.98**3 / 3 - 0.98**4 / 4
    found = jnp.mean(loss_weight(over_times(weight, times), path, "velocity", t) * loss)
    np.testing.assert_allclose(found, integral, rtol=2e-3)
    plain = build("time", dict(law, high=0.98), TIMES)
    assert over_times(weight, plain) is weight
    assert abs(float(jnp.mean(loss_weight(weight, path, "velocity", t) * loss)) - integral) > 0.05 * integral

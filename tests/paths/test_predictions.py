"""All 25 conversions on all paths, against a 2x2 solve in float64 by NumPy.

Where the conversion does not exist (zero determinant or divisor: noise at alpha = 0, data at sigma = 0, score at
sigma = 0) nothing is tested. Elsewhere errors are measured in units of what a float32 evaluation of (2) can know,

    scale = (|a' b| + |b' a|) / |c' D| |x| + (|b' alpha| + |a' sigma|) |c| / |c' D| |p|,

the sum of the magnitudes that are added: this is the condition number of the transformation times the size of its
arguments. A small result of large terms is allowed the rounding of the terms, and nothing else is forgiven: the
schedules, their derivatives and the determinants have to be right to a few units in the last place.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_path import closed_form

from flowjax.paths.path import PATHS, make_path
from flowjax.paths.predictions import PREDICTIONS, convert, convert_weight, determinant, error_ratio, target

PAIRS = list(itertools.product(PREDICTIONS, PREDICTIONS))


def rows(name, t):
    """(a, b, c) of every prediction and (alpha, sigma), from the closed forms in float64."""
    alpha, sigma, alpha_dot, sigma_dot = closed_form(name, t)
    one, zero = np.ones_like(alpha), np.zeros_like(alpha)
    if name in ("linear", "trigonometric", "vp_cosine"):  # cos(pi/2) is 0, not 6e-17
        alpha, sigma = np.where(t == 0, 0, alpha), np.where(t == 1, 0, sigma)
    return {
        "velocity": (alpha_dot, sigma_dot, one),
        "noise": (zero, one, one),
        "data": (one, zero, one),
        "score": (zero, -one, sigma),
        "v": (-sigma, alpha, one),
    }, (alpha, sigma)


def coefficients(name, source, destination, t):
    """from_x and from_value of q = from_x x + from_value p by solving for (x1, x0), and their magnitudes."""
    table, (alpha, sigma) = rows(name, t)
    (a, b, c), (a_out, b_out, c_out) = table[source], table[destination]
    divisor = (alpha * b - sigma * a) * c_out
    exists = (np.abs(divisor) > 0) & ((source != "score") | (sigma > 0))
    matrix = np.stack([np.stack([alpha, sigma], -1), np.stack([a, b], -1)], -2)[exists]
    row = np.stack([a_out, b_out], -1)[exists]
    from_x, from_value = np.linalg.solve(np.swapaxes(matrix, 1, 2), row[..., None])[..., 0].T
    values = from_x / c_out[exists], from_value * c[exists] / c_out[exists]
    with np.errstate(divide="ignore", invalid="ignore"):
        magnitudes = (
            (np.abs(a_out * b) + np.abs(b_out * a)) / np.abs(divisor),
            (np.abs(b_out * alpha) + np.abs(a_out * sigma)) * np.abs(c / divisor),
        )
    return exists, values, tuple(magnitude[exists] for magnitude in magnitudes)


def example(name, count=33):
    path = make_path(name)
    # Uniform times and both ends, and times that crowd at both ends.
    fraction = np.concatenate([np.linspace(0, 1, count), 10.0 ** -np.arange(2, 6), 1 - 10.0 ** -np.arange(2, 6)])
    t = jnp.asarray(path.start + (path.end - path.start) * fraction, jnp.float32)
    t = jnp.clip(t, path.start, path.end)
    noise, data = np.random.default_rng(1).normal(size=(2, len(t), 4)).astype(np.float32)
    return path, t, jnp.asarray(noise), jnp.asarray(data)


def exact_target(name, prediction, noise, data, t):
    a, b, c = (value[:, None] for value in rows(name, np.asarray(t, np.float64))[0][prediction])
    with np.errstate(divide="ignore", invalid="ignore"):
        return (a * np.asarray(data) + b * np.asarray(noise)) / c


@pytest.mark.parametrize("name", PATHS)
def test_every_conversion_is_the_solution_in_float64(name):
    path, t, noise, data = example(name)
    x = path.sample(noise, data, t)
    for source, destination in PAIRS:
        if source == destination:
            continue
        value = jnp.asarray(exact_target(name, source, noise, data, t), jnp.float32)
        exists, (from_x, from_value), (size_x, size_value) = coefficients(
            name, source, destination, np.asarray(t, np.float64)
        )
        assert exists.sum() >= len(t) - 2, (source, destination)
        known_x, known_value = np.asarray(x, np.float64)[exists], np.asarray(value, np.float64)[exists]
        expected = from_x[:, None] * known_x + from_value[:, None] * known_value
        scale = size_x[:, None] * np.abs(known_x) + size_value[:, None] * np.abs(known_value)
        ours = np.asarray(convert(path, source, destination, value, x, t))[exists]
        error = np.max(np.abs(ours - expected) / scale)
        assert error < 2e-6, f"{name}: {source} -> {destination} is off by {error:.1e} of its scale"


@pytest.mark.parametrize("name", PATHS)
def test_every_pair_goes_there_and_back(name):
    path, t, noise, data = example(name)
    x = path.sample(noise, data, t)
    for source, destination in PAIRS:
        value = jnp.asarray(exact_target(name, source, noise, data, t), jnp.float32)
        t64 = np.asarray(t, np.float64)
        forth, _, (forth_x, forth_value) = coefficients(name, source, destination, t64)
        back, (_, from_value), (back_x, _) = coefficients(name, destination, source, t64)
        both = forth & back
        if source == destination:
            np.testing.assert_array_equal(convert(path, source, destination, value, x, t), value)
            continue
        returned = convert(path, destination, source, convert(path, source, destination, value, x, t), x, t)
        size_x, size_value = np.abs(x)[both], np.abs(value)[both]
        # The error of the way there is multiplied by the way back, as its rounding is.
        scale = (forth_x[both[forth], None] * size_x + forth_value[both[forth], None] * size_value) * np.abs(
            from_value[both[back], None]
        ) + back_x[both[back], None] * size_x
        error = np.max(np.abs(np.asarray(returned - value))[both] / scale)
        assert error < 1e-5, f"{name}: {source} -> {destination} -> {source} is off by {error:.1e} of its scale"


@pytest.mark.parametrize("name", PATHS)
def test_targets_convert_into_each_other(name):
    """The target of one prediction converted is the target of the other: in the middle, plainly to 1e-4."""
    path = make_path(name)
    t = path.start + (path.end - path.start) * jnp.linspace(0.3, 0.7, 9)
    noise, data = (jnp.asarray(z, jnp.float32) for z in np.random.default_rng(2).normal(size=(2, 9, 4)))
    x = path.sample(noise, data, t)
    for source, destination in PAIRS:
        expected = exact_target(name, destination, noise, data, t)
        np.testing.assert_allclose(target(path, destination, noise, data, t), expected, rtol=1e-4, atol=1e-5)
        ours = convert(
            path, source, destination, jnp.asarray(exact_target(name, source, noise, data, t), x.dtype), x, t
        )
        _, _, (_, size) = coefficients(name, source, destination, np.asarray(t, np.float64))
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5 * (1 + size.max()))


@pytest.mark.parametrize("name", PATHS)
def test_scaled_loss_is_the_converted_loss(name):
    path = make_path(name)
    t = path.start + (path.end - path.start) * jnp.linspace(0.1, 0.9, 9)
    noise, data, wrong = (jnp.asarray(z, jnp.float32) for z in np.random.default_rng(3).normal(size=(3, 9, 16)))
    with jax.enable_x64(True):  # the converted loss is a difference; float64 leaves the algebra alone to be tested
        noise, data, t, wrong = (jnp.asarray(value, jnp.float64) for value in (noise, data, t, wrong))
        x = path.sample(noise, data, t)
        for source, destination in PAIRS:
            perfect = target(path, source, noise, data, t)
            error = jnp.mean(wrong**2, axis=1)
            difference = convert(path, source, destination, perfect + wrong, x, t) - target(
                path, destination, noise, data, t
            )
            converted = jnp.mean(difference**2, axis=1)
            ratio = error_ratio(path, source, destination, t)
            np.testing.assert_allclose(ratio**2 * error, converted, rtol=1e-7)
            # A weight on the source's error, moved to the destination's error, gives the same weighted loss.
            moved = convert_weight(path, source, destination, 1.0 + t, t)
            np.testing.assert_allclose(moved * converted, (1.0 + t) * error, rtol=1e-7)


def test_linear_path_by_hand():
    """METHODS 0.2: x1 = x + (1 - t) v, x0 = x - t v, s = (t v - x) / (1 - t)."""
    path, t = make_path("linear"), jnp.array([0.25])
    x, v = jnp.array([[2.0]]), jnp.array([[-4.0]])
    assert convert(path, "velocity", "data", v, x, t)[0, 0] == -1.0
    assert convert(path, "velocity", "noise", v, x, t)[0, 0] == 3.0
    assert convert(path, "velocity", "score", v, x, t)[0, 0] == -4.0


def test_v_of_salimans_and_ho_points_to_the_noise():
    path, t = make_path("trigonometric"), jnp.linspace(0.0, 1.0, 5)
    x, v = (jnp.asarray(z, jnp.float32) for z in np.random.default_rng(4).normal(size=(2, 5, 3)))
    np.testing.assert_allclose(convert(path, "v", "velocity", v, x, t), -np.pi / 2 * v, rtol=1e-5, atol=1e-6)


def test_determinant_is_zero_where_a_prediction_says_nothing():
    path = make_path("linear")
    assert determinant(path, "noise", jnp.float32(0.0)) == 0 and determinant(path, "data", jnp.float32(1.0)) == 0
    assert jnp.abs(determinant(path, "velocity", jnp.linspace(0.0, 1.0, 5)) + 1).max() == 0


def test_unknown_prediction_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match="Did you mean 'velocity'"):
        determinant(make_path("linear"), "velocty", jnp.float32(0.5))

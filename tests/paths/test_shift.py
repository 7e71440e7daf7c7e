"""The shift against its derivation, its inverse, and the reference formulas in reversed time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.paths.shift import (
    resolved_shift,
    shift_from_sizes,
    shift_from_tokens,
    shift_slope,
    shift_time,
    unshift_time,
)

T = jnp.linspace(0.0, 1.0, 101)


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0, 7.5])
def test_shift_and_inverse(shift):
    moved = shift_time(T, shift)
    np.testing.assert_allclose(unshift_time(moved, shift), T, atol=3e-6)
    assert moved[0] == 0 and moved[-1] == 1 and np.all(np.diff(moved) > 0)
    inner = np.asarray(T[1:-1], np.float64)
    logit = lambda p: np.log(p / (1 - p))
    np.testing.assert_allclose(logit(np.asarray(moved[1:-1], np.float64)), logit(inner) - np.log(shift), atol=1e-4)


def test_slope_is_the_derivative():
    slope = jax.vmap(jax.grad(lambda t: shift_time(t, 3.0)))(T)
    np.testing.assert_allclose(shift_slope(T, 3.0), slope, rtol=1e-5)


def test_sd3_in_their_time():
    """Theirs: tau' = a tau / (1 + (a - 1) tau) with tau = 1 - t; a larger image means more noise."""
    tau, a = 1 - np.asarray(T, np.float64), 3.0
    np.testing.assert_allclose(shift_time(T, a), 1 - a * tau / (1 + (a - 1) * tau), atol=1e-6)
    assert np.all(shift_time(T[1:-1], a) < T[1:-1])


def test_a_constant_image_is_equally_hard_at_both_sizes():
    """The estimate mean(x)/t of a constant has the same standard deviation from m pixels at t' as from n at t."""
    rng, t, base, size = np.random.default_rng(0), 0.6, 64, 1024
    moved = shift_time(t, shift_from_sizes(size, base))

    def spread(time, pixels):
        x = time * 1.7 + (1 - time) * rng.normal(size=(20_000, pixels)).astype(np.float32)
        return np.std(x.mean(axis=1) / time)

    # 20000 draws know a standard deviation to 0.5%.
    assert spread(moved, size) == pytest.approx(spread(t, base), rel=0.025)
    assert spread(t, size) < 0.3 * spread(t, base)


def test_flux_shift_from_tokens():
    assert shift_from_tokens(256) == pytest.approx(np.exp(0.5))
    assert shift_from_tokens(4096) == pytest.approx(np.exp(1.15))
    assert shift_from_tokens(2176) == pytest.approx(np.exp(0.825))
    # flux: tau' = e^mu / (e^mu + (1/tau - 1))
    tau, mu = 1 - np.asarray(T[:-1], np.float64), 1.15
    theirs = np.exp(mu) / (np.exp(mu) + (1 / tau - 1))
    np.testing.assert_allclose(shift_time(T[:-1], shift_from_tokens(4096)), 1 - theirs, atol=1e-6)


def test_sizes():
    assert shift_from_sizes(1024**2, 256**2) == 4.0
    with pytest.raises(ValueError, match="positive"):
        shift_from_sizes(0, 256)


def test_a_shift_from_the_resolution_is_the_ratio_of_the_sides():
    assert resolved_shift(3.0) == 3.0
    assert resolved_shift("resolution", (16, 16), (16, 16, 3)) == 1.0
    assert resolved_shift("resolution", (16, 16), (64, 64, 3)) == pytest.approx(4.0)
    assert resolved_shift("resolution", (16, 16), (16, 32, 4)) == pytest.approx(2**0.5)
    for arguments, message in (
        (("resolutoin", (16, 16), (16, 16, 3)), "expected a number, or 'resolution'"),
        (("resolution",), "go together"),
        ((2.0, (16, 16), (16, 16, 3)), "go together"),
        (("resolution", (16, 16), None), "shape None"),
        (("resolution", (16, 16), (2,)), "shape \\(2,\\)"),
    ):
        with pytest.raises(ValueError, match=message):
            resolved_shift(*arguments)

"""Averages against explicit sums of their sources, and averages made afterwards against those kept during training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.choices import build
from flowjax.models.ema import EMAS, Profile, combine, gamma_of_std, std_of_gamma, synthesis_weights


def rates(spec, steps, **given):
    rate = build("average", spec, EMAS, **given)
    return np.asarray(jax.vmap(rate)(jnp.arange(steps)), np.float64)


def track(sources, rates, start=0.0):
    """The recursion of the contract: average <- average + rate (source - average)."""
    average, history = start, []
    for source, rate in zip(sources, rates):
        average = average + rate * (source - average)
        history.append(average)
    return np.array(history)


def power_average(sources, std):
    """The power-function average of sources 1 ... n for every n, as the explicit weighted sum."""
    exponent = gamma_of_std(std) + 1
    edges = np.arange(len(sources) + 1)
    return [np.diff((edges[: n + 1] / n) ** exponent) @ sources[:n] for n in range(1, len(sources) + 1)]


def test_constant_average_is_its_explicit_sum():
    sources = np.random.default_rng(0).normal(size=50)
    decay, start = 0.9, 3.0
    got = track(sources, rates({"name": "constant", "decay": decay}, 50), start)[-1]
    expected = decay**50 * start + sum((1 - decay) * decay ** (49 - i) * source for i, source in enumerate(sources))
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert track(sources, rates({"name": "constant", "decay": 0.0}, 50))[-1] == sources[-1]  # decay 0 is the source


def test_warmup_starts_at_a_tenth_and_ends_at_its_decay():
    got = 1 - rates({"name": "warmup", "decay": 0.95}, 400)
    np.testing.assert_allclose(got, np.minimum(0.95, (1 + np.arange(400)) / (10 + np.arange(400))), atol=1e-6)
    assert got[0] == pytest.approx(0.1) and got[-1] == pytest.approx(0.95)


def test_halflife_halves_over_its_images():
    decays = 1 - rates({"name": "halflife", "images": 1000.0, "ramp_up": 0.0}, 60, batch_size=50)
    np.testing.assert_allclose(np.prod(decays[:20]), 0.5, rtol=1e-5)  # 20 steps of 50 images
    ramp = 1 - rates({"name": "halflife", "images": 1000.0, "ramp_up": 0.1}, 400, batch_size=50)
    assert ramp[0] == 0  # a copy
    np.testing.assert_allclose(ramp[100], 0.5 ** (50 / 500), rtol=1e-5)  # 5000 images seen, a tenth of them
    np.testing.assert_allclose(ramp[300], 0.5 ** (50 / 1000), rtol=1e-5)


def test_power_average_is_its_explicit_sum_and_has_its_width():
    sources = np.random.default_rng(1).normal(size=300)
    got = track(sources, rates({"name": "power", "std": 0.1}, 300), start=7.0)  # the start is forgotten at once
    np.testing.assert_allclose(got, power_average(sources, 0.1), atol=1e-5)
    # The width of the profile, from the recursion applied to unit vectors of a long run.
    n = 4000
    weights, remaining = np.zeros(n), 1.0
    for step, rate in reversed(list(enumerate(rates({"name": "power", "std": 0.1}, n)))):
        weights[step], remaining = rate * remaining, remaining * (1 - rate)
    ages = (np.arange(n) + 0.5) / n
    mean = weights @ ages
    assert np.sqrt(weights @ (ages - mean) ** 2) == pytest.approx(0.1, rel=1e-3)


def test_width_and_exponent_are_inverse():
    assert gamma_of_std(0.1) == pytest.approx(6.94, abs=0.005) and gamma_of_std(0.05) == pytest.approx(16.97, abs=0.005)
    assert std_of_gamma(6.94) == pytest.approx(0.1000, abs=5e-5)
    for std in (0.01, 0.05, 0.2, 0.28):
        assert std_of_gamma(gamma_of_std(std)) == pytest.approx(std, rel=1e-9)
    for std in (0.0, 0.3):
        with pytest.raises(ValueError, match="lies in"):
            gamma_of_std(std)


def stored(steps, stds=(0.05, 0.1), every=250):
    return [Profile(std, float(time)) for time in range(every, steps + 1, every) for std in stds]


def test_a_stored_average_is_recovered():
    profiles = stored(2000)
    for index in (0, 5, 15):
        weights = synthesis_weights(profiles, profiles[index])
        np.testing.assert_allclose(weights, np.eye(16)[index], atol=1e-6)
    with pytest.raises(ValueError, match="after the last"):
        synthesis_weights(profiles, Profile(0.1, 2001.0))


@pytest.mark.parametrize("std,time", [(0.08, 2000), (0.12, 2000), (0.15, 2000), (0.15, 1500)])
def test_a_long_average_of_a_random_walk_is_reconstructed(std, time):
    walk = np.cumsum(np.random.default_rng(2).normal(size=(2000, 20)), axis=0)
    averages = {width: power_average(walk, width) for width in (0.05, 0.1, std)}
    profiles = stored(2000)
    trees = ({"a": averages[p.std][int(p.time) - 1]} for p in profiles)
    got = combine(trees, synthesis_weights(profiles, Profile(std, float(time))))["a"]
    expected = averages[std][time - 1]
    error = np.linalg.norm(got - expected)
    assert error < 0.01 * np.linalg.norm(expected)
    # Far nearer than the nearest stored average, so that the sum is worth making.
    nearest = averages[0.1][time - 1]
    assert error < 0.2 * np.linalg.norm(nearest - expected)


def test_combine_keeps_types_and_places():
    trees = [{"w": jnp.full(3, 2.0), "h": np.full(2, 4.0, np.float32)}, {"w": jnp.ones(3), "h": np.ones(2, np.float32)}]
    total = combine(trees, np.array([1.5, -0.5]))
    np.testing.assert_allclose(total["w"], 2.5)
    np.testing.assert_allclose(total["h"], 5.5)
    assert isinstance(total["w"], jax.Array) and total["h"].dtype == np.float32
    with pytest.raises(ValueError):
        combine(trees, np.array([1.0]))
    with pytest.raises(ValueError, match="at least one"):
        combine([], np.zeros(0))

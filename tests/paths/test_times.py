"""Time distributions against scipy and quadrature in float64, each written independently of the code under test."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, stats

from flowjax.arrays import example_keys
from flowjax.choices import build
from flowjax.paths.times import TIMES, sample_times, truncated


def logit(t):
    return np.log(t) - np.log1p(-t)


def mode_cumulative(t, scale=1.29):
    their = lambda u: 1 - u - scale * (np.cos(np.pi * u / 2) ** 2 - 1 + u)  # SD3, equation 20, of tau = 1 - t
    return np.array([optimize.brentq(lambda u, v: 1 - their(u) - v, 0, 1, args=(v,)) for v in np.atleast_1d(t)])


def u_shape_cumulative(t, a=4.0):
    density = lambda x: a * (np.exp(a * x) + np.exp(a * (1 - x))) / (2 * (np.exp(a) - 1))  # rfpp, METHODS A7
    return np.array([integrate.quad(density, 0, value)[0] for value in np.atleast_1d(t)])


CASES = {  # spec options -> distribution function in float64
    "uniform": ({}, lambda t: t),
    "stratified": ({}, lambda t: t),
    "logit_normal": (dict(mean=-0.5, std=0.8), lambda t: stats.norm.cdf(logit(t), -0.5, 0.8)),
    "trigonometric_log_normal": ({}, lambda t: stats.lognorm.sf(np.tan(np.pi * (1 - t) / 2), 1.4, scale=np.exp(-1.0))),
    "edm_log_normal": ({}, lambda t: stats.lognorm.sf((1 - t) / t, 1.2, scale=np.exp(-1.2))),
    "mode": ({}, mode_cumulative),
    "cosmap": ({}, lambda t: 2 / np.pi * np.arctan(t / (1 - t))),
    "u_shaped": ({}, u_shape_cumulative),
    "beta": (dict(a=2.5, b=0.8), lambda t: stats.beta.cdf(t, 2.5, 0.8)),
}
OPTIONS = {
    "plain": {},
    "shifted": dict(shift=3.0),
    "cut": dict(low=0.1, high=0.7),
    "both": dict(shift=0.5, low=0.1, high=0.9),
}


def case(name, options):
    """The distribution under test, its law in float64, and its interval."""
    own, cumulative = CASES[name]
    options = OPTIONS[options]
    distribution = build("time", dict(name=name, **own, **options), TIMES)
    shift, low, high = (options.get(key, default) for key, default in (("shift", 1), ("low", 0), ("high", 1)))
    shifted = lambda t: cumulative(1 / (1 + (1 - t) / t / shift))  # odds of noise grow by the shift
    low_mass = shifted(np.float64(low)) if low else 0.0
    high_mass = shifted(np.float64(high)) if high < 1 else 1.0
    return distribution, lambda t: np.squeeze((shifted(t) - low_mass) / (high_mass - low_mass)), (low, high)


def draws(distribution, count, seed=0):
    key, rows = jax.random.key(seed), jnp.arange(count)
    keys = example_keys(jax.random.fold_in(key, 0), rows)
    return sample_times(distribution, keys, rows, count, jax.random.fold_in(key, 1))


def test_every_distribution_has_a_case():
    assert set(CASES) == set(TIMES)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", TIMES)
def test_cumulative_density_and_quantile(name, options):
    distribution, cumulative, (low, high) = case(name, options)
    assert distribution.support == (low, high)
    t = np.linspace(low, high, 43)[1:-1]
    ours = distribution.cumulative(jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(ours, cumulative(t), atol=3e-6)
    # The density is the slope of the independent distribution function, and integrates to one.
    step = 1e-4 * (high - low)
    slope = (cumulative(t + step) - cumulative(t - step)) / (2 * step)
    np.testing.assert_allclose(distribution.density(jnp.asarray(t, jnp.float32)), slope, rtol=2e-4, atol=2e-5)
    u = np.linspace(0, 1, 43)[1:-1].astype(np.float32)
    np.testing.assert_allclose(cumulative(np.asarray(distribution.quantile(jnp.asarray(u)), np.float64)), u, atol=2e-5)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", TIMES)
def test_density_integrates_to_one(name, options):
    distribution, _, (low, high) = case(name, options)
    # Midpoints in u = (1 - cos(w)) / 2 resolve integrable singularities at both ends (beta with b < 1).
    w = (np.arange(4000) + 0.5) / 4000 * np.pi
    t, measure = low + (high - low) * (1 - np.cos(w)) / 2, (high - low) * np.sin(w) / 2 * np.pi / 4000
    assert np.sum(np.asarray(distribution.density(jnp.asarray(t, jnp.float32))) * measure) == pytest.approx(1, abs=2e-3)
    outside = jnp.array([low - 0.05, high + 0.05])
    np.testing.assert_array_equal(distribution.density(outside), 0.0)


@pytest.mark.parametrize("options", ["plain", "both"])
@pytest.mark.parametrize("name", TIMES)
def test_draws_follow_the_law(name, options):
    distribution, cumulative, (low, high) = case(name, options)
    t = np.asarray(draws(distribution, 4096), np.float64)
    assert t.min() >= low and t.max() <= high
    # Fixed seed: a correct sampler passes for ever. Strata are closer to the law than chance; both must not be far.
    assert stats.kstest(t, lambda x: np.atleast_1d(cumulative(np.clip(x, 1e-12, 1 - 1e-12)))).statistic < 1.63 / 64


def test_sd3_direction():
    """SD3's m > 0 means more noise: with mean = -m our times are on the noise side."""
    assert draws(build("time", dict(name="logit_normal", mean=-0.5), TIMES), 2000).mean() < 0.45
    assert draws(build("time", dict(name="uniform", shift=3.0), TIMES), 2000).mean() < 0.45


def test_edm_draws_are_log_normal_noise_levels():
    t = np.asarray(draws(build("time", dict(name="edm_log_normal", mean=-0.4, std=1.0), TIMES), 4096), np.float64)
    assert stats.kstest(np.log((1 - t) / t), stats.norm(-0.4, 1.0).cdf).statistic < 1.63 / 64


def test_strata_hold_one_draw_each_and_reduce_variance():
    stratified = build("time", dict(name="logit_normal", stratified=True), TIMES)
    plain = build("time", dict(name="logit_normal"), TIMES)
    means = {True: [], False: []}
    for seed in range(30):
        t = draws(stratified, 64, seed)
        strata = np.floor(np.asarray(stratified.cumulative(t), np.float64) * 64 + 1e-6 * np.sign(t - 0.5))
        np.testing.assert_array_equal(np.sort(np.clip(strata, 0, 63)), np.arange(64))
        means[True].append(float(t.mean()))
        means[False].append(float(draws(plain, 64, seed).mean()))
    assert np.var(means[True]) < 0.01 * np.var(means[False])


def test_each_stratum_visits_every_row():
    """pi is a fresh permutation at every step: a row's time follows the whole law."""
    distribution = TIMES["stratified"]()
    first = np.array([float(draws(distribution, 8, seed)[0]) for seed in range(60)])
    assert len(np.unique(np.floor(first * 8))) == 8


def test_a_draw_does_not_depend_on_how_the_batch_is_split():
    distribution = build("time", dict(name="logit_normal", stratified=True), TIMES)
    key, rows = jax.random.key(3), jnp.arange(16)
    keys = example_keys(key, rows)
    whole = sample_times(distribution, keys, rows, 16, jax.random.key(4))
    part = sample_times(distribution, keys[8:], rows[8:], 16, jax.random.key(4))
    np.testing.assert_array_equal(whole[8:], part)


@pytest.mark.parametrize("name", TIMES)
def test_jit(name):
    distribution = TIMES[name](shift=2.0, low=0.01, high=0.99)
    u = jnp.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(jax.jit(distribution.quantile)(u), distribution.quantile(u), rtol=1e-5)


def test_refusals():
    with pytest.raises(ValueError, match="no option 'men'.*Did you mean 'mean'"):
        build("time", dict(name="logit_normal", men=0.0), TIMES)
    with pytest.raises(ValueError, match="positive"):
        TIMES["uniform"](shift=0.0)
    with pytest.raises(ValueError, match="monotone"):
        TIMES["mode"](scale=2.0)
    with pytest.raises(ValueError, match="positive"):
        TIMES["logit_normal"](std=0.0)
    with pytest.raises(ValueError, match="low < high"):
        truncated(TIMES["uniform"](), 0.9, 0.2)
    with pytest.raises(ValueError, match="no mass"):
        TIMES["logit_normal"](mean=-20.0, std=0.1, low=0.5)


def test_the_shift_can_follow_the_resolution():
    spec = dict(name="logit_normal", shift="resolution", base_shape=(8, 8))
    found = build("time", spec, TIMES, shape=(32, 32, 3))
    expected = TIMES["logit_normal"](shift=4.0)
    t = np.linspace(0.01, 0.99, 9, dtype=np.float32)
    np.testing.assert_array_equal(found.density(jnp.asarray(t)), expected.density(jnp.asarray(t)))

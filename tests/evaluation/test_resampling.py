"""Intervals cover what repeated draws do, floors are those of fresh pairs, and shortcuts equal the plain way."""

import numpy as np
import pytest

from flowjax.evaluation import coverage, distances, resampling

MIX = np.random.default_rng(9).standard_normal((4, 4))


def draw(seed, count=200, shift=0.0):
    return (np.random.default_rng(seed).standard_normal((count, 4)) @ MIX + shift).astype(np.float32)


MEASURES = {
    "frechet": (lambda x, y: distances.frechet(x, y), resampling.jackknife_frechet),
    "kid": (lambda x, y: float(distances._cubic_mmd(x, y)), resampling.jackknife_kid),
    "sliced_w2": (
        lambda x, y: distances.sliced_w2(x, y, 16),
        lambda x, y: resampling.jackknife(lambda a, b: {"sliced_w2": distances.sliced_w2(a, b, 16)}, x, y),
    ),
    "precision": (
        lambda x, y: coverage.precision_recall(x, y)["precision"],
        lambda x, y: resampling.jackknife(
            lambda a, b: {"precision": coverage.precision_recall(a, b)["precision"]}, x, y
        ),
    ),
}


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_the_reach_of_an_interval_is_that_of_repeated_draws(name):
    value, reach = MEASURES[name]
    draws = 40 if name == "precision" else 150
    found = [value(draw(2 * i, shift=1.0), draw(2 * i + 1)) for i in range(draws)]
    # 95% of a normal law; the deviation of 150 draws is known to 6%, each reach to some 16%, their mean much better.
    expected = 1.96 * np.std(found)
    reaches = [reach(draw(2 * i, shift=1.0), draw(2 * i + 1))[name] for i in range(4 if name == "precision" else 20)]
    # Balls of neighbours all change when a point leaves: the interval is too wide there, and known to be.
    low, high = (1.0, 2.0) if name == "precision" else (0.75, 1.25)
    assert low * expected < np.mean(reaches) < high * expected


def test_the_frechet_shortcut_is_the_plain_way():
    x, y = draw(0, 205, 0.3), draw(1, 205)
    plain = resampling.jackknife(lambda a, b: {"frechet": distances.frechet(a, b)}, x, y, groups=10)
    quick = resampling.jackknife_frechet(x, y, groups=10)
    assert quick["frechet"] == pytest.approx(plain["frechet"], rel=1e-4)


def test_the_kernel_shortcut_is_the_plain_way():
    x, y = draw(0, 200, 0.3), draw(1, 200)
    plain = resampling.jackknife(lambda a, b: {"kid": float(distances._cubic_mmd(a, b))}, x, y, groups=10)
    assert resampling.jackknife_kid(x, y, groups=10)["kid"] == pytest.approx(plain["kid"], rel=1e-3)


def test_a_bootstrap_would_miss_the_value_and_leaving_out_does_not():
    x, y = draw(0), draw(1)
    value = distances.frechet(x, y)
    generator = np.random.default_rng(0)
    pick = lambda z: z[generator.integers(0, len(z), len(z))]
    assert np.quantile([distances.frechet(pick(x), pick(y)) for _ in range(200)], 0.05) > value
    assert resampling.jackknife_frechet(x, y)["frechet"] > 0


def test_bootstrap_of_a_mean_is_the_binomial_interval():
    values = np.arange(400) < 120
    low, high = resampling.bootstrap_mean(values)
    error = np.sqrt(0.3 * 0.7 / 400)
    assert low == pytest.approx(0.3 - 1.96 * error, abs=0.006) and high == pytest.approx(0.3 + 1.96 * error, abs=0.006)
    assert resampling.bootstrap_mean(np.ones(50)) == (1.0, 1.0)


def test_the_floor_has_the_law_of_fresh_pairs():
    measure = lambda a, b: {"frechet": distances.frechet(a, b)}
    fresh = [measure(draw(1000 + 2 * i), draw(1001 + 2 * i))["frechet"] for i in range(200)]
    mean, std = resampling.real_floor(measure, draw(5, 400), pairs=60)
    assert mean["frechet"] == pytest.approx(np.mean(fresh), rel=0.2)
    assert std["frechet"] == pytest.approx(np.std(fresh), rel=0.4)
    one, none = resampling.real_floor(measure, draw(5, 400), pairs=1)
    assert none == {} and one["frechet"] > 0


def test_the_floor_splits_into_disjoint_halves():
    seen = []
    measure = lambda a, b: seen.append((set(a[:, 0].tolist()), set(b[:, 0].tolist()))) or {"x": 0.0}
    resampling.real_floor(measure, np.arange(21, dtype=np.float32)[:, None], pairs=3)
    assert all(len(a) == len(b) == 10 and not a & b for a, b in seen)
    assert len({tuple(sorted(a)) for a, _ in seen}) == 3


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="at least 40 samples; got 30"):
        resampling.jackknife_frechet(draw(0, 30), draw(1, 30))

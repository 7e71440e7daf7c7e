"""Distances against closed forms, brute force and independent implementations."""

import itertools

import numpy as np
import pytest
import scipy.linalg

from flowjax.evaluation import distances


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_sliced_w2_of_a_translation():
    x, move = normal(0, 300, 2), np.float32([1.2, -0.5])
    expected = (move**2).sum() / 2
    assert distances.sliced_w2(x, x + move, directions=8192) ** 2 == pytest.approx(expected, rel=0.03)
    assert distances.sliced_w2(x[:, :1], x[:, :1] + 0.7) == pytest.approx(0.7, rel=1e-5)  # on a line it is exact


def test_sliced_w2_ignores_the_order_and_uses_every_direction():
    x, y = normal(0, 200, 3), normal(1, 200, 3)
    assert distances.sliced_w2(x, x[::-1]) == 0
    assert distances.sliced_w2(x, y) == pytest.approx(distances.sliced_w2(y[::-1], x), rel=1e-5)
    # 100 directions do not fill the last block: their mean must still be over 100.
    theta = np.random.default_rng(3).standard_normal((100, 3), np.float32)
    theta /= np.linalg.norm(theta, axis=1, keepdims=True)
    gaps = [np.mean((np.sort(x @ t) - np.sort(y @ t)) ** 2) for t in theta]
    assert distances.sliced_w2(x, y, directions=100, seed=3) ** 2 == pytest.approx(np.mean(gaps), rel=1e-4)


def test_exact_w2_against_all_permutations_and_a_translation():
    x, y = normal(0, 6, 3), normal(1, 6, 3)
    best = min(np.mean(np.sum((x - y[list(p)]) ** 2, 1)) for p in itertools.permutations(range(6)))
    assert distances.exact_w2(x, y) == pytest.approx(np.sqrt(best), rel=1e-5)
    z = normal(2, 64, 3)
    assert distances.exact_w2(z, z[::-1] + np.float32([3, 4, 0])) == pytest.approx(5, rel=1e-5)


@pytest.mark.parametrize("relative_epsilon", [0.05, 0.5])
def test_sinkhorn_of_a_translation_is_exact_at_any_temperature(relative_epsilon):
    x = normal(0, 128, 2)
    assert distances.sinkhorn_w2(x, x + np.float32([0.6, 0.8]), relative_epsilon) == pytest.approx(1.0, abs=0.01)
    assert distances.sinkhorn_w2(x, x, relative_epsilon) == pytest.approx(0.0, abs=1e-3)


def test_sinkhorn_comes_near_the_assignment_and_takes_unequal_counts():
    x, y = normal(0, 128, 2), normal(1, 128, 2) * 2 + 1
    assert distances.sinkhorn_w2(x, y, 0.01) == pytest.approx(distances.exact_w2(x, y), rel=0.03)
    # Every point twice is the same measure.
    assert distances.sinkhorn_w2(np.concatenate([x, x]), y) == pytest.approx(distances.sinkhorn_w2(x, y), rel=1e-3)


def test_mmd_against_loops_and_the_closed_form_of_two_gaussians():
    x, y = normal(0, 5, 2), normal(1, 6, 2) + 1
    k = lambda a, b: np.exp(-np.sum((a - b) ** 2) / (2 * 0.7**2))
    within = lambda z: np.mean([k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j])
    expected = within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert distances.mmd(x, y, bandwidth=0.7) == pytest.approx(expected, rel=1e-4)
    # N(0, I) against N(m, I): 2 (h^2 / (h^2 + 2))^(d/2) (1 - exp(-|m|^2 / (2 (h^2 + 2)))).
    h2, m = 1.5**2, np.float32([0.8, 0.6])
    expected = 2 * (h2 / (h2 + 2)) * (1 - np.exp(-1 / (2 * (h2 + 2))))
    x, y = normal(2, 2000, 2), normal(3, 2000, 2) + m
    assert distances.mmd(x, y, bandwidth=1.5) == pytest.approx(expected, rel=0.1)


def test_the_median_distance_is_the_default_bandwidth():
    x, y = normal(0, 50, 2), normal(1, 51, 2)
    pairs = [np.linalg.norm(a - b) for a, b in itertools.combinations(y, 2)]
    assert distances.mmd(x, y) == pytest.approx(distances.mmd(x, y, bandwidth=float(np.median(pairs))), abs=1e-5)


def test_kid_closed_form_in_one_dimension():
    # (xy + 1)^3 has features 1, sqrt3 x, sqrt3 x^2, x^3, so the squared distance of the means is
    # 3 m^2 + 3 (m^2)^2 + (m^3 + 3 m)^2 for N(m, 1) against N(0, 1).
    m = 0.5
    expected = 3 * m**2 + 3 * m**4 + (m**3 + 3 * m) ** 2
    result = distances.kid(normal(0, 40_000, 1) + np.float32(m), normal(1, 40_000, 1), subsets=80, subset_size=500)
    assert abs(result.mean - expected) < 5 * result.std / np.sqrt(80)
    assert result.mean == pytest.approx(expected, rel=0.1)


def test_kid_is_unbiased():
    values = [distances.kid(normal(2 * i, 80, 4), normal(2 * i + 1, 80, 4), 1, 40).mean for i in range(200)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3.5 * error
    # A biased estimate would keep the diagonal: (E k(x, x) - E k(x, x')) / n for each set, far outside that interval.
    z = normal(0, 1000, 4)
    diagonal = np.mean((np.sum(z**2, 1) / 4 + 1) ** 3) - np.mean((z @ z[::-1].T / 4 + 1) ** 3)
    assert 2 * diagonal / 40 > 10 * error


def test_kid_subsets_vary_even_when_the_sets_are_small():
    result = distances.kid(normal(0, 100, 4), normal(1, 100, 4), subsets=10)
    assert result.std > 0
    assert result == distances.kid(normal(0, 100, 4), normal(1, 100, 4), subsets=10)
    assert result != distances.kid(normal(0, 100, 4), normal(1, 100, 4), subsets=10, seed=1)


def test_frechet_of_shifts_and_scales():
    x = normal(0, 200, 5) * np.float32([1, 2, 3, 0.5, 0.1])
    move = np.float32([1, 0, -2, 0.5, 0])
    assert distances.frechet(x, x) == pytest.approx(0, abs=1e-9)
    assert distances.frechet(x, x + move) == pytest.approx((move**2).sum(), rel=1e-5)
    centred = x - x.mean(0)
    expected = (1.5 - 1) ** 2 * np.trace(np.cov(centred.T))
    assert distances.frechet(centred, 1.5 * centred) == pytest.approx(expected, rel=1e-4)


def test_frechet_against_a_general_matrix_root():
    x, y = normal(0, 300, 6) @ normal(1, 6, 6), normal(2, 400, 6) @ normal(3, 6, 6) + 1
    c_x, c_y = np.cov(x.T.astype(float)), np.cov(y.T.astype(float))
    root = scipy.linalg.sqrtm(c_x @ c_y).real
    expected = ((x.mean(0, float) - y.mean(0, float)) ** 2).sum() + np.trace(c_x + c_y - 2 * root)
    assert distances.frechet(x, y) == pytest.approx(expected, rel=1e-8)
    assert distances.frechet(x, y) == pytest.approx(distances.frechet(y, x), rel=1e-8)


def test_frechet_of_fewer_examples_than_features():
    # Rank-one covariances along orthogonal axes: nothing is shared, so the traces remain.
    x, y = np.zeros((3, 10), np.float32), np.zeros((3, 10), np.float32)
    x[:, 0], y[:, 1] = [-1, 0, 1], [-2, 0, 2]
    assert distances.frechet(x, y) == pytest.approx(1 + 4, rel=1e-9)


def test_images_are_flattened():
    x, y = normal(0, 40, 4, 4, 1), normal(1, 40, 4, 4, 1)
    for name in ("sliced_w2", "exact_w2", "sinkhorn_w2", "mmd", "frechet"):
        function = getattr(distances, name)
        assert function(x, y) == pytest.approx(function(x.reshape(40, 16), y.reshape(40, 16)), rel=1e-6), name


def test_unusable_sets_are_refused():
    with pytest.raises(ValueError, match="4 and 5 examples. Cut the larger"):
        distances.sliced_w2(normal(0, 4, 2), normal(1, 5, 2))
    with pytest.raises(ValueError, match="examples of 2 and 3 numbers"):
        distances.mmd(normal(0, 4, 2), normal(1, 4, 3))
    with pytest.raises(ValueError, match="at least 2 examples"):
        distances.frechet(normal(0, 1, 2), normal(1, 4, 2))

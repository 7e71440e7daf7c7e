"""Precision and its kin against nearest-neighbour trees, and on sets whose answer is plain."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree

from flowjax.evaluation import coverage
from flowjax.paths.oracles import GaussianMixture


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def by_trees(x, y, k):
    tree_x, tree_y = cKDTree(x), cKDTree(y)
    radii_x, radii_y = tree_x.query(x, k + 1)[0][:, k], tree_y.query(y, k + 1)[0][:, k]
    gap = np.linalg.norm(x[:, None].astype(float) - y, axis=-1)
    return {
        "precision": (gap <= radii_y).any(1).mean(),
        "recall": (radii_x >= gap.T).any(1).mean(),
        "density": (gap <= radii_y).sum(1).mean() / k,
        "coverage": (tree_x.query(y)[0] <= radii_y).mean(),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_against_nearest_neighbour_trees_across_several_chunks(k, monkeypatch):
    monkeypatch.setattr(coverage, "CHUNK", 64)
    x, y = 0.8 * normal(0, 200, 3) + 0.3, normal(1, 150, 3)
    result = coverage.precision_recall(x, y, k)
    for name, expected in by_trees(x, y, k).items():
        assert result[name] == pytest.approx(expected, abs=1e-6), name


def test_identical_and_disjoint_sets():
    x = normal(0, 100, 4)
    same = coverage.precision_recall(x, x[::-1])
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    assert same["density"] >= 1  # each point is in its own ball and in those of its neighbours
    far = coverage.precision_recall(x, x + 100)
    assert list(far.values()) == [0, 0, 0, 0]


def test_a_collapsed_model_is_precise_and_misses_the_rest():
    real = np.concatenate([normal(0, 100, 2), normal(1, 300, 2) + 20])
    result = coverage.precision_recall(normal(2, 200, 2), real)
    assert result["precision"] > 0.9
    assert result["recall"] < 0.27 and result["coverage"] < 0.27  # a quarter of the real points is in that mode


def test_far_from_the_origin_nothing_cancels():
    x, y = normal(0, 100, 3), normal(1, 100, 3)
    shifted = coverage.precision_recall(x + 500, y + 500)
    assert shifted == pytest.approx(coverage.precision_recall(x, y), abs=0.021)


def test_nearest_distances():
    x, y = normal(0, 70, 3), normal(1, 50, 3)
    np.testing.assert_allclose(coverage.nearest_distances(x, y), cKDTree(y).query(x)[0], rtol=1e-4, atol=1e-5)


def test_too_few_examples():
    with pytest.raises(ValueError, match="k=3 needs more than 3 examples"):
        coverage.precision_recall(normal(0, 3, 2), normal(1, 9, 2))
    with pytest.raises(ValueError, match="2 and 3 numbers"):
        coverage.precision_recall(normal(0, 9, 2), normal(1, 9, 3))


MIXTURE = GaussianMixture(
    jnp.array([0.5, 0.3, 0.2]), jnp.array([[-5.0, 0], [0, 5], [5, 0]]), jnp.array([0.1, 0.1, 0.1])
)


def test_mode_weights_of_samples_laid_by_hand():
    means = np.asarray(MIXTURE.means)
    exact = np.repeat(means, [50, 30, 20], axis=0)
    assert coverage.mode_weights(exact, MIXTURE) == pytest.approx(
        {"mode_weight_error": 0, "stray": 0, "missing_modes": 0}, abs=1e-7
    )
    collapsed = np.repeat(means[:1], 10, axis=0)
    result = coverage.mode_weights(collapsed, MIXTURE)
    assert result["mode_weight_error"] == pytest.approx(0.5) and result["missing_modes"] == 2
    strayed = exact.copy()
    strayed[:10] += [0.5, 0]  # five standard deviations off, still nearest to its mode
    assert coverage.mode_weights(strayed, MIXTURE)["stray"] == pytest.approx(0.1)
    assert coverage.mode_weights(strayed, MIXTURE)["mode_weight_error"] == pytest.approx(0, abs=1e-7)


def test_modes_are_told_apart_by_responsibility_and_not_by_distance():
    wide_and_narrow = GaussianMixture(jnp.array([0.5, 0.5]), jnp.array([[0.0], [3.0]]), jnp.array([2.0, 0.1]))
    # 2 is nearer to the narrow mode, but ten of its standard deviations away.
    result = coverage.mode_weights(np.float32([[2.0]] * 4), wide_and_narrow)
    assert result["stray"] == 0 and result["missing_modes"] == 1


def test_true_samples_have_the_expected_error_and_strays():
    n, w = 20_000, np.asarray(MIXTURE.weights)
    mode = np.random.default_rng(0).choice(3, n, p=w / w.sum())
    samples = np.asarray(MIXTURE.means)[mode] + 0.1 * normal(1, n, 2)
    result = coverage.mode_weights(samples, MIXTURE)
    expected = np.sum(np.sqrt(w * (1 - w) / (2 * np.pi * n)))
    assert 0 < result["mode_weight_error"] < 4 * expected
    assert result["stray"] == pytest.approx(0.001, abs=4 * np.sqrt(0.001 / n))

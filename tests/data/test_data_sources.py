"""The distributions have the moments, supports and labels that their definitions give."""

import jax
import numpy as np
import pytest

from flowjax.choices import build
from flowjax.data import SOURCES, draws, make_iterator
from flowjax.data.digits import digits


def many(source, count=20_000):
    return source.reference("test", count)


def test_row_uniforms_are_a_function_of_seed_stream_step_and_row():
    for columns in (4, 7):
        whole = draws.row_uniforms(5, draws.TRAIN, 3, 0, 10, columns)
        np.testing.assert_array_equal(whole[4:9], draws.row_uniforms(5, draws.TRAIN, 3, 4, 9, columns))
        for other in (
            draws.row_uniforms(6, draws.TRAIN, 3, 0, 10, columns),
            draws.row_uniforms(5, draws.AUGMENT, 3, 0, 10, columns),
            draws.row_uniforms(5, draws.TRAIN, 4, 0, 10, columns),
        ):
            assert not np.isin(other, whole).any()
        assert len(np.unique(whole)) == whole.size


def test_normal_pairs_are_independent_standard_normals():
    u = draws.row_uniforms(0, draws.TRAIN, 0, 0, 40_000)
    z = draws.normal_pairs(u[:, 0], u[:, 1])
    np.testing.assert_allclose(z.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(np.cov(z.T), np.eye(2), atol=0.03)
    np.testing.assert_allclose((z**4).mean(0), 3, atol=0.15)


@pytest.mark.parametrize("weights", ["even", "uneven"])
def test_mixture_agrees_with_its_oracle(weights):
    source = SOURCES["mixture"](weights=weights, labels=True)
    batch = many(source)
    expected = np.ones(8) / 8 if weights == "even" else np.arange(1, 9) / 36
    np.testing.assert_allclose(source.oracle.weights, expected, rtol=1e-6)
    np.testing.assert_allclose(np.bincount(batch["label"], minlength=8) / 20_000, expected, atol=0.01)
    offset = batch["data"] - np.asarray(source.oracle.means)[batch["label"]]
    np.testing.assert_allclose(offset.std(0), 0.15, rtol=0.02)
    np.testing.assert_allclose(offset.mean(0), 0, atol=0.005)
    # The oracle's own sampler, another implementation, has the same first two moments.
    drawn = np.asarray(source.oracle.sample(jax.random.key(0), 20_000))
    np.testing.assert_allclose(batch["data"].mean(0), drawn.mean(0), atol=0.05)
    np.testing.assert_allclose(np.cov(batch["data"].T), np.cov(drawn.T), atol=0.05)


def test_measured_std_is_the_true_one():
    # Ring of radius r: a coordinate of the mode has variance r^2 / 2. Board: uniform on [-2, 2] along each axis, 4/3.
    assert SOURCES["mixture"]().spec.std == pytest.approx(np.sqrt(2.0**2 / 2 + 0.15**2), rel=0.01)
    assert SOURCES["checkerboard"]().spec.std == pytest.approx(np.sqrt(4 / 3), rel=0.01)


def test_moons_lie_on_their_arcs():
    batch = many(SOURCES["moons"](noise=1e-3, labels=True))
    points, upper = batch["data"] / 1.5, batch["label"] == 0
    np.testing.assert_allclose(np.linalg.norm(points[upper] + [0.5, 0.25], axis=1), 1, atol=0.01)
    np.testing.assert_allclose(np.linalg.norm(points[~upper] - [0.5, 0.25], axis=1), 1, atol=0.01)
    assert (points[upper][:, 1] > -0.26).all() and (points[~upper][:, 1] < 0.26).all()
    np.testing.assert_allclose(points.mean(0), 0, atol=0.02)
    assert abs(upper.mean() - 0.5) < 0.02


def test_checkerboard_fills_eight_dark_cells_evenly():
    batch = many(SOURCES["checkerboard"](labels=True))
    cells = np.floor(batch["data"]).astype(int) + 2
    assert ((cells >= 0) & (cells <= 3)).all()
    assert (cells.sum(1) % 2 == 0).all()
    kinds, counts = np.unique(cells @ [1, 4], return_counts=True)
    assert len(kinds) == 8
    np.testing.assert_allclose(counts / 20_000, 1 / 8, atol=0.01)
    assert len({(label, kind) for label, kind in zip(batch["label"], cells @ [1, 4])}) == 8


def test_spirals_lie_on_their_arms():
    batch = many(SOURCES["spirals"](arms=3, turns=1.0, noise=1e-4, labels=True))
    points = batch["data"].astype(float)
    radius = np.linalg.norm(points, axis=1)
    angle = 2 * np.pi * (radius / 2 + batch["label"] / 3)
    np.testing.assert_allclose(points, radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), atol=5e-3)
    assert radius.max() < 2.01
    np.testing.assert_allclose(np.bincount(batch["label"]) / 20_000, 1 / 3, atol=0.015)


def test_reference_points_are_not_training_points():
    source = SOURCES["moons"]()
    train = next(make_iterator(source, 100))["data"]
    references = [source.reference(split, 100, seed)["data"] for split in ("train", "test") for seed in (0, 1)]
    seen = [set(map(tuple, points)) for points in (train, *references)]
    assert len(set.union(*seen)) == 500


def test_digits_split_is_a_fixed_partition_even_over_the_classes():
    source = digits()
    train, test = source.reference("train"), source.reference("test")
    assert len(train["data"]) + len(test["data"]) == 1797
    assert len(source.reference("all")["data"]) == 1797
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    together = np.concatenate([train["data"], test["data"]]).reshape(1797, 64) * 8 + 8
    np.testing.assert_array_equal(np.sort(together @ np.arange(64)), np.sort(values @ np.arange(64)))
    share = np.bincount(test["label"]) / np.bincount(labels)
    np.testing.assert_allclose(share, 0.2, atol=0.005)
    np.testing.assert_array_equal(test["data"], digits().reference("test")["data"])
    assert (test["data"] != digits(split_seed=1).reference("test")["data"]).any()


def test_digits_spec_is_measured():
    source = digits()
    data = source.reference("train")["data"].astype(float)
    assert source.spec.shape == (8, 8, 1) and source.spec.num_classes == 10
    assert data.min() == -1 and data.max() == 1
    assert source.spec.std == pytest.approx(np.sqrt((data**2).mean() - data.mean() ** 2), rel=1e-4)
    assert len(np.unique(data)) == source.levels == 17


def test_digits_options():
    assert digits(train_on="all").size == 1797
    plain = digits(labels=False)
    assert plain.spec.num_classes is None and set(next(make_iterator(plain, 4))) == {"data", "mask", "row"}
    with pytest.raises(ValueError, match="train_on='both'"):
        digits(train_on="both")
    with pytest.raises(ValueError, match="test_share=1.0"):
        digits(test_share=1.0)
    with pytest.raises(ValueError, match="shift=-1"):
        digits(shift=-1)
    with pytest.raises(ValueError, match="has no option 'shifts'.*Did you mean 'shift'"):
        build("data", {"name": "digits", "shifts": 1}, SOURCES)


def test_dequantised_digits_round_back_to_themselves_and_fill_the_gaps():
    plain, noisy = next(make_iterator(digits(), 64)), next(make_iterator(digits(dequantise=True), 64))
    np.testing.assert_array_equal(np.round(noisy["data"] * 8) / 8, plain["data"])
    difference = (noisy["data"] - plain["data"]).ravel() * 8
    assert abs(difference.mean()) < 0.02 and difference.std() == pytest.approx(1 / np.sqrt(12), rel=0.05)


def test_shifted_digits_are_their_originals_moved():
    plain, moved = next(make_iterator(digits(), 256))["data"], next(make_iterator(digits(shift=1), 256))["data"]
    padded = np.pad(plain, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1)
    candidates = [padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    matches = np.stack([(moved == candidate).all((1, 2, 3)) for candidate in candidates], 1)
    assert matches.any(1).all()
    np.testing.assert_allclose(matches.mean(0), 1 / 9, atol=0.08)


def test_augmentations_are_the_same_on_every_process_split():
    source = digits(shift=1, dequantise=True)
    whole = next(make_iterator(source, 8, start_step=200))
    parts = [next(make_iterator(source, 8, process_index=i, process_count=2, start_step=200)) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate([part["data"] for part in parts]), whole["data"])

"""Couplings: permutations, sorting on the line, shorter paths, labels untouched."""

import numpy as np
import pytest
from scipy import stats

from flowjax.choices import build
from flowjax.paths.couplings import COUPLINGS


def batch(count=64, shape=(2,), seed=0, labels=4):
    rng = np.random.default_rng(seed)
    return {
        "data": (rng.normal(size=(count, *shape)) * 0.5 + 1).astype(np.float32),
        "label": rng.integers(0, labels, count),
        "row": np.arange(count),
    }


def couple(spec, examples, seed=1):
    return build("coupling", spec, COUPLINGS)(dict(examples), np.random.default_rng(seed))


def drawn(examples, seed=1):
    """The noise that a coupling with this generator has to distribute."""
    return np.random.default_rng(seed).standard_normal(examples["data"].shape, dtype=np.float32)


def test_on_the_line_the_pairing_is_sorting():
    examples = batch(shape=(1,))
    out = couple(dict(name="optimal_transport"), examples)
    np.testing.assert_array_equal(np.argsort(out["noise"][:, 0]), np.argsort(out["data"][:, 0]))


@pytest.mark.parametrize("within_label", [False, True])
def test_optimal_transport_permutes_the_noise_and_leaves_the_rest(within_label):
    examples = batch(shape=(2, 2, 1))
    out = couple(dict(name="optimal_transport", within_label=within_label), examples)
    for name, value in examples.items():
        np.testing.assert_array_equal(out[name], value)
    order = lambda x: np.sort(x.reshape(64, -1)[:, 0])
    np.testing.assert_array_equal(order(out["noise"]), order(drawn(examples)))
    assert out["noise"].dtype == np.float32 and "noise" not in examples


def test_paths_become_shorter_and_labels_cost():
    examples = batch(256)
    length = lambda noise: np.mean(np.sum((examples["data"] - noise) ** 2, axis=1))
    independent = length(drawn(examples))
    exact = length(couple(dict(name="optimal_transport"), examples)["noise"])
    labelled = length(couple(dict(name="optimal_transport", within_label=True), examples)["noise"])
    entropic = length(couple(dict(name="sinkhorn", regularization=0.02), examples)["noise"])
    assert exact < labelled < 0.9 * independent
    # W2^2 of N(0, I) and N(1, I/4) in the plane is 2 (1 + 1/4) = 2.5; independent pairs cost 2 (1 + 1 + 1/4) = 4.5.
    assert exact == pytest.approx(2.5, rel=0.15) and independent == pytest.approx(4.5, rel=0.15)
    assert entropic < 0.75 * independent


def test_within_label_uses_the_noise_of_the_label():
    examples = batch()
    out = couple(dict(name="optimal_transport", within_label=True), examples)
    for label in range(4):
        own = examples["label"] == label
        np.testing.assert_array_equal(np.sort(out["noise"][own, 0]), np.sort(drawn(examples)[own, 0]))


def test_padding_is_matched_apart():
    examples = batch()
    examples["mask"] = (np.arange(64) < 50).astype(np.float32)
    out = couple(dict(name="optimal_transport"), examples)
    np.testing.assert_array_equal(np.sort(out["noise"][:50, 0]), np.sort(drawn(examples)[:50, 0]))


def test_sinkhorn_between_transport_and_independence():
    examples = batch(128, (1,))
    correlation = lambda spec: np.corrcoef(couple(spec, examples)["noise"][:, 0], examples["data"][:, 0])[0, 1]
    near, far = (correlation(dict(name="sinkhorn", regularization=r)) for r in (0.005, 100.0))
    assert near > 0.97 and abs(far) < 0.25


def test_sinkhorn_draws_from_its_plan():
    """Over many generators the noise of all examples together is standard normal."""
    examples = batch(64, (1,))
    noise = np.concatenate([couple(dict(name="sinkhorn", regularization=0.1), examples, s)["noise"] for s in range(20)])
    # Drawn with replacement: about half the noises are distinct, so the statistic is that of fewer draws.
    assert stats.kstest(noise[:, 0], stats.norm.cdf).statistic < 1.63 / np.sqrt(1280 / 3)


def test_independent_and_stored():
    examples = batch()
    assert set(couple(dict(name="independent"), examples)) == set(examples)
    pairs = {**examples, "noise": drawn(examples)}
    np.testing.assert_array_equal(couple(dict(name="stored"), pairs)["noise"], pairs["noise"])
    with pytest.raises(ValueError, match="needs batches with 'noise'"):
        couple(dict(name="stored"), examples)


def test_refusals():
    examples = batch()
    with pytest.raises(ValueError, match="already has 'noise'"):
        couple(dict(name="optimal_transport"), {**examples, "noise": drawn(examples)})
    with pytest.raises(ValueError, match="no 'label'"):
        couple(dict(name="optimal_transport", within_label=True), {"data": examples["data"]})
    with pytest.raises(ValueError, match="optimal_transport"):
        couple(dict(name="sinkhorn", regularization=0.0), examples)
    with pytest.raises(RuntimeError, match="wrong rows"):
        couple(dict(name="sinkhorn", regularization=1e-6, tolerance=1e-9), examples)

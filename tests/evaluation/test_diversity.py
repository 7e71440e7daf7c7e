"""The spread of the samples of a class, against sets and laws whose spread is known."""

import numpy as np
import pytest

from flowjax.choices import build
from flowjax.contract import DataSpec
from flowjax.data import ArraySource
from flowjax.evaluation import EVALUATORS
from flowjax.evaluation.diversity import spread
from flowjax.evaluation.judging import receipt_fields

LABELS = np.arange(400, dtype=np.int32) % 2


def examples(seed, scale=1.0, centre=5.0):
    """Two classes far from each other, each a Gaussian of deviation `scale` in four dimensions."""
    noise = np.random.default_rng(seed).standard_normal((len(LABELS), 4))
    return (scale * noise + centre * (2 * LABELS - 1)[:, None]).astype(np.float32)


def judge(**options):
    data = {"data": examples(0), "label": LABELS}
    source = ArraySource(data, data, DataSpec((4,), num_classes=2))
    return build("evaluator", dict(name="diversity", **options), EVALUATORS, source=source, seed=0)


def test_spread_of_known_sets_and_laws():
    # Of 2n points at -s and +s there are n^2 pairs of distance 2s among n (2n - 1).
    points = np.repeat([-0.5, 0.5], 3)[:, None]
    assert spread(points, np.zeros(6)) == pytest.approx(9 / 15)
    # Classes count alike, whatever their sizes; a class of one says nothing.
    both = np.concatenate([points, [[7.0], [7.0], [90.0]]])
    assert spread(both, np.array([0] * 6 + [1, 1, 2])) == pytest.approx((9 / 15 + 0) / 2)
    # |x - y| of two standard Gaussians in d dimensions has mean 2 Gamma((d + 1) / 2) / Gamma(d / 2): 3 sqrt(pi) / 2 for d = 4.
    assert spread(examples(1), LABELS) == pytest.approx(1.5 * np.sqrt(np.pi), rel=0.02)
    with pytest.raises(ValueError, match="none two of one class"):
        spread(points[:2], np.arange(2))


def test_samples_are_held_against_the_data():
    evaluate, conditions = judge(), {"label": LABELS}
    real = evaluate(examples(1), conditions)
    assert abs(real["diversity"] - real["diversity_floor"]) < 4 * real["diversity_floor_std"] < 0.2
    assert real["diversity_floor"] == pytest.approx(1, abs=0.05)
    assert evaluate(examples(1, scale=0.3), conditions)["diversity"] == pytest.approx(0.3 * real["diversity"], rel=1e-3)
    collapsed = examples(1, scale=0.0)  # one picture for each class
    assert evaluate(collapsed, conditions)["diversity"] == 0
    assert evaluate(collapsed, {})["diversity"] > 0.5  # which nobody sees who does not know the classes
    fields = receipt_fields(evaluate, real, "diversity")
    assert fields["better"] == "higher" and {"floor", "floor_std", "features"} <= set(fields)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="400 samples and 399 labels"):
        judge()(examples(1), {"label": LABELS[1:]})
    with pytest.raises(ValueError, match="pairs=1"):
        judge(pairs=1)

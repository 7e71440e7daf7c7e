"""Comparisons with known scores come out as their law says, are the same for every process, and fit the contract."""

import itertools
import math

import numpy as np
import pytest

from flowjax.choices import build
from flowjax.data import SOURCES, draws, make_iterator
from flowjax.data.judgements import Judgement, distinct_levels

MANY = 40_000
UNIFORMS = np.random.default_rng(0).random((MANY, 3))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("theta", [1.0, 3.0])
def test_pairs_come_out_as_often_as_stated(theta):
    law = Judgement(temperature=0.5, theta=theta)
    scores = np.tile([0.3, -0.1], (MANY, 1))
    order, outcome = law.order(scores, UNIFORMS[:, :2])
    np.testing.assert_array_equal(order[0], [0, 1])
    # d = 0.4 / 0.5; a win needs d > log theta (Rao & Kupper), what is left is a tie
    first, second = sigmoid(0.8 - math.log(theta)), sigmoid(-0.8 - math.log(theta))
    for value, share in ((1, first), (-1, second), (0, (theta**2 - 1) * first * second)):
        assert abs((outcome == value).mean() - share) < 4 * math.sqrt(0.25 / MANY)
    assert law.best_accuracy(scores[:1]) == pytest.approx(first / (first + second), rel=1e-9)


def test_rankings_come_out_as_often_as_places_taken_in_turn():
    scores = np.array([0.5, 0.0, -1.0])
    order, outcome = Judgement().order(np.tile(scores, (MANY, 1)), UNIFORMS)
    assert (outcome == 1).all()
    weight, total = np.exp(scores), 0.0
    for places in itertools.permutations(range(3)):
        chance, left = 1.0, sum(weight)
        for place in places:
            chance, left = chance * weight[place] / left, left - weight[place]
        total += chance
        assert abs((order == places).all(axis=1).mean() - chance) < 4 * math.sqrt(0.25 / MANY)
    assert total == pytest.approx(1.0)


def test_nobody_is_right_more_often_than_the_best_accuracy_says():
    source = build("data", dict(name="compared_points", temperature=0.7, examples=2), SOURCES)
    batch, scores = source.judged("test", MANY)
    right = np.sign(scores[:, 0] - scores[:, 1]) == batch["outcome"]  # the known scores themselves
    assert abs(right.mean() - source.best_accuracy("test", MANY)) < 4 * math.sqrt(0.25 / MANY)
    ranked = build("data", dict(name="compared_points", temperature=0.7, examples=4), SOURCES)
    scores = ranked.judged("test", MANY)[1]
    one, other = np.triu_indices(4, 1)
    assert abs((scores[:, one] > scores[:, other]).mean() - ranked.best_accuracy("test", MANY)) < 0.01


def test_scores_of_points_by_hand():
    for score, by_hand in (
        (dict(name="linear", direction=(2.0, -1.0, 0.5)), lambda x: 2 * x[0] - x[1] + 0.5 * x[2]),
        (
            dict(name="quadratic", centre=(1.0, 0.0, 0.0), curvature=2.0),
            lambda x: -((x[0] - 1) ** 2) - x[1] ** 2 - x[2] ** 2,
        ),
    ):
        source = build("data", dict(name="compared_points", score=score, examples=3), SOURCES)
        batch, scores = source.judged("train", 50)
        points = np.concatenate([batch["data"][:, None], batch["others"]], axis=1)
        np.testing.assert_allclose(scores, np.apply_along_axis(by_hand, 2, points), rtol=1e-5, atol=1e-5)
    assert abs(points.mean()) < 0.3 and abs(points.std() - 1) < 0.2  # normal


SPECS = [
    dict(name="compared_points"),
    dict(name="compared_points", examples=4, score=dict(name="quadratic", centre=(0.0, 1.0, 0.0))),
    dict(name="compared_points", theta=2.0),
    *(dict(name="compared_shapes", kind=kind, examples=k) for kind in ("caption", "degraded", "style") for k in (2, 3)),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: "-".join(str(value) for value in spec.values()))
def test_a_row_depends_on_seed_step_and_row_alone(spec):
    source = build("data", spec, SOURCES)
    batch = next(make_iterator(source, 12, seed=3, start_step=5))  # which checks it against the spec
    part = source.dataset(3, 12, 4, 9)[5]
    for name, value in part.items():
        np.testing.assert_array_equal(value, batch[name][4:9])
    other = next(make_iterator(source, 12, seed=4, start_step=5))
    assert (other["data"] != batch["data"]).any() and source.size is None
    assert source.fingerprint() == build("data", spec, SOURCES).fingerprint()
    real = {split: source.reference(split, 12, 3)["data"] for split in ("train", "test")}
    assert (real["train"] != real["test"]).any()
    examples = np.concatenate([batch["data"][:, None], batch["others"]], axis=1)
    assert examples.shape[1] == source.spec.compared == spec.get("examples", 2)
    assert ("present" in batch) == (source.spec.compared > 2)


def test_levels_are_distinct_and_one_is_zero():
    most = np.array([2, 3, 4, 2, 5] * 200)
    found = distinct_levels(draws.row_uniforms(0, draws.TRAIN, 0, 0, 1000, 3), most)
    assert all(len(set(row)) == 3 and min(row) == 0 for row in found.tolist()) and (found.max(1) <= most).all()
    assert abs((found[:, 0] == 0).mean() - 1 / 3) < 0.06
    assert set(found[most == 5].ravel()) == set(range(6))


@pytest.mark.parametrize(
    "spec, message",
    [
        (dict(name="compared_points", temperature=0.0), "temperature=0.0 and theta=1.0"),
        (dict(name="compared_points", theta=0.5), "theta=0.5"),
        (dict(name="compared_points", examples=3, theta=2.0), "only two tie"),
        (dict(name="compared_points", examples=1), "examples=1 with theta=1.0: a comparison is of two or more"),
        (dict(name="compared_points", score=dict(name="cubic")), "Unknown score 'cubic'"),
        (dict(name="compared_shapes", kind="colour"), "Unknown kind of comparison 'colour'"),
        (dict(name="compared_shapes", taste=(1.0, 0.0)), "kind='style'"),
        (dict(name="compared_shapes", examples=4), "a number of mistakes of its own"),
        (dict(name="compared_shapes", captions=False), "needs captions"),
    ],
)
def test_what_cannot_be_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        build("data source", spec, SOURCES)


def test_a_batch_that_is_no_comparison_is_refused():
    source = build("data", dict(name="compared_points", examples=3), SOURCES)
    for change, message in (
        (lambda b: b.pop("others"), "'others' is missing"),
        (lambda b: b.update(outcome=b["outcome"].astype(np.float32)), r"'outcome' is float32\[8\]"),
        (lambda b: b.update(outcome=0 * b["outcome"]), "a ranking has the best first"),
        (lambda b: b.pop("present"), "'present' is missing"),
        (lambda b: b.update(margin=b["outcome"]), r"'margin' is int32\[8\]"),
    ):

        def coupling(batch, generator, change=change):
            change(batch)
            return batch

        with pytest.raises(ValueError, match=message):
            make_iterator(source, 8, coupling=coupling)
    plain = build("data", dict(name="moons"), SOURCES)
    with pytest.raises(ValueError, match="does not say that examples are compared"):
        make_iterator(plain, 8, coupling=lambda batch, generator: {**batch, "outcome": batch["row"]})

"""Held-out comparisons: accuracy by hand, and short cuts that are there or are not."""

import zlib

import numpy as np
import pytest

from flowjax.choices import build
from flowjax.contract import DataSpec
from flowjax.data import SOURCES, ArraySource
from flowjax.evaluation import EVALUATORS


def source_of(compared=2):
    """Comparisons that do not know how good one can be at them."""
    return ArraySource({"data": np.zeros((1, 2))}, {"data": np.zeros((1, 2))}, DataSpec((2,), compared=compared))


def measure(scores, source=None, **conditions):
    scores = np.asarray(scores, np.float32)
    evaluator = build(
        "evaluator", dict(name="comparisons"), EVALUATORS, source=source or source_of(scores.shape[1]), seed=0
    )
    shape = (*scores.shape, 2)
    points = dict(data=np.zeros((shape[0], 2), np.float32), others=np.zeros((shape[0], shape[1] - 1, 2), np.float32))
    return evaluator(scores, {**points, **conditions})


def test_accuracy_by_hand():
    found = measure([[1, 0], [1, 0], [0, 1], [2, 2], [5, 1]], outcome=np.array([1, -1, -1, 1, 0]))
    assert found["comparison_accuracy"] == (1 + 0 + 1 + 0.5) / 4  # a tie says nothing
    assert found["comparison_accuracy_low"] <= found["comparison_accuracy"] <= found["comparison_accuracy_high"]
    assert found["score_mean"] == pytest.approx(1.3) and found["count"] == 5
    assert found["score_std"] == pytest.approx(np.std([1, 0, 1, 0, 0, 1, 2, 2, 5, 1]))
    present = np.array([[True, True], [True, False]])
    found = measure([[3, 1, 2], [1, 2, 99]], outcome=np.array([1, 1]), present=present)
    assert found["comparison_accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["score_mean"] == pytest.approx(np.mean([3, 1, 2, 1, 2]))  # nothing of what is not there
    with pytest.raises(ValueError, match="All of these comparisons were ties"):
        measure([[1, 0]], outcome=np.array([0]))
    with pytest.raises(ValueError, match="method 'reward_model'"):
        measure([[1, 0]])
    with pytest.raises(ValueError, match="needs data of comparisons"):
        build("evaluator", dict(name="comparisons"), EVALUATORS, source=build("d", dict(name="moons"), SOURCES))


def test_the_best_there_can_be_stands_beside_it():
    source = build("data", dict(name="compared_points", temperature=0.5), SOURCES)
    batch, known = source.judged("test", 3000)
    evaluator = build("evaluator", dict(name="comparisons"), EVALUATORS, source=source, seed=0)
    found, guessed = evaluator(known, batch), evaluator(np.zeros_like(known), batch)
    assert found["comparison_accuracy_best"] == source.best_accuracy("test", 3000, 0) > 0.8
    assert abs(found["comparison_accuracy"] - found["comparison_accuracy_best"]) < 0.02
    assert guessed["comparison_accuracy"] == 0.5


def pictures(count=200, seed=0):
    """Pairs of pictures that differ in brightness and contrast, independently of one another."""
    draw = np.random.default_rng(seed)
    light, wide = draw.uniform(-0.3, 0.3, (2, count, 2))
    texture = np.where(np.indices((8, 8)).sum(0) % 2, 1.0, -1.0)
    made = light[..., None, None] + (0.35 + wide)[..., None, None] * texture
    return light, wide, np.repeat(made[..., None], 3, axis=-1).astype(np.float32), draw


def test_a_short_cut_is_found_where_there_is_one():
    light, wide, images, draw = pictures()
    batch = dict(data=images[:, 0], others=images[:, 1:])
    tokens = np.zeros((200, 6), np.int32)
    length = draw.integers(1, 7, 200)
    tokens[np.arange(6) < length[:, None]] = 3
    outcome = np.where(light[:, 0] > light[:, 1], 1, -1)
    found = measure(7 * light + 2, outcome=outcome, tokens=tokens, **batch)
    assert found["shortcut_brightness"] == pytest.approx(1, abs=1e-3) and abs(found["shortcut_contrast"]) < 0.2
    assert found["shortcut_brightness_alone"] == 1 and found["shortcut_contrast_alone"] < 0.62
    assert found["comparison_accuracy"] == 1 and abs(found["shortcut_caption_length"]) < 0.2
    found = measure(-wide, outcome=outcome, tokens=tokens, **batch)
    assert found["shortcut_contrast"] == pytest.approx(-1, abs=1e-3)
    found = measure(length[:, None] + 0.1 * light, outcome=outcome, tokens=tokens, **batch)
    assert found["shortcut_caption_length"] > 0.99
    constant = measure(np.ones((200, 2)), outcome=outcome, **batch)
    assert constant["shortcut_brightness"] == 0 and "shortcut_caption_length" not in constant


def test_the_size_of_a_file_is_a_short_cut_too():
    draw = np.random.default_rng(0)
    noise = draw.uniform(0, 1, (60, 2))
    images = np.clip(noise[..., None, None, None] * draw.normal(size=(60, 2, 8, 8, 3)), -1, 1).astype(np.float32)
    size = lambda image: len(zlib.compress(np.rint((image + 1) * 127.5).astype(np.uint8).tobytes()))
    sizes = np.array([[size(image) for image in pair] for pair in images])
    found = measure(sizes, outcome=np.ones(60, int), data=images[:, 0], others=images[:, 1:])
    assert found["shortcut_file_size"] > 0.9

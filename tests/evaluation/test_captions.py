"""Caption accuracy: real pictures of captions are right, and every way of being wrong shows where it should."""

import numpy as np
import pytest

from flowjax.choices import build
from flowjax.data import SOURCES
from flowjax.evaluation import EVALUATORS, HIGHER_IS_BETTER
from flowjax.shapes.requirements import understand

SOURCE = SOURCES["shapes"](objects=(1, 3), captions="full", words=0.3)


def evaluator(source=SOURCE, **options):
    return build("evaluator", {"name": "caption_accuracy", "real": 200, **options}, EVALUATORS, source=source, seed=0)


JUDGE = evaluator()
REAL = SOURCE.reference("test", 300, seed=5)
TOKENS = {"tokens": REAL["tokens"]}


def test_real_pictures_of_the_captions_are_right_in_everything():
    measured = JUDGE(REAL["data"], TOKENS)
    for name, value in measured.items():
        if name != "caption_accuracy_floor":
            assert value >= 0.99, (name, value)
    asked = {"count", "kind", "colour", "size", "texture", "relation", "background", "word"}
    assert {f"caption_{name}" for name in asked} <= set(measured)
    assert {f"caption_accuracy_{number}" for number in (1, 2, 3)} <= set(measured)
    assert "caption_accuracy_4" not in measured and "caption_accuracy_held_out" not in measured
    assert measured["caption_accuracy_real"] >= 0.99
    assert measured["caption_accuracy_floor"] <= 0.02


def test_the_shares_are_means_over_the_samples_and_the_parts_add_up():
    samples = REAL["data"].copy()
    samples[:75] = -1.0  # a quarter of the pictures are plain black: no objects, and a background of the vocabulary
    measured = JUDGE(samples, TOKENS)
    assert measured["caption_accuracy"] == pytest.approx(0.75, abs=0.01)
    assert measured["caption_count"] == pytest.approx(0.75, abs=0.01)
    assert measured["caption_accuracy_low"] < 0.75 < measured["caption_accuracy_high"]
    number = understand(SOURCE.tokenizer.decode(REAL["tokens"])).count
    parts = sum(measured[f"caption_accuracy_{k}"] * (number == k).mean() for k in (1, 2, 3))
    assert parts == pytest.approx(measured["caption_accuracy"], abs=1e-6)


def test_a_mirror_turns_relations_round_and_nothing_else():
    plain = SOURCES["shapes"](objects=(2, 2), textures=("plain",), relations=1.0, loose=0.0)
    real = plain.reference("test", 200, seed=2)
    measured = evaluator(plain)(real["data"][:, :, ::-1], {"tokens": real["tokens"]})
    for name in ("count", "kind", "colour"):
        assert measured[f"caption_{name}"] >= 0.99
    captions = plain.tokenizer.decode(real["tokens"])
    sideways = np.array([" left of " in caption or " right of " in caption for caption in captions])
    related = np.array([relation != -1 for relation in understand(captions).relation])
    assert measured["caption_relation"] == pytest.approx((related & ~sideways).sum() / related.sum(), abs=0.02)
    assert measured["caption_accuracy"] == pytest.approx((~sideways).mean(), abs=0.02)


def test_held_out_combinations_are_counted_apart():
    held_out = SOURCE.reference("held_out", 100, seed=3)
    measured = JUDGE(held_out["data"], {"tokens": held_out["tokens"]})
    assert measured["caption_accuracy_held_out"] >= 0.98
    measured = JUDGE(np.roll(held_out["data"], 1, axis=0), {"tokens": held_out["tokens"]})
    assert measured["caption_accuracy_held_out"] < 0.1


def test_which_values_are_better_when_higher():
    measured = JUDGE(REAL["data"][:50], {"tokens": REAL["tokens"][:50]})
    beside = {f"caption_accuracy_{name}" for name in ("low", "high", "real", "floor")}
    assert set(measured) - beside <= HIGHER_IS_BETTER


def test_unsuitable_data_and_conditions_are_refused():
    with pytest.raises(ValueError, match="needs captions of scenes. Use data 'shapes'"):
        evaluator(SOURCES["digits"]())
    with pytest.raises(ValueError, match="needs 2 real pictures"):
        evaluator(real=1)
    with pytest.raises(ValueError, match="conditions with 'tokens'. Got label"):
        JUDGE(REAL["data"], {"label": np.zeros(300, np.int32)})
    with pytest.raises(ValueError, match="300 samples and 299 captions"):
        JUDGE(REAL["data"], {"tokens": REAL["tokens"][:-1]})
    broken = REAL["data"].copy()
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 300 samples hold NaN"):
        JUDGE(broken, TOKENS)

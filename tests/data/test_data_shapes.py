"""The source of shapes: rows by counter, splits that share nothing, tokens that read as captions of their pictures."""

import numpy as np
import pytest

from flowjax.choices import build
from flowjax.data import SOURCES, Source, make_iterator
from flowjax.data.shapes import shapes
from flowjax.data.tokenizers import Tokenizer
from flowjax.shapes import VOCABULARY, judge, render, understand

SMALL = {"resolution": 16}


def as_rows(batch):
    return {name: value for name, value in batch.items() if name in ("data", "tokens")}


def test_it_is_a_source_of_pictures_with_tokens():
    source = build("data source", {"name": "shapes", "height": 16, "width": 24}, SOURCES)
    assert isinstance(source, Source) and isinstance(source.tokenizer, Tokenizer)
    assert source.size is None and source.levels == 256
    batch = next(make_iterator(source, 12))
    assert batch["data"].shape == (12, 16, 24, 3) and batch["data"].dtype == np.float32
    assert batch["tokens"].shape == (12, source.spec.text_length) and batch["tokens"].dtype == np.int32
    assert source.spec.shape == (16, 24, 3) and source.spec.vocabulary == len(VOCABULARY)
    assert batch["tokens"].max() < source.spec.vocabulary and source.spec.text_channels == 0
    levels = (batch["data"].astype(float) + 1) * 127.5
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
    assert levels.min() >= 0 and levels.max() <= 255


def test_rows_are_a_function_of_seed_step_and_row():
    source = shapes(**SMALL)
    whole = source.dataset(3, 64, 0, 64)[5]
    again = shapes(**SMALL).dataset(3, 64, 20, 40)[5]
    for other in (source.dataset(3, 64, 20, 40)[5], source.dataset(3, 999, 20, 40)[5], again):
        for name, value in other.items():
            np.testing.assert_array_equal(whole[name][20:40], value)
    for other in (source.dataset(4, 64, 0, 64)[5], source.dataset(3, 64, 0, 64)[6]):
        assert (np.abs(whole["data"] - other["data"]).max((1, 2, 3)) > 0).all()


def test_splits_and_seeds_share_no_scene():
    source = shapes(**SMALL)
    parts = [source.dataset(0, 300, 0, 300)[0]["data"]]
    parts += [source.reference(split, 300, seed)["data"] for split in ("train", "test", "held_out") for seed in (0, 1)]
    seen = {picture.tobytes() for part in parts for picture in part}
    assert len(seen) == 7 * 300
    np.testing.assert_array_equal(source.reference("test", 50)["data"], source.reference("test", 300)["data"][:50])


def test_captions_are_true_of_the_scenes_behind_the_pictures():
    source = shapes(resolution=16, objects=(1, 6), captions="both", words=0.3)
    for split in ("train", "test", "all", "held_out"):
        scene, rows = source.examples(split, 200)
        np.testing.assert_array_equal(rows["data"], source.reference(split, 200)["data"])
        captions = source.tokenizer.decode(rows["tokens"])
        assert (judge(scene, understand(captions))["all"] == 1).all()
        np.testing.assert_array_equal(source.tokenizer.encode(captions), rows["tokens"])
        np.testing.assert_array_equal(np.round((rows["data"] + 1) * 127.5), render(scene, 16, 16))
        assert scene.held_out.all() if split == "held_out" else not scene.held_out.any()


def test_a_share_of_training_captions_is_of_other_scenes_and_pictures_stay():
    count, wrong = 2000, 0.3
    right, careless = shapes(**SMALL), shapes(**SMALL, wrong=wrong)
    ours, theirs = careless.dataset(0, count, 0, count)[7], right.dataset(0, count, 0, count)[7]
    np.testing.assert_array_equal(ours["data"], theirs["data"])
    differ = (ours["tokens"] != theirs["tokens"]).any(1)
    # Two scenes seldom have one caption; three standard deviations of a count.
    assert abs(differ.mean() - wrong) < 3 * np.sqrt(wrong * (1 - wrong) / count) + 0.01
    # The wrong ones are captions of the same law.
    lengths = [np.bincount((t > 0).sum(1), minlength=12) / len(t) for t in (ours["tokens"][differ], theirs["tokens"])]
    np.testing.assert_allclose(*lengths, atol=0.08)
    rows = careless.dataset(0, count, 500, 700)[7]
    np.testing.assert_array_equal(rows["tokens"], ours["tokens"][500:700])
    # What is measured against is never wrong.
    for split in ("train", "test"):
        np.testing.assert_array_equal(careless.reference(split, 50)["tokens"], right.reference(split, 50)["tokens"])
    assert careless.fingerprint() != right.fingerprint()


def test_the_share_of_full_captions():
    for captions, share in (("short", 0), ("full", 1), ("both", 0.5), (0.25, 0.25)):
        source = shapes(resolution=8, captions=captions)
        texts = source.tokenizer.decode(source.reference("test", 2000)["tokens"])
        assert np.mean(["background" in text for text in texts]) == pytest.approx(share, abs=0.04)


def test_the_spread_is_measured_on_scenes_of_the_law():
    for options in ({}, {"backgrounds": ("black",)}, {"resolution": 128}):
        source = shapes(**options)
        data = source.reference("test", 1000)["data"].astype(float)
        assert source.spec.std == pytest.approx(np.sqrt((data**2).mean() - data.mean() ** 2), rel=0.03)


def test_fingerprints_tell_laws_apart():
    options = (
        {},
        {"objects": (1, 3)},
        {"captions": "full"},
        {"resolution": 32},
        {"text_length": 12},
        {"held_out": False},
    )
    assert len({shapes(**{**SMALL, **option}).fingerprint() for option in options}) == len(options)
    assert shapes(**SMALL).fingerprint() == shapes(**SMALL).fingerprint()


def test_two_laws_mix_when_their_captions_have_one_length():
    easy = {"name": "shapes", **SMALL, "text_length": 56}
    hard = {**easy, "objects": (1, 6)}
    source = build("data source", {"name": "mix", "sources": (easy, hard), "weights": (1, 1)}, SOURCES)
    batch = next(make_iterator(source, 32))
    assert batch["data"].shape == (32, 16, 16, 3) and batch["tokens"].shape == (32, 56)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captions": "long"}, "expected one of short, both, full"),
        ({"captions": 1.5}, "full=1.5"),
        ({"objects": (1, 2, 3)}, "expected .least, most."),
        ({"wrong": 1.0}, "wrong=1.0: expected a share"),
        ({"text_length": 4}, "text_length=4, but captions of this law have up to 8 tokens"),
        ({"resolution": 4}, "Use 8x8 or more"),
        ({"colours": ("rde",)}, "Did you mean 'red'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build("data source", {"name": "shapes", **options}, SOURCES)


def test_unknown_splits_and_words_are_refused():
    source = shapes(**SMALL)
    with pytest.raises(ValueError, match="Unknown split 'validation'. Known: train, test, all, held_out"):
        source.reference("validation")
    with pytest.raises(ValueError, match="Unknown word 'sqare'.*Did you mean 'square'"):
        source.tokenizer.encode(["a red sqare"])

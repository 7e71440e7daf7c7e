"""What samples are drawn under: held-out captions, prompts and their words, and how captions reach a picture."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from toys import toy_config

from flowjax.config import ConfigError
from flowjax.contract import DataSpec
from flowjax.data.points import mixture
from flowjax.data.sources import ArraySource
from flowjax.data.tokenizers import make_tokenizer
from flowjax.training.conditions import captions_of, drawn_under, labels_in_turn, pictured_under, prompted
from flowjax.training.run import Run
from flowjax.training.sampling import sample_picture

CAPTIONS = ("a red dot", "a blue dot", "two red dots", "no dot", "a dot")
TOKENIZER = make_tokenizer(dict(name="words", length=4), CAPTIONS)


@dataclasses.dataclass(frozen=True)
class Captioned(ArraySource):
    tokenizer: object = TOKENIZER


def source(labels=True):
    data = np.arange(5 * 16, dtype=np.float32).reshape(5, 4, 4, 1) / 80
    arrays = {"data": data, "tokens": TOKENIZER.encode(CAPTIONS)} | ({"label": np.arange(5) % 2} if labels else {})
    spec = DataSpec((4, 4, 1), 2 if labels else None, text_length=4, vocabulary=TOKENIZER.vocabulary)
    return Captioned(arrays, arrays, spec)


def run(source, prompts=(), reads=(), shape=None):
    made = Run(toy_config())
    made.config.sample.prompts = prompts
    made.__dict__.update(
        source=source, method=SimpleNamespace(samplers={"default": SimpleNamespace(reads=reads, shape=shape)})
    )
    return made


def test_held_out_captions_come_with_their_labels_fixed_by_the_seed_and_repeat():
    captioned = source()
    conditions = drawn_under(run(captioned), "default", 3)
    assert set(conditions) == {"tokens", "label"}
    for tokens, label in zip(conditions["tokens"], conditions["label"]):
        row = (captioned.test["tokens"] == tokens).all(axis=1)
        assert captioned.test["label"][row] == label
    again = drawn_under(run(captioned), "default", 3)
    np.testing.assert_array_equal(conditions["tokens"], again["tokens"])
    many = captions_of(captioned, drawn_under(run(captioned), "default", 12))
    assert sorted(many[:5]) == sorted(CAPTIONS) and many[5:10] == many[:5] and many[10:] == many[:2]


def test_without_captions_classes_come_in_turn():
    arrays = {"data": np.zeros((1, 4, 4, 1), np.float32)}
    plain = ArraySource(arrays, arrays, DataSpec((4, 4, 1), 2))
    np.testing.assert_array_equal(drawn_under(run(plain), "default", 3)["label"], [0, 1, 0])
    assert captions_of(plain, drawn_under(run(plain), "default", 3)) is None
    for count in (7, 12, 96):
        np.testing.assert_array_equal(labels_in_turn(count, DataSpec((2,), 3)), np.arange(count) % 3)
    unlabelled = dataclasses.replace(plain, spec=DataSpec((4, 4, 1)))
    assert drawn_under(run(unlabelled), "default", 3) == {}


def test_labels_are_drawn_as_often_as_they_are_common():
    spec = mixture(weights="uneven", labels=True).spec
    np.testing.assert_allclose(spec.class_weights, np.arange(1, 9) / 36)
    labels = labels_in_turn(3_600, spec)
    np.testing.assert_array_equal(np.bincount(labels), np.arange(1, 9) * 100)
    np.testing.assert_allclose(np.bincount(labels[:360]), np.arange(1, 9) * 10, atol=1)  # and evenly spread
    assert np.bincount(labels_in_turn(10, spec), minlength=8).sum() == 10
    assert mixture(labels=True).spec.class_weights == mixture(weights="uneven").spec.class_weights == ()
    for wrong in ((0.5, 0.5), (0.5, 0.6, 0.1), (1.0, 0.0, 0.0)):
        with pytest.raises(ValueError, match="expected a positive share for each class"):
            DataSpec((2,), 3, class_weights=wrong)


def test_prompts_stand_side_by_side_with_the_label_left_open():
    captioned = source()
    conditions = pictured_under(run(captioned, ("two blue dots", "no dot")), "default", 5)
    assert captions_of(captioned, conditions) == ["two blue dots"] * 3 + ["no dot"] * 2
    np.testing.assert_array_equal(conditions["label"], [2] * 5)
    measured = drawn_under(run(captioned, ("two blue dots",)), "default", 5)
    assert sorted(captions_of(captioned, measured)) == sorted(CAPTIONS)  # measurements stay with held-out captions
    assert "label" not in prompted(source(labels=False), ("no dot",), 2)


def test_encoded_captions_are_encoded_for_prompts_too():
    spec = DataSpec((4, 4, 1), text_length=4, text_channels=1)
    encode = lambda tokens: {"text": tokens[..., None] * 2.0, "text_mask": tokens > 0}
    encoded = SimpleNamespace(spec=spec, tokenizer=TOKENIZER, encode_text=encode)
    conditions = prompted(encoded, ("no dot", "a dot"), 4)
    assert set(conditions) == {"tokens", "text", "text_mask"}
    np.testing.assert_array_equal(conditions["text"][..., 0], 2.0 * conditions["tokens"])


def masked(labels=True):
    """Example i is an image of 2 x (i + 1) on a canvas of 4 x 6, with a caption and perhaps a label."""
    base = source(labels)
    mask = np.zeros((5, 4, 6), bool)
    for row in range(5):
        mask[row, :2, : row + 1] = True
    arrays = {**base.test, "data": mask[..., None].astype(np.float32), "pixel_mask": mask}
    spec = dataclasses.replace(base.spec, shape=(4, 6, 1), visible_shape=(2, 3))
    return Captioned(arrays, arrays, spec)


def test_samples_have_the_sizes_of_held_out_images_and_prompts_a_usual_one():
    canvas = masked()
    conditions = drawn_under(run(canvas), "default", 7)
    assert set(conditions) == {"tokens", "label", "pixel_mask"}
    for value in conditions.values():
        np.testing.assert_array_equal(value[5:], value[:2])
    for tokens, label, mask in zip(*(conditions[name] for name in ("tokens", "label", "pixel_mask"))):
        row = int((canvas.test["tokens"] == tokens).all(axis=1).argmax())  # all of one example
        assert label == canvas.test["label"][row] and mask.sum() == 2 * (row + 1)
    prompt = pictured_under(run(canvas, ("no dot",)), "default", 2)["pixel_mask"]
    assert prompt[:, :2, :3].all() and prompt.sum() == 12
    wordless = dataclasses.replace(canvas, spec=DataSpec((4, 6, 1), 2, visible_shape=(2, 3)))
    assert drawn_under(run(wordless), "default", 3)["pixel_mask"].shape == (3, 4, 6)


def test_a_sampler_with_a_shape_of_its_own_draws_images_that_fill_it():
    for prompts in ((), ("no dot",)):
        made = run(masked(), prompts, shape=(8, 2, 1))
        assert pictured_under(made, "default", 3)["pixel_mask"].shape == (3, 8, 2)
        assert pictured_under(made, "default", 3)["pixel_mask"].all()
    assert "pixel_mask" not in drawn_under(run(source(), shape=(8, 2, 1)), "default", 3)


def test_without_held_out_examples_there_is_nothing_to_draw_under():
    def reference(split, count=None, seed=0):
        raise ValueError("The split 'test' is empty.")

    empty = SimpleNamespace(spec=masked().spec, reference=reference)
    with pytest.raises(ConfigError, match="of the split 'test'. The split 'test' is empty"):
        drawn_under(run(empty), "default", 3)


def test_prompts_of_captions_that_were_encoded_beforehand_are_refused():
    spec = DataSpec((4, 4, 1), text_length=4, text_channels=1)
    with pytest.raises(ConfigError, match="encoded beforehand.*Use data source 'encoded'"):
        prompted(SimpleNamespace(spec=spec, tokenizer=TOKENIZER), ("no dot",), 4)


def test_pictures_show_what_is_visible_alone():
    canvas = masked(labels=False)
    conditions = {"pixel_mask": canvas.test["pixel_mask"][[0, 3]]}
    shown = sample_picture(np.full((2, 4, 6, 1), -1, np.float32), canvas, conditions)
    scale = shown.shape[0] // 4  # two images of 2 x 4 with lines of one pixel around them
    assert shown.shape[:2] == (4 * scale, 11 * scale)
    black = (shown[::scale, ::scale, 0] < 128).astype(int)
    expected = np.zeros((4, 11), int)
    expected[1:3, 1:2], expected[1:3, 6:10] = 1, 1
    np.testing.assert_array_equal(black, expected)


@pytest.mark.parametrize(
    "captioned, prompts, message",
    [
        (source(), ("a purple dot", "a bleu dot"), "sample.prompts: Unknown word 'purple'"),
        (source(), ("a bleu dot",), "Unknown word 'bleu' in the caption 'a bleu dot'. Did you mean 'blue'"),
        (source(), ("a a a a a",), "has 5 words and marks; at most 4 fit"),
        (source(), ("a dot",) * 4, "4 prompts .* only 3 samples"),
        (ArraySource({"data": np.zeros((1, 2))}, {"data": np.zeros((1, 2))}, DataSpec((2,))), ("a",), "no captions"),
    ],
)
def test_prompts_that_cannot_be_drawn_are_one_clear_message(captioned, prompts, message):
    with pytest.raises(ConfigError, match=message):
        prompted(captioned, prompts, 3)


def test_pictures_show_the_captions():
    captioned = source()
    samples = np.ones((4, 4, 4, 1), np.float32)
    conditions = drawn_under(run(captioned), "default", 4)
    with_captions = sample_picture(samples, captioned, conditions)
    absent = sample_picture(samples, captioned, {"tokens": np.zeros((4, 4), np.int32)})
    assert (with_captions < 128).any() and not (absent < 128).any()

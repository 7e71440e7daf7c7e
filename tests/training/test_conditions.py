"""What samples are drawn under: held-out captions, prompts and their words, and how captions reach a picture."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from toys import toy_config

from flowjax.config import ConfigError
from flowjax.contract import DataSpec
from flowjax.data.sources import ArraySource
from flowjax.data.tokenizers import make_tokenizer
from flowjax.training.conditions import captions_of, drawn_under, pictured_under, prompted
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


def run(source, prompts=(), reads=()):
    made = Run(toy_config())
    made.config.sample.prompts = prompts
    made.__dict__.update(source=source, method=SimpleNamespace(samplers={"default": SimpleNamespace(reads=reads)}))
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
    unlabelled = dataclasses.replace(plain, spec=DataSpec((4, 4, 1)))
    assert drawn_under(run(unlabelled), "default", 3) == {}


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

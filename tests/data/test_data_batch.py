"""Every way a batch can be wrong has its own message."""

import dataclasses

import numpy as np
import pytest

from flowjax.contract import DataSpec
from flowjax.data import check_batch

SPEC = DataSpec((2,), num_classes=3)


def good():
    return {
        "data": np.zeros((4, 2), np.float32),
        "label": np.int32([0, 1, 2, 0]),
        "mask": np.float32([1, 1, 1, 0]),
        "row": np.arange(4, dtype=np.int32),
    }


def test_a_good_batch_passes():
    check_batch(good(), SPEC)
    check_batch({**good(), "noise": np.zeros((4, 2), np.float32), "text": np.zeros((4, 7), np.uint8)}, SPEC)


TOKENS = DataSpec((2,), num_classes=3, text_length=3, vocabulary=9)
ENCODED = DataSpec((2,), num_classes=3, text_length=3, text_channels=5)


def captioned():
    return {**good(), "tokens": np.int32([[1, 2, 8], [3, 0, 0], [0, 0, 0], [4, 4, 0]])}


def encoded():
    return {**good(), "text": np.zeros((4, 3, 5), np.float32), "text_mask": np.zeros((4, 3), bool)}


POOLED = dataclasses.replace(ENCODED, pooled_channels=2)


def pooled():
    return {**encoded(), "text_pooled": np.zeros((4, 2), np.float32)}


def test_captions_as_ids_or_encoded_pass():
    check_batch(captioned(), TOKENS)
    check_batch(encoded(), ENCODED)
    check_batch(pooled(), POOLED)
    check_batch({**captioned(), **encoded()}, ENCODED)  # the ids may stay, for captions under pictures


@pytest.mark.parametrize(
    "batch, spec, message",
    [
        (captioned(), SPEC, "spec has no captions, so no one would read them"),
        (good(), TOKENS, "captions of 3 token ids, but the batch has no 'tokens'"),
        (captioned(), ENCODED, "captions of 3 vectors, but the batch has no 'text'"),
        (
            {**captioned(), "tokens": np.zeros((4, 2), np.int32)},
            TOKENS,
            r"int32\[4, 2\]; the data spec says int32\[examples, 3\]",
        ),
        ({**captioned(), "tokens": np.zeros((4, 3), np.uint8)}, TOKENS, "'tokens' is uint8"),
        ({**captioned(), "tokens": np.full((4, 3), 9, np.int32)}, TOKENS, r"run from 9 to 9.*must be in \[0, 9\)"),
        ({**captioned(), "tokens": np.full((4, 3), -1, np.int32)}, TOKENS, "run from -1"),
        ({**encoded(), "text": np.zeros((4, 3, 4), np.float32)}, ENCODED, r"float32\[examples, 3, 5\]"),
        ({**encoded(), "text_mask": np.zeros((4, 3), np.float32)}, ENCODED, r"bool\[examples, 3\]"),
        (encoded(), POOLED, "the batch has no 'text_pooled'"),
        ({**pooled(), "text_pooled": np.zeros((4, 3), np.float32)}, POOLED, r"float32\[examples, 2\]"),
    ],
)
def test_wrong_captions(batch, spec, message):
    with pytest.raises(ValueError, match=message):
        check_batch(batch, spec)


@pytest.mark.parametrize("name", ["data", "mask", "row", "label"])
def test_missing_entries(name):
    batch = good()
    del batch[name]
    with pytest.raises(ValueError, match=f"has no '{name}'"):
        check_batch(batch, SPEC)


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"label": np.int32([0, 1, 2])}, r"'label' has shape \(3,\); its first axis must be the 4 examples"),
        ({"size": np.float32(1)}, "'size' has shape"),
        ({"data": np.zeros((4, 2))}, "'data' is float64"),
        ({"data": np.zeros((4, 2), np.uint8)}, "must be float32"),
        ({"data": np.zeros((4, 3), np.float32)}, r"examples of shape \(3,\); the data spec says \(2,\)"),
        ({"noise": np.zeros((4, 1), np.float32)}, "'noise' has examples of shape"),
        ({"mask": np.ones(4, bool)}, "'mask' is bool"),
        ({"mask": np.float32([0.5, 1, 1, 1])}, "only hold 0 and 1"),
        ({"row": np.zeros(4, np.float32)}, "'row' is float32"),
        ({"label": np.int32([0, 1, 2, 3])}, r"must be in \[0, 3\)"),
        ({"label": np.zeros(4, np.float32)}, "must be one integer an example"),
    ],
)
def test_wrong_entries(entry, message):
    with pytest.raises(ValueError, match=message):
        check_batch({**good(), **entry}, SPEC)

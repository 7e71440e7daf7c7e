"""Every way a batch can be wrong has its own message."""

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

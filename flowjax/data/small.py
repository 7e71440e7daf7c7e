"""Small grey sets with ten classes, as `python -m flowjax.data.prepare NAME` leaves them."""

import numpy as np

from flowjax.choices import Spec
from flowjax.data.pictures import MemoryPictures, PictureSource, mirror, picture_source, standard_deviation
from flowjax.data.records import Prepared, find_prepared

SIDE = 28  # pixels of a side, as they come


def fashion_mnist(
    size: int = 28,
    labels: bool = True,
    flip: bool = False,
    tokenizer: Spec | None = None,
    text_length: int = 0,
    path: str = "",
) -> PictureSource:
    """60,000 + 10,000 grey pictures of clothes, ten classes, 28 x 28 x 1 in [-1, 1]; the caption is the class's name.

    Args:
      size: pixels of a side: 28 as they come; above, with a black border and nothing lost; below, resized.
      labels: whether batches carry `label`.
      flip: augmentation, mirror half of the training pictures (shoes all point one way, and then both).
      tokenizer: spec of the tokenizer, for example dict(name='words'); None for batches without captions.
      text_length: ids of a caption, 0 for the longest.
      path: the prepared folder; by default the one in the data home.
    """
    return _classes("fashion_mnist", size, labels, flip, tokenizer, text_length, path)


def mnist_small(
    size: int = 28,
    labels: bool = True,
    tokenizer: Spec | None = None,
    text_length: int = 0,
    path: str = "",
) -> PictureSource:
    """5,000 of MNIST's digits, a fifth held out, 28 x 28 x 1 in [-1, 1]; the caption is the digit.

    Args:
      size: pixels of a side: 28 as they come; above, with a black border and nothing lost; below, resized.
      labels: whether batches carry `label`.
      tokenizer: spec of the tokenizer; None for batches without captions.
      text_length: ids of a caption, 0 for the longest.
      path: the prepared folder; by default the one in the data home.
    """
    return _classes("mnist_small", size, labels, False, tokenizer, text_length, path)


def _classes(
    name: str, size: int, labels: bool, flip: bool, tokenizer: Spec | None, text_length: int, path: str
) -> PictureSource:
    if size < 1 or (size > SIDE and size % 2):
        raise ValueError(
            f"size={size}; give 1 to {SIDE} pixels of a side, or an even number above, for a black border."
        )
    prepared = Prepared.open(find_prepared(name, path, f"python -m flowjax.data.prepare {name}"))
    inner, border, splits = min(size, SIDE), max(0, (size - SIDE) // 2), {}
    for split in ("train", "test"):
        pixels, fields = prepared.pixels(split, (inner, inner, 1), "crop")
        pixels = np.pad(pixels, ((0, 0), (border, border), (border, border), (0, 0)))
        label = np.int32([field["label"] for field in fields])
        splits[split] = MemoryPictures(pixels, label, [(field["caption"],) for field in fields])
    return picture_source(
        splits["train"],
        splits["test"],
        (size, size, 1),
        standard_deviation(splits["train"].data),
        10 if labels else None,
        tokenizer,
        text_length,
        transforms=(mirror(),) if flip else (),
        labels=tuple(prepared.card["labels"]),
        card=prepared.card,
    )

"""Sources over prepared sets: any folder that `python -m flowjax.data.prepare` wrote, in memory or read as it is needed."""

import dataclasses
from typing import Any

import numpy as np

from flowjax.choices import Spec
from flowjax.contract import DataSpec
from flowjax.data.buckets import bucket_shapes, bucketed
from flowjax.data.canvas import Frame, make_frame
from flowjax.data.mixtures import MixedSource
from flowjax.data.pictures import (
    FilePictures,
    MemoryPictures,
    Pictures,
    PictureSource,
    make_caption_tokenizer,
    mirror,
    picture_source,
)
from flowjax.data.record_format import size_of, unpack
from flowjax.data.records import Prepared, find_prepared, pixels_of
from flowjax.data.resizing import FITS, with_channels
from flowjax.data.sources import RecordSource
from flowjax.data.tokenizers import text_facts

MEMORY = 2**30  # bytes of pixels up to which a set is held in memory


def records(
    path: str,
    size: int = 0,
    fit: str = "crop",
    channels: int = 0,
    flip: bool = False,
    tokenizer: Spec | None = None,
    text_length: int = 0,
    labels: bool = True,
    memory: bool | None = None,
    bucket_multiple: int = 0,
    mask_multiple: int = 0,
    canvas: tuple = (),
) -> PictureSource | MixedSource | RecordSource:
    """A prepared set, by its path or by its name in the data home.

    Args:
      path: its folder, or its name.
      size: pixels of a side; 0 for that of the records, when they have one.
      fit: 'crop' cuts out the middle, 'pad' puts the whole picture on white, where the size is another.
      channels: 1 for grey, 3 for RGB; 0 for those of the records.
      flip: augmentation, mirror half of the training pictures.
      tokenizer: spec of the tokenizer, for example dict(name='words'); None for batches without captions.
      text_length: ids of a caption, 0 for the longest.
      labels: whether batches carry `label`, where the records have it.
      memory: hold all pixels in memory; by default up to 1 GiB of them.
      bucket_multiple: keep proportions: batches have the shapes of about size x size pixels whose sides are multiples of
        this (flowjax/data/buckets.py); 0 for squares alone. Pictures are then read as they are needed.
      mask_multiple: keep proportions on one canvas: each picture has at most the pixels of a square of `size`, sides that
        are multiples of this, and a `pixel_mask` (flowjax/data/canvas.py), for networks with masked=True; 0 for none.
      canvas: height and width of that canvas; by default one with room for proportions up to 2:1.
    """
    at_home = "/" not in path and not path.startswith((".", "~"))
    prepared = Prepared.open(find_prepared(path if at_home else "", "" if at_home else path))
    card = prepared.card
    if not size and card["shape"] is None:
        raise ValueError(f"The pictures of {prepared.folder} have various sizes: give `size`, the pixels of a side.")
    if size < 0 or channels not in (0, 1, 3) or fit not in FITS:
        raise ValueError(f"size={size}, channels={channels}, fit='{fit}'; expected size >= 0, 1 or 3 channels, {FITS}.")
    height, width, depth = card["shape"] or (size, size, 3)
    shape = (size or height, size or width, channels or depth)
    classes = None
    if labels and ("label" in card["groups"] or card["labels"]):
        found = [int(value) for value in card["groups"].get("label", {})]
        classes = max(len(card["labels"]), max(found, default=-1) + 1)
    if mask_multiple and (bucket_multiple or not size):
        raise ValueError(
            f"mask_multiple={mask_multiple} with bucket_multiple={bucket_multiple} and size={size}: proportions are kept in "
            "buckets or on a canvas, and a canvas needs `size`, the side of a square with the pixels of a picture. Set one of "
            "the two multiples to 0, and give `size`."
        )
    frame = make_frame(shape, fit, mask_multiple, canvas)
    total = (prepared.count("train") + prepared.count("test")) * int(np.prod(frame.shape))
    if bucket_multiple:
        return _in_buckets(prepared, shape, bucket_multiple, flip, tokenizer, text_length, classes)
    held = total <= MEMORY if memory is None else memory
    make = _in_memory if held else _on_disk
    train, test = (make(prepared, split, frame) for split in ("train", "test"))
    return picture_source(
        train,
        test,
        frame,
        card["std"],
        classes,
        tokenizer,
        text_length,
        transforms=(mirror(),) if flip else (),
        labels=tuple(card["labels"]),
        card=card,
    )


def _captions(field: dict[str, Any]) -> tuple[str, ...]:
    caption = field.get("caption") or ()
    return (caption,) if isinstance(caption, str) else tuple(caption)


def _in_memory(prepared: Prepared, split: str, frame: Frame) -> Pictures:
    arrays, fields = prepared.framed(split, frame)
    label = np.int32([field["label"] for field in fields]) if fields and "label" in fields[0] else None
    captions = [_captions(field) for field in fields]
    return MemoryPictures(label=label, captions=captions if any(captions) else None, **arrays)


def _on_disk(prepared: Prepared, split: str, frame: Frame) -> Pictures:
    count = prepared.count(split)
    reader = prepared.reader(split) if count else ()

    def load(index: int) -> dict[str, Any]:
        fields = unpack(reader[index])
        rows: dict[str, Any] = frame(pixels_of(fields["image"]))
        if "label" in fields:
            rows["label"] = fields["label"]
        if captions := _captions(fields):
            rows["captions"] = captions
        return rows

    every = lambda: [caption for header in prepared.headers(split) for caption in _captions(header)]
    facts = [prepared.card["sha256"], split, *dataclasses.astuple(frame)]
    return FilePictures(load, count, every, facts, lambda index: f"{prepared.folder.name} {split} {index}")


class _Rows:
    """The records of a split, by index; an empty split is an empty list."""

    def __init__(self, prepared: Prepared, split: str):
        self._count = prepared.count(split)
        self._reader = prepared.reader(split) if self._count else None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bytes:
        return self._reader[int(index)]


def _in_buckets(
    prepared: Prepared,
    shape: tuple[int, ...],
    multiple: int,
    flip: bool,
    tokenizer: Spec | None,
    text_length: int,
    classes: int | None,
) -> MixedSource | RecordSource:
    """Pictures in their own proportions: sizes come from the headers, pixels when a batch asks for them."""
    headers = {split: list(prepared.headers(split)) for split in ("train", "test")}
    words = [caption for header in headers["train"] for caption in _captions(header)]
    encoder = make_caption_tokenizer(tokenizer, text_length, words)
    sizes = {split: np.int64([size_of(h["image"]) for h in found]).reshape(-1, 2) for split, found in headers.items()}

    def decode(record: bytes) -> dict[str, Any]:
        fields = unpack(record)
        example: dict[str, Any] = {"data": with_channels(pixels_of(fields["image"]), shape[2])}
        if classes is not None:
            example["label"] = np.int32(fields["label"])
        if encoder is not None:
            example["tokens"] = encoder.encode([_captions(fields)[0]])[0]
        return example

    return bucketed(
        _Rows(prepared, "train"),
        sizes["train"],
        decode,
        DataSpec(shape, classes, prepared.card["std"], **text_facts(encoder)),
        bucket_shapes(shape[0], multiple, shape[2]),
        _Rows(prepared, "test"),
        sizes["test"],
        flip=flip,
        identity=prepared.card["sha256"],
        tokenizer=encoder,
    )

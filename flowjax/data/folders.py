"""A folder of pictures, with captions in metadata.jsonl or classes as sub-folders.

    FOLDER/metadata.jsonl      one JSON object a line: {"file_name": "a/cat.png", "text": "a cat", "label": 3}
    FOLDER/a/cat.png ...       text and label are both optional; `text` may be a list of captions

With FOLDER/train and FOLDER/test each is read in this way, and FOLDER/test is held out; otherwise a share of the names is,
chosen by the hash of each name. Without metadata.jsonl, sub-folders are classes. What does not fit together (a caption
without a picture, a picture without a caption, a line twice) is left out and counted; the rest is used.
"""

import json
import pathlib
from typing import Any

from flowjax.choices import Spec
from flowjax.data.listing import ENDINGS, Item, Listing, captions_of, check_test_share, file_source, held_out
from flowjax.data.pictures import PictureSource
from flowjax.data.skipped import Skipped

METADATA = "metadata.jsonl"


def list_folder(path: str | pathlib.Path, test_share: float = 0.05) -> Listing:
    """Joins the pictures of a folder with its metadata, without opening a picture.

    Args:
      path: the folder.
      test_share: the share of names held out, where the folder has no train and test of its own.
    """
    check_test_share(test_share)
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"The folder {root} is not there. Give the folder that holds the pictures.")
    skipped = Skipped()
    parts = [name for name in ("train", "test") if (root / name).is_dir()]
    if parts == ["train", "test"]:
        found = {name: _list_one(root / name, f"{name}/", skipped) for name in parts}
    else:
        found = {"": _list_one(root, "", skipped)}
    classes = sorted({value for items in found.values() for item in items if (value := item[2]) is not None}, key=str)
    named = any(isinstance(value, str) for value in classes)
    if named and not all(isinstance(value, str) for value in classes):
        raise ValueError(f"The labels of {root} are numbers and words mixed: {classes[:5]}. Use one kind.")
    number = {value: index for index, value in enumerate(classes)} if named else {value: value for value in classes}
    splits: dict[str, list[Item]] = {"train": [], "test": []}
    for part, items in found.items():
        for name, captions, label in items:
            split = part or ("test" if held_out(name, test_share) else "train")
            splits[split].append(Item(name, captions, None if label is None else number[label]))
    if not splits["train"]:
        raise ValueError(
            f"The folder {root} has no training picture that can be used ({skipped.message()}). Pictures end in "
            f"{', '.join(ENDINGS)}."
        )
    return Listing(splits, tuple(classes) if named else (), skipped)


def _list_one(root: pathlib.Path, prefix: str, skipped: Skipped) -> list[tuple[str, tuple[str, ...], Any]]:
    paths = [path for path in root.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file()]
    names = sorted(path.relative_to(root).as_posix() for path in paths)
    metadata = root / METADATA
    if not metadata.is_file():
        deep = all("/" in name for name in names) and names
        return [(prefix + name, (), name.split("/")[0] if deep else None) for name in names]
    lines = _read_metadata(metadata, prefix, skipped)
    captioned, labelled = (any(line[key] for line in lines.values()) for key in ("captions", "has_label"))
    items = []
    for name in names:
        line = lines.pop(name, None)
        if line is None or (captioned and not line["captions"]):
            skipped.add("picture without a caption", prefix + name)
        elif labelled and not line["has_label"]:
            skipped.add("picture without a label", prefix + name)
        else:
            items.append((prefix + name, line["captions"], line["label"]))
    for name in lines:
        skipped.add("caption without a picture", prefix + name)
    return items


def _read_metadata(metadata: pathlib.Path, prefix: str, skipped: Skipped) -> dict[str, dict[str, Any]]:
    lines: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(metadata.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not text.strip():
            continue
        try:
            entry = json.loads(text)
            name = pathlib.PurePosixPath(entry["file_name"]).as_posix()
        except (json.JSONDecodeError, KeyError, TypeError):
            skipped.add("unreadable line of metadata.jsonl", f"{prefix}line {number}")
            continue
        captions = captions_of(entry.get("text"))
        label = entry.get("label")
        if captions is None or not (label is None or (isinstance(label, (int, str)) and not isinstance(label, bool))):
            skipped.add("unreadable line of metadata.jsonl", f"{prefix}line {number}")
        elif isinstance(label, int) and label < 0:
            skipped.add("negative label", f"{prefix}{name}")
        elif name in lines:
            skipped.add("duplicate entry", prefix + name)
        else:
            lines[name] = {"captions": captions, "label": label, "has_label": label is not None}
    return lines


def folder(
    path: str,
    size: int = 64,
    fit: str = "crop",
    flip: bool = False,
    tokenizer: Spec | None = None,
    text_length: int = 0,
    labels: bool = True,
    test_share: float = 0.05,
    mask_multiple: int = 0,
    canvas: tuple = (),
) -> PictureSource:
    """Pictures of a folder, decoded as they are needed; `python -m flowjax.data.prepare folder` makes them quicker.

    Args:
      path: the folder, with metadata.jsonl or classes as sub-folders.
      size: pixels of a side.
      fit: 'crop' cuts out the middle, 'pad' puts the whole picture on white.
      flip: augmentation, mirror half of the training pictures.
      tokenizer: spec of the tokenizer, for example dict(name='words'); None for batches without captions.
      text_length: ids of a caption, 0 for the longest.
      labels: whether batches carry `label`, where there are labels.
      test_share: the share held out, where the folder has no test of its own.
      mask_multiple: keep proportions on one canvas: each picture has at most the pixels of a square of `size`, sides that
        are multiples of this, and a `pixel_mask` (flowjax/data/canvas.py), for networks with masked=True; 0 for none.
      canvas: height and width of that canvas; by default one with room for proportions up to 2:1.
    """
    listing = list_folder(path, test_share)
    if listing.skipped.count:
        print(f"{path}: {listing.skipped.message()}")
    root = pathlib.Path(path).expanduser()
    read = lambda item: (root / item.name).read_bytes()
    facts = stamps(root, listing)
    return file_source(
        listing, read, size, fit, flip, tokenizer, text_length, labels, facts, mask_multiple, tuple(canvas)
    )


def stamps(root: pathlib.Path, listing: Listing) -> list[list[Any]]:
    """Name, size and time of change of every picture: they stand for its content, which it would take long to read."""
    found = [(item.name, (root / item.name).stat()) for items in listing.splits.values() for item in items]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in found]

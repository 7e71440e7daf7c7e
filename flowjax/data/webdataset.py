"""Tar archives in the WebDataset manner: members with one stem are one example, read in place by their offset.

    000001.jpg   the picture (png, jpg, jpeg, webp, ...)
    000001.txt   its caption; or 000001.json with "text" or "caption" and perhaps "label"; 000001.cls is the label

Each archive's headers are walked once, from front to back; afterwards any example is one read at a known place, so the
order is shuffled like that of every other source and no buffer is needed. Archives must not be compressed as a whole.
"""

import dataclasses
import glob
import json
import os
import pathlib
import tarfile
from typing import Any

from flowjax.choices import Spec
from flowjax.data.listing import ENDINGS, Item, Listing, captions_of, check_test_share, file_source, held_out
from flowjax.data.pictures import PictureSource
from flowjax.data.skipped import Skipped

Place = tuple[str, int, int]  # archive, offset, length


@dataclasses.dataclass
class Archives:
    """The examples of some archives: a listing, and where each picture's bytes lie."""

    listing: Listing
    places: dict[str, Place]

    def read(self, item: Item) -> bytes:
        """The bytes of a picture; a read at a place needs no lock, so threads may share the file."""
        archive, offset, length = self.places[item.name]
        return read_at(archive, offset, length)


def read_at(archive: str, offset: int, length: int) -> bytes:
    """Some bytes of a file."""
    with open(archive, "rb", buffering=0) as file:
        return os.pread(file.fileno(), length, offset)


def archives_of(pattern: str) -> list[str]:
    """The archives that a pattern names: a path with * or ?, {000..012} for numbers, or a folder of .tar files."""
    patterns = _expanded(os.path.expanduser(pattern))
    found = []
    for one in patterns:
        one = os.path.join(one, "*.tar") if os.path.isdir(one) else one
        found += sorted(glob.glob(one))
    if not found:
        raise ValueError(
            f"No archive matches '{pattern}'. Give a folder of .tar files or a pattern such as shards/train-{{000..009}}.tar."
        )
    return sorted(set(found))


def _expanded(pattern: str) -> list[str]:
    """{000..012} written out, the way a shell would."""
    start, end = pattern.find("{"), pattern.find("}")
    if start < 0 or ".." not in pattern[start:end]:
        return [pattern]
    first, last = pattern[start + 1 : end].split("..")
    if not (first.isdigit() and last.isdigit()):
        raise ValueError(f"The pattern '{pattern}' has a range {{{first}..{last}}} that is not one of whole numbers.")
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [one for number in numbers for one in _expanded(pattern[:start] + number + pattern[end + 1 :])]


def _members(archive: str, skipped: Skipped) -> dict[str, dict[str, Place]]:
    """Stem -> ending -> place, from the headers of one archive; one that is cut off gives what it has."""
    stems: dict[str, dict[str, Place]] = {}
    size = os.path.getsize(archive)
    try:
        with tarfile.open(archive, "r:") as opened:
            for member in opened:
                if not member.isfile():
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                folder, _, name = member.name.rpartition("/")
                stem, dot, ending = name.partition(".")
                endings = stems.setdefault(f"{folder}/{stem}" if folder else stem, {})
                if f"{dot}{ending}".lower() in endings:
                    skipped.add("duplicate entry", f"{os.path.basename(archive)}: {member.name}")
                else:
                    endings[f"{dot}{ending}".lower()] = (archive, member.offset_data, member.size)
    except (tarfile.TarError, EOFError, OSError) as error:
        skipped.add("archive cut off or damaged", f"{os.path.basename(archive)} ({error})")
    return stems


def _condition(endings: dict[str, Place]) -> tuple[tuple[str, ...], int | None]:
    """The captions and the label of an example; a ValueError when they cannot be understood."""
    captions, label = (), None
    if ".json" in endings:
        entry = json.loads(read_at(*endings[".json"]).decode("utf-8"))
        if not isinstance(entry, dict):
            raise ValueError("the .json holds no object")
        captions = captions_of(entry.get("text", entry.get("caption")))
        label = entry.get("label", entry.get("cls"))
    if ".txt" in endings:
        captions = captions_of(read_at(*endings[".txt"]).decode("utf-8"))
    if ".cls" in endings:
        label = int(read_at(*endings[".cls"]).decode())
    if captions is None or not (label is None or (type(label) is int and label >= 0)):
        raise ValueError("the caption or the label is of no known kind")
    return captions, label


def list_archives(pattern: str, test: str = "", test_share: float = 0.05) -> Archives:
    """Joins the members of archives to examples, without decoding a picture.

    Args:
      pattern: the archives (see `archives_of`).
      test: the archives of held-out examples; empty holds out a share of the names.
      test_share: that share.
    """
    check_test_share(test_share)
    skipped, places = Skipped(), {}
    found: list[tuple[str, Item]] = []
    for split, one in (("train", pattern), ("test", test)):
        for archive in archives_of(one) if one else ():
            for stem, endings in _members(archive, skipped).items():
                name = f"{pathlib.PurePath(archive).stem}/{stem}"
                picture = next((endings[ending] for ending in ENDINGS if ending in endings), None)
                if picture is None:
                    if {".txt", ".json", ".cls"} & endings.keys():
                        skipped.add("caption without a picture", name)
                    continue
                if name in places:
                    skipped.add("duplicate entry", name)
                    continue
                try:
                    captions, label = _condition(endings)
                except (ValueError, UnicodeDecodeError) as error:
                    skipped.add("unreadable caption or label", f"{name} ({error})")
                    continue
                if not test and held_out(name, test_share):
                    split_of = "test"
                else:
                    split_of = split
                places[name] = picture
                found.append((split_of, Item(name, captions, label)))
    splits: dict[str, list[Item]] = {"train": [], "test": []}
    captioned = any(item.captions for _, item in found)
    labelled = any(item.label is not None for _, item in found)
    for split, item in found:
        if captioned and not item.captions:
            skipped.add("picture without a caption", item.name)
        elif labelled and item.label is None:
            skipped.add("picture without a label", item.name)
        else:
            splits[split].append(item)
    if not splits["train"]:
        raise ValueError(f"'{pattern}' has no training example that can be used: {skipped.message()}.")
    return Archives(Listing(splits, (), skipped), places)


def webdataset(
    pattern: str,
    size: int = 64,
    fit: str = "crop",
    flip: bool = False,
    tokenizer: Spec | None = None,
    text_length: int = 0,
    labels: bool = True,
    test: str = "",
    test_share: float = 0.05,
    mask_multiple: int = 0,
    canvas: tuple = (),
) -> PictureSource:
    """Pictures in tar archives, decoded as they are needed.

    Args:
      pattern: a folder of archives, or a path with *, ? or {000..012}.
      size: pixels of a side.
      fit: 'crop' cuts out the middle, 'pad' puts the whole picture on white.
      flip: augmentation, mirror half of the training pictures.
      tokenizer: spec of the tokenizer, for example dict(name='words'); None for batches without captions.
      text_length: ids of a caption, 0 for the longest.
      labels: whether batches carry `label`, where there are labels.
      test: the archives of held-out examples.
      test_share: the share of names held out, where `test` is empty.
      mask_multiple: keep proportions on one canvas: each picture has at most the pixels of a square of `size`, sides that
        are multiples of this, and a `pixel_mask` (flowjax/data/canvas.py), for networks with masked=True; 0 for none.
      canvas: height and width of that canvas; by default one with room for proportions up to 2:1.
    """
    archives = list_archives(pattern, test, test_share)
    if archives.listing.skipped.count:
        print(f"{pattern}: {archives.listing.skipped.message()}")
    files = archives_of(pattern) + (archives_of(test) if test else [])
    facts = stamps(files)
    return file_source(
        archives.listing,
        archives.read,
        size,
        fit,
        flip,
        tokenizer,
        text_length,
        labels,
        facts,
        mask_multiple,
        tuple(canvas),
    )


def stamps(files: list[str]) -> list[list[Any]]:
    """Name, size and time of change of archives."""
    found = [(os.path.basename(file), os.stat(file)) for file in files]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in found]

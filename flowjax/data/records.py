"""Prepared data sets: a folder of ArrayRecord shards with a card, as `python -m flowjax.data.prepare` writes it.

    card.json              what it is, where it came from, how many there are, what was skipped
    card.md, sheet.png     the same for people, and a page of examples
    train-00000-of-00003.array_record ...   records (flowjax/data/record_format.py), compressed one by one

A folder without card.json is one whose preparation was cut off: it is never read, and preparing goes on where it stopped.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flowjax.data.canvas import Frame
from flowjax.data.record_format import EncodedPicture, header_of, unpack
from flowjax.data.resizing import Fitted

CARD = "card.json"
FORMAT = 1


class NotPrepared(ValueError):
    """A data set that has to be prepared first; the message is the command."""


def data_home() -> pathlib.Path:
    """Where prepared sets lie: $FLOWJAX_DATA, or .cache/flowjax in the home folder."""
    return pathlib.Path(os.environ.get("FLOWJAX_DATA") or pathlib.Path.home() / ".cache" / "flowjax").expanduser()


def find_prepared(name: str, path: str = "", command: str = "") -> pathlib.Path:
    """The folder of a prepared set, by its name in the data home or by its path; a NotPrepared tells how to get it."""
    folder = pathlib.Path(path).expanduser() if path else data_home() / name
    if (folder / CARD).is_file():
        return folder
    command = command or "python -m flowjax.data.prepare NAME"
    state = "was cut off before its end" if folder.is_dir() and any(folder.iterdir()) else "is not there"
    raise NotPrepared(
        f"The prepared data set '{name or folder.name}' {state} at {folder}. Run `{command}`"
        f"{f' --to {folder}' if path else ''} (it goes on where it stopped), or set FLOWJAX_DATA to the folder that holds "
        "prepared sets."
    )


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared set, opened.

    Attributes:
      folder: where it lies.
      card: its card.
    """

    folder: pathlib.Path
    card: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "Prepared":
        """Reads the card and sees that every shard is there, whole."""
        folder = pathlib.Path(folder)
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        if card.get("format") != FORMAT:
            raise ValueError(
                f"{folder / CARD} is of format {card.get('format')}; this version reads {FORMAT}. Prepare the set again."
            )
        for split in card["splits"].values():
            for shard in split["shards"]:
                file = folder / shard["file"]
                size = file.stat().st_size if file.is_file() else None
                if size != shard["bytes"]:
                    found = "is missing" if size is None else f"has {size:,} bytes instead of {shard['bytes']:,}"
                    raise ValueError(
                        f"The shard {file} {found}. Delete {folder / CARD} and run `{card['command']}` again: it writes "
                        "what is missing."
                    )
        return cls(folder, card)

    def count(self, split: str) -> int:
        """How many records a split has."""
        return self.card["splits"].get(split, {"count": 0})["count"]

    def reader(self, split: str) -> Any:
        """The raw records of a split, by index: len(), [i], and `__getitems__` for many at once."""
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        return ArrayRecordDataSource(
            [str(self.folder / shard["file"]) for shard in self.card["splits"][split]["shards"]]
        )

    def headers(self, split: str) -> Iterator[dict[str, Any]]:
        """The header of every record of a split, in order: captions and labels without pictures."""
        for records in self._chunks(split):
            yield from map(header_of, records)

    def _chunks(self, split: str, size: int = 1024) -> Iterator[Sequence[bytes]]:
        reader = self.reader(split) if self.count(split) else ()
        for start in range(0, len(reader), size):
            yield reader.__getitems__(range(start, min(start + size, len(reader))))

    def pixels(self, split: str, shape: tuple[int, ...], fit: str) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """All pictures of a split, uint8 [n, h, w, c], and their other fields."""
        arrays, fields = self.framed(split, Fitted(shape, fit))
        return arrays["data"], fields

    def framed(self, split: str, frame: Frame) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """All pictures of a split as a frame makes them, [n, ...], and their other fields."""
        alike = frame(np.zeros((1, 1, frame.shape[2]), np.uint8))  # a frame makes arrays of one shape of every picture
        arrays = {name: np.empty((self.count(split), *value.shape), value.dtype) for name, value in alike.items()}
        fields: list[dict[str, Any]] = []
        for records in self._chunks(split):
            for record in records:
                field = unpack(record)
                for name, value in frame(pixels_of(field.pop("image"))).items():
                    arrays[name][len(fields)] = value
                fields.append(field)
        return arrays, fields


def pixels_of(image: np.ndarray | EncodedPicture) -> np.ndarray:
    """The picture of a record, decoded where it is a file."""
    return image.decode() if isinstance(image, EncodedPicture) else image

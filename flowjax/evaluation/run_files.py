"""The files of a run directory: their names, and lines of JSON that survive a kill.

A process can die between any two bytes, and a disk can be full at any of them. So a log is appended line by line, a
reader drops a torn last line, and every file that is replaced is replaced as a whole. Strict JSON has no NaN: non-finite
numbers are written as the words "NaN", "Infinity" and "-Infinity", which `float()` reads back.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flowjax import disk
from flowjax.disk import write_atomically

METRICS = "metrics.jsonl"
BY_TIME = "by_time.jsonl"
CONFIG = "config.json"
CONFIG_DIFFERENCE = "config_difference.txt"
CHECK = "check.json"
STATUS = "status.json"
SAMPLERS = "samplers.json"
READINGS = "readings.json"
COMBINATION = "combination.json"
SAMPLES = "samples"
RECEIPTS = "receipts"
EVENTS = "events"
REPORT = "report.html"


def plain(value: Any) -> Any:
    """Turns arrays, NumPy scalars and mappings into what strict JSON can hold; non-finite numbers become words."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (str, bool)) or value is None:
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, (int, float)):
        return value
    return str(value)


def number(value: Any) -> float | None:
    """The value as a float when it is a number or the word for a non-finite one, and otherwise None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else None


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file, or returns None when it is missing; bad JSON raises a ValueError naming the file and place."""
    path = pathlib.Path(path)
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no valid JSON (line {error.lineno}: {error.msg}). Write it again.") from error


def read_lines(path: str | os.PathLike) -> list[dict]:
    """Reads a file of JSON lines; a missing file is empty, a torn last line is dropped, a bad one before it raises."""
    path = pathlib.Path(path)
    if not path.exists():
        return []
    pieces = path.read_bytes().split(b"\n")
    lines = []
    for index, piece in enumerate(pieces):
        # A piece without a newline behind it was still being written: even if it parses, "step": 12 may be half of 123.
        if index == len(pieces) - 1 or not piece.strip():
            continue
        try:
            line = json.loads(piece)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {index + 1}, is no JSON: {piece[:80]!r}. Only a last line can be torn by a kill; this "
                "file was damaged otherwise. Delete the line."
            ) from error
        lines.append(line)
    return lines


def seconds_until(workdir: str | os.PathLike, step: int, what: str = "seconds") -> float:
    """How long a run had gone on when it came to a step, by its metrics; 0 where they say nothing.

    Args:
      workdir: of the run.
      step: the step.
      what: 'seconds' for everything, 'training_seconds' for the time without pictures and measurements.
    """
    lines = read_lines(pathlib.Path(workdir) / METRICS)
    return max((line.get(what, 0.0) for line in lines if line["step"] <= step), default=0.0)


class LineFile:
    """An append-only file of JSON objects with a `step`, whole line by whole line, that a resumed run can rewind."""

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = None
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            self._keep(read_lines(self.path))

    def append(self, line: Mapping[str, Any]) -> None:
        """Hands one line to the operating system at once; what a full disk takes of it is cut off again."""
        if self._file is None:
            self._file = self.path.open("ab", buffering=0)
        start, content = self._file.tell(), (json.dumps(plain(line)) + "\n").encode()
        try:
            with disk.told(self.path):
                while content:
                    content = content[self._file.write(content) :]
        except disk.DiskFull:
            self._file.truncate(start)
            raise

    def rewind(self, step: int) -> None:
        """Drops the lines of steps after `step`: the resumed run will write them again."""
        lines = read_lines(self.path)
        kept = [line for line in lines if line["step"] <= step]
        if len(kept) != len(lines):
            self._keep(kept)

    def last(self) -> dict | None:
        """The last whole line, or None."""
        lines = read_lines(self.path)
        return lines[-1] if lines else None

    def close(self) -> None:
        """Closes the file; a later append opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _keep(self, lines: Sequence[Mapping]) -> None:
        self.close()
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in lines))

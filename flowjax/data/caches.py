r"""Stores of what an encoder made of a data set (latents, text embeddings), which know what made them.

    FOLDER/header.json            source, encoder, arrays, counts; written last
    FOLDER/train.text.npy ...     one array for each split and name, rows in the order in which the source stores them

The header holds a fingerprint of the source and the parts of the encoder (name, options, hash of its parameters). Whoever
opens a cache says what source and encoder are in use now; a cache of others is refused, and the message names what differs.

A cache is built in FOLDER.partial and renamed when it is whole, so a half-written one is never picked up. Rows that were
written before a cut are kept: the same call goes on behind them. Rows are appended with plain writes (a write into mapped
memory on a full disk kills the process), so a full disk is an error with a message.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import PyTree

from flowjax import disk
from flowjax.contract import DataSpec
from flowjax.data.fingerprints import source_fingerprint, tree_hash

HEADER, PLAN, PROGRESS = "header.json", "plan.json", "progress.json"
FORMAT = 1
SPLITS = ("train", "test")
ROWS_BETWEEN_SAVES = 1024
Arrays = Mapping[str, np.ndarray]
Encode = Callable[[Arrays], Arrays]


class CacheError(ValueError):
    """A cache that cannot be used or made; the message says which part is wrong and what to do."""


def encoder_parts(name: str, parameters: PyTree = None, **options: Any) -> dict[str, Any]:
    """What an encoder is: its name, its options (plain values) and a hash of its parameters, where it has any."""
    parts = {"name": name, **{key: _as_json(value) for key, value in sorted(options.items())}}
    return parts if parameters is None else {**parts, "parameters": tree_hash(parameters)}


def source_parts(source: Any, count: int | None = None) -> dict[str, Any]:
    """What a source is: its fingerprint and the shapes of its spec; of an endless one also how many examples were taken."""
    parts = {"content": source_fingerprint(source), "spec": _as_json(dataclasses.asdict(source.spec))}
    return parts if count is None else {**parts, "count": count}


@dataclasses.dataclass(frozen=True)
class Cache:
    """An opened cache.

    Attributes:
      folder: where it lies.
      header: what made it, and what is in it.
    """

    folder: pathlib.Path
    header: Mapping[str, Any]

    @property
    def encoder(self) -> Mapping[str, Any]:
        """The parts of the encoder that made it."""
        return self.header["encoder"]

    def arrays(self, split: str) -> dict[str, np.ndarray]:
        """The arrays of a split by name, mapped from disk, read-only."""
        names = self.header["arrays"].get(split, ())
        return {name: np.load(self.folder / f"{split}.{name}.npy", mmap_mode="r") for name in names}


def open_cache(
    folder: str | os.PathLike,
    source: Any = None,
    encoder: Mapping[str, Any] | None = None,
    whole_encoder: bool = True,
) -> Cache:
    """Opens a cache and refuses one of another source or encoder.

    Args:
      folder: where it lies.
      source: the source whose examples it must hold; None takes any.
      encoder: the parts the encoder must have (encoder_parts); None takes any.
      whole_encoder: whether the parts are all there are; otherwise the cache may have more.
    """
    folder = pathlib.Path(folder).expanduser()
    file = folder / HEADER
    if not file.is_file():
        half = _partial(folder).is_dir()
        raise CacheError(
            f"There is no cache at {folder}: "
            + ("building it was cut off. " if half else "nothing was built there. ")
            + "Build it with flowjax.data.caches.build_cache"
            + (", which goes on where it stopped." if half else ".")
        )
    header = json.loads(file.read_text())
    if header.get("format") != FORMAT:
        raise CacheError(
            f"The cache {folder} is of format {header.get('format')}; this version reads {FORMAT}. Delete it, build it again."
        )
    wanted = {}
    if source is not None:
        wanted["source"] = source_parts(source, header["source"].get("count"))
    if encoder is not None:
        parts = _as_json(encoder)
        wanted["encoder"] = parts if whole_encoder else {**header["encoder"], **parts}
    refuse_others(folder, header, wanted)
    cache = Cache(folder, header)
    for split in header["arrays"]:
        for name, value in cache.arrays(split).items():
            stated = header["arrays"][split][name]
            if [value.dtype.str, list(value.shape)] != stated:
                raise CacheError(
                    f"{folder / f'{split}.{name}.npy'} is {value.dtype.str}{list(value.shape)}; the header says "
                    f"{stated[0]}{stated[1]}. It was changed after it was built: delete the folder and build it again."
                )
    return cache


def refuse_others(folder: pathlib.Path, header: Mapping[str, Any], wanted: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises a CacheError that names every part in which what made a cache differs from what is wanted now."""
    lines, kinds = [], []
    for kind, parts in wanted.items():
        made = header[kind]
        if "spec" in parts:  # a field that a data spec has been given since then stands at its default
            made = {**made, "spec": {**_later_fields(), **made["spec"]}}
        changed = [key for key in {**made, **parts} if made.get(key) != parts.get(key)]
        lines += [f"{kind}.{key}: {made.get(key)!r} then, {parts.get(key)!r} now" for key in changed]
        kinds += [kind] if changed else []
    if lines:
        raise CacheError(
            f"The cache {folder} was made with another {' and '.join(kinds)} ({'; '.join(lines)}). Use what it was made with, "
            f"or build another: give build_cache another folder, or delete {folder} first."
        )


def _later_fields() -> dict[str, Any]:
    fields = dataclasses.fields(DataSpec)
    return {field.name: _as_json(field.default) for field in fields if field.default is not dataclasses.MISSING}


def build_cache(
    folder: str | os.PathLike,
    source: Any,
    encode: Encode,
    encoder: Mapping[str, Any],
    splits: Sequence[str] = SPLITS,
    batch_size: int = 64,
    count: int | None = None,
    float_type: str = "float32",
) -> Cache:
    """Encodes every example of a source once; goes on where it was cut off, and opens what is there already.

    Args:
      folder: where the cache shall lie.
      source: the examples, as they are stored: augmentations are not applied.
      encode: a batch of examples -> the arrays to keep, first axis the example. The last batch is smaller, unless the
        number of examples is a multiple of batch_size.
      encoder: what `encode` is (encoder_parts).
      splits: which splits to encode.
      batch_size: examples a call of `encode`.
      count: of an endless source, how many training examples (and a tenth of it for the test) to take.
      float_type: how floating-point arrays are stored: float32, or float16 for half the room.
    """
    folder = pathlib.Path(folder).expanduser()
    if not encoder.get("name"):
        raise CacheError("The encoder of a cache needs a name: make its parts with encoder_parts(name, ...).")
    if float_type not in ("float32", "float16"):
        raise CacheError(f"float_type='{float_type}'; expected float32 or float16.")
    if (source.size is None) == (count is None):
        problem = "has no end: say how many examples to take" if count is None else "has an end: it is taken as a whole"
        raise CacheError(f"The source {problem} (count={count}).")
    if (folder / HEADER).is_file():
        return open_cache(folder, source, encoder)
    if folder.is_dir() and any(folder.iterdir()):
        raise CacheError(f"{folder} holds other files and no cache. Give another folder.")
    plan = dict(format=FORMAT, source=source_parts(source, count), encoder=_as_json(encoder), float_type=float_type)
    partial = _partial(folder)
    with _full_disk(folder), _only_builder(partial):
        started = _read(partial / PLAN)
        if started is not None:
            refuse_others(partial, started, {key: plan[key] for key in ("source", "encoder")})
            if started["float_type"] != float_type:
                raise CacheError(
                    f"{partial} was begun with float_type='{started['float_type']}'. Go on with it, or delete it."
                )
        _write(partial / PLAN, plan)
        reads = {split: _reader(source, split, count) for split in splits}
        arrays = {
            split: _encode_split(partial, split, size, read, encode, batch_size, float_type)
            for split, (size, read) in reads.items()
        }
        _write(
            partial / HEADER, {**plan, "arrays": arrays, "count": {split: size for split, (size, _) in reads.items()}}
        )
        for name in (PLAN, PROGRESS):
            (partial / name).unlink(missing_ok=True)
        os.replace(partial, folder)
    (folder / ".lock").unlink(missing_ok=True)
    return open_cache(folder)


def _encode_split(
    partial: pathlib.Path, split: str, size: int, read: Callable, encode: Encode, batch_size: int, float_type: str
) -> dict[str, Any]:
    """Appends what is missing of a split; returns name -> [type, shape]."""
    progress = _read(partial / PROGRESS) or {}
    entry = progress.get(split, {"done": 0, "arrays": {}})
    done, kinds = entry["done"], entry["arrays"]
    with contextlib.ExitStack() as stack:
        files: dict[str, Any] = {}
        while done < size:
            stop = min(done + ROWS_BETWEEN_SAVES, size)
            for first in range(done, stop, batch_size):
                last = min(first + batch_size, stop)
                rows = {name: _stored(value, float_type) for name, value in encode(read(first, last)).items()}
                found = {name: [value.dtype.str, [size, *value.shape[1:]]] for name, value in rows.items()}
                wrong = {name: len(value) for name, value in rows.items() if len(value) != last - first}
                if wrong or not rows or (kinds and found != kinds):
                    raise CacheError(
                        f"The encoder gave {found} for {last - first} examples of the split '{split}'; expected one row for "
                        f"each, as in {kinds or 'any array'}."
                    )
                kinds = found
                for name, value in rows.items():
                    if name not in files:
                        files[name] = stack.enter_context(_appendable(partial, split, name, kinds[name], done))
                    files[name].write(np.ascontiguousarray(value).tobytes())
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
            done = stop
            _write(partial / PROGRESS, {**progress, split: {"done": done, "arrays": kinds}})
    return kinds


def _appendable(partial: pathlib.Path, split: str, name: str, kind: Sequence[Any], done: int) -> Any:
    """A .npy file of the final shape with `done` rows in it, open for the next; rows beyond those are cut off."""
    path, dtype, shape = partial / f"{split}.{name}.npy", np.dtype(kind[0]), tuple(kind[1])
    file = path.open("r+b" if done else "w+b")
    if not done:
        description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(file, description)
    else:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_2_0(file)
    file.seek(file.tell() + done * dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64)))
    file.truncate()
    return file


def _stored(value: np.ndarray, float_type: str) -> np.ndarray:
    value = np.asarray(value)
    return value.astype(float_type) if np.issubdtype(value.dtype, np.floating) else value


def _reader(source: Any, split: str, count: int | None) -> tuple[int, Callable[[int, int], Arrays]]:
    """How many examples a split has, and a function that reads first..last of them."""
    if split not in SPLITS:
        raise CacheError(f"Unknown split '{split}'. Known: {', '.join(SPLITS)}.")
    if source.size is not None and hasattr(source, "examples"):
        test = source.test_size if hasattr(source, "test_size") else len(source.test)
        return source.size if split == "train" else test, functools.partial(source.examples, split)
    wanted = count if count is None or split == "train" else max(1, count // 10)
    arrays = source.reference(split, wanted)
    return len(arrays["data"]), lambda first, last: {name: value[first:last] for name, value in arrays.items()}


@contextlib.contextmanager
def _full_disk(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not disk.is_full(error):
            raise
        raise CacheError(
            f"The disk is full while the cache {folder} is built. What was encoded is kept in {_partial(folder)}: make room "
            "and run the same again, and it goes on from there; or delete that folder."
        ) from error


@contextlib.contextmanager
def _only_builder(partial: pathlib.Path) -> Iterator[None]:
    partial.mkdir(parents=True, exist_ok=True)
    with open(partial / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CacheError(f"Another process is building {partial}. Wait for it, or give another folder.") from None
        yield


def _partial(folder: pathlib.Path) -> pathlib.Path:
    return folder.with_name(folder.name + ".partial")


def _read(file: pathlib.Path) -> Any:
    return json.loads(file.read_text()) if file.is_file() else None


def _write(file: pathlib.Path, value: Any) -> None:
    """Whole or not at all."""
    fresh = file.with_name(file.name + ".new")
    with open(fresh, "w") as stream:
        stream.write(json.dumps(value, indent=1))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(fresh, file)


def _as_json(value: Any) -> Any:
    """Plain values as they come back from a file: tuples are lists."""
    return json.loads(json.dumps(value.to_dict() if hasattr(value, "to_dict") else value))

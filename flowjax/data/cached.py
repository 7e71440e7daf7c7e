"""A source with encoded arrays from a cache in the place of what they were encoded from."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np

from flowjax.choices import Spec, build
from flowjax.contract import DataSpec
from flowjax.data import draws
from flowjax.data.caches import Cache, CacheError, open_cache
from flowjax.data.fingerprints import plain_hash, source_fingerprint, tree_hash
from flowjax.data.sources import ArraySource, RecordSource, examples_at


class Wide:
    """An array on disk whose float16 values are read as float32; rows are read when they are asked for."""

    def __init__(self, stored: np.ndarray):
        self._stored = stored
        self.shape, self.ndim = stored.shape, stored.ndim
        self.dtype = np.dtype(np.float32) if stored.dtype == np.float16 else stored.dtype

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return np.array(self._stored[rows], self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._stored, dtype or self.dtype)


class _Joined:
    """Record i with row i of the cached arrays."""

    def __init__(self, records: Any, rows: Mapping[str, Wide]):
        self._records, self._rows = records, rows

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, np.ndarray]]:
        return self._records[index], {name: value[int(index)] for name, value in self._rows.items()}


@dataclasses.dataclass(frozen=True)
class JoinedSource:
    """A source that takes its examples in the order of `sources.examples_at`, with cached arrays beside them.

    Attributes:
      source: where the rest of an example comes from.
      train: the cached arrays of the training examples.
      test: of the held-out ones.
      spec: with the cached arrays.
    """

    source: Any
    train: Mapping[str, Any]
    test: Mapping[str, Any]
    spec: DataSpec

    @property
    def size(self) -> int:
        """The number of training examples."""
        return self.source.size

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)  # tokenizer, levels, labels, card

    def _join(self, rows: Mapping[str, Any], cached: Mapping[str, Any], places: np.ndarray) -> dict[str, np.ndarray]:
        return {**rows, **{name: value[places] for name, value in cached.items()}}

    def dataset(self, seed: int, batch_size: int, start: int, stop: int) -> grain.MapDataset:
        """Item k: the source's rows of step k, and the cached rows of the same examples."""

        def join(step: int, rows: Mapping[str, Any]) -> dict[str, np.ndarray]:
            first = step * batch_size
            return self._join(rows, self.train, examples_at(seed, first + start, first + stop, self.size))

        return self.source.dataset(seed, batch_size, start, stop).map_with_index(join)

    def examples(self, split: str, first: int, last: int) -> dict[str, np.ndarray]:
        """The examples first..last of a split (train or test) as they are stored, never augmented."""
        cached = self.train if split == "train" else self.test
        return self._join(self.source.examples(split, first, last), cached, np.arange(first, last))

    def fingerprint(self) -> str:
        """A hash of the source and the cached arrays."""
        return plain_hash(source=source_fingerprint(self.source), arrays=tree_hash([dict(self.train), dict(self.test)]))

    def reference(self, split: str = "test", count: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
        """The source's examples of a split with their cached arrays."""
        rows = self.source.reference(split, count, seed)
        parts = {"train": (self.train,), "test": (self.test,), "all": (self.train, self.test)}[split]
        cached = {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in self.train}
        size = len(next(iter(cached.values())))
        places = np.arange(size)
        if count is not None:  # as every finite source chooses them
            places = draws.generator(seed, draws.REFERENCE_TEST).permutation(size)[:count]
        return self._join(rows, cached, places)


def with_cache(source: Any, cache: Cache) -> ArraySource | RecordSource | JoinedSource:
    """The examples of a source with the arrays of its cache added or put in the place of their own.

    With cached `text` the ids stay in the batch, for pictures and evaluators; of a picture with several captions the first
    is the one in the cache. Cached `data` (latents) makes the pictures unnecessary: they are not read any more.

    Args:
      source: what the cache was made of (open_cache checks that).
      cache: the cache.
    """
    arrays = {split: {name: Wide(v) for name, v in cache.arrays(split).items()} for split in ("train", "test")}
    names = set(arrays["train"])
    if "features" in names and "data" not in names and _augments(source):
        raise CacheError(
            f"The cache {cache.folder} holds features of pictures as they are stored, and this source augments them: what the "
            "encoder saw would not be what the network sees. Switch augmentations off, or let the loss compute features."
        )
    spec = _spec(source.spec, arrays["train"])
    if (
        "data" in names and source.size is None
    ):  # a fixed number of the examples of an endless source, as they were encoded
        return ArraySource(arrays["train"], arrays["test"], spec)
    if isinstance(source, ArraySource):
        merge = lambda split, own: {**own, **arrays[split]}
        transforms = () if "data" in names else source.transforms
        levels = None if "data" in names else source.levels
        return ArraySource(merge("train", source.train), merge("test", source.test), spec, levels, transforms)
    if isinstance(source, RecordSource) and "data" not in names:
        decode = lambda pair: {**source.decode(pair[0]), **pair[1]}
        records, test = _Joined(source.records, arrays["train"]), _Joined(source.test, arrays["test"])
        return dataclasses.replace(source, records=records, test=test, decode=decode, spec=spec, identity="")
    if "data" in names:
        return ArraySource(arrays["train"], arrays["test"], spec)
    if source.size is not None and hasattr(source, "examples"):
        return JoinedSource(source, arrays["train"], arrays["test"], spec)
    raise CacheError(
        f"The cache {cache.folder} holds {', '.join(sorted(names))} of a source without an end ({type(source).__name__}), "
        "whose examples never come again. Let `encode` return `data` as well."
    )


def _augments(source: Any) -> bool:
    return bool(getattr(source, "transforms", ()) or getattr(source, "augment", None))


def _spec(spec: DataSpec, arrays: Mapping[str, Any]) -> DataSpec:
    """The spec of the examples with the cached arrays among them."""
    if "data" in arrays:
        rows = arrays["data"]
        if spec.masked:
            raise CacheError(
                f"The cache holds `data` of shape {tuple(rows.shape[1:])} in the place of images of several sizes on a canvas "
                f"of {tuple(spec.shape)}, and nothing says where on them its own are. Leave mask_multiple out of the source."
            )
        total = square = 0.0
        for first in range(0, len(rows), 256):
            piece = rows[first : first + 256].astype(np.float64)
            total, square = total + piece.sum(), square + np.square(piece).sum()
        std = np.sqrt(square / np.prod(rows.shape) - (total / np.prod(rows.shape)) ** 2)
        spec = dataclasses.replace(spec, shape=tuple(rows.shape[1:]), shapes=(), std=float(std))
    if "text" in arrays:
        length, channels = arrays["text"].shape[1:]
        # What encoded them is known to the cache's own check, not as a source would say it.
        spec = dataclasses.replace(spec, text_length=length, text_channels=channels, vocabulary=0, words="")
    if "text_pooled" in arrays:
        spec = dataclasses.replace(spec, pooled_channels=arrays["text_pooled"].shape[1])
    if "features" in arrays:
        spec = dataclasses.replace(spec, feature_shape=tuple(arrays["features"].shape[1:]))
    return spec


def cached(
    folder: str, source: Spec, encoder: Spec | None = None, seed: int = 0, total_steps: int | None = None
) -> ArraySource | RecordSource | JoinedSource:
    """A source read through the cache of an encoder (flowjax/data/caches.py), which must be of this very source.

    Args:
      folder: where the cache lies.
      source: the spec of the source, as in `config.data`.
      encoder: parts that the encoder must have had, such as dict(name='minilm'); whatever is left out may be anything.
      seed: of the run, for sources that take it.
      total_steps: the length of the run, likewise.
    """
    from flowjax.data import SOURCES  # this source is one of them

    made = build("data source", source, SOURCES, seed=seed, total_steps=total_steps)
    return with_cache(made, open_cache(pathlib.Path(folder), made, dict(encoder or {}), whole_encoder=False))

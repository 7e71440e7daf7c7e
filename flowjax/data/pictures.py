r"""Pictures with labels and captions as a source: in memory as bytes of pixels, or read and decoded a batch at a time.

A batch is one gather (or one read) of uint8 pixels, turned into float32 by x / 127.5 - 1. Captions become ids through a
tokenizer that the data's spec names. A picture may have several captions: training takes one of them by the row's own
uniform, evaluation always takes the first. The order is that of every finite source: a function of (seed, position).

Pictures on a canvas (canvas.py) come with their extents, of which `pixel_mask` is made; where it is False, data are zero.
"""

import concurrent.futures
import dataclasses
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from flowjax.choices import Spec
from flowjax.contract import DataSpec
from flowjax.data import draws
from flowjax.data.canvas import Canvas, Frame, corner_mask
from flowjax.data.fingerprints import plain_hash, tree_hash
from flowjax.data.record_format import BadPicture
from flowjax.data.skipped import Skipped
from flowjax.data.sources import check_batch_fits, check_split, endless, examples_at
from flowjax.data.tokenizers import Tokenizer, make_tokenizer, text_facts
from flowjax.data.transforms import Transform

LEVELS = 256
WORKERS = min(32, (os.cpu_count() or 1) + 2)  # threads that decode, whichever batch they decode for
LOOKED_AT = 256  # pictures from which the standard deviation of files is taken
PIECE = 16  # pictures of a batch that a thread decodes in one go
Captions = Sequence[tuple[str, ...]]  # for every picture its captions, the first being the plain one


@runtime_checkable  # so that annotations can be checked
class Pictures(Protocol):
    """One split: `read(indices)` gives `data` uint8 [n, h, w, c], and where there are any `label` and `captions`.

    Of pictures on a canvas also `extent` int32 [n, 2], their heights and widths.
    """

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> dict[str, Any]:
        """The pictures at some places."""
        ...

    def all_captions(self) -> list[str]:
        """Every caption of the split, for a tokenizer that takes its words from them."""
        ...

    def fingerprint(self) -> str:
        """A hash of what the pictures, labels and captions are."""
        ...


@dataclasses.dataclass(frozen=True)
class MemoryPictures:
    """A split in memory.

    Attributes:
      data: uint8 [n, h, w, c].
      label: int32 [n], or None.
      captions: the captions of each picture, or None.
      tokens: their ids, int32 [n, most captions a picture has, length], once a tokenizer has read them.
      extent: of pictures on a canvas, their heights and widths, int32 [n, 2].
    """

    data: np.ndarray
    label: np.ndarray | None = None
    captions: Captions | None = None
    tokens: np.ndarray | None = None
    extent: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.data)

    def read(self, indices: np.ndarray) -> dict[str, Any]:
        """A gather."""
        arrays = dict(data=self.data, label=self.label, tokens=self.tokens, extent=self.extent)
        return {name: array[indices] for name, array in arrays.items() if array is not None}

    def tokenized(self, tokenizer: Tokenizer) -> "MemoryPictures":
        """The same pictures with every caption encoded once; fewer captions than others have are repeated in turn."""
        if self.captions is None or not len(self):
            return self
        most = max(len(options) for options in self.captions)
        flat = [options[i % len(options)] for options in self.captions for i in range(most)]
        return dataclasses.replace(self, tokens=tokenizer.encode(flat).reshape(len(self), most, -1))

    def all_captions(self) -> list[str]:
        """Every caption."""
        return [caption for captions in self.captions or () for caption in captions]

    def fingerprint(self) -> str:
        """Of all pixels, labels and captions."""
        extent = () if self.extent is None else (self.extent,)
        return plain_hash(arrays=tree_hash([self.data, self.label, *extent]), captions=self.captions)


class FilePictures:
    """A split whose pictures are decoded when they are read: files of a folder, members of tar archives, records.

    A picture that turns out to be bad gives its place to the next good one, is counted in `skipped` and warned of once.
    So a run goes on, and the order stays a function of (seed, position) and of the files.
    """

    def __init__(
        self,
        load: Callable[[int], dict[str, Any]],
        count: int,
        captions: Callable[[], list[str]],
        identity: Any,
        name: Callable[[int], str] = str,
    ):
        """Keeps what reads a picture.

        Args:
          load: index -> fields; raises BadPicture.
          count: how many there are.
          captions: gives all captions.
          identity: plain values that change when the pictures do, for fingerprints.
          name: index -> what to call a picture in messages.
        """
        self._load, self._count, self._captions, self._name = load, count, captions, name
        self._identity = identity
        self._bad: dict[int, str] = {}
        self._lock = threading.Lock()
        self.skipped = Skipped()

    def __len__(self) -> int:
        return self._count

    def _good(self, index: int) -> dict[str, Any]:
        for step in range(self._count):
            place = (index + step) % self._count
            if place in self._bad:
                continue
            try:
                return self._load(place)
            except BadPicture as error:
                self._note(place, str(error))
        raise ValueError(f"None of the {self._count} pictures can be decoded: {next(iter(self._bad.values()), '')}.")

    def _piece(self, indices: np.ndarray) -> list[dict[str, Any]]:
        return [self._good(index) for index in indices.tolist()]

    def _note(self, place: int, reason: str) -> None:
        with self._lock:
            if place not in self._bad:
                self._bad[place] = reason
                self.skipped.add("corrupt picture", self._name(place))
                warnings.warn(f"{self._name(place)}: {reason}; its neighbour takes its place.", stacklevel=2)

    def read(self, indices: np.ndarray) -> dict[str, Any]:
        """Decodes the pictures; Pillow works outside the interpreter's lock, so threads help."""
        pieces = np.array_split(indices, max(1, min(WORKERS, len(indices) // PIECE)))
        rows = [row for piece in _pool().map(self._piece, pieces) for row in piece]
        gathered: dict[str, Any] = {
            name: np.stack([row[name] for row in rows]) for name in rows[0] if name not in ("label", "captions")
        }
        if "label" in rows[0]:
            gathered["label"] = np.int32([row["label"] for row in rows])
        if "captions" in rows[0]:
            gathered["captions"] = [row["captions"] for row in rows]
        return gathered

    def all_captions(self) -> list[str]:
        """Every caption."""
        return self._captions()

    def fingerprint(self) -> str:
        """Of the identity that was given."""
        return plain_hash(identity=self._identity, count=self._count)


def mirror() -> Transform:
    """Mirrors half of the pictures, left to right; on a canvas each within its own width."""

    def apply(images: np.ndarray, uniforms: np.ndarray, pixel_mask: np.ndarray | None = None) -> np.ndarray:
        mirrored = images[:, :, ::-1]
        if pixel_mask is not None:
            own = pixel_mask.any(axis=1).sum(axis=1)[:, None]  # the visible columns, which are the first
            places = (own - 1 - np.arange(images.shape[2])) % images.shape[2]
            mirrored = np.take_along_axis(images, places[:, None, :, None], axis=2)
        return np.where(uniforms[:, :, None, None] < 0.5, mirrored, images)

    return Transform(1, apply)


_POOL: list[concurrent.futures.ThreadPoolExecutor] = []


def _pool() -> concurrent.futures.ThreadPoolExecutor:
    if not _POOL:
        _POOL.append(concurrent.futures.ThreadPoolExecutor(WORKERS, thread_name_prefix="pictures"))
    return _POOL[0]


@dataclasses.dataclass(frozen=True)
class PictureSource:
    """Pictures, labels and captions as batches.

    Attributes:
      train: the training split.
      test: the held-out one, perhaps empty.
      spec: the data's spec.
      tokenizer: captions to ids; None when batches carry no captions.
      transforms: augmentations of training batches (flowjax/data/transforms.py).
      labels: the names of the classes, where they have names.
      levels: grey levels, to which evaluation rounds samples.
      card: where the data came from, for receipts.
    """

    train: Pictures
    test: Pictures
    spec: DataSpec
    tokenizer: Tokenizer | None = None
    transforms: tuple[Transform, ...] = ()
    labels: tuple[str, ...] = ()
    levels: int = LEVELS
    card: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    oracle: Any = None

    @property
    def size(self) -> int:
        """The number of training pictures."""
        return len(self.train)

    @property
    def test_size(self) -> int:
        """The number of held-out pictures."""
        return len(self.test)

    def _rows(self, split: Pictures, indices: np.ndarray, choice: np.ndarray | None) -> dict[str, np.ndarray]:
        rows = split.read(indices)
        captions = rows.pop("captions", None)
        data = rows["data"].astype(np.float32)  # in two steps in place: a third of the time of x / 127.5 - 1
        data *= 1 / 127.5
        data -= 1
        rows["data"] = data
        if "extent" in rows:
            rows["pixel_mask"] = corner_mask(rows.pop("extent"), *data.shape[1:3])
            data *= rows["pixel_mask"][..., None]
        if self.spec.num_classes is None:
            rows.pop("label", None)
        if self.tokenizer is not None:
            choice = np.zeros(len(indices)) if choice is None else choice
            if "tokens" in rows:
                options = rows["tokens"].shape[1]
                rows["tokens"] = rows["tokens"][np.arange(len(indices)), (choice * options).astype(int)]
            else:
                rows["tokens"] = self.tokenizer.encode(
                    [options[int(u * len(options))] for options, u in zip(captions, choice)]
                )
        return rows

    def dataset(self, seed: int, batch_size: int, start: int, stop: int) -> grain.MapDataset:
        """Item k: the pictures at the positions k * batch_size + (start..stop), augmented."""
        check_batch_fits(batch_size, self.size)
        columns = 1 + sum(transform.columns for transform in self.transforms)

        def item(step: int) -> dict[str, np.ndarray]:
            first = step * batch_size
            uniforms = draws.row_uniforms(seed, draws.AUGMENT, 0, first + start, first + stop, columns)
            chosen = examples_at(seed, first + start, first + stop, self.size)
            rows = self._rows(self.train, chosen, uniforms[:, 0])
            uniforms = uniforms[:, 1:]
            masks = (rows["pixel_mask"],) if "pixel_mask" in rows else ()
            for transform in self.transforms:
                rows["data"] = transform.apply(rows["data"], uniforms[:, : transform.columns], *masks)
                uniforms = uniforms[:, transform.columns :]
            return rows

        return endless(item)

    def examples(self, split: str, first: int, last: int) -> dict[str, np.ndarray]:
        """The examples first..last of a split (train or test) as they are stored, never augmented."""
        check_split(split, ("train", "test"))
        part = self.train if split == "train" else self.test
        return self._rows(part, np.arange(first, min(last, len(part))), None)

    def fingerprint(self) -> str:
        """A hash of what the pictures are, of their shape and of what reads their captions."""
        words = self.tokenizer.fingerprint() if self.tokenizer is not None else ""
        content = [self.train.fingerprint(), self.test.fingerprint()]
        return plain_hash(content=content, shape=self.spec.shape, classes=self.spec.num_classes, tokenizer=words)

    def reference(self, split: str = "test", count: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
        """The pictures of a split with their first captions: all, or `count` chosen by the seed; never augmented."""
        check_split(split)
        parts = {"train": (self.train,), "test": (self.test,), "all": (self.train, self.test)}[split]
        places = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        size = int(places[-1])
        if not size:
            raise ValueError(f"The split '{split}' is empty. Evaluate on another split, or hold some pictures out.")
        if count is not None and count > size:
            raise ValueError(
                f"{count} real examples were asked for, but the split '{split}' has {size}. Ask for at most {size}."
            )
        chosen = np.arange(size)
        if count is not None:
            chosen = draws.generator(seed, draws.REFERENCE_TEST).permutation(size)[:count]
        gathered, order = [], []
        for index, part in enumerate(parts):
            mine = np.flatnonzero((chosen >= places[index]) & (chosen < places[index + 1]))
            if len(mine):
                gathered.append(self._rows(part, chosen[mine] - places[index], None))
                order.append(mine)
        back = np.argsort(np.concatenate(order))
        return {name: np.concatenate([rows[name] for rows in gathered])[back] for name in gathered[0]}


def standard_deviation(data: np.ndarray) -> float:
    """Of uint8 pixels scaled to [-1, 1], from their histogram: exact, without a float copy of the data."""
    counts, values = np.bincount(data.reshape(-1), minlength=256), np.arange(256) / 127.5 - 1
    mean = (counts * values).sum() / counts.sum()
    return float(np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum()))


def estimated_deviation(pictures: FilePictures) -> float:
    """The standard deviation of pixels scaled to [-1, 1], of some hundred pictures; of what is visible of them."""
    some = pictures.read(draws.generator(0, draws.SPLIT).permutation(len(pictures))[:LOOKED_AT])
    data = some["data"]
    if "extent" in some:
        data = data[corner_mask(some["extent"], *data.shape[1:3])]
    return float((data / np.float32(127.5)).std())


def make_caption_tokenizer(spec: Spec | None, text_length: int, captions: Sequence[str]) -> Tokenizer | None:
    """The tokenizer that a data spec asks for, or None; a word list is made of the captions given.

    Args:
      spec: of the tokenizer; None when batches carry no captions.
      text_length: ids of a caption; 0 for the longest.
      captions: those of the training pictures.
    """
    if spec is None:
        if text_length:
            raise ValueError(f"text_length={text_length} without a tokenizer. Add tokenizer=dict(name='words').")
        return None
    if not captions:
        raise ValueError("A tokenizer was given, but this data has no captions. Leave `tokenizer` out.")
    return make_tokenizer({"length": text_length, **spec}, captions)


def picture_source(
    train: Pictures,
    test: Pictures,
    frame: Frame | tuple[int, ...],
    std: float,
    num_classes: int | None,
    tokenizer: Spec | None,
    text_length: int,
    **rest: Any,
) -> PictureSource:
    """A source of two splits, with the tokenizer that a data spec asks for; words are those of the training captions.

    Args:
      train: the training split.
      test: the held-out one.
      frame: what made them arrays of one shape; or that shape.
      std: the standard deviation of the training data, in [-1, 1].
      num_classes: how many labels, None for none.
      tokenizer: its spec, None when batches carry no captions.
      text_length: ids of a caption; 0 for the longest.
      **rest: further attributes of PictureSource.
    """
    encoder = make_caption_tokenizer(tokenizer, text_length, train.all_captions() if tokenizer is not None else [])
    if encoder is not None:
        train, test = (p.tokenized(encoder) if isinstance(p, MemoryPictures) else p for p in (train, test))
    shape = tuple(getattr(frame, "shape", frame))
    spec = DataSpec(shape, num_classes, std, **text_facts(encoder))
    if isinstance(frame, Canvas):
        square = frame.visible_size(frame.side, frame.side)
        spec = dataclasses.replace(spec, visible_shape=square, visible_multiple=frame.multiple)
    return PictureSource(train, test, spec, encoder, **rest)

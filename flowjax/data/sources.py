r"""What training and evaluation read from: an endless distribution, arrays in memory, or records to be read one by one.

Every source gives one thing to the pipeline: a grain `MapDataset` whose item k is the whole batch of step k, with only
the rows start..stop of it that this process owns. A finite source runs through one permutation after another: row i of
step k is position p = k * batch_size + i of the sequence

    order_0(0), ..., order_0(N-1), order_1(0), ...        with a fresh permutation order_e for every epoch e,

so a batch may hold the end of one epoch and the beginning of the next, and nothing is dropped or seen twice within one.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from flowjax.contract import DataSpec
from flowjax.data import draws
from flowjax.data.fingerprints import plain_hash, records_hash, tree_hash

Arrays = Mapping[str, np.ndarray]
REFERENCE_SPLITS = ("train", "test", "all")


@runtime_checkable
class Source(Protocol):
    """A data set. `size` is the number of training examples, None when there is no end.

    A source whose examples are codes of something else also has `decode(samples) -> what they are codes of` and
    `decoded`, the source of that: pictures and evaluators then see decoded samples beside decoded's examples.

    A source with captions also has `tokenizer` (flowjax/data/tokenizers.py): prompts go through it, and the `tokens` that
    samples were drawn under come back as text in pictures and evaluators.
    """

    spec: DataSpec
    size: int | None

    def dataset(self, seed: int, batch_size: int, start: int, stop: int) -> grain.MapDataset:
        """Item k: the rows start..stop of the batch of step k, without `mask` and `row`.

        Row i of step k is a function of (seed, k * batch_size + i) where the source is finite, of (seed, k, i) where it is
        endless. Rows may lie beyond batch_size: item 0 of dataset(seed, 1, start, stop) are the examples start..stop of
        one long sequence, and that is how a mixture addresses them.
        """
        ...

    def reference(self, split: str = "test", count: int | None = None, seed: int = 0) -> Arrays:
        """Real examples for evaluation, with the keys of a batch."""
        ...


class _Endless:
    """A grain source without an end: item k is item(k)."""

    def __init__(self, item: Callable[[int], Any]):
        self._item = item

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index) -> Any:
        return self._item(int(index))


def endless(item: Callable[[int], Any]) -> grain.MapDataset:
    """A grain data set whose item k is item(k), for every k."""
    return grain.MapDataset.source(_Endless(item))


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The permutation of one epoch; the last few are kept, because a batch may need two."""
    order = draws.generator(seed, draws.ORDER, epoch).permutation(size)
    order.setflags(write=False)
    return order


def examples_at(seed: int, first: int, last: int, size: int) -> np.ndarray:
    """The examples at the positions first..last of the endless sequence of permutations."""
    pieces = []
    for epoch in range(first // size, (last - 1) // size + 1):
        low, high = max(first - epoch * size, 0), min(last - epoch * size, size)
        pieces.append(epoch_order(seed, epoch, size)[low:high])
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def check_batch_fits(batch_size: int, size: int) -> None:
    """Raises a ValueError for a batch larger than the data set."""
    if batch_size > size:
        raise ValueError(
            f"batch_size={batch_size} is larger than the data set ({size} examples), so a batch would hold an example "
            f"twice. Use batch_size <= {size}."
        )


def check_split(split: str, splits: Sequence[str] = REFERENCE_SPLITS) -> None:
    """Raises a ValueError for an unknown split."""
    if split not in splits:
        raise ValueError(f"Unknown split '{split}'. Known: {', '.join(splits)}.")


@dataclasses.dataclass(frozen=True)
class PointSource:
    """Fresh points of a distribution for ever. Each takes four uniforms, one counter block, whatever the distribution.

    Attributes:
      draw: uniforms [n, 4] -> (points [n, d], labels [n]).
      spec: the data's spec; with num_classes set, batches carry `label`.
      oracle: the closed-form distribution (paths.oracles.GaussianMixture), where there is one.
    """

    draw: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    spec: DataSpec
    oracle: Any = None
    size: int | None = None
    levels: int | None = None

    def _rows(self, seed: int, stream: int, step: int, start: int, stop: int) -> dict[str, np.ndarray]:
        points, labels = self.draw(draws.row_uniforms(seed, stream, step, start, stop))
        rows = {"data": points.astype(np.float32)}
        if self.spec.num_classes is not None:
            rows["label"] = labels.astype(np.int32)
        return rows

    def dataset(self, seed: int, batch_size: int, start: int, stop: int) -> grain.MapDataset:
        """Item k: fresh points for the rows start..stop of step k."""
        return endless(lambda step: self._rows(seed, draws.TRAIN, step, start, stop))

    def fingerprint(self) -> str:
        """A hash of what the law makes of a fixed set of uniforms."""
        points, labels = self.draw(draws.row_uniforms(0, draws.MEASURE, 0, 0, 256))
        return tree_hash({"points": points, "labels": labels, "labelled": np.array(self.spec.num_classes or 0)})

    def reference(self, split: str = "test", count: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
        """`count` fresh points (10,000 unless told): other ones for every split and seed, never a training point."""
        check_split(split)
        stream = draws.REFERENCE_TRAIN if split == "train" else draws.REFERENCE_TEST
        return self._rows(seed, stream, 0, 0, 10_000 if count is None else count)


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Examples held in memory: a batch is one gather.

    Attributes:
      train: the training arrays, `data` and conditions, each [N, ...]: NumPy's, or what gives rows as they do.
      test: held-out arrays with the same keys.
      spec: the data's spec.
      levels: how many equally spaced values in [-1, 1] the raw data takes; evaluation rounds samples to them.
      transforms: augmentations of training batches, in order (flowjax/data/transforms.py).
    """

    train: Mapping[str, Any]
    test: Mapping[str, Any]
    spec: DataSpec
    levels: int | None = None
    transforms: tuple = ()
    oracle: Any = None

    def __post_init__(self):
        for split in (self.train, self.test):
            lengths = {name: len(value) for name, value in split.items()}
            if len(set(lengths.values())) != 1 or set(split) != set(self.train):
                raise ValueError(
                    f"The arrays of a split must have equal lengths and the same names in both splits; got {lengths}."
                )

    @property
    def size(self) -> int:
        """The number of training examples."""
        return len(self.train["data"])

    @property
    def test_size(self) -> int:
        """The number of held-out examples."""
        return len(self.test["data"])

    def dataset(self, seed: int, batch_size: int, start: int, stop: int) -> grain.MapDataset:
        """Item k: the examples at the positions k * batch_size + (start..stop), augmented."""
        check_batch_fits(batch_size, self.size)
        columns = sum(transform.columns for transform in self.transforms)

        def item(step: int) -> dict[str, np.ndarray]:
            chosen = examples_at(seed, step * batch_size + start, step * batch_size + stop, self.size)
            rows = {name: value[chosen] for name, value in self.train.items()}
            if columns:
                uniforms = draws.row_uniforms(seed, draws.AUGMENT, step, start, stop, columns)
                for transform in self.transforms:
                    mine, uniforms = uniforms[:, : transform.columns], uniforms[:, transform.columns :]
                    rows["data"] = transform.apply(rows["data"], mine)
            return rows

        return endless(item)

    def examples(self, split: str, first: int, last: int) -> dict[str, np.ndarray]:
        """The examples first..last of a split (train or test) as they are stored, never augmented."""
        check_split(split, ("train", "test"))
        part = self.train if split == "train" else self.test
        return {name: value[first:last] for name, value in part.items()}

    def fingerprint(self) -> str:
        """A hash of the arrays of both splits."""
        return tree_hash({"train": dict(self.train), "test": dict(self.test)})

    def reference(self, split: str = "test", count: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
        """The examples of a split, never augmented: all of them, or `count` of them chosen by the seed."""
        check_split(split)
        parts = {"train": (self.train,), "test": (self.test,), "all": (self.train, self.test)}[split]
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in self.train}
        size = len(arrays["data"])
        if count is None:
            return arrays
        if count > size:
            raise ValueError(
                f"{count} real examples were asked for, but the split '{split}' has {size}. Ask for at most {size}."
            )
        chosen = draws.generator(seed, draws.REFERENCE_TEST).permutation(size)[:count]
        return {name: value[chosen] for name, value in arrays.items()}


@dataclasses.dataclass(frozen=True)
class RecordSource:
    """Examples that are read one by one, such as a folder of files or an ArrayRecord file, through grain's shuffle.

    Attributes:
      records: anything with len() and [index].
      decode: record -> one example, `data` and conditions, as NumPy values. Runs in grain's threads.
      spec: the data's spec.
      augment: (example, generator) -> example; the generator is a function of (seed, position) alone.
      test: held-out records, read the same way.
      fit: example -> example of the spec's shape, without chance, where `decode` gives pictures of any size. It stands in
        for `augment` where that is None, and makes the examples of `reference`.
      identity: what the records are (the content hash of prepared data), for fingerprints; without one all are hashed.
      tokenizer: what turned captions into ids, if there are any.
    """

    records: Any
    decode: Callable[[Any], Mapping[str, Any]]
    spec: DataSpec
    augment: Callable[[dict, np.random.Generator], Mapping[str, Any]] | None = None
    test: Any = ()
    levels: int | None = None
    oracle: Any = None
    fit: Callable[[dict], Mapping[str, Any]] | None = None
    identity: str = ""
    tokenizer: Any = None

    @property
    def size(self) -> int:
        """The number of training records."""
        return len(self.records)

    @property
    def test_size(self) -> int:
        """The number of held-out records."""
        return len(self.test)

    def dataset(self, seed: int, batch_size: int, start: int, stop: int) -> grain.MapDataset:
        """Item k: the records at the positions k * batch_size + (start..stop) of grain's shuffled epochs, decoded."""
        check_batch_fits(batch_size, self.size)
        shuffled = grain.MapDataset.source(self.records).shuffle(seed=seed % 2**32).repeat()
        mine = stop - start

        def example(index: int) -> dict[str, Any]:
            step, offset = divmod(index, mine)
            position = step * batch_size + start + offset
            value = dict(self.decode(shuffled[position]))
            if self.augment is not None:
                value = self.augment(value, draws.generator(seed, draws.AUGMENT, position))
            elif self.fit is not None:
                value = self.fit(value)
            return dict(value)

        return endless(example).batch(mine)

    def examples(self, split: str, first: int, last: int) -> dict[str, np.ndarray]:
        """The examples first..last of a split (train or test) as they are stored, never augmented."""
        check_split(split, ("train", "test"))
        part = self.records if split == "train" else self.test
        return _stacked([self._plain(part, index) for index in range(first, last)])

    def _plain(self, records: Any, index: int) -> Mapping[str, Any]:
        value = self.decode(records[index])
        return value if self.fit is None else self.fit(dict(value))

    def fingerprint(self) -> str:
        """A hash of the records of both splits, or of their identity, and of how they are fitted."""
        content = self.identity or [records_hash(self.records), records_hash(self.test)]
        first = tree_hash({name: np.asarray(value) for name, value in self._plain(self.records, 0).items()})
        return plain_hash(records=content, sizes=[len(self.records), len(self.test)], first=first)

    def reference(self, split: str = "test", count: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
        """The decoded examples of a split, never augmented: all of them, or `count` of them chosen by the seed."""
        check_split(split)
        parts = {"train": (self.records,), "test": (self.test,), "all": (self.records, self.test)}[split]
        places = [(part, index) for part in parts for index in range(len(part))]
        if count is not None and count > len(places):
            raise ValueError(f"{count} real examples were asked for, but the split '{split}' has {len(places)}.")
        if not places:
            raise ValueError(
                f"The split '{split}' is empty. Give the source `test` records, or evaluate on another split."
            )
        if count is not None:
            places = [places[i] for i in draws.generator(seed, draws.REFERENCE_TEST).permutation(len(places))[:count]]
        examples = [self._plain(part, index) for part, index in places]
        return _stacked(examples)


def _stacked(examples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.stack([np.asarray(example[name]) for example in examples]) for name in examples[0]}

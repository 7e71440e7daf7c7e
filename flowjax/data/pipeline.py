r"""Batches in an order that is a function of (seed, step), through grain: fast for small models, exact on resume.

A grain element is a whole batch, not an example: item k of the dataset is the batch of step k. The iterator's whole
state is therefore the number of the next step; to resume is to start there, and threads that prefetch cannot change
the order. A coupling runs on the host, once a batch, with a generator that is a function of (seed, step) too.

With several processes each produces rows start..stop of the global batch, numbered by `row`. A coupling sees the rows
of its process alone: an optimal-transport pairing then is one for each process, and depends on how many there are.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import numpy as np

from flowjax.data import draws
from flowjax.data.batch import check_batch
from flowjax.data.sources import Source

Coupling = Callable[[dict[str, np.ndarray], np.random.Generator], Mapping[str, np.ndarray]]


def process_rows(batch_size: int, process_index: int, process_count: int) -> tuple[int, int]:
    """The rows start..stop of the global batch that a process owns."""
    if batch_size < 1 or process_count < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} does not divide into equal parts for {process_count} processes. "
            f"Use a multiple of {process_count}."
        )
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index={process_index} is not one of the {process_count} processes (0 to {process_count - 1})."
        )
    mine = batch_size // process_count
    return process_index * mine, (process_index + 1) * mine


class BatchIterator:
    """An endless iterator over the batches of a data set, whose state is the number of the next step."""

    def __init__(self, dataset: grain.MapDataset, start_step: int, threads: int, prefetch: int):
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch if threads else 0)
        self._iterator = iter(dataset.to_iter_dataset(options))
        self.set_state({"next_index": start_step})

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = self._peek()
        self._ahead = None
        return batch

    def _peek(self) -> dict[str, np.ndarray]:
        if self._ahead is None:
            self._ahead = next(self._iterator)
        return self._ahead

    def stack_batches(self, count: int) -> dict[str, np.ndarray]:
        """The next `count` batches as one, [count, b, ...]: what as many calls of next() would give, stacked.

        Fewer than `count` where the batches go on with other shapes (a bucket follows another): those wait their turn.
        """
        if count < 1:
            raise ValueError(f"stack_batches({count}): ask for at least one batch.")
        batches = [next(self)]
        shapes = _shapes(batches[0])
        while len(batches) < count and _shapes(self._peek()) == shapes:
            batches.append(next(self))
        return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}

    @property
    def next_step(self) -> int:
        """The step whose batch comes next."""
        return self.get_state()["next_index"]

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint keeps: {'next_index': the next step}."""
        # A batch that was looked at and not taken has left grain's iterator, but is still to come.
        return {"next_index": self._iterator.get_state()["next_index"] - (self._ahead is not None)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to the step of a state that `get_state` gave; prefetched batches are dropped."""
        self._ahead: dict[str, np.ndarray] | None = None
        self._iterator.set_state({"next_index": int(state["next_index"])})

    def close(self) -> None:
        """Stops the prefetching threads."""
        self._iterator.close()


def _shapes(batch: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in batch.items()}


def make_iterator(
    source: Source,
    batch_size: int,
    seed: int = 0,
    coupling: Coupling | None = None,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
    threads: int = 0,
    prefetch: int = 8,
) -> BatchIterator:
    """Batches of a source from a step on; the first one is checked against the data's spec before training starts.

    Args:
      source: one of SOURCES, or any object with the methods of `Source`.
      batch_size: examples in the global batch, over all processes.
      seed: with the step, decides everything in a batch.
      coupling: (batch, generator) -> batch, adds `noise`.
      process_index: which process this is.
      process_count: how many there are; must divide batch_size.
      start_step: the first step to come.
      threads: how many threads make batches ahead. 0 makes each when it is asked for, which is quickest where a batch
        costs some tens of microseconds; use threads for files to read or a coupling to solve.
      prefetch: how many batches the threads are ahead.
    """
    start, stop = process_rows(batch_size, process_index, process_count)
    mask, row = np.ones(stop - start, np.float32), np.arange(start, stop, dtype=np.int32)

    def finish(step: int, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        batch = {**rows, "mask": mask.copy(), "row": row.copy()}
        if coupling is not None:
            batch = dict(coupling(batch, draws.generator(seed, draws.COUPLE + (process_index << 32), step)))
        return batch

    dataset = source.dataset(seed, batch_size, start, stop).map_with_index(finish)
    check_batch(dataset[start_step], source.spec)
    return BatchIterator(dataset, start_step, threads, prefetch)


def evaluation_batches(
    arrays: Mapping[str, np.ndarray], batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """One pass over arrays in their order; `row` is the index in the pass.

    The last batch is filled up by repeating its first example, with mask 0, so that every batch has one shape and one
    compiled program serves them all. Every process makes the same number of batches.
    """
    start, stop = process_rows(batch_size, process_index, process_count)
    lengths = {name: len(value) for name, value in arrays.items()}
    if len(set(lengths.values())) != 1 or not min(lengths.values(), default=0):
        raise ValueError(f"An evaluation pass needs arrays of one length, at least 1; got {lengths or 'none'}.")
    size = next(iter(lengths.values()))
    return map(functools.partial(_padded_rows, arrays, size, start, stop), range(0, size, batch_size))


def _padded_rows(
    arrays: Mapping[str, np.ndarray], size: int, start: int, stop: int, first: int
) -> dict[str, np.ndarray]:
    row = np.arange(first + start, first + stop)
    chosen = np.where(row < size, row, first)
    batch = {name: value[chosen] for name, value in arrays.items()}
    return {**batch, "mask": (row < size).astype(np.float32), "row": row.astype(np.int32)}

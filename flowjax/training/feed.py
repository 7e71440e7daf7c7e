"""What the next updates are fed with: how many fit in one dispatch, from the data or from a rollout."""

import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flowjax.contract import Batch, Collect, Method
from flowjax.training.state import State, step_key


def dispatch_length(method: Method, step: int, total: int, largest: int, is_event: Callable[[int], bool]) -> int:
    """How many updates from `step` on share their due phases and have no event (log, sample, save) between them.

    Args:
      method: whose phases are due when.
      step: updates done so far.
      total: the length of the run.
      largest: config.steps_per_dispatch.
      is_event: whether something happens on the host after so many finished steps.
    """
    period = method.collect.every if method.collect is not None else 0
    due, length = method.due(step), 1
    while length < largest and step + length < total:
        reached = step + length
        if is_event(reached) or method.due(reached) != due or (period and reached % period == 0):
            break
        length += 1
    return length


class _Fetching:
    """The data's iterator, and the seconds that its batches took to come."""

    def __init__(self, iterator: Any):
        self._iterator, self.seconds = iterator, 0.0

    def _fetch(self, count: int) -> dict[str, np.ndarray]:
        began = time.perf_counter()
        batches = self._iterator.stack_batches(count)
        self.seconds += time.perf_counter() - began
        return batches


class DataFeed(_Fetching):
    """Batches straight from the data."""

    metrics: Mapping[str, float] = types.MappingProxyType({})

    def take(self, state: State, step: int, count: int) -> dict[str, np.ndarray]:
        """The next batches, stacked: `count` of them, or fewer where the source goes on with another shape."""
        return self._fetch(count)

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint stores."""
        return dict(data=self._iterator.get_state())

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what a checkpoint stored."""
        self._iterator.set_state(state["data"])


class CollectFeed(_Fetching):
    """Batches made by rollout: every `collect.every` steps one data batch is rolled out, scored and cut into batches."""

    def __init__(self, iterator: Any, collect: Collect, executor: Any):
        super().__init__(iterator)
        self._collect, self._executor = collect, executor
        self._rollout = jax.jit(collect.rollout)
        self._pending: list[Batch] = []
        self.metrics: dict[str, float] = {}

    def take(self, state: State, step: int, count: int) -> dict[str, np.ndarray]:
        """The next `count` batches, stacked; rolls out when `step` starts a new period."""
        if step % self._collect.every == 0:
            self._pending = self._roll_out(state, step)
        chosen, self._pending = self._pending[:count], self._pending[count:]
        return {name: np.stack([np.asarray(batch[name]) for batch in chosen]) for name in chosen[0]}

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint stores; checkpoints are only taken where a period ends, so no batch is pending."""
        memory = self._collect.get_state() if self._collect.get_state is not None else None
        return dict(data=self._iterator.get_state(), collect=memory)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what a checkpoint stored."""
        self._iterator.set_state(state["data"])
        if self._collect.set_state is not None:
            self._collect.set_state(state["collect"])

    def _roll_out(self, state: State, step: int) -> list[Batch]:
        collect = self._collect
        batch = {name: value[0] for name, value in self._fetch(1).items()}
        chunks = [
            {name: part[index] for name, part in _cut(batch, collect.chunks).items()} for index in range(collect.chunks)
        ]
        params = self._executor.logical(state).params
        key = step_key(self._executor.root, step, "collect")
        # All chunks are sent at once: the device works through them while the host scores those that are done.
        sent = [
            self._rollout(params, self._executor.put(chunk, stacked=False), jax.random.fold_in(key, index))
            for index, chunk in enumerate(chunks)
        ]
        rollouts, scores = [], []
        for arrays in sent:
            rollouts.append(jax.tree.map(np.asarray, arrays))
            if collect.score is not None:
                scores.append(collect.score(rollouts[-1]))
        join = lambda trees: jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees) if trees else None
        rollout, score = join(rollouts), join(scores)
        if collect.metrics is not None:
            self.metrics = dict(collect.metrics(rollout, score))
        batches: Sequence[Batch] = collect.batches(rollout, score, step)
        if len(batches) != collect.every:
            raise ValueError(f"collect.batches made {len(batches)} batches, but collect.every is {collect.every}.")
        return list(batches)


def _cut(batch: Batch, chunks: int) -> dict[str, np.ndarray]:
    size = len(batch["mask"]) if "mask" in batch else len(next(iter(batch.values())))
    if size % chunks:
        raise ValueError(f"collect.chunks={chunks} does not divide the {size} examples of a batch.")
    return {name: np.reshape(value, (chunks, size // chunks, *value.shape[1:])) for name, value in batch.items()}


def make_feed(iterator: Any, method: Method, executor: Any) -> DataFeed | CollectFeed:
    """The feed a method needs."""
    return DataFeed(iterator) if method.collect is None else CollectFeed(iterator, method.collect, executor)

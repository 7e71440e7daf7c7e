"""What the next updates are fed with: how many fit in one dispatch, from the data or from a rollout."""

from collections.abc import Callable, Sequence
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


class DataFeed:
    """Batches straight from the data."""

    def __init__(self, iterator: Any):
        self._iterator = iterator

    def take(self, state: State, step: int, count: int) -> dict[str, np.ndarray]:
        """The next `count` batches, stacked."""
        return self._iterator.stack_batches(count)

    def position(self) -> dict[str, Any]:
        """What a checkpoint stores."""
        return self._iterator.get_state()


class CollectFeed:
    """Batches made by rollout: every `collect.every` steps one data batch is rolled out, scored and cut into batches."""

    def __init__(self, iterator: Any, collect: Collect, executor: Any):
        self._iterator, self._collect, self._executor = iterator, collect, executor
        self._rollout = jax.jit(collect.rollout)
        self._pending: list[Batch] = []

    def take(self, state: State, step: int, count: int) -> dict[str, np.ndarray]:
        """The next `count` batches, stacked; rolls out when `step` starts a new period."""
        if step % self._collect.every == 0:
            self._pending = self._roll_out(state, step)
        chosen, self._pending = self._pending[:count], self._pending[count:]
        return {name: np.stack([np.asarray(batch[name]) for batch in chosen]) for name in chosen[0]}

    def position(self) -> dict[str, Any]:
        """What a checkpoint stores; checkpoints are only taken where a period ends, so nothing is pending."""
        return self._iterator.get_state()

    def _roll_out(self, state: State, step: int) -> list[Batch]:
        batch = self._executor.put({k: v[0] for k, v in self._iterator.stack_batches(1).items()}, stacked=False)
        params = self._executor.logical(state).params
        rollout = self._rollout(params, batch, step_key(self._executor.root, step, "collect"))
        rollout = jax.tree.map(np.asarray, rollout)
        scores = None if self._collect.score is None else self._collect.score(rollout)
        batches: Sequence[Batch] = self._collect.batches(rollout, scores, step)
        if len(batches) != self._collect.every:
            raise ValueError(
                f"collect.batches made {len(batches)} batches, but collect.every is {self._collect.every}."
            )
        return list(batches)


def make_feed(iterator: Any, method: Method, executor: Any) -> DataFeed | CollectFeed:
    """The feed a method needs."""
    return DataFeed(iterator) if method.collect is None else CollectFeed(iterator, method.collect, executor)

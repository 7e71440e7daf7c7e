"""What the next updates are fed with: how many fit in one dispatch, from the data or from a rollout."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flowjax.config import ConfigError
from flowjax.contract import Batch, Collect, Method
from flowjax.training.executors import check_divides
from flowjax.training.operations import Meter, operations
from flowjax.training.speed import DeviceClock
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


class CollectFailed(RuntimeError):
    """A rollout could not be judged; what had been trained until then is intact, and the message says where that was."""


class _Fetching:
    """The data's iterator, and when its last batches were asked for and came, by time.perf_counter; None when not asked.

    `metrics` and `times` are of the rollout that the last batches asked for; empty where they did not ask for one.
    """

    def __init__(self, iterator: Any):
        self._iterator = iterator
        self.fetched: tuple[float, float] | None = None
        self.metrics: dict[str, float] = {}
        self.times: dict[str, float] = {}

    def close(self) -> None:
        """Lets go of what is held: of data, nothing."""

    def _fetch(self, count: int) -> dict[str, np.ndarray]:
        began = time.perf_counter()
        batches = self._iterator.stack_batches(count)
        self.fetched = began, time.perf_counter()
        return batches


class DataFeed(_Fetching):
    """Batches straight from the data."""

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

    def __init__(self, iterator: Any, collect: Collect, executor: Any, meter: Meter | None = None):
        super().__init__(iterator)
        if jax.process_count() > 1:
            raise ConfigError(
                f"This method trains on its own rollouts, which works within one process; there are {jax.process_count()}. "
                "Start one process, which may have many devices."
            )
        if executor.config.batch_size % collect.chunks:
            raise ConfigError(
                f"batch_size={executor.config.batch_size} does not divide into the {collect.chunks} chunks in which rollouts "
                "are scored. Use a multiple."
            )
        self._collect, self._executor = collect, executor
        self._rollout = jax.jit(collect.rollout)
        self._meter, self._clock = meter, DeviceClock()
        self._pending: list[Batch] = []
        self._intact: dict[str, Any] | None = None  # the position before a rollout that failed

    def take(self, state: State, step: int, count: int) -> dict[str, np.ndarray]:
        """The next `count` batches, stacked; rolls out when `step` starts a new period."""
        self.fetched, self.metrics, self.times = None, {}, {}
        if step % self._collect.every == 0:
            before = copy.deepcopy(self.get_state())
            try:
                self._pending = self._roll_out(state, step)
            except CollectFailed:
                self._intact = before
                raise
        chosen, self._pending = self._pending[:count], self._pending[count:]
        return {name: np.stack([np.asarray(batch[name]) for batch in chosen]) for name in chosen[0]}

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint stores; checkpoints are only taken where a period ends, so no batch is pending. After a rollout
        that failed it is the position before it."""
        if self._intact is not None:
            return self._intact
        memory = self._collect.get_state() if self._collect.get_state is not None else None
        return dict(data=self._iterator.get_state(), collect=memory)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what a checkpoint stored."""
        self._iterator.set_state(state["data"])
        if self._collect.set_state is not None:
            self._collect.set_state(state["collect"])

    def close(self) -> None:
        """Ends what waits for the devices."""
        self._clock.close()

    def _roll_out(self, state: State, step: int) -> list[Batch]:
        collect = self._collect
        began, scoring = time.perf_counter(), 0.0
        batch = {name: value[0] for name, value in self._fetch(1).items()}
        batch["step"] = np.full(len(batch["row"]), step, np.int32)
        chunks = [
            {name: part[index] for name, part in _cut(batch, collect.chunks).items()} for index in range(collect.chunks)
        ]
        params = self._executor.logical(state).params
        key = step_key(self._executor.root, step, "collect")
        # All chunks are sent at once: the device works through them while the host scores those that are done.
        sent = [self._rollout(params, self._executor.put(chunk, stacked=False), key) for chunk in chunks]
        self._clock.sent(sent[-1])
        if self._meter is not None:
            count = lambda: operations(collect.rollout, params, chunks[0], key)
            self._meter.sent("rollout", len(chunks), chunks[0], count)
        rollouts, scores = [], []
        for index, arrays in enumerate(sent):
            rollouts.append(jax.tree.map(np.asarray, arrays))
            fetched = time.perf_counter()
            if collect.score is not None:
                asked = time.perf_counter()
                place = f", chunk {index + 1} of {collect.chunks}"
                scores.append(self._told("The score", step, place, collect.score, rollouts[-1]))
                scoring += time.perf_counter() - asked
        join = lambda trees: jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees) if trees else None
        rollout, score = join(rollouts), join(scores)
        ended = time.perf_counter()
        self.times = dict(seconds=ended - began)
        if collect.score is not None:
            idle = max(self._clock.idle(began, ended), ended - fetched)  # it was done by then, whatever the clock knows
            self.times |= dict(score_seconds=scoring, score_wait=idle / (ended - began))
        if collect.metrics is not None:
            self.metrics = dict(self._told("The figures", step, "", collect.metrics, rollout, score))
        batches: Sequence[Batch] = self._told("The batches", step, "", collect.batches, rollout, score, step)
        if len(batches) != collect.every:
            raise ValueError(f"collect.batches made {len(batches)} batches, but collect.every is {collect.every}.")
        for batch in batches:
            if missing := [name for name in ("mask", "row") if name not in batch]:
                raise ValueError(
                    f"A batch of collect.batches has no '{missing[0]}', only {', '.join(sorted(batch))}. Every batch needs "
                    "mask [b], 1 for an example, and row [b], its index: the seed of what is drawn for it."
                )
        size, devices = len(batches[0]["mask"]), self._executor.mesh.shape["data"] * self._executor.mesh.shape["fsdp"]
        accumulation = self._executor.config.gradient_accumulation
        what = f"The rollout of batch_size={self._executor.config.batch_size} makes batches of {{}} examples, which"
        check_divides(size, devices, accumulation, what)
        return list(batches)

    def _told(self, what: str, step: int, place: str, function: Callable, *arguments: Any) -> Any:
        """A function's value; an error of it says where the run was, and what goes on from where."""
        try:
            return function(*arguments)
        except Exception as error:
            raise CollectFailed(
                f"{what} of a rollout failed at step {step}{place}: {type(error).__name__}: {error}. Once it is mended, the "
                "same command goes on from the latest checkpoint."
            ) from error


def _cut(batch: Batch, chunks: int) -> dict[str, np.ndarray]:
    size = len(next(iter(batch.values())))
    return {name: np.reshape(value, (chunks, size // chunks, *value.shape[1:])) for name, value in batch.items()}


def make_feed(iterator: Any, method: Method, executor: Any, meter: Meter | None = None) -> DataFeed | CollectFeed:
    """The feed a method needs.

    Args:
      iterator: of the data.
      method: which may collect.
      executor: that of the run.
      meter: takes note of rollouts.
    """
    return DataFeed(iterator) if method.collect is None else CollectFeed(iterator, method.collect, executor, meter)

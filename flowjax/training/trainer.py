"""The training loop. It knows phases, schedules and checkpoints; it holds no algorithm's name.

Every iteration dispatches as many updates as fit before the next event, then looks at the metrics of the dispatch before
last: between events the device never waits for the host, and the host is never far ahead of the device.
"""

import collections
import contextlib
import fcntl
import pathlib
import signal
import sys
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from flowjax import disk
from flowjax.config import ConfigError, Schedule
from flowjax.contract import Batch
from flowjax.evaluation import run_files
from flowjax.models.stored import stored_steps
from flowjax.training import guard
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.feed import CollectFailed, dispatch_length, make_feed
from flowjax.training.logbook import Logbook
from flowjax.training.operations import Meter, operations
from flowjax.training.run import Run
from flowjax.training.speed import DeviceClock
from flowjax.training.state import State
from flowjax.training.update import make_update

IN_FLIGHT = 2  # dispatches whose metrics have not been looked at yet
RECENT = 4  # batches in the dump of a NaN
ASKED = "asked to stop"
ENDED = "the same command does not go on from here"


class Stopped(SystemExit):
    """The run was asked to stop (SIGTERM, Ctrl-C) or ended by its own watch, and has a checkpoint; exit status 143."""


class Trainer:
    """One run, from its start or its latest checkpoint to its end."""

    def __init__(self, run: Run):
        self.run, self.config = run, run.config
        config, method, size = self.config, run.method, run.source.size
        per_epoch = size / config.batch_size if size else None
        self.schedules = {name: Schedule(when, config.steps, per_epoch) for name, when in config.when.items()}
        self.period = method.collect.every if method.collect is not None else 1
        if config.steps % self.period:
            raise ConfigError(
                f"steps={config.steps} is not a multiple of the {self.period} steps that one collection feeds: the last would "
                f"be cut. Use {config.steps // self.period * self.period + self.period}."
            )
        self.iterator = run.iterator()
        self.meter = Meter(config.peak_flops)
        self.feed = make_feed(self.iterator, method, run.executor, self.meter)
        self.logbook = Logbook(run, self.meter)
        self.clock = DeviceClock()
        self.in_flight: collections.deque = collections.deque()
        self.recent: collections.deque = collections.deque(maxlen=RECENT)  # (step, host batch), for the dump of a NaN
        self.stop_reason = ""
        self.watched: dict[str, float] = {}  # what made the method's watch end the run; empty unless it did

    def due(self, event: str, done: int) -> bool:
        """Whether an event happens after `done` steps. Checkpoints wait for the end of a collection period."""
        schedule = self.schedules[event]
        if event != "checkpoint":
            return schedule.due(done)
        period = range(done - self.period + 1, done + 1)
        return done % self.period == 0 and (done == self.config.steps or any(map(schedule.due, period)))

    def is_event(self, done: int) -> bool:
        """Whether the host has anything to do after `done` steps."""
        return done == self.config.steps or any(self.due(event, done) for event in self.schedules)

    def train(self) -> State:
        """Runs to the end, whatever was done before."""
        run, config = self.run, self.config
        checkpoints = run.checkpoints()
        state, position = run.start_or_resume(checkpoints)
        step = int(run.executor.logical(state).step)
        if step > config.steps:
            raise ConfigError(
                f"The checkpoint in {run.workdir} is at step {step}, beyond steps={config.steps}. Ask for more steps, or give "
                "another --workdir."
            )
        if position is not None:
            self.feed.set_state(position["feed"])
            self.logbook.sums.set_state(position["log"])
        self._refuse_if_ended(step, checkpoints)
        self.logbook.open(step)
        dispatches = 0
        previous = self._catch_signals()
        try:
            while step < config.steps:
                count = dispatch_length(run.method, step, config.steps, config.steps_per_dispatch, self.is_event)
                try:
                    batches = self.feed.take(state, step, count)
                except CollectFailed:
                    self._keep(step, state, checkpoints)
                    raise
                if self.feed.fetched is not None:
                    self.logbook.waited_for_data(self.clock.idle(*self.feed.fetched))
                self.logbook.collected(self.feed.metrics, self.feed.times)
                count = len(batches["mask"])
                state, metrics = run.executor.run(state, batches, run.method.due(step), count)
                self.clock.sent(metrics)
                due = run.method.due(step)
                self.meter.sent(due, count, batches, lambda due=due, sent=batches: self._operations(due, sent))
                self.in_flight.append((step, count, batches, metrics))
                step += count
                while len(self.in_flight) > IN_FLIGHT:
                    self._look(state)
                dispatches += 1
                # Processes must agree on where to stop; the counter of this call has to grow by one each time.
                if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(dispatches):
                    self.stop_reason = ASKED
                stopping = self.stop_reason and step % self.period == 0
                if self.is_event(step) or stopping:
                    while self.in_flight:
                        self._look(state)
                    measured = self._events(step, state, checkpoints)
                    if self.stop_reason and step % self.period == 0 and step < config.steps:
                        self._stop(step, state, checkpoints, measured)
            checkpoints.wait()
            self.logbook.status("finished", step)
        except BaseException as error:
            with contextlib.suppress(disk.DiskFull):  # it must not hide the error
                if not isinstance(error, Stopped):
                    self.logbook.status("failed", step, str(error) or type(error).__name__)
            with contextlib.suppress(disk.DiskFull), disk.told(run.workdir):
                self._close(checkpoints)
            raise
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        self._close(checkpoints)
        return state

    def _close(self, checkpoints: Checkpoints) -> None:
        """Closes everything, though one part should fail."""
        with contextlib.ExitStack() as closing:
            for part in (self.feed, self.clock, self.logbook, self.iterator, checkpoints):
                closing.callback(part.close)

    def _operations(self, due: tuple[str, ...], batches: Batch) -> float:
        """Those of one update on one of the stacked batches, of which each process has a part."""
        executor, parts = self.run.executor, jax.process_count()
        shape = lambda array: jax.ShapeDtypeStruct((parts * array.shape[1], *array.shape[2:]), array.dtype)
        whole = {name: shape(array) for name, array in batches.items()}
        return operations(make_update(self.run.method, due), executor.abstract, whole, executor.root)

    def _events(self, step: int, state: State, checkpoints: Checkpoints) -> dict[str, float]:
        """Whatever is due at a step; returns what was measured."""
        logical = self.run.executor.logical(state)
        measured: dict[str, float] = {}
        seen: dict[str, float] = {}
        if self.due("log", step) or step == self.config.steps:
            seen |= self.logbook.write_log(step)
        try:
            if self.due("sample", step):
                self.logbook.write_samples(step, logical)
            if self.due("evaluate", step):
                measured = self.logbook.evaluate(step, logical)
                seen |= measured
            watch = None if self.watched else self.run.method.watch
            if seen and watch is not None and (reason := watch(step, seen)):
                # Of a run that was asked to stop as well: it must not go on from here.
                self.stop_reason, self.watched = reason, seen
        finally:  # a picture or a measurement that fails must not cost the training behind it
            if self.due("checkpoint", step):
                self._save(step, state, checkpoints, measured)
        return measured

    def _save(self, step: int, state: State, checkpoints: Checkpoints, measured: dict[str, float]) -> None:
        logical = self.run.executor.logical(state)
        position = dict(feed=self.feed.get_state(), log=self.logbook.sums.get_state())
        checkpoints.save(step, logical, position, self.config.to_dict(), measured, self.run.source.spec.words)

    def _keep(self, step: int, state: State, checkpoints: Checkpoints) -> None:
        """Saves what was trained before a rollout that failed, unless nobody has seen whether that is finite."""
        while self.in_flight:
            self._look(state)  # an update that was not finite says more than the rollout after it
        if step and self.config.nan_guard and step not in checkpoints.steps():
            with contextlib.suppress(disk.DiskFull):  # it must not hide the error
                self._save(step, state, checkpoints, {})
                checkpoints.wait()

    def _look(self, state: State) -> None:
        """Waits for the oldest dispatch; stops the run when one of its updates was not finite."""
        first, count, batches, metrics = self.in_flight.popleft()
        metrics = {name: np.asarray(value) for name, value in metrics.items()}
        healthy = metrics.get("healthy", np.ones(count, bool))[:count]
        good = count if healthy.all() else int(np.argmin(healthy)) + 1
        for index in range(max(0, good - RECENT), good):
            self.recent.append((first + index, {name: value[index] for name, value in batches.items()}))
        if healthy.all():
            self.logbook.sums.add(metrics, count)
            return
        found = guard.bad_metrics(metrics, good - 1)
        logical = self.run.executor.logical(state)
        config, step = self.config.to_dict(), first + good - 1
        raise guard.stop(self.run.workdir, self.run.method, step, logical, list(self.recent), config, found)

    def _catch_signals(self) -> dict:
        if jax.process_count() > 1:
            return {}

        def ask(number, frame):
            if self.stop_reason:  # asked twice: stop at once
                raise KeyboardInterrupt
            self.stop_reason = ASKED

        try:
            return {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: a notebook's or a test's worker
            return {}

    def _stop(self, step: int, state: State, checkpoints: Checkpoints, measured: dict[str, float]) -> None:
        if step not in checkpoints.steps():
            self._save(step, state, checkpoints, measured)
        checkpoints.wait()
        after = ENDED if self.watched else "the same command goes on from here"
        self.logbook.status("stopped", step, f"{self.stop_reason}; {after}", self.watched)
        _told(f"stopped at step {step}: {self.stop_reason}; {after}")
        raise Stopped(143)

    def _refuse_if_ended(self, step: int, checkpoints: Checkpoints) -> None:
        """Does not train on what the watch has ended, unless it would let the same figures pass by now."""
        status = run_files.read_json(self.run.workdir / run_files.STATUS) or {}
        seen = {name: run_files.number(value) for name, value in status.get("watched", {}).items()}
        if not seen or status["step"] != step or step == self.config.steps or self.run.method.watch is None:
            return
        if reason := self.run.method.watch(step, seen):
            _told(f"this run was ended at step {step}, and nothing was trained: {reason}")
            self._close(checkpoints)
            raise Stopped(143)


def _told(message: str) -> None:
    if jax.process_index() == 0:
        print(f"flowjax: {message}", file=sys.stderr)


def train(run: Run) -> State:
    """Trains a run to its end, from its latest checkpoint where there is one."""
    trainer = Trainer(run)  # everything that can be wrong with a config is found here, before a folder is made
    with told_how_to_go_on(run.workdir):
        run.workdir.mkdir(parents=True, exist_ok=True)
        with only_trainer(run.workdir):
            return trainer.train()


@contextlib.contextmanager
def told_how_to_go_on(workdir: pathlib.Path) -> Iterator[None]:
    """Adds to the message of a full disk where the run will go on."""
    try:
        with disk.told(workdir):
            yield
    except disk.DiskFull as error:
        steps = stored_steps(workdir / "checkpoints") if (workdir / "checkpoints").is_dir() else []
        kept = f"The checkpoint of step {steps[-1]} is whole" if steps else "There is no whole checkpoint yet"
        raise disk.DiskFull(
            f"{error} {kept}: make room, then the same command goes on from {f'step {steps[-1]}' if steps else 'the start'}."
        ) from error


@contextlib.contextmanager
def only_trainer(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the workdir's lock: two trainers in one folder would interleave their logs and checkpoints."""
    if jax.process_index() != 0:
        yield
        return
    with open(workdir / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"Another process is training in {workdir}. Wait for it, or give another --workdir."
            ) from None
        yield

"""The training loop. It knows phases, schedules and checkpoints; it holds no algorithm's name.

Every iteration dispatches as many updates as fit before the next event, then looks at the metrics of the dispatch before
last: the host is never far ahead of the device, and the device never waits for the host.
"""

import collections
import signal
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from flowjax.choices import build
from flowjax.config import Schedule
from flowjax.data.pipeline import make_iterator
from flowjax.paths.couplings import COUPLINGS
from flowjax.training import guard
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.feed import dispatch_length, make_feed
from flowjax.training.logbook import Logbook
from flowjax.training.run import Run
from flowjax.training.state import State

IN_FLIGHT = 2  # dispatches whose metrics have not been looked at yet


class Stopped(SystemExit):
    """The run was asked to stop (SIGTERM, Ctrl-C), saved a checkpoint and can go on later; the exit status is 143."""


class Trainer:
    """One run, from its start or its latest checkpoint to its end."""

    def __init__(self, run: Run):
        self.run, self.config = run, run.config
        config, method, size = self.config, run.method, run.source.size
        per_epoch = size / config.batch_size if size else None
        self.schedules = {name: Schedule(when, config.steps, per_epoch) for name, when in config.when.items()}
        self.period = method.collect.every if method.collect is not None else 1
        coupling = build("coupling", config.coupling, COUPLINGS)
        self.iterator = make_iterator(
            run.source, config.batch_size, config.seed, coupling, jax.process_index(), jax.process_count()
        )
        self.feed = make_feed(self.iterator, method, run.executor)
        self.logbook = Logbook(run)
        self.in_flight: collections.deque = collections.deque()
        self.stop_asked = False

    def due(self, event: str, done: int) -> bool:
        """Whether an event happens after `done` steps. Checkpoints wait for the end of a collection period."""
        schedule = self.schedules[event]
        if event != "checkpoint" or self.period == 1:
            return schedule.due(done)
        ended = done % self.period == 0 or done == self.config.steps
        return ended and any(schedule.due(step) for step in range(done - self.period + 1, done + 1))

    def is_event(self, done: int) -> bool:
        """Whether the host has anything to do after `done` steps."""
        return done == self.config.steps or any(self.due(event, done) for event in self.schedules)

    def train(self) -> State:
        """Runs to the end, whatever was done before."""
        run, config = self.run, self.config
        checkpoints = run.checkpoints()
        state, position = run.start_or_resume(checkpoints)
        step = int(run.executor.logical(state).step)
        if position is not None:
            self.iterator.set_state(position["data"])
            self.logbook.sums.set_state(position["log"])
        self.logbook.open(step)
        previous = self._catch_signals()
        try:
            while step < config.steps:
                count = dispatch_length(run.method, step, config.steps, config.steps_per_dispatch, self.is_event)
                batches = self.feed.take(state, step, count)
                state, metrics = run.executor.run(state, batches, run.method.due(step), count)
                self.in_flight.append((step, count, batches, metrics))
                step += count
                while len(self.in_flight) > IN_FLIGHT:
                    self._look(state)
                if jax.process_count() > 1:  # processes must agree on where to stop
                    self.stop_asked = multihost_utils.reached_preemption_sync_point(step)
                if self.is_event(step) or self.stop_asked:
                    while self.in_flight:
                        self._look(state)
                    self._events(step, state, checkpoints)
                if self.stop_asked:
                    self._stop(step, state, checkpoints)
            self.logbook.status("finished", step)
        except BaseException as error:
            if not isinstance(error, Stopped):
                self.logbook.status("failed", step, str(error) or type(error).__name__)
            raise
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            checkpoints.close()
            self.iterator.close()
            self.logbook.close()
        return state

    def _events(self, step: int, state: State, checkpoints: Checkpoints) -> None:
        logical = self.run.executor.logical(state)
        if self.due("log", step) or step == self.config.steps:
            self.logbook.write_log(step)
        if self.due("sample", step):
            self.logbook.write_samples(step, logical)
        if self.due("evaluate", step):
            self.logbook.evaluate(step, logical)
        if self.due("checkpoint", step):
            self._save(step, state, checkpoints)

    def _save(self, step: int, state: State, checkpoints: Checkpoints) -> None:
        logical = self.run.executor.logical(state)
        position = dict(data=self.feed.position(), log=self.logbook.sums.get_state())
        checkpoints.save(step, logical, position, self.config.to_dict(), self.logbook.values)

    def _look(self, state: State) -> None:
        """Waits for the oldest dispatch; stops the run when one of its updates was not finite."""
        first, count, batches, metrics = self.in_flight.popleft()
        metrics = {name: np.asarray(value) for name, value in metrics.items()}
        healthy = metrics.get("healthy", np.ones(count, bool))[:count]
        if healthy.all():
            self.logbook.sums.add(metrics, count)
            return
        index = int(np.argmin(healthy))
        recent = [(first + i, {name: value[i] for name, value in batches.items()}) for i in range(index + 1)][-4:]
        found = guard.bad_metrics(metrics, index)
        logical = self.run.executor.logical(state)
        raise guard.stop(
            self.run.workdir, self.run.method, first + index, logical, recent, self.config.to_dict(), found
        )

    def _catch_signals(self) -> dict:
        if jax.process_count() > 1:
            return {}

        def ask(number, frame):
            if self.stop_asked:  # asked twice: stop at once
                raise KeyboardInterrupt
            self.stop_asked = True

        try:
            return {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: a notebook's or a test's worker
            return {}

    def _stop(self, step: int, state: State, checkpoints: Checkpoints) -> None:
        if step % self.period == 0:
            self._save(step, state, checkpoints)
        self.logbook.status("stopped", step, "asked to stop; the same command goes on from the latest checkpoint")
        print(f"flowjax: stopped at step {step}; the same command goes on from the latest checkpoint", file=sys.stderr)
        raise Stopped(143)


def train(run: Run) -> State:
    """Trains a run to its end, from its latest checkpoint where there is one."""
    run.workdir.mkdir(parents=True, exist_ok=True)
    return Trainer(run).train()

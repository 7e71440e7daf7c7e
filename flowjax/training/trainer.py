"""The training loop. It knows phases, schedules and files; it holds no algorithm's name.

Every iteration dispatches as many updates as fit before the next event, then handles the metrics of the dispatch before
last: the host is never ahead of the device by more than two dispatches, and the device never waits for the host.
"""

import collections
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from flowjax.choices import build
from flowjax.config import Schedule, difference
from flowjax.data.pipeline import make_iterator
from flowjax.evaluation.pictures import sample_picture
from flowjax.evaluation.receipts import write_receipt
from flowjax.evaluation.report import write_report
from flowjax.paths.couplings import COUPLINGS
from flowjax.training import guard
from flowjax.training.feed import dispatch_length, make_feed
from flowjax.training.run import Run
from flowjax.training.sampling import Drawer, evaluate, make_evaluators
from flowjax.training.state import State
from flowjax.training.update import TIME_BINS
from flowjax.training.writers import Writers

IN_FLIGHT = 2  # dispatches whose metrics have not been read yet


class Preempted(SystemExit):
    """The run was asked to stop (SIGTERM, Ctrl-C) and saved a checkpoint; the exit status is 143."""


class MetricLog:
    """Sums the metrics of updates between two log lines."""

    def __init__(self):
        self.updates, self.sums, self.histograms = 0, collections.defaultdict(float), {}

    def add(self, metrics: Mapping[str, np.ndarray], count: int) -> None:
        """Takes the stacked metrics of `count` updates."""
        self.updates += count
        for name, values in metrics.items():
            if name.endswith(("by_time/count", "by_time/loss")):
                self.histograms[name] = self.histograms.get(name, 0) + values[:count].sum(0)
            elif name != "healthy":
                self.sums[name] += float(values[:count].sum())

    def flush(self) -> tuple[dict[str, float], dict[str, tuple[np.ndarray, np.ndarray]]]:
        """Means since the last flush, and phase -> (mean loss, count) by time."""
        means = {name: value / max(self.updates, 1) for name, value in self.sums.items()}
        by_time = {}
        for name, counts in self.histograms.items():
            if name.endswith("by_time/count"):
                losses = self.histograms[name.removesuffix("count") + "loss"]
                by_time[name.removesuffix("by_time/count").rstrip("/")] = (losses / np.maximum(counts, 1), counts)
        self.__init__()
        return means, by_time


class Trainer:
    """One run from its start, or its latest checkpoint, to its end."""

    def __init__(self, run: Run, command: str):
        self.run, self.config, self.command = run, run.config, command
        config, method = self.config, run.method
        size = run.source.size
        per_epoch = size / config.batch_size if size else None
        self.schedules = {name: Schedule(when, config.steps, per_epoch) for name, when in config.when.items()}
        self.drawer, self.evaluators = Drawer(run), make_evaluators(run)
        coupling = build("coupling", config.coupling, COUPLINGS)
        self.iterator = make_iterator(
            run.source, config.batch_size, config.seed, coupling, jax.process_index(), jax.process_count()
        )
        self.feed = make_feed(self.iterator, method, run.executor)
        self.period = method.collect.every if method.collect is not None else 1
        self.primary = jax.process_index() == 0
        self.log, self.in_flight = MetricLog(), collections.deque()
        self.last_values: dict[str, float] = {}
        self.stop_asked = False

    def due(self, event: str, done: int) -> bool:
        """Whether an event happens after `done` steps. Checkpoints wait for the end of a collection period."""
        schedule = self.schedules[event]
        if event == "checkpoint" and self.period > 1:
            # any step of the period that just ended may have asked for it
            return done % self.period == 0 and any(schedule.due(s) for s in range(done - self.period + 1, done + 1))
        return schedule.due(done)

    def is_event(self, done: int) -> bool:
        """Whether the host has anything to do after `done` steps."""
        return any(self.due(event, done) for event in self.schedules)

    def train(self) -> State:
        """Runs to the end, whatever was done before."""
        run, config = self.run, self.config
        checkpoints = run.checkpoints()
        state, data = run.start_or_resume(checkpoints)
        step = int(run.executor.logical(state).step)
        if data is not None:
            self.iterator.set_state(data)
            print(f"resuming from step {step}", flush=True)
        self.writers = (
            Writers(run.workdir, total_steps=config.steps, **config.writers.to_dict()) if self.primary else None
        )
        if self.primary:
            self._write_start(step)
        self.began, self.first_step = time.perf_counter(), step
        self.seconds_before = self._seconds_so_far(step)
        previous = self._catch_signals()
        try:
            while step < config.steps:
                due = run.method.due(step)
                count = dispatch_length(run.method, step, config.steps, config.steps_per_dispatch, self.is_event)
                batches = self.feed.take(state, step, count)
                state, metrics = run.executor.run(state, batches, due, count)
                self.in_flight.append((step, count, batches, metrics))
                step += count
                while len(self.in_flight) > IN_FLIGHT:
                    self._read_metrics(state)
                if self.is_event(step) or step == config.steps or self.stop_asked:
                    self._drain(state)
                    self._events(step, state, checkpoints)
                if self.stop_asked:
                    self._stop(step, state, checkpoints)
            self._status("finished", step)
        except guard.NotFinite as error:
            self._status("failed", step, str(error))
            raise
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            checkpoints.close()
            self.iterator.close()
            if self.writers is not None:
                self.writers.close()
                write_report(run.workdir)
        return state

    def _events(self, step: int, state: State, checkpoints) -> None:
        logical = self.run.executor.logical(state)
        if self.due("log", step) or step == self.config.steps:
            self._write_log(step)
        if self.due("sample", step):
            self._write_samples(step, logical)
        if self.due("evaluate", step) and self.evaluators:
            self._evaluate(step, logical)
        if self.due("checkpoint", step):
            checkpoints.save(step, logical, self.feed.position(), self.config.to_dict(), self.last_values)

    def _drain(self, state: State) -> None:
        while self.in_flight:
            self._read_metrics(state)

    def _read_metrics(self, state: State) -> None:
        """Waits for the oldest dispatch; stops the run when one of its updates was not finite."""
        step, count, batches, metrics = self.in_flight.popleft()
        metrics = {name: np.asarray(value) for name, value in metrics.items()}
        healthy = metrics.get("healthy")
        if healthy is not None and not healthy[:count].all():
            index = int(np.argmin(healthy[:count]))
            self._fail(step + index, state, batches, step, guard.bad_metrics(metrics, index))
        self.log.add(metrics, count)

    def _fail(self, bad: int, state: State, batches, first: int, metrics: list[str]) -> None:
        recent = [(number, {k: v[number - first] for k, v in batches.items()}) for number in range(first, bad + 1)][-4:]
        logical = self.run.executor.logical(state)
        folder = guard.dump(self.run.workdir, self.run.method, bad, logical, recent, self.config.to_dict(), metrics)
        raise guard.NotFinite(
            f"Training stopped at step {bad}: {', '.join(metrics) or 'a gradient is not finite'}. The state before that update, the "
            f"last batches and their keys are in {folder}; `--mode=replay` with the same --config and --workdir says which numbers "
            "went bad. Usual causes: a learning rate that is too high, bad input, a time too close to where the loss is singular."
        )

    def _write_log(self, step: int) -> None:
        means, by_time = self.log.flush()
        if not means or self.writers is None:
            return
        seconds = time.perf_counter() - self.began
        elapsed = time.perf_counter() - getattr(self, "_last_log", self.began)
        done = step - getattr(self, "_last_step", self.first_step)
        self._last_log, self._last_step = time.perf_counter(), step
        rates = {
            "learning_rate" if i == 0 else f"learning_rate/{name}": float(role.learning_rate(step - 1))
            for i, (name, role) in enumerate(
                (n, r) for n, r in self.run.method.roles.items() if r.learning_rate is not None
            )
        }
        speed = {"images_per_second": done * self.config.batch_size / max(elapsed, 1e-9)}
        self.writers.scalars(step, dict(seconds=self.seconds_before + seconds, **means, **rates, **speed))
        edges = np.linspace(0, 1, TIME_BINS + 1)
        for phase, (losses, counts) in by_time.items():
            self.writers.by_time(step, phase or next(iter(self.run.method.phases)), edges, losses, counts)

    def _write_samples(self, step: int, state: State) -> None:
        count = self.config.sample.count
        for name in self.run.method.samplers:
            conditions = self.drawer.balanced(count)
            samples = self.drawer.draw(state.params, name, conditions, count, "pictures", count)
            if self.writers is not None:
                picture = sample_picture(samples, self.run.source, conditions.get("label"))
                self.writers.image(step, name, picture)

    def _evaluate(self, step: int, state: State) -> None:
        seconds = self.seconds_before + time.perf_counter() - self.began
        name = self.run.default_sampler
        values, receipts = evaluate(
            self.run, self.drawer, self.evaluators, state.params, step, name, seconds, self.command
        )
        self.last_values = values
        if self.writers is not None:
            self.writers.scalars(step, {f"eval/{metric}": value for metric, value in values.items()})
            for receipt in receipts:
                write_receipt(self.run.workdir / "receipts", receipt)

    def _write_start(self, step: int) -> None:
        """config.json and its difference from the defaults; on a resume the logs are cut back to the checkpoint."""
        folder = self.run.workdir
        (folder / "config.json").write_text(json.dumps(self.config.to_dict(), indent=1))
        lines = difference(self.config)
        (folder / "config_difference.txt").write_text("".join(line + "\n" for line in lines))
        self.writers.rewind(step)
        self._status("running", step)
        if step == 0:
            print(
                "\n".join(["config, where it differs from the defaults:"] + [f"  {line}" for line in lines]), flush=True
            )

    def _seconds_so_far(self, step: int) -> float:
        """Seconds of training before a resume, from the last line of the metrics."""
        file = self.run.workdir / "metrics.jsonl"
        if step == 0 or not file.is_file():
            return 0.0
        seconds = [json.loads(line).get("seconds", 0.0) for line in file.read_text().splitlines() if line.strip()]
        return max(seconds, default=0.0)

    def _status(self, state: str, step: int, message: str = "") -> None:
        if self.primary:
            record = dict(state=state, step=step, total=self.config.steps, message=message)
            temporary = self.run.workdir / "status.json.part"
            temporary.write_text(json.dumps(record))
            os.replace(temporary, self.run.workdir / "status.json")

    def _catch_signals(self) -> dict:
        def ask(number, frame):
            if self.stop_asked:  # asked twice: stop at once
                raise KeyboardInterrupt
            self.stop_asked = True

        try:
            return {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: a notebook's or a test's worker
            return {}

    def _stop(self, step: int, state: State, checkpoints) -> None:
        if step % self.period == 0:
            checkpoints.save(
                step, self.run.executor.logical(state), self.feed.position(), self.config.to_dict(), self.last_values
            )
        self._status("stopped", step, "asked to stop; the next start goes on from the latest checkpoint")
        print(f"stopped at step {step}; start the same command again to go on", file=sys.stderr, flush=True)
        raise Preempted(143)


def train(run: Run, command: str) -> State:
    """Trains a run to its end, from its latest checkpoint where there is one."""
    pathlib.Path(run.workdir).mkdir(parents=True, exist_ok=True)
    return Trainer(run, command).train()


def command_line(arguments: Sequence[str]) -> str:
    """The command as a receipt shows it: without the paths of a machine."""
    shown = [os.path.basename(a) if os.path.isabs(a) else a for a in arguments]
    return "python -m flowjax.main " + " ".join(shown)

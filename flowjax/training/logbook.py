"""What a run writes while it trains: its config, logs, pictures, measurements, status and report."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from flowjax.choices import suggestion
from flowjax.config import ConfigError, difference
from flowjax.evaluation import run_files
from flowjax.evaluation.receipts import write_receipt
from flowjax.evaluation.report import write_report
from flowjax.training.conditions import pictured_under
from flowjax.training.measures import Measuring
from flowjax.training.operations import Meter
from flowjax.training.run import Run
from flowjax.training.sampling import Drawer, evaluate, make_evaluators, sample_picture
from flowjax.training.speed import data_wait
from flowjax.training.state import State
from flowjax.training.update import TIME_BINS
from flowjax.training.writers import Writers

COUNT, LOSS = "by_time/count", "by_time/loss"
TRAINING = "training_seconds"


class MetricSums:
    """Sums the metrics of updates between two log lines."""

    def __init__(self):
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}  # of each metric: a phase that is not always due has fewer updates
        self._histograms: dict[str, np.ndarray] = {}

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint between two log lines keeps, so that the next line of a resumed run is the same."""
        histograms = {name: value.tolist() for name, value in self._histograms.items()}
        return dict(sums=dict(self._sums), counts=dict(self._counts), histograms=histograms)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `get_state` gave."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])
        self._histograms = {name: np.asarray(value, np.float32) for name, value in state["histograms"].items()}

    def add(self, metrics: Mapping[str, np.ndarray], count: int) -> None:
        """Takes the stacked metrics of `count` updates."""
        for name, values in metrics.items():
            if name.endswith((COUNT, LOSS)):
                self._histograms[name] = self._histograms.get(name, 0) + values[:count].sum(0)
            elif name != "healthy":
                self._sums[name] = self._sums.get(name, 0.0) + float(values[:count].sum())
                self._counts[name] = self._counts.get(name, 0) + count

    def flush(self) -> tuple[dict[str, float], dict[str, tuple[np.ndarray, np.ndarray]]]:
        """Means since the last flush, and phase ('' for the only one) -> (mean loss, count) by time."""
        means = {name: value / self._counts[name] for name, value in self._sums.items()}
        by_time = {}
        for name, counts in self._histograms.items():
            if name.endswith(COUNT):
                losses = self._histograms[name.removesuffix(COUNT) + LOSS]
                by_time[name.removesuffix(COUNT).rstrip("/")] = (losses / np.maximum(counts, 1), counts)
        self._sums, self._counts, self._histograms = {}, {}, {}
        return means, by_time


class Logbook:
    """The files of one run. Every process calls it, because samples are drawn by all of them; the first one writes."""

    def __init__(self, run: Run, meter: Meter):
        self.run, self.config = run, run.config
        self._drawer, self._evaluators, self._measuring = Drawer(run), make_evaluators(run), Measuring(run)
        self._writers = Writers(run.workdir, total_steps=run.config.steps, backends=run.config.writers.to_dict())
        self.sums, self._meter = MetricSums(), meter
        for name in run.method.samplers:  # a sampler that cannot draw is found now, not at the first picture
            self._drawer.check(name)

    def open(self, step: int) -> None:
        """Writes the config and what the samplers are; on a resume cuts the logs back to the checkpoint."""
        self._seconds_before = run_files.seconds_until(self.run.workdir, step)
        self._aside = self._seconds_before - run_files.seconds_until(self.run.workdir, step, TRAINING)
        self._began = self._last_time = time.perf_counter()
        self._last_step, self._waited = step, 0.0
        self._writers.rewind(step)
        samplers = {
            name: dict(sampler.description, grid_times=sampler.grid)
            for name, sampler in self.run.method.samplers.items()
        }
        lines = difference(self.config)
        self._write(run_files.CONFIG, json.dumps(self.config.to_dict(), indent=1))
        self._write(run_files.CONFIG_DIFFERENCE, "".join(line + "\n" for line in lines))
        self._write(run_files.SAMPLERS, json.dumps(samplers, indent=1))
        self._write(run_files.READINGS, json.dumps(dict(self.run.method.readings), indent=1))
        self.status("running", step)
        if self._writers.active:
            start = ["config, where it differs from the defaults:", *(f"  {line}" for line in lines)]
            finished = step == self.config.steps
            resumed = f"finished before, at step {step}: nothing to do" if finished else f"resuming from step {step}"
            print(resumed if step else "\n".join(start), flush=True)

    def waited_for_data(self, seconds: float) -> None:
        """Counts time in which the device had nothing to do because a batch was not there yet."""
        self._waited += seconds

    def collected(self, *figures: Mapping[str, float]) -> None:
        """Takes the figures of a rollout; one that nobody knows is left out of the average."""
        known = {name: value for some in figures for name, value in some.items() if np.isfinite(value)}
        self.sums.add({f"collect/{name}": np.full(1, value) for name, value in known.items()}, 1)

    def write_log(self, step: int) -> dict[str, float]:
        """One line of metrics, averaged since the last one; returns the averages."""
        now = time.perf_counter()
        means, by_time = self.sums.flush()
        elapsed = now - self._last_time
        used = self._meter.utilisation(elapsed)
        speed = dict(
            images_per_second=self.run.images(step - self._last_step) / max(elapsed, 1e-9),
            data_wait=data_wait(self._waited, elapsed),
            **({} if used is None else {"mfu": used}),
        )
        self._last_time, self._last_step, self._waited = now, step, 0.0
        method = self.run.method
        rates = {name: role.learning_rate for name, role in method.roles.items() if role.learning_rate}
        rates = {
            f"learning_rate/{name}" if len(rates) > 1 else "learning_rate": float(
                rate(method.updates_of(name, step) - 1)
            )
            for name, rate in rates.items()
        }
        seconds = self._seconds_before + now - self._began
        self._writers.scalars(step, {"seconds": seconds, TRAINING: seconds - self._aside, **means, **rates, **speed})
        edges = np.linspace(0, 1, TIME_BINS + 1)
        for phase, (losses, counts) in by_time.items():
            self._writers.by_time(step, phase or next(iter(method.phases)), edges, losses, counts)
        return means

    def write_samples(self, step: int, state: State) -> None:
        """One picture for every sampler, of the same noise each time."""
        count = self.config.sample.count
        with self._set_aside():
            for name in self.run.method.samplers:
                conditions = pictured_under(self.run, name, count)
                samples = self._drawer.draw(state.params, name, conditions, count, "pictures", count)
                self._writers.image(step, name, sample_picture(samples, self.run.source, conditions))

    def evaluate(self, step: int, state: State) -> dict[str, float]:
        """Measures the default sampler, and what the method measures itself: metrics, receipts; returns the values."""
        values: dict[str, float] = {}
        receipts: list[dict[str, Any]] = []
        if self._evaluators:
            sampler = self.run.default_sampler
            with self._set_aside():
                values, receipts = evaluate(
                    self.run, self._drawer, self._evaluators, state.params, step, sampler, self.seconds()
                )
        with self._set_aside():
            found, written = self._measuring.take(state.params, step, self.seconds())
        values, receipts = {**values, **found}, [*receipts, *written]
        if not values:
            return {}
        self._writers.scalars(step, {f"eval/{metric}": value for metric, value in values.items()})
        if self._writers.active:
            for receipt in receipts:
                write_receipt(self.run.workdir / run_files.RECEIPTS, receipt)
        best = self.config.checkpoint.best_metric
        if best and best not in values:
            raise ConfigError(
                f"checkpoint.best_metric is '{best}', which no evaluator gives. There are: {', '.join(sorted(values))}."
                f"{suggestion(best, values)}"
            )
        return values

    def status(self, state: str, step: int, message: str = "", watched: Mapping[str, float] | None = None) -> None:
        """running, finished, stopped or failed: what the report says at its top.

        Args:
          state: one of these.
          step: updates done.
          message: why.
          watched: the figures for which the method's watch has ended the run, if it did.
        """
        about = dict(state=state, step=step, total=self.config.steps, message=message, images=self.run.images(step))
        about |= dict(watched=run_files.plain(watched)) if watched else {}
        self._write(run_files.STATUS, json.dumps(about))

    def seconds(self) -> float:
        """Seconds of this run, those before a resume included."""
        return self._seconds_before + time.perf_counter() - self._began

    def close(self) -> None:
        """Closes the writers and writes report.html."""
        self._writers.close()
        if self._writers.active:
            write_report(self.run.workdir)

    def _write(self, name: str, text: str) -> None:
        if jax.process_index() == 0:
            run_files.write_atomically(self.run.workdir / name, text)

    @contextlib.contextmanager
    def _set_aside(self) -> Iterator[None]:
        """Time that is no training: speeds and training_seconds are without it."""
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self._aside, self._last_time = self._aside + spent, self._last_time + spent

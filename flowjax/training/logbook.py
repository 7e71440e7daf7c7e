"""What a run writes while it trains: its config, logs, pictures, measurements, status and report."""

import collections
import json
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from flowjax.config import difference
from flowjax.evaluation import run_files
from flowjax.evaluation.receipts import write_receipt
from flowjax.evaluation.report import write_report
from flowjax.training.run import Run
from flowjax.training.sampling import Drawer, evaluate, make_evaluators, sample_picture
from flowjax.training.speed import mfu, peak_flops, update_flops
from flowjax.training.state import State
from flowjax.training.update import TIME_BINS
from flowjax.training.writers import Writers

COUNT, LOSS = "by_time/count", "by_time/loss"


class MetricSums:
    """Sums the metrics of updates between two log lines."""

    def __init__(self):
        self._updates, self._sums, self._histograms = 0, collections.defaultdict(float), {}

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint between two log lines keeps, so that the next line of a resumed run is the same."""
        histograms = {name: value.tolist() for name, value in self._histograms.items()}
        return dict(updates=self._updates, sums=dict(self._sums), histograms=histograms)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `get_state` gave."""
        self._updates = state["updates"]
        self._sums = collections.defaultdict(float, state["sums"])
        self._histograms = {name: np.asarray(value, np.float32) for name, value in state["histograms"].items()}

    def add(self, metrics: Mapping[str, np.ndarray], count: int) -> None:
        """Takes the stacked metrics of `count` updates."""
        self._updates += count
        for name, values in metrics.items():
            if name.endswith((COUNT, LOSS)):
                self._histograms[name] = self._histograms.get(name, 0) + values[:count].sum(0)
            elif name != "healthy":
                self._sums[name] += float(values[:count].sum())

    def flush(self) -> tuple[dict[str, float], dict[str, tuple[np.ndarray, np.ndarray]]]:
        """Means since the last flush, and phase ('' for the only one) -> (mean loss, count) by time."""
        means = {name: value / self._updates for name, value in self._sums.items()}
        by_time = {}
        for name, counts in self._histograms.items():
            if name.endswith(COUNT):
                losses = self._histograms[name.removesuffix(COUNT) + LOSS]
                by_time[name.removesuffix(COUNT).rstrip("/")] = (losses / np.maximum(counts, 1), counts)
        self._updates, self._sums, self._histograms = 0, collections.defaultdict(float), {}
        return means, by_time


class Logbook:
    """The files of one run. Every process calls it, because samples are drawn by all of them; the first one writes."""

    def __init__(self, run: Run):
        self.run, self.config = run, run.config
        self._drawer, self._evaluators = Drawer(run), make_evaluators(run)
        self._writers = Writers(run.workdir, total_steps=run.config.steps, backends=run.config.writers.to_dict())
        self.sums = MetricSums()
        self.values: dict[str, float] = {}  # the latest evaluation

    def open(self, step: int) -> None:
        """Writes the config and what the samplers are; on a resume cuts the logs back to the checkpoint."""
        self._seconds_before = self._recorded_seconds(step)
        self._began = self._last_time = time.perf_counter()
        self._last_step = step
        self._device = jax.devices()[0].device_kind
        self._flops = update_flops(self.run) if peak_flops(self._device) else None
        self._writers.rewind(step)
        samplers = {
            name: dict(sampler.description, grid_times=sampler.grid)
            for name, sampler in self.run.method.samplers.items()
        }
        lines = difference(self.config)
        self._write(run_files.CONFIG, json.dumps(self.config.to_dict(), indent=1))
        self._write(run_files.CONFIG_DIFFERENCE, "".join(line + "\n" for line in lines))
        self._write(run_files.SAMPLERS, json.dumps(samplers, indent=1))
        self.status("running", step)
        if self._writers.active:
            start = ["config, where it differs from the defaults:", *(f"  {line}" for line in lines)]
            print(f"resuming from step {step}" if step else "\n".join(start), flush=True)

    def write_log(self, step: int) -> None:
        """One line of metrics, averaged since the last one; speed includes everything done in between."""
        now = time.perf_counter()
        means, by_time = self.sums.flush()
        updates_per_second = (step - self._last_step) / max(now - self._last_time, 1e-9)
        used = mfu(self._flops, updates_per_second, self._device, jax.device_count())
        speed = dict(
            images_per_second=updates_per_second * self.config.batch_size, **({} if used is None else {"mfu": used})
        )
        self._last_time, self._last_step = now, step
        rates = {name: role.learning_rate for name, role in self.run.method.roles.items() if role.learning_rate}
        rates = {
            f"learning_rate/{name}" if len(rates) > 1 else "learning_rate": float(rate(step - 1))
            for name, rate in rates.items()
        }
        self._writers.scalars(step, dict(seconds=self.seconds(), **means, **rates, **speed))
        edges = np.linspace(0, 1, TIME_BINS + 1)
        for phase, (losses, counts) in by_time.items():
            self._writers.by_time(step, phase or next(iter(self.run.method.phases)), edges, losses, counts)

    def write_samples(self, step: int, state: State) -> None:
        """One picture for every sampler, of the same noise each time."""
        count = self.config.sample.count
        conditions = self._drawer.balanced(count)
        for name in self.run.method.samplers:
            samples = self._drawer.draw(state.params, name, conditions, count, "pictures", count)
            self._writers.image(step, name, sample_picture(samples, self.run.source, conditions.get("label")))

    def evaluate(self, step: int, state: State) -> None:
        """Measures the default sampler: metrics, receipts."""
        if not self._evaluators:
            return
        sampler = self.run.default_sampler
        self.values, receipts = evaluate(
            self.run, self._drawer, self._evaluators, state.params, step, sampler, self.seconds()
        )
        self._writers.scalars(step, {f"eval/{metric}": value for metric, value in self.values.items()})
        if self._writers.active:
            for receipt in receipts:
                write_receipt(self.run.workdir / run_files.RECEIPTS, receipt)

    def status(self, state: str, step: int, message: str = "") -> None:
        """running, finished, stopped or failed: what the report says at its top."""
        self._write(
            run_files.STATUS, json.dumps(dict(state=state, step=step, total=self.config.steps, message=message))
        )

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

    def _recorded_seconds(self, step: int) -> float:
        lines: list[dict[str, Any]] = run_files.read_lines(self.run.workdir / run_files.METRICS)
        return max((line.get("seconds", 0.0) for line in lines if line["step"] <= step), default=0.0)

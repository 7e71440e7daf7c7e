"""What a run directory holds, read once, and what the report asks of it: how it went, how far, how well."""

import dataclasses
import math
import pathlib
import time

from flowjax.evaluation import run_files
from flowjax.evaluation.receipts import read_receipts
from flowjax.evaluation.run_files import number

QUIET = 900.0  # seconds without a new line after which a run is called stopped


@dataclasses.dataclass
class Run:
    """What a run directory holds, read once; `problems` are the files that could not be read."""

    workdir: pathlib.Path
    config: dict
    metrics: list[dict]
    by_time: list[dict]
    check: list[dict]
    samplers: dict
    readings: dict
    recorded: dict
    receipts: list[dict]
    problems: list[str]

    @property
    def total_steps(self) -> int | None:
        """The length the config asks for."""
        steps = self.config.get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def last_step(self) -> int | None:
        """The last step on record."""
        return self.metrics[-1]["step"] if self.metrics else None


def read_run(workdir: pathlib.Path) -> Run:
    """Reads every file of a run directory that is there."""
    problems: list[str] = []

    def read(reader, *arguments, default):
        try:
            return reader(*arguments) or default
        except ValueError as error:
            problems.append(str(error).replace(str(workdir) + "/", ""))
            return default

    return Run(
        workdir,
        config=read(run_files.read_json, workdir / run_files.CONFIG, default={}),
        metrics=read(run_files.read_lines, workdir / run_files.METRICS, default=[]),
        by_time=read(run_files.read_lines, workdir / run_files.BY_TIME, default=[]),
        check=read(run_files.read_json, workdir / run_files.CHECK, default=[]),
        samplers=read(run_files.read_json, workdir / run_files.SAMPLERS, default={}),
        readings=read(run_files.read_json, workdir / run_files.READINGS, default={}),
        recorded=read(run_files.read_json, workdir / run_files.STATUS, default={}),
        receipts=read(read_receipts, workdir / run_files.RECEIPTS, default=[])
        if (workdir / run_files.RECEIPTS).is_dir()
        else [],
        problems=problems,
    )


def series(run: Run, name: str) -> tuple[list[float], list[float]]:
    """(steps, values) of one metric."""
    points = [(line["step"], number(line[name])) for line in run.metrics if name in line]
    points = [(step, value) for step, value in points if value is not None]
    return [step for step, _ in points], [value for _, value in points]


def status(run: Run, given: str | None) -> tuple[str, str]:
    """(good | busy | bad, words): as the caller says, as status.json does, or as the logs tell."""
    losses = series(run, "loss")
    # A loss that is still NaN on the last line has not come back; a single bad step in between has.
    if losses[1] and not math.isfinite(losses[1][-1]):
        steps = [step for step, value in zip(*losses) if not math.isfinite(value)]
        later_finite = max([step for step, value in zip(*losses) if math.isfinite(value)], default=-1)
        first = min(step for step in steps if step > later_finite)
        return "bad", f"Stopped by a non-finite loss at step {first:,}"
    if given is not None:
        kind = "good" if given.startswith("finished") else "busy" if given.startswith("running") else "bad"
        return kind, given[:1].upper() + given[1:]
    if run.recorded.get("state") in ("finished", "failed", "stopped"):
        words = {"finished": "Finished", "failed": "Failed", "stopped": "Stopped"}[run.recorded["state"]]
        kind = "good" if words == "Finished" else "bad"
        at, message = f"at step {run.recorded['step']:,}", run.recorded.get("message", "")
        return kind, words if words == "Finished" else f"{words} {at}: {message}" if message else f"{words} {at}"
    if run.last_step is None:
        return "busy", "No step recorded yet"
    if run.total_steps is not None and run.last_step >= run.total_steps - 1:
        return "good", "Finished"
    age = time.time() - (run.workdir / run_files.METRICS).stat().st_mtime
    of = f"{run.last_step:,}" + (f" of {run.total_steps:,}" if run.total_steps else "")
    return ("busy", f"Running, at step {of}") if age < QUIET else ("bad", f"Stopped early, at step {of}")


def floors(run: Run) -> dict[str, float]:
    """metric -> its value for real against real, from a receipt's `floor` or from receipts with sampler 'real'."""
    found: dict[str, float] = {}
    for receipt in run.receipts:
        value = receipt["value"] if receipt["sampler"] == "real" else receipt.get("floor")
        if number(value) is not None:
            found[receipt["metric"]] = number(value)
    return found

"""What a sweep comes to: the receipts of all its runs in one folder, one table, one figure.

A receipt of a run is copied with three fields more: `name`, the config's; `run`, its directory's; and `sweep`, what the
sweep varies, as nested entries, so that a table's rows=sweep.optimizer.learning_rate finds it. Every run also gives
receipts of its last logged loss and of its seconds, so that a sweep without evaluators has a table too. The table is
made by evaluation/tables.py from a marker in results.md: `python -m flowjax.evaluation.tables DIR/results.md`.
"""

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flowjax.choices import choose
from flowjax.evaluation import run_files, tables
from flowjax.evaluation.receipts import make_receipt, read_receipts, write_receipt
from flowjax.sweep.jobs import Job, label, short_names

MARKER = (
    '<!-- table: receipts/*.json rows={rows} columns=metric where="metric!=count" order="{order}" titles="{titles}" -->'
)
SECONDS, LOSS = "training_seconds", "training_loss"


def varied_keys(jobs: Sequence[Job]) -> list[str]:
    """The keys that differ between points, in the order of the sweep; of one point alone, all it sets."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.point))
    values = {key: {str(value_of(job, key)) for job in jobs} for key in keys}
    return [key for key in keys if len(values[key]) > 1 or len(jobs) == 1]


def value_of(job: Job, key: str) -> Any:
    """What a run has for a swept key: its point's value, else what its resolved config says, as a table shows it."""
    if key in job.point:
        return label(job.point[key])
    node: Any = job.config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return label(node)


def merge(jobs: Sequence[Job], directory: pathlib.Path) -> list[dict[str, Any]]:
    """Writes the receipts of all runs into one folder, which then holds these and no others; returns them."""
    keys = varied_keys(jobs)
    merged, written = [], set()
    for job in jobs:
        values: dict[str, Any] = {}
        for key in keys:
            node = values
            *parents, last = key.removeprefix(":").split(".")
            for part in parents:
                node = node.setdefault(part, {})
            node[last] = value_of(job, key)
        measured = _last(read_receipts(job.directory / run_files.RECEIPTS))
        for receipt in measured + training_receipts(job, measured):
            merged.append({**receipt, "name": job.config["name"], "run": job.name, "sweep": values})
            written.add(write_receipt(directory, merged[-1]))
    for file in set(directory.glob("*.json")) - written:
        file.unlink()
    return merged


def _last(receipts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of several evaluations in one run the last, for every metric, sampler and evaluator."""
    kept: dict[tuple, dict[str, Any]] = {}
    for receipt in sorted(receipts, key=lambda receipt: receipt.get("step", 0)):
        kept[
            tuple(str(receipt[name]) for name in ("metric", "sampler", "nfe", "guidance_scale", "ema", "evaluator"))
        ] = receipt
    return list(kept.values())


def training_receipts(job: Job, measured: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Receipts of what the log of a run says: its loss, averaged over the last logging interval, and its seconds.

    Args:
      job: the run.
      measured: its own receipts, which know the commit and the hardware that it ran on.
    """
    lines = [line for line in run_files.read_lines(job.directory / run_files.METRICS) if "loss" in line]
    if not lines:
        return []
    last = lines[-1]
    status = run_files.read_json(job.directory / run_files.STATUS) or {}
    where = measured[0] if measured else dict.fromkeys(("commit", "hardware", "command"), "not recorded")
    about = dict(
        {name: where[name] for name in ("commit", "hardware", "command")},
        config=job.config,
        config_path=run_files.CONFIG,
        seed=job.config["seed"],
        images_seen=status.get("images", last["step"] * job.config["batch_size"]),
        seconds=last["seconds"],
        sampler="none",
        nfe=None,
        guidance_scale=None,
        ema="student",
        evaluator="training log",
        samples=job.config["batch_size"] * job.config["when"]["log"]["every_steps"],
        step=last["step"],
    )
    return [
        make_receipt(LOSS, run_files.number(last["loss"]), **about),
        make_receipt(SECONDS, last["seconds"], **about),
    ]


def main_metric(metrics: Sequence[str], wanted: str = "") -> str:
    """The metric of the figure: the one asked for, else the first ratio to a floor, else the first measured one."""
    if wanted:
        return choose("metric", wanted, dict.fromkeys(metrics))
    measured = [name for name in metrics if name not in (SECONDS, LOSS, "count")]
    ratios = [name for name in measured if name.endswith("_ratio")]
    return (ratios or measured or [LOSS])[0]


def write_results(jobs: Sequence[Job], out: pathlib.Path, title: str, metric: str = "") -> pathlib.Path:
    """Merges receipts and writes results.md and results.png; returns the former.

    Args:
      jobs: the finished runs.
      out: the directory of the sweep.
      title: of the page.
      metric: of the figure.
    """
    receipts = merge(jobs, out / "receipts")
    keys = varied_keys(jobs)
    names = short_names(keys)
    fields = {f"sweep.{key.removeprefix(':')}": names[key] for key in keys if key != "seed"}
    if not fields:  # only the seed varies: one row
        fields = {"name": "config"}
    for name in ("sampler", "nfe", "ema", "guidance_scale"):
        measured = {str(receipt[name]) for receipt in receipts if receipt["sampler"] != "none"}
        if len(measured) > 1 and _varies_within(receipts, name):
            fields[name] = name
    metrics = list(dict.fromkeys(receipt["metric"] for receipt in receipts))
    shown = main_metric(metrics, metric)
    order = ",".join([shown, *(name for name in metrics if name not in (shown, SECONDS, LOSS)), LOSS, SECONDS])
    titles = ",".join(f"{name}:{text}" for name, text in fields.items())
    draw(out / "results.png", receipts, keys, names, shown, title)
    seeds = sorted({job.config["seed"] for job in jobs})
    over = f" Mean ± standard deviation over {len(seeds)} seeds." if len(seeds) > 1 else ""
    text = (
        f"# {title}\n\n{len(jobs)} runs.{over}\n\n{MARKER.format(rows=','.join(fields), order=order, titles=titles)}\n"
        f"<!-- end -->\n\n![{shown}](results.png)\n"
    )
    run_files.write_atomically(out / "results.md", tables.regenerate(text, out))
    return out / "results.md"


def _varies_within(receipts: Sequence[Mapping], name: str) -> bool:
    runs: dict[str, set[str]] = {}
    for receipt in receipts:
        if receipt["sampler"] != "none":
            runs.setdefault(receipt["run"], set()).add(str(receipt[name]))
    return any(len(values) > 1 for values in runs.values())


def draw(
    path: pathlib.Path,
    receipts: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    names: Mapping[str, str],
    metric: str,
    title: str,
) -> None:
    """The metric against the swept number, a line for every value of the second key; bars where there is no number."""
    varied = [key for key in keys if key != "seed"]
    field = lambda key: f"sweep.{key.removeprefix(':')}"
    values = {key: [tables.field(receipt, field(key)) for receipt in receipts] for key in varied}
    numeric = [key for key in varied if all(run_files.number(value) is not None for value in values[key])]
    if numeric and len(varied) <= 2:
        x = numeric[0]
        lines = next((key for key in varied if key != x), None)
        places = sorted({run_files.number(value) for value in values[x]})
        wide = places[0] > 0 and places[-1] / places[0] >= 20
        titles = {"value": metric.replace("_", " "), field(x): names[x]}
        where = f"metric={metric}"
        tables.figure(
            path,
            receipts,
            field(x),
            "value",
            lines and field(lines),
            where=where,
            log_x=wide,
            title=title,
            titles=titles,
        )
        return
    groups: dict[str, list[float]] = {}
    for receipt in receipts:
        if receipt["metric"] == metric:
            words = (
                ", ".join(str(tables.field(receipt, field(key))) for key in varied) or receipt["run"].rsplit("-", 1)[0]
            )
            groups.setdefault(words, []).append(run_files.number(receipt["value"]))
    bars(path, groups, metric.replace("_", " "), title)


def bars(path: pathlib.Path, groups: Mapping[str, Sequence[float]], y: str, title: str) -> None:
    """One horizontal bar a group: the mean, with its standard deviation and the single values as dots."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plot = Figure(figsize=(6.4, 1.2 + 0.36 * len(groups)), dpi=120, layout="constrained")
    FigureCanvasAgg(plot)
    axes = plot.subplots()
    places = np.arange(len(groups))[::-1]
    means = [np.mean(values) for values in groups.values()]
    spread = [np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in groups.values()]
    axes.barh(places, means, xerr=spread if any(spread) else None, height=0.6, color="#2a7f86", alpha=0.75)
    for place, values in zip(places, groups.values()):
        axes.plot(values, [place] * len(values), "o", ms=3, color="#123c40")
    axes.set_yticks(places, list(groups))
    axes.set(xlabel=y, title=title)
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", metadata={"Software": None})
    run_files.write_atomically(path, buffer.getvalue())


def manifest(jobs: Sequence[Job], out: pathlib.Path, command: str) -> pathlib.Path:
    """Writes manifest.json: which runs the sweep has, what each sets, how it is run and how it stands."""
    import json

    runs = [
        dict(
            name=job.name,
            point=run_files.plain(job.point),
            config=job.config_argument,
            overrides=list(job.overrides),
            directory=str(job.directory.relative_to(out)),
            state=job.state(),
        )
        for job in jobs
    ]
    path = out / "manifest.json"
    run_files.write_atomically(path, json.dumps(dict(command=command, runs=runs), indent=1) + "\n")
    return path

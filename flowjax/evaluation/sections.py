"""The sections of the report page: each reads the files of a run that concern it and returns HTML.

A section never fails for a file that is not there: it says which file is missing and what writes it. Everything that
comes from a file is escaped.
"""

import base64
import html
import json
import math
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from flowjax.evaluation import run_files
from flowjax.evaluation.charts import Line, chart, number_text, smooth
from flowjax.evaluation.frontier import frontier
from flowjax.evaluation.run_files import number
from flowjax.evaluation.run_record import Run, floors, series, status

PICTURES_PER_SAMPLER = 12
TIME_AXIS = "t (0 is noise, 1 is data)"
FIRST = ("loss", "grad_norm", "learning_rate", "images_per_second")
WORDS = dict(
    loss="Loss",
    grad_norm="Gradient norm",
    learning_rate="Learning rate",
    images_per_second="Images per second",
    mfu="Model FLOPs used (MFU)",
    data_wait="Share of the time spent waiting for data",
)


def escape(value: Any) -> str:
    """Text that is safe inside HTML and its attributes."""
    return html.escape(str(value))


def missing(text: str) -> str:
    """A quiet box that says what is not there."""
    return f'<p class="missing">{text}</p>'


def duration(seconds: float) -> str:
    """45 s, 3 min 20 s, 2 h 05 min."""
    whole = int(round(seconds))
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def header(run: Run, given_status: str | None) -> str:
    """Status, the run's name, what it is in one line, and the figures that one looks for first."""
    kind, words = status(run, given_status)
    name = lambda key: run.config[key].get("name") if isinstance(run.config.get(key), Mapping) else None
    parts = [name("data"), name("method"), name("path"), name("network"), run.config.get("seed")]
    labels = ["{} data", "{}", "{} path", "{} network", "seed {}"]
    lede = " · ".join(
        label.format(str(part).replace("_", " ")) for label, part in zip(labels, parts) if part is not None
    )
    facts = []
    if run.last_step is not None:
        facts.append(("Steps", f"{run.last_step:,}" + (f" of {run.total_steps:,}" if run.total_steps else "")))
        facts.append(("Time", duration(number(run.metrics[-1].get("seconds")) or 0.0)))
    batch = run.config.get("batch_size")
    if run.last_step is not None and isinstance(batch, int):
        facts.append(("Images seen", number_text(run.last_step * batch)))
    losses = [value for value in series(run, "loss")[1] if math.isfinite(value)]
    if losses:
        facts.append(("Loss, smoothed", number_text(smooth(losses, max(1, len(losses) / 20))[-1])))
    speed = sorted(value for value in series(run, "images_per_second")[1] if math.isfinite(value))
    if speed:
        facts.append(("Images per second, median", number_text(speed[len(speed) // 2])))
    waits = sorted(value for value in series(run, "data_wait")[1] if math.isfinite(value))
    if waits:
        facts.append(("Waiting for data, median", f"{100 * waits[len(waits) // 2]:.1f}%"))
    mfu = series(run, "mfu")[1]
    if mfu and math.isfinite(mfu[-1]):
        facts.append(("MFU", f"{100 * mfu[-1]:.1f}%"))
    tiles = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in facts)
    problems = "".join(missing(f"Could not be read: {escape(problem)}") for problem in run.problems)
    return (
        f'<span class="status {kind}" role="status">{escape(words)}</span>\n'
        f'<h1>{escape(run.workdir.name)}</h1>\n<p class="lede">{escape(lede)}</p>\n'
        + (
            f'<dl class="facts">{tiles}</dl>'
            if tiles
            else missing("metrics.jsonl is missing or empty: no step was logged.")
        )
        + problems
    )


def results(run: Run) -> str:
    """One card for each headline number, with the floor that perfect samples would reach."""
    metrics = {receipt["metric"] for receipt in run.receipts}
    made = [r for r in run.receipts if r["sampler"] != "real" and not _accompanies(r["metric"], metrics)]
    if not made:
        return missing("No receipts in <code>receipts/</code> yet. An evaluation writes one for each number.")
    newest: dict[tuple, dict] = {}
    for receipt in sorted(made, key=lambda item: number(item["images_seen"]) or 0):
        told_apart = ("metric", "features", "sampler", "nfe", "guidance_scale", "ema")
        newest[tuple(str(receipt.get(key)) for key in told_apart)] = receipt
    cards = []
    for receipt in list(newest.values())[:12]:
        value, floor = number(receipt["value"]), number(receipt.get("floor"))
        floor = floors(run).get(receipt["metric"]) if floor is None else floor
        spread = f" ± {number_text(receipt['std'])}" if number(receipt.get("std")) is not None else ""
        ends = [number(end) for end in receipt.get("interval") or ()]
        known = len(ends) == 2 and None not in ends
        interval = f'<p class="floor">95%: {number_text(ends[0])} to {number_text(ends[1])}</p>' if known else ""
        how = [str(receipt["sampler"])]
        how += [f"on {_words_of_features(receipt['features'])}"] if receipt.get("features") else []
        how += [f"{receipt['nfe']} evaluations"] if receipt["nfe"] is not None else []
        how += (
            [f"guidance {number_text(receipt['guidance_scale'])}"]
            if number(receipt["guidance_scale"]) is not None
            else []
        )
        compared = ""
        if floor is not None and value is not None:
            # The bar is the part of the value that real data would show too: full is as good as real.
            higher = receipt.get("better") == "higher"
            part = (value / floor if higher else floor / value) if floor and value else 0.0
            filled = 100 * min(1.0, max(0.0, part))
            times = f" ({value / floor:.3g}×)" if floor > 0 else ""
            deviation = number(receipt.get("floor_std"))
            deviation = f" ± {number_text(deviation)}" if deviation is not None else ""
            compared = (
                f'<div class="meter" aria-hidden="true"><i style="width:{filled:.0f}%"></i></div>'
                f'<p class="floor">Real against real: {number_text(floor)}{deviation}{times}</p>'
            )
        shown = number_text(value) if value is not None else escape(receipt["value"])
        count = number(receipt["samples"])
        cards.append(
            f'<article class="card"><h3>{escape(str(receipt["metric"]).replace("_", " "))}</h3>'
            f'<p class="value">{shown}{spread}</p>{interval}{compared}<p>{escape(", ".join(how))}</p>'
            f"<p>{f'{count:,.0f}' if count is not None else escape(receipt['samples'])} samples</p></article>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _words_of_features(features: Any) -> str:
    """What a figure was measured on: 'efficientnet lite0, layer b10'."""
    if not isinstance(features, Mapping):
        return str(features)
    layer = f", layer {features['layer']}" if features.get("layer") else ""
    return "pixels" if features.get("name") == "identity" else str(features.get("name")).replace("_", " ") + layer


def _accompanies(name: str, names: Collection[str]) -> bool:
    """Whether a figure only belongs to another: x_floor, x_ratio, x_std, x_real, x_low, x_high ... stand beside x."""
    ends = ("_floor", "_ratio", "_std", "_floor_std", "_real", "_chance", "_low", "_high")
    bases = (name.removesuffix(end) for end in ends)
    return any(base != name and base in names for base in bases)


def _grouped(names: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """chart -> [(metric, line name)]: 'eval/heun/w2' and 'eval/euler/w2' share a chart; so do 'loss/a' and 'loss/b'."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        parts = name.split("/")
        if parts[0] in ("eval", "evaluation"):
            head, line = "eval/" + parts[-1], " ".join(parts[1:-1])
        else:
            head = next((part for part in parts if part in WORDS), name)
            line = " ".join(part for part in parts if part != head) if head in parts else ""
        groups.setdefault(head, []).append((name, line or head.removeprefix("eval/").replace("_", " ")))
    return groups


def curves(run: Run) -> str:
    """Loss raw and smoothed, the optimizer's figures, evaluations over steps, and everything else folded."""
    names = {key: None for line in run.metrics for key, value in line.items() if number(value) is not None}
    names = [name for name in names if name not in ("step", "seconds", "training_seconds")]
    if not names:
        return missing("metrics.jsonl is missing or has no figures: there are no curves to draw.")
    groups = _grouped(names)
    first = [head for head in FIRST if head in groups]
    evaluated = sorted(head for head in groups if head.startswith("eval/"))
    heads = {head.removeprefix("eval/") for head in evaluated}
    # One evaluation is a number, not a curve: it stands among the results.
    repeated = lambda head: any(len(series(run, name)[0]) > 1 for name, _ in groups[head])
    evaluated = [h for h in evaluated if not _accompanies(h.removeprefix("eval/"), heads) and repeated(h)]
    rest = sorted(head for head in groups if head not in first and not head.startswith("eval/"))
    known = floors(run)
    draw = lambda heads, noisy: "".join(_curve(run, head, groups[head], noisy, known) for head in heads)
    out = f'<div class="charts">{draw(first, True)}</div>' if first else ""
    if evaluated:
        out += f'<h3>Evaluations during training</h3><div class="charts">{draw(evaluated, False)}</div>'
    out += frontier(run)
    if rest:
        noun = "figure" if len(rest) == 1 else "figures"
        out += (
            f'<details><summary>{len(rest)} more {noun}</summary><div class="charts">{draw(rest, True)}</div></details>'
        )
    return out


def _curve(run: Run, head: str, members: Sequence[tuple[str, str]], noisy: bool, known: Mapping[str, float]) -> str:
    lines: list[Line] = []
    for index, (name, label) in enumerate(members):
        steps, values = series(run, name)
        if noisy and head not in ("learning_rate",) and len(values) >= 40:
            prefix = f"{label}, " if len(members) > 1 else ""
            lines.append(Line(f"{prefix}raw", steps, values, "raw", index + 1))
            lines.append(Line(f"{prefix}smoothed", steps, smooth(values, len(values) / 50), "line", index + 1))
        else:
            lines.append(Line(label, steps, values, "line", index + 1))
    metric = head.removeprefix("eval/")
    if head.startswith("eval/") and metric in known:
        ends = [min(line.x[0] for line in lines), max(line.x[-1] for line in lines)]
        lines.append(Line("real against real", ends, [known[metric]] * 2, "floor", 6))
    bad = sum(not math.isfinite(value) for line in lines for value in line.y if line.style != "floor")
    # An evaluation may be named as a curve of training is, and is another thing.
    inexact = {} if head.startswith("eval/") else run.readings
    told = [run.readings.get(name) or inexact.get(name.split("/")[-1]) for name, _ in members]
    notes = [reading for reading in told if reading]
    note = " ".join([*dict.fromkeys(notes), *(["Has non-finite values, not drawn."] if bad else [])])
    title = WORDS.get(head, metric.replace("_", " ").replace("/", " / "))
    return chart(
        title,
        lines,
        note=note,
        log_y=None if head in ("loss", "grad_norm") else False,
        zero=head in ("images_per_second", "data_wait"),
    )


def _bins(line: Mapping) -> list[float]:
    return [(low + high) / 2 for low, high in zip(line["edges"], line["edges"][1:])]


def along_time(run: Run) -> str:
    """Loss and density of t side by side, phase by phase; then the pre-flight checks."""
    if not run.by_time:
        body = missing("by_time.jsonl is missing or empty: neither the loss by t nor the density of t was recorded.")
        return body + _checks(run)
    charts = []
    for phase in dict.fromkeys(line.get("phase", "") for line in run.by_time):
        lines = [line for line in run.by_time if line.get("phase", "") == phase]
        suffix = f", {str(phase).replace('_', ' ')}" if phase else ""
        charts += [_loss_by_time(lines, suffix), _density_of_time(run, lines, suffix)]
    body = f'<div class="charts">{"".join(charts)}</div>'
    if not _grids(run):
        body += missing("samplers.json is missing or names no fixed grid, so the times samplers visit are not marked.")
    return body + _checks(run)


def _loss_by_time(lines: Sequence[Mapping], suffix: str) -> str:
    """Mean loss in each bin of t, at up to five moments of the run, from pale (early) to strong (late)."""
    # Evenly spaced in the logarithm of the step: most of the change is early.
    wanted = {round(len(lines) ** (k / 4)) - 1 for k in range(5)} if len(lines) > 5 else set(range(len(lines)))
    chosen = [lines[i] for i in sorted(wanted)]
    drawn = []
    for place, line in enumerate(chosen):
        middles = [(low + high) / 2 for low, high in zip(line["edges"], line["edges"][1:])]
        pairs = zip(map(number, line["loss"]), map(number, line["count"]))
        losses = [math.nan if loss is None or not count else loss for loss, count in pairs]
        colour = f"ramp:{place / max(1, len(chosen) - 1):.2f}"
        drawn.append(Line(f"step {line['step']:,}", middles, losses, "line", colour))
    return chart(f"Loss by t{suffix}", drawn, x_label=TIME_AXIS, log_y=None, x_range=(0.0, 1.0))


def density(edges: Sequence[float], counts: Sequence[float]) -> list[float]:
    """Counts in bins as a density, whose integral is 1."""
    total = sum(counts) or 1.0
    return [count / total / (high - low) for low, high, count in zip(edges, edges[1:], counts)]


def _grids(run: Run) -> dict[str, list[float]]:
    grids = {name: entry.get("grid_times") for name, entry in run.samplers.items() if isinstance(entry, Mapping)}
    grids = {name: grid for name, grid in grids.items() if grid}
    return {f"grid of {name}": [number(t) or 0.0 for t in grid] for name, grid in list(grids.items())[:4]}


def _density_of_time(run: Run, lines: Sequence[Mapping], suffix: str) -> str:
    """Where training looks (density of t, and that times the loss), against where samplers step."""
    last = lines[-1]
    lines, edges = [line for line in lines if line["edges"] == last["edges"]], last["edges"]
    counts = [sum(number(line["count"][i]) or 0.0 for line in lines) for i in range(len(edges) - 1)]
    products = [(number(loss) or 0.0) * (number(count) or 0.0) for loss, count in zip(last["loss"], last["count"])]
    products = [product if math.isfinite(product) else 0.0 for product in products]
    stairs = lambda values: [*values, values[-1]]  # a step line takes bin i's height at its left edge i
    drawn = [
        Line("density of t in training", edges, stairs(density(edges, counts)), "step", 1),
        Line(f"share of the loss, step {last['step']:,}", edges, stairs(density(edges, products)), "step", 4),
        Line("uniform", [0.0, 1.0], [1.0, 1.0], "floor", 5),
    ]
    title = f"Effective density of t{suffix}"
    return chart(title, drawn, x_label=TIME_AXIS, zero=True, x_range=(0.0, 1.0), rugs=_grids(run))


def _checks(run: Run) -> str:
    items = []
    for item in run.check if isinstance(run.check, list) else []:
        kind, word = ("good", "holds") if item.get("passed") else ("bad", "fails")
        fix = f" {escape(item['fix'])}" if item.get("fix") and not item.get("passed") else ""
        text = f"{escape(item.get('name', ''))}: {escape(item.get('detail', ''))}.{fix}"
        items.append(f'<li><span class="status {kind}">{word}</span>{text}</li>')
    return f'<h3>Pre-flight checks</h3><ul class="checks">{"".join(items)}</ul>' if items else ""


def pictures(run: Run) -> str:
    """Sample pictures over time, one film for each sampler: the last one large, the moments before it as a strip."""
    films: dict[str, list[tuple[int, pathlib.Path]]] = {}
    for path in sorted((run.workdir / run_files.SAMPLES).glob("*.png")):
        match = re.fullmatch(r"(\d+)_(.+)", path.stem)
        if match:
            films.setdefault(match[2], []).append((int(match[1]), path))
    if not films:
        return missing("No pictures in <code>samples/</code> yet.")
    out = []
    for sampler, frames in films.items():
        frames = sorted(frames)
        keep = min(len(frames), PICTURES_PER_SAMPLER)
        frames = [frames[round(i * (len(frames) - 1) / max(1, keep - 1))] for i in range(keep)]
        images = []
        for step, path in frames:
            uri = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
            images.append((step, f'<img src="{uri}" alt="Samples of {escape(sampler)} at step {step:,}">'))
        strip = "".join(f"<figure>{image}<figcaption>step {step:,}</figcaption></figure>" for step, image in images)
        last_step, last = images[-1]
        out.append(
            f'<div class="film" data-film><h3>{escape(sampler)}</h3><figure class="stage">{last}'
            f'<figcaption>step {last_step:,}</figcaption></figure><div class="strip" tabindex="0" role="region" '
            f'aria-label="Samples of {escape(sampler)} over time">{strip}</div></div>'
        )
    return "".join(out)


def receipts_table(run: Run) -> str:
    """Every receipt, a row each."""
    if not run.receipts:
        return missing("No receipts in <code>receipts/</code> yet.")
    names = ["metric", "value", "floor", "sampler", "nfe", "guidance_scale", "ema", "samples", "images_seen", "seconds"]
    names += ["seed", "evaluator", "hardware", "commit", "config", "command"]
    names = [name for name in names if any(name in receipt for receipt in run.receipts)]

    def cell(name: str, value: Any) -> str:
        if name == "config":
            value = f"{value['path']} ({value['hash']})"
        if name == "commit":
            value = str(value)[:10] + ("+dirty" if str(value).endswith("+dirty") else "")
        if value is None:
            return "<td>–</td>"
        numeric = number(value)
        if numeric is None:
            return f"<td>{'<code>' + escape(value) + '</code>' if name == 'command' else escape(value)}</td>"
        whole = isinstance(value, int) and name != "seed"
        return f'<td class="number">{f"{value:,}" if whole else number_text(numeric)}</td>'

    numeric = {name for name in names if any(number(receipt.get(name)) is not None for receipt in run.receipts)}
    head = "".join(
        f'<th scope="col"{" class=number" if name in numeric else ""}>{name.replace("_", " ")}</th>' for name in names
    )
    rows = "".join(
        "<tr>" + "".join(cell(name, receipt.get(name)) for name in names) + "</tr>" for receipt in run.receipts
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Receipts"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def configuration(run: Run) -> str:
    """What differs from the defaults, and the whole config folded."""
    path = run.workdir / run_files.CONFIG_DIFFERENCE
    if not path.exists():
        out = missing("config_difference.txt is missing: what differs from the defaults is not known.")
    else:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
        items = "".join(f"<li>{escape(line)}</li>" for line in lines)
        out = f'<ul class="changes">{items}</ul>' if lines else "<p>Every setting is at its default.</p>"
    if not run.config:
        return out + missing("config.json is missing: the full config is not known.")
    text = json.dumps(run.config, indent=2, ensure_ascii=False)
    return out + f'<details><summary>Full config</summary><pre tabindex="0">{escape(text)}</pre></details>'

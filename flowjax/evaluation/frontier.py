"""Reward against divergence, as a watchdog saw them (methods/watchdog.py): the curve by which preference tuning is judged."""

from flowjax.evaluation.charts import Line, chart
from flowjax.evaluation.run_record import Run, series

DIVERGENCE, GAIN = "eval/watchdog_divergence", "eval/watchdog_gain_"


def frontier(run: Run) -> str:
    """What each reward has gained over the divergence that it has cost; nothing where no watchdog measured them."""
    steps, divergences = series(run, DIVERGENCE)
    names = sorted({name for line in run.metrics for name in line if name.startswith(GAIN)})
    if not divergences or not names:
        return ""
    at, lines = dict(zip(steps, divergences)), []
    for index, name in enumerate(names):
        known = [(at[step], gain) for step, gain in zip(*series(run, name)) if step in at]
        xs, ys = zip((0.0, 0.0), *known)  # a run begins as its own reference
        lines.append(Line(name.removeprefix(GAIN), list(xs), list(ys), "line", index + 1))
    drawn = chart(
        "Reward gained over the first model",
        lines,
        x_label="divergence from the first model",
        note="Up is better, right is dearer: of two runs the better one is above. A curve that bends down is a reward lost.",
        log_y=False,
    )
    return f'<h3>Reward against divergence</h3><div class="charts">{drawn}</div>'

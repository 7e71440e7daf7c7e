"""Reward against divergence, as a watchdog saw them (methods/watchdog.py): the curve by which preference tuning is judged."""

from flowjax.evaluation.charts import Line, chart
from flowjax.evaluation.run_record import Run, series

DIVERGENCE, GAIN = "eval/watchdog_divergence", "eval/watchdog_gain_"
RETURN, BEST = "eval/return", "eval/return_best"

NOTE = "Up is better, right is dearer: of two runs the better one is above. A curve that bends down is a reward lost."


def frontier(run: Run) -> str:
    """What each reward has gained over the divergence that it has cost, or a policy's return; nothing where no watchdog
    measured them."""
    at = dict(zip(*series(run, DIVERGENCE)))
    names = sorted({name for line in run.metrics for name in line if name.startswith(GAIN)})
    known = lambda name: [(at[step], value) for step, value in zip(*series(run, name)) if step in at]
    # A run begins as its own reference.
    gains = [_line(name.removeprefix(GAIN), [(0.0, 0.0), *known(name)], i + 1) for i, name in enumerate(names)]
    returns = [
        _line(name.removeprefix("eval/"), known(name), i + 1) for i, name in enumerate((RETURN, BEST)) if known(name)
    ]
    drawn = [
        chart(title, lines, x_label="divergence from the first model", note=NOTE, log_y=False)
        for title, lines in (("Reward gained over the first model", gains), ("Return of an episode", returns))
        if at and lines
    ]
    return f'<h3>Reward against divergence</h3><div class="charts">{"".join(drawn)}</div>' if drawn else ""


def _line(name: str, points: list[tuple[float, float]], colour: int) -> Line:
    xs, ys = zip(*points)
    return Line(name, list(xs), list(ys), "line", colour)

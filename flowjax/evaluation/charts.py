"""Small line charts as inline SVG: no library, no network, readable without JavaScript.

A chart is drawn once into a box of fixed units that the page scales; colours and fonts come from the page's style
sheet, so one drawing serves light and dark. The points ride along as data, which the page's script shows under the
pointer.
"""

import dataclasses
import html
import json
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 440, 226
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 34
POINTS = 360  # a pixel or so each: more cannot be seen


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
      name: shown in the legend and under the pointer.
      x, y: its points; a non-finite y breaks the line.
      style: "line", "raw" (thin and pale, below another), "step", or "floor" (dashed, a reference).
      colour: index into the style sheet's series colours, or "ramp:0.4" for a place on its ramp.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "line"
    colour: int | str = 1


def number_text(value: float) -> str:
    """A short number: 12, 0.034, 41k, 2.5M, 3e-5."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    size = abs(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    if size >= 1000:
        return f"{value:,.0f}"
    if 0 < size < 1e-3:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:.3g}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover [low, high] with about `count` marks."""
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    step = min(
        (factor * power for factor in (1, 2, 5, 10)), key=lambda step: abs(math.log((high - low) / step / count))
    )
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in [low, high], with 2 and 5 between them where there are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    wide = [10.0**d for d in decades if low <= 10.0**d <= high]
    if len(wide) > 5:
        return wide[:: math.ceil(len(wide) / 5)]
    fine = [m * 10.0**d for d in decades for m in (1, 2, 5) if low <= m * 10.0**d <= high]
    return wide if len(wide) >= 3 else fine


def smooth(values: Sequence[float], span: float) -> list[float]:
    """Exponential moving average over about `span` points, without the pull of a start at zero; skips NaN."""
    decay, total, weight, out = 1 - 1 / max(span, 1.0), 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
        out.append(total / weight if weight and math.isfinite(value) else math.nan)
    return out


def thin(x: Sequence[float], y: Sequence[float], points: int = POINTS) -> tuple[list[float], list[float]]:
    """About `points` points: the lowest, the highest and every non-finite one of each stretch, so no spike is lost."""
    if len(x) <= points:
        return list(x), list(y)
    stretch, kept = math.ceil(2 * len(x) / points), {0, len(x) - 1}
    for start in range(0, len(x), stretch):
        inside = range(start, min(start + stretch, len(x)))
        finite = [i for i in inside if math.isfinite(y[i])]
        kept |= {min(finite, key=lambda i: y[i]), max(finite, key=lambda i: y[i])} if finite else {start}
        kept |= {i for i in inside if not math.isfinite(y[i])} if len(finite) < len(inside) else set()
    order = sorted(kept)
    return [x[i] for i in order], [y[i] for i in order]


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str = "step",
    note: str = "",
    log_y: bool | None = False,
    zero: bool = False,
    x_range: tuple[float, float] | None = None,
    rugs: Mapping[str, Sequence[float]] | None = None,
) -> str:
    """An HTML figure with an SVG chart, its legend, and its data for the pointer.

    Args:
      title: what the y axis shows.
      lines: what to draw; the axes cover their finite points.
      x_label: the name of the x axis.
      note: a sentence under the title.
      log_y: logarithmic y axis; None decides: when everything is positive and spans a factor of 20.
      zero: whether the y axis starts at zero.
      x_range: the x axis, when the points shall not decide.
      rugs: name -> places marked under the axis (sampler grids).
    """
    lines = [dataclasses.replace(line, **dict(zip(("x", "y"), thin(line.x, line.y)))) for line in lines]
    finite = [(x, y) for line in lines for x, y in zip(line.x, line.y) if math.isfinite(y)]
    if not finite:
        return _figure(title, note, "", '<p class="missing">No finite values.</p>', "")
    xs, ys = [x for x, _ in finite], [y for _, y in finite]
    if log_y is None:
        log_y = min(ys) > 0 and max(ys) / min(ys) > 20
    log_y = log_y and min(ys) > 0
    x_low, x_high = x_range or (min(xs), max(xs))
    x_high = x_high if x_high > x_low else x_low + 1
    y_low, y_high, marks = _y_axis(min(ys), max(ys), log_y, zero)
    rugs = rugs or {}
    height = HEIGHT + 15 * len(rugs)
    bottom = HEIGHT - BOTTOM
    scale = math.log10 if log_y else float
    place_x = lambda x: LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
    place_y = lambda y: bottom - (scale(y) - scale(y_low)) / (scale(y_high) - scale(y_low)) * (bottom - TOP)

    drawn = []
    for mark in marks:
        y = place_y(mark)
        drawn.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(
            f'<text class="tick" x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{number_text(mark)}</text>'
        )
    label_y = bottom + 15 + 15 * len(rugs)
    for mark in ticks(x_low, x_high, 5):
        x = place_x(mark)
        anchor = "end" if x > WIDTH - RIGHT - 8 else "middle"
        drawn.append(f'<text class="tick" x="{x:.1f}" y="{label_y}" text-anchor="{anchor}">{number_text(mark)}</text>')
    drawn.append(
        f'<text class="tick label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{height - 5}" text-anchor="middle">'
        f"{html.escape(x_label)}</text>"
    )
    for row, places in enumerate(rugs.values()):
        y = bottom + 5 + 15 * row
        drawn.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y + 5}" y2="{y + 5}"/>')
        for place in places:
            if x_low <= place <= x_high:
                x = place_x(place)
                drawn.append(f'<line class="rug c{row + 2}" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 10}"/>')
    data = []
    for index, line in enumerate(lines):
        path = _path(line, place_x, place_y, log_y)
        drawn.append(f'<path class="{line.style} {_colour(line)}" {_stroke(line)} data-line="{index}" d="{path}"/>')
        if line.style == "line" and sum(map(math.isfinite, line.y)) <= 25:
            drawn += [
                f'<circle class="dot {_colour(line)}" {_stroke(line)} data-line="{index}" cx="{place_x(x):.1f}" '
                f'cy="{place_y(y):.1f}" r="2.4"/>'
                for x, y in zip(line.x, line.y)
                if math.isfinite(y) and (y > 0 or not log_y)
            ]
        points = [
            [round(place_x(x), 1), round(place_y(y), 1), number_text(x), number_text(y)]
            for x, y in zip(line.x, line.y)
            if math.isfinite(y) and (y > 0 or not log_y)
        ]
        if line.style != "floor":
            data.append(dict(name=line.name, line=index, points=points))
    spoken = f"{title} over {x_label}. " + " ".join(_spoken(line) for line in lines if line.style != "raw")
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(spoken)}" data-bottom="{bottom}">'
        f"{''.join(drawn)}</svg>"
    )
    payload = html.escape(json.dumps(data, ensure_ascii=False, separators=(",", ":")))
    return _figure(title, note + (" Logarithmic." if log_y else ""), _legend(lines, rugs), svg, payload)


def _y_axis(low: float, high: float, log: bool, zero: bool) -> tuple[float, float, list[float]]:
    if log:
        low, high = (low / 1.15, high * 1.15) if high > low else (low / 2, high * 2)
        return low, high, log_ticks(low, high)
    low = min(low, 0.0) if zero else low
    pad = 0.06 * (high - low) if high > low else (abs(high) * 0.1 or 1.0)
    low, high = (low if zero and low == 0 else low - pad), high + pad
    return low, high, ticks(low, high, 4)


def _path(line: Line, place_x, place_y, log: bool) -> str:
    pieces, pen_down, last_y = [], False, 0.0
    for x, y in zip(line.x, line.y):
        if not math.isfinite(y) or (log and y <= 0):
            pen_down = False
            continue
        px, py = place_x(x), place_y(y)
        step = f"L{px:.1f} {last_y:.1f}" if line.style == "step" and pen_down else ""
        pieces.append(step + f"{'L' if pen_down else 'M'}{px:.1f} {py:.1f}")
        pen_down, last_y = True, py
    return "".join(pieces)


def _colour(line: Line) -> str:
    return "ramp" if isinstance(line.colour, str) else f"c{(line.colour - 1) % 6 + 1}"


def _stroke(line: Line) -> str:
    return f'style="--at:{line.colour.partition(":")[2]}"' if isinstance(line.colour, str) else ""


def _spoken(line: Line) -> str:
    values = [y for y in line.y if math.isfinite(y)]
    if not values:
        return ""
    return (
        f"{line.name}: from {number_text(values[0])} to {number_text(values[-1])}, lowest {number_text(min(values))}."
    )


def _legend(lines: Sequence[Line], rugs: Mapping[str, Sequence[float]]) -> str:
    if len(lines) + len(rugs) < 2:
        return ""
    items = [
        f'<button type="button" data-toggle="{index}" aria-pressed="true"><i class="{line.style} {_colour(line)}" '
        f"{_stroke(line)}></i>{html.escape(line.name)}</button>"
        for index, line in enumerate(lines)
    ]
    items += [f'<span><i class="mark c{row + 2}"></i>{html.escape(name)}</span>' for row, name in enumerate(rugs)]
    return f'<div class="legend">{"".join(items)}</div>'


def _figure(title: str, note: str, legend: str, body: str, payload: str) -> str:
    note = f"<small>{html.escape(note.strip())}</small>" if note.strip() else ""
    data = f' data-chart="{payload}"' if payload else ""
    caption = f"<figcaption><b>{html.escape(title)}</b>{note}</figcaption>"
    return f'<figure class="chart"{data}>{caption}{body}{legend}</figure>\n'

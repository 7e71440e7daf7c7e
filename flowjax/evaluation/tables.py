"""Tables of a Markdown file, made from receipts: nobody types a number into a README.

    python -m flowjax.evaluation.tables README.md experiments/*/README.md            # rewrite the tables
    python -m flowjax.evaluation.tables README.md experiments/*/README.md --check    # exit 1 when one is out of date

A table stands between two comments, which stay in the file and say where every number comes from:

    <!-- table: receipts/*.json rows=path,sampler columns=metric value=value format=.3f -->
    ...
    <!-- end -->

The words before the first option are sources of receipts (directories, files, globs), relative to the Markdown file.
Options, with quotes around a value that has spaces:

    rows       fields that name a row, comma-separated; a dot goes into an object: config.hash
    columns    the field that names a column; without it every field in `value` is a column
    value      the field in a cell, or several without `columns`; by default value
    where      conditions that a receipt must meet: "metric=fid|kid,nfe<=20,sampler!=real"
    over       fields that repetitions differ in, by default seed: a cell shows mean ± standard deviation over them
    format     a Python number format, by default .3g; `column:format` for one column: ".2f,images_seen:,.0f"
    titles     names shown instead: "path:Path,sliced_w2:Sliced W₂"; `_` shows as a space otherwise
    order      row and column names that come first, in this order; the rest is sorted, numbers as numbers
    best       min or max: the best cell of every column is bold; or "fid:min,accuracy:max"
    count      yes adds a column with the number of receipts in a row
    missing    what stands here until there are receipts

A table that has not been made yet stands empty between its comments until there are receipts for it; one that was made and
whose receipts are gone is an error.

Two receipts in one cell that differ in none of the `over` fields are an error, not an average: their difference is a
row, a column or a condition that the marker forgot.
"""

import argparse
import difflib
import functools
import math
import operator
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from flowjax.choices import suggestion
from flowjax.evaluation.receipts import read_receipts
from flowjax.evaluation.run_files import number, write_atomically

BEGIN = re.compile(r"^[ \t]*<!--\s*table:(?P<marker>.*?)-->[ \t]*$", re.DOTALL | re.MULTILINE)
END = re.compile(r"^[ \t]*<!--\s*end\s*-->[ \t]*$", re.MULTILINE)
COLOURS, STYLES = 10, ("-", "--", ":", "-.")  # where there are no more colours, lines are dashed
MANY = 8  # lines in a figure, beyond which their names stand beside it
OPTIONS = ("rows", "columns", "value", "where", "over", "format", "titles", "order", "best", "count", "missing")
COMPARISONS = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}


def field(receipt: Mapping[str, Any], name: str) -> Any:
    """The value of a field; a dot goes into an object; a missing field is None, which a table shows as a dash."""
    value: Any = receipt
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def show(value: Any) -> str:
    """A name as text: a dash for None, whole floats without their zero."""
    if value is None:
        return "–"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def parse_marker(marker: str) -> tuple[list[str], dict[str, str]]:
    """Splits a marker into its sources and options; unknown options are errors with a suggestion."""
    sources, options = [], {}
    for word in shlex.split(marker):
        key, equals, value = word.partition("=")
        if equals and key.isidentifier():
            if key not in OPTIONS:
                raise ValueError(
                    f"The table marker '{marker.strip()}' has an unknown option '{key}'. Options: {', '.join(OPTIONS)}."
                    + suggestion(key, OPTIONS)
                )
            options[key] = value
        else:
            sources.append(word)
    if not sources or "rows" not in options:
        raise ValueError(f"The table marker '{marker.strip()}' needs a source of receipts and rows=FIELD.")
    return sources, options


def matches(receipt: Mapping[str, Any], conditions: str) -> bool:
    """Whether a receipt meets every comma-separated condition; `|` separates alternatives of = and !=."""
    for condition in filter(None, (part.strip() for part in conditions.split(","))):
        found = re.fullmatch(r"([\w./-]+)\s*(<=|>=|!=|=|<|>)\s*(.*)", condition)
        if not found:
            raise ValueError(f"The condition '{condition}' is none of FIELD=A|B, FIELD!=A, FIELD<1, <=, >, >=.")
        name, sign, wanted = found.groups()
        value = field(receipt, name)
        if sign in ("=", "!="):
            if (show(value) in wanted.split("|")) != (sign == "="):
                return False
        elif (actual := number(value)) is None or not COMPARISONS[sign](actual, float(wanted)):
            return False
    return True


def _pairs(text: str, default: str) -> tuple[str, dict[str, str]]:
    """'.2f,nfe:d' -> ('.2f', {'nfe': 'd'}); the comma of a format such as ',.0f' does not separate."""
    by_name: dict[str, str] = {}
    for piece in re.split(r",(?=[\w./ -]+:)|^(?=[\w./ -]+:)", text):
        name, colon, value = piece.partition(":")
        if colon and name:
            by_name[name.strip()] = value
        elif piece:
            default = piece
    return default, by_name


def _sorted(names: Sequence[tuple], order: Sequence[str]) -> list[tuple]:
    def rank(value: Any):
        shown = show(value)
        place = order.index(shown) if shown in order else len(order)
        numeric = number(value)
        return (place, numeric is None, numeric or 0.0, shown)

    return sorted(set(names), key=lambda name: tuple(rank(value) for value in name))


def _cell(receipts: Sequence[Mapping], value: str, over: Sequence[str], form: str) -> tuple[str, float | None]:
    values = [field(receipt, value) for receipt in receipts]
    repeats = [tuple(show(field(receipt, name)) for name in over) for receipt in receipts]
    if len(set(repeats)) != len(repeats):
        first, second = _twins(receipts, repeats)
        differ = [key for key in sorted(set(first) | set(second)) if first.get(key) != second.get(key)]
        raise ValueError(
            f"Two receipts of metric '{first.get('metric')}' fall into one cell with the same {', '.join(over)}: "
            f"they differ in {', '.join(differ) or 'nothing'}. Name one of these in rows, columns, where or over."
        )
    if len(values) == 1 and isinstance(values[0], (list, tuple)) and all(number(end) is not None for end in values[0]):
        return " to ".join(format(number(end), form) for end in values[0]), None
    numbers = [number(item) for item in values]
    if any(item is None for item in numbers):
        return ", ".join(sorted({show(item) for item in values})), None
    mean = sum(numbers) / len(numbers)
    try:
        text = format(int(mean) if form.endswith("d") and mean.is_integer() else mean, form)
        if len(numbers) > 1 and len(set(numbers)) > 1:
            # n - 1: the seeds are a sample of the seeds one could have drawn.
            std = math.sqrt(sum((item - mean) ** 2 for item in numbers) / (len(numbers) - 1))
            text += f" ± {format(std, form)}"
    except ValueError as error:
        raise ValueError(f"The format '{form}' does not fit {mean!r} of field '{value}': {error}.") from error
    return text, mean


def _twins(receipts: Sequence[Mapping], repeats: Sequence[tuple]) -> tuple[Mapping, Mapping]:
    seen: dict[tuple, Mapping] = {}
    for receipt, repeat in zip(receipts, repeats):
        if repeat in seen:
            return seen[repeat], receipt
        seen[repeat] = receipt
    raise AssertionError("called without twins")


def table(receipts: Sequence[Mapping[str, Any]], options: Mapping[str, str]) -> str:
    """The Markdown table of some receipts; `options` are those of the module's header, as text."""
    receipts = [receipt for receipt in receipts if matches(receipt, options.get("where", ""))]
    if not receipts:
        raise NoReceipts(f'No receipt meets where="{options.get("where", "")}".')
    rows = options["rows"].split(",")
    columns = options.get("columns")
    value_names = options.get("value", "value").split(",")
    if columns and len(value_names) > 1:
        raise ValueError(f"A table with columns={columns} shows one value; got value={options['value']}.")
    over = options.get("over", "seed").split(",")
    order = options.get("order", "").split(",") if options.get("order") else []
    form, forms = _pairs(options.get("format", ""), ".3g")
    _, titles = _pairs(options.get("titles", ""), "")
    best, bests = _pairs(options.get("best", ""), "")
    title = lambda name: titles.get(name, name.replace("_", " ")).replace("|", r"\|")

    row_names = _sorted([tuple(field(r, name) for name in rows) for r in receipts], order)
    if columns:
        heads = [
            (show(name), value_names[0], name) for (name,) in _sorted([(field(r, columns),) for r in receipts], order)
        ]
    else:
        heads = [(name, name, None) for name in value_names]
    body, means = [], []
    for row in row_names:
        here = [r for r in receipts if tuple(field(r, name) for name in rows) == row]
        cells = []
        for head, value, wanted in heads:
            group = [r for r in here if field(r, columns) == wanted] if columns else here
            cells.append(_cell(group, value, over, forms.get(head, form)) if group else ("–", None))
        body.append([title(show(name)) for name in row] + [text for text, _ in cells])
        means.append([mean for _, mean in cells])
        if options.get("count") == "yes":
            body[-1].append(str(len(here)))
    for j, (head, _, _) in enumerate(heads):
        choose_best = {"min": min, "max": max, "": None}[bests.get(head, best)]
        known = [row[j] for row in means if row[j] is not None and math.isfinite(row[j])]
        for i, row in enumerate(means):
            if choose_best and len(known) > 1 and row[j] == choose_best(known):
                body[i][len(rows) + j] = f"**{body[i][len(rows) + j]}**"
    header = [title(name) for name in rows] + [title(head) for head, _, _ in heads]
    header += ["n"] if options.get("count") == "yes" else []
    rule = ["---"] * len(rows) + ["---:"] * (len(header) - len(rows))
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *body))


class NoReceipts(ValueError):
    """A table whose receipts have not been made."""


def regenerate(text: str, root: str | os.PathLike, partial: bool = False) -> str:
    """The Markdown text with every marked table made anew.

    Args:
      text: of the page.
      root: the directory that sources are relative to.
      partial: leave tables as they are whose receipts have not been made, instead of a NoReceipts; empty ones and those with
        `missing` never raise it.
    """
    read = functools.cache(lambda *sources: read_receipts(sources, root))  # a page has many tables of the same
    pieces, position = [], 0
    while begin := BEGIN.search(text, position):
        end = END.search(text, begin.end())
        following = BEGIN.search(text, begin.end())
        if end is None or (following and following.start() < end.start()):
            raise ValueError(f"The table marker '{begin['marker'].strip()}' has no `<!-- end -->` behind it.")
        sources, options = parse_marker(begin["marker"])
        try:
            made = f"\n{table(read(*sources), options)}\n"
        except (NoReceipts, FileNotFoundError):
            made = f"\n{options['missing']}\n" if "missing" in options else text[begin.end() : end.start()]
            if made.strip() and not partial and "missing" not in options:
                raise
        pieces += [text[position : begin.end()], made, text[end.start() : end.end()]]
        position = end.end()
    return "".join(pieces) + text[position:]


def figure(
    path: str | os.PathLike,
    receipts: Sequence[Mapping[str, Any]],
    x: str,
    y: str = "value",
    lines: str | None = None,
    *,
    where: str = "",
    log_x: bool = False,
    log_y: bool = False,
    title: str = "",
    titles: Mapping[str, str] | None = None,
) -> None:
    """Plots receipts: field y over field x, one line for each value of field `lines`, mean ± std over repetitions."""
    import io

    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    titles = titles or {}
    receipts = [receipt for receipt in receipts if matches(receipt, where)]
    plot = Figure(figsize=(6.4, 4.0), dpi=120, layout="constrained")
    FigureCanvasAgg(plot)
    axes = plot.subplots()
    for index, (name,) in enumerate(_sorted([(field(r, lines) if lines else None,) for r in receipts], [])):
        group = [r for r in receipts if not lines or field(r, lines) == name]
        places = sorted({number(field(r, x)) for r in group})
        values = [[number(field(r, y)) for r in group if number(field(r, x)) == place] for place in places]
        mean = np.array([np.mean(value) for value in values])
        std = np.array([np.std(value, ddof=1) if len(value) > 1 else 0.0 for value in values])
        style = dict(marker="o", ms=4, ls=STYLES[index // COLOURS % len(STYLES)])
        (drawn,) = axes.plot(places, mean, **style, label=titles.get(show(name), show(name)))
        axes.fill_between(places, mean - std, mean + std, color=drawn.get_color(), alpha=0.15, lw=0)
    axes.set(xlabel=titles.get(x, x.replace("_", " ")), ylabel=titles.get(y, y.replace("_", " ")), title=title)
    axes.set(xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
    stops = sorted({number(field(r, x)) for r in receipts})
    if log_x and len(stops) <= MANY:  # powers of ten alone say little, and their multiples run into each other
        axes.set_xticks(stops, [show(stop) for stop in stops])
        axes.set_xticks([], minor=True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if lines:
        aside = dict(loc="upper left", bbox_to_anchor=(1, 1), fontsize=7) if len(axes.lines) > MANY else {}
        axes.legend(frameon=False, **aside)
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrites or checks the tables of Markdown files; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flowjax.evaluation.tables", description="Tables from receipts.")
    parser.add_argument("files", nargs="+", metavar="FILE.md")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a table is out of date")
    parser.add_argument("--partial", action="store_true", help="leave tables alone whose receipts have not been made")
    options = parser.parse_args(arguments)
    stale = False
    for name in options.files:
        path = pathlib.Path(name)
        old = path.read_text()
        new = regenerate(old, path.parent, options.partial)
        if old == new:
            continue
        stale = True
        if options.check:
            lines = (old.splitlines(), new.splitlines())
            print("\n".join(difflib.unified_diff(*lines, f"{name} (as it is)", f"{name} (from receipts)", lineterm="")))
        else:
            write_atomically(path, new)
            print(f"{name}: tables rewritten.")
    return int(stale and options.check)


if __name__ == "__main__":
    sys.exit(main())

"""The points of a sweep, as plain data, and five functions that compose them.

A point is a dictionary of overrides: dotted config key -> value, as on the command line. A key with a colon in front,
such as ':preset', is an option of the config file's argument (`configs/points.py:preset=edm`) instead. A sweep is a
list of points, so anything that makes lists of dictionaries makes sweeps:

    from flowjax import sweep as hyper

    def sweep():
        return hyper.product(
            hyper.sweep("optimizer.learning_rate", [1e-3, 3e-3]),
            hyper.zipped(hyper.sweep("network.width", [64, 256]), hyper.sweep("network.depth", [2, 3])),
            hyper.sweep("seed", range(3)),
        )

is 2 x 2 x 3 points. `seed` is special only to the table at the end, which shows mean ± standard deviation over it.
"""

import itertools
from collections.abc import Iterable
from typing import Any

from flowjax.choices import suggestion

Point = dict[str, Any]


def fix(key: str, value: Any) -> list[Point]:
    """One point that sets one key: for a `product` with others."""
    return [{key: value}]


def sweep(key: str, values: Iterable[Any]) -> list[Point]:
    """One point for each value of a key."""
    return [{key: value} for value in values]


def product(*sweeps: Iterable[Point]) -> list[Point]:
    """Every combination of one point from each; the last varies fastest. Of nothing: one point, no overrides."""
    return [_merge(points) for points in itertools.product(*sweeps)]


def zipped(*sweeps: Iterable[Point]) -> list[Point]:
    """The first points of all, the second points of all, ...: keys that change together. Lengths must be equal."""
    lists = [list(points) for points in sweeps]
    lengths = sorted({len(points) for points in lists})
    if len(lengths) > 1:
        raise ValueError(f"zipped needs sweeps of one length; got {', '.join(str(len(points)) for points in lists)}.")
    return [_merge(points) for points in zip(*lists)]


def chain(*sweeps: Iterable[Point]) -> list[Point]:
    """One sweep after the other."""
    return list(itertools.chain(*sweeps))


def _merge(points: Iterable[Point]) -> Point:
    merged: Point = {}
    for point in points:
        for key, value in point.items():
            if key in merged:
                raise ValueError(
                    f"Two parts of the sweep set '{key}' in one point: {merged[key]!r} and {value!r}. Take it out of "
                    "one of them."
                )
            merged[key] = value
    return merged


def points_of(module: Any, file: str) -> list[Point]:
    """The points of a config file: what its `sweep()`, `get_hyper()` or `get_hyper(hyper)` returns, checked.

    Args:
      module: the imported config file.
      file: its path, for messages.
    """
    from flowjax.config import ConfigError
    from flowjax.sweep import points as hyper

    # A helper that the file imported under one of these names is not its own function.
    own = {
        name: function
        for name in ("sweep", "get_hyper")
        if getattr(function := getattr(module, name, None), "__module__", None) == module.__name__
    }
    if not own:
        near = suggestion("sweep", [name for name in vars(module) if not name.startswith("_") and name != "sweep"])
        raise ConfigError(
            f"The config file '{file}' has no function sweep(). Add one that returns a list of points, such as "
            f"flowjax.sweep.product(flowjax.sweep.sweep('seed', range(3))).{near}"
        )
    if len(own) == 2:
        raise ConfigError(f"The config file '{file}' has both sweep() and get_hyper(). Keep one of them.")
    (name, function), *_ = own.items()
    try:
        points = list(function(hyper) if name == "get_hyper" and function.__code__.co_argcount else function())
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}() of '{file}': {error}") from error
    for point in points:
        if not isinstance(point, dict) or not all(isinstance(key, str) for key in point):
            raise ConfigError(f"{name}() of '{file}' gave {point!r}; a point is a dictionary: dotted key -> value.")
    if not points:
        raise ConfigError(f"{name}() of '{file}' gave no points.")
    return points

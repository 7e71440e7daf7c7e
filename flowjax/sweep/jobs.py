"""From the points of a sweep to jobs: a name, a command, a directory, and a config that has been checked.

A run's name is what its point sets, in words, and six digits of the hash of its whole resolved config: the same point
of the same config always has the same directory, and a changed config never continues the checkpoint of another.
"""

import dataclasses
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from flowjax import config as configs
from flowjax.choices import build
from flowjax.evaluation import run_files
from flowjax.evaluation.receipts import config_hash
from flowjax.sweep.points import Point, points_of

LONGEST = 90  # characters of a name before its hash


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
      name: of its directory.
      point: what the sweep sets.
      config_argument: what follows --config.
      overrides: `key=value` of every --config.key=value.
      directory: the run directory.
      config: the resolved config, as plain values.
    """

    name: str
    point: Point
    config_argument: str
    overrides: tuple[str, ...]
    directory: pathlib.Path
    config: Mapping[str, Any]

    @property
    def command(self) -> list[str]:
        """The command line that runs it, from its start or from its latest checkpoint."""
        start = [sys.executable, "-m", "flowjax.main", "--config", self.config_argument]
        return [*start, "--workdir", str(self.directory), *(f"--config.{override}" for override in self.overrides)]

    @property
    def log(self) -> pathlib.Path:
        """What the run prints, resumed runs one after the other."""
        return self.directory / "log.txt"

    def state(self) -> str:
        """new, running, stopped, ended (by its watchdog), failed or finished, as the run's own status.json says."""
        status = run_files.read_json(self.directory / run_files.STATUS)
        if status is None:
            return "new"
        return "ended" if status["state"] == "stopped" and status.get("watched") else status["state"]

    def why(self) -> str:
        """What the run's own status.json says of how it stands, in words."""
        status = run_files.read_json(self.directory / run_files.STATUS) or {}
        return f"at step {status['step']}: {status['message']}" if status.get("message") else ""

    def finished(self) -> bool:
        """Whether there is a finished run of exactly this config."""
        return self._came_to("finished")

    def ended(self) -> bool:
        """Whether there is a run of exactly this config that its watchdog has ended: started again, it would not train."""
        return self._came_to("ended")

    def _came_to(self, state: str) -> bool:
        kept = run_files.read_json(self.directory / run_files.CONFIG)
        return self.state() == state and kept == run_files.plain(self.config)


def plan(
    config_argument: str,
    overrides: Sequence[str],
    out: pathlib.Path,
    check: Callable[[ConfigDict], None] | None = None,
    refused: list[str] | None = None,
) -> list[Job]:
    """Loads, validates and names every point; all mistakes come together in one ConfigError.

    Args:
      config_argument: a config file with sweep() or get_hyper(), with an argument after a colon.
      overrides: `key=value` for all points.
      out: the directory of the sweep; runs live in out/runs.
      check: what else must hold for a config; by default its data, method, coupling and evaluators are built.
      refused: given a list, points that cannot be run are left out, and why is added to it.

    Points that resolve to one and the same config are run once.
    """
    file, _, argument = config_argument.partition(":")
    configs.load(config_argument, overrides)
    points = points_of(configs.load_module(file), file)
    fixed = {override.partition("=")[0] for override in overrides}
    names = short_names(telling(points))
    jobs: dict[str, Job] = {}
    mistakes = []
    for point in points:
        try:
            if both := sorted(fixed & set(point)):
                raise configs.ConfigError(f"'{both[0]}' is set by the sweep and by --config.{both[0]}. Drop one.")
            own = tuple(f"{key}={as_text(value)}" for key, value in point.items() if not key.startswith(":"))
            chosen = with_options(file, argument, point)
            config = configs.load(chosen, [*overrides, *own])
            (check or check_parts)(config)
        except (ValueError, TypeError, ImportError) as error:
            mistakes.append(f"  {describe(point, names) or 'the only point'}: {error}")
            continue
        digest = config_hash(config.to_dict())
        words = re.sub(r"[^A-Za-z0-9.=,_+-]+", "_", describe(point, names))[:LONGEST].strip("_,") or config.name
        name = f"{words}-{digest[:6]}"
        if digest not in jobs:
            jobs[digest] = Job(name, point, chosen, (*overrides, *own), out / "runs" / name, config.to_dict())
    if refused is not None and jobs:
        refused += mistakes
    elif mistakes:
        raise configs.ConfigError(
            f"{len(mistakes)} of {len(points)} points cannot be run; nothing was launched.\n" + "\n".join(mistakes)
        )
    return list(jobs.values())


def check_parts(config: ConfigDict) -> None:
    """Builds data, method, coupling and evaluators of a config, without allocating or compiling a network.

    Building the evaluators here also trains a feature extractor once, and not in every worker at the same time.
    """
    from flowjax.paths.couplings import COUPLINGS
    from flowjax.training.run import Run
    from flowjax.training.sampling import make_evaluators

    run = Run(config)
    _ = run.method
    make_evaluators(run)
    try:
        build("coupling", config.coupling, COUPLINGS)
    except (ValueError, TypeError) as error:
        raise configs.ConfigError(str(error)) from error


def with_options(file: str, argument: str, point: Point) -> str:
    """The --config value with the point's ':option' entries in the argument."""
    options = {key[1:]: value for key, value in point.items() if key.startswith(":")}
    there = {item.partition("=")[0].strip() for item in argument.split(",") if item}
    for key, value in options.items():
        if key in there:
            raise configs.ConfigError(f"'{key}' is set by the sweep and by the config argument '{argument}'. Drop one.")
        if not re.fullmatch(r"[^,:]*", str(value)):
            raise configs.ConfigError(f"':{key}' is {value!r}: an option in a config argument has no comma or colon.")
    items = [*filter(None, argument.split(",")), *(f"{key}={value}" for key, value in options.items())]
    return ":".join(filter(None, (file, ",".join(items))))


def as_text(value: Any) -> str:
    """A value as `--config.key=value` reads it back."""
    bare = isinstance(value, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", value)
    return value if bare and value.lower() not in ("true", "false", "none") else repr(value)


def label(value: Any) -> str | int | float | bool | None:
    """A value as a table shows it: numbers and words as they are, a spec as name(option=value)."""
    if isinstance(value, Mapping) and "name" in value:
        options = ", ".join(f"{key}={label(item)}" for key, item in value.items() if key != "name")
        return f"{value['name']}({options})" if options else value["name"]
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return str(value)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each dotted key -> the shortest of its endings that no other key has; coupling.name -> coupling."""
    split = {key: key.removeprefix(":").removesuffix(".name").split(".") for key in keys}
    names = {}
    for key, parts in split.items():
        for count in range(1, len(parts) + 1):
            ending = parts[-count:]
            if sum(other[-count:] == ending for other in split.values()) == 1:
                break
        names[key] = ".".join(ending)
    return names


def telling(points: Sequence[Point]) -> list[str]:
    """The keys that tell points apart: what all of them set alike is no part of a name."""
    keys = dict.fromkeys(key for point in points for key in point)
    if len(points) == 1:
        return list(keys)
    return [key for key in keys if any(key not in point or point[key] != points[0].get(key) for point in points)]


def describe(point: Point, names: Mapping[str, str]) -> str:
    """What a point sets, in words: learning_rate=0.001,seed=1."""
    return ",".join(f"{names[key]}={label(point[key])}" for key in point if key in names)

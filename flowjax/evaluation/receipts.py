"""Receipts: a JSON record beside every published number, of how that number was made.

A number without its sampler, step count, guidance, seed and sample count cannot be compared with another, so those are
required fields, not habits. A receipt names no machine: hardware is kinds and counts, paths are relative, and the
command is one that a reader can run.
"""

import glob as globbing
import hashlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from flowjax.evaluation.run_files import plain, read_json, write_atomically

REQUIRED = (
    "metric",
    "value",
    "config",
    "commit",
    "seed",
    "hardware",
    "images_seen",
    "seconds",
    "sampler",
    "nfe",
    "guidance_scale",
    "ema",
    "evaluator",
    "samples",
    "command",
)
# What a repetition of the same measurement may change. Everything else makes another receipt, with another file name.
OUTCOME = (
    "value",
    "std",
    "interval",
    "floor",
    "floor_std",
    "commit",
    "hardware",
    "seconds",
    "sampling_seconds",
    "command",
)
# An absolute path: a slash (or a Windows drive) at the start of a word or behind "=", ":", a quote or a bracket. The
# lookahead spares the two slashes of an address like gs://bucket.
ABSOLUTE = re.compile(
    r"(?:(?<=^)|(?<=[\s=:,'\"(\[]))(?:/(?!/)[^\s=,'\")\]:]+|[A-Za-z]:\\[^\s,'\")\]]+|~/[^\s,'\")\]]+)"
)


# What an experiment leaves as it goes on: receipts, pages and pictures are not code.
LEFT = ("**/receipts/*.json", "**/*.md", "*.md", "**/*.png")


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hex digits of the SHA-256 of a config, the same for the same values whatever their order."""
    config = config.to_dict() if hasattr(config, "to_dict") else config
    return hashlib.sha256(json.dumps(plain(config), sort_keys=True).encode()).hexdigest()[:12]


def hardware() -> str:
    """The kind and number of devices and of CPU cores, as in "1 x NVIDIA H100, 16 CPU cores"; no names of machines."""
    devices = jax.devices()
    kind = "CPU device" if devices[0].platform == "cpu" else devices[0].device_kind
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{len(devices)} x {kind}, {cores} CPU cores"


def commit(directory: str | os.PathLike | None = None) -> str:
    """The git commit of the code, with "+dirty" when tracked files but those of LEFT differ; "unknown" outside a repository."""
    directory = directory or pathlib.Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ("git", "-C", str(directory), *arguments), capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", *(f":!/{left}" for left in LEFT))
        return git("rev-parse", "HEAD") + ("+dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def relative(text: str) -> str:
    """Replaces absolute paths in a text: below the current directory by the rest, elsewhere by the last name."""
    here = os.getcwd()

    def shorten(match: re.Match) -> str:
        path = match[0].replace("\\", "/")
        inside = path == here or path.startswith(here.rstrip("/") + "/")
        return os.path.relpath(path, here) if inside else path.rstrip("/").rsplit("/", 1)[-1]

    return ABSOLUTE.sub(shorten, text)


def command(arguments: Sequence[str] | None = None) -> str:
    """The command of this process as a user would type it: `python -m flowjax.main --config=configs/digits.py ...`."""
    arguments = list(sys.argv if arguments is None else arguments)
    script = arguments[0] if arguments else ""
    module = re.search(r"(?:^|/)(flowjax(?:/\w+)+)\.py$", script)
    start = (
        f"python -m {module[1].replace('/', '.').removesuffix('.__main__')}" if module else f"python {relative(script)}"
    )
    return " ".join([start.strip(), *(shlex.quote(relative(argument)) for argument in arguments[1:])])


def sampler_free(metric: str, value: float | int, **about: Any) -> dict[str, Any]:
    """A receipt of what no sampler took part in: a count, a speed, a difference. Further fields as of `make_receipt`."""
    return make_receipt(metric, value, sampler="none", nfe=None, guidance_scale=None, ema="none", **about)


def make_receipt(
    metric: str,
    value: float | int,
    *,
    config: Mapping[str, Any],
    config_path: str,
    seed: int,
    images_seen: int,
    seconds: float,
    sampler: str,
    nfe: int | None,
    guidance_scale: float | None,
    ema: str,
    evaluator: str,
    samples: int,
    **extra: Any,
) -> dict[str, Any]:
    """Fills in a receipt: hash of the config, commit, hardware and command are found out here.

    Args:
      metric: what was measured, as "sliced_w2".
      value: the number.
      config: the resolved config (hashed).
      config_path: where it is kept, as "config.json" of the run or "configs/digits.py".
      seed: the seed of training and sampling.
      images_seen: examples the model was trained on, repetitions counted.
      seconds: what the training took.
      sampler: the sampler's name; "real" for a real-against-real floor.
      nfe: network evaluations per sample; None when it is adaptive or there is no sampler.
      guidance_scale: the scale of guidance; None without guidance.
      ema: the role that was sampled, as "ema" or "student".
      evaluator: the evaluator with its reference, as "sliced_w2 against 1,797 digits".
      samples: how many samples the number rests on.
      **extra: anything else; `commit`, `hardware` and `command` may be overridden; `floor` (the value of real against
        real) with `floor_std`, `interval` ([low, high], 95%), `std` and `better` ("lower" or "higher") are shown in the
        report, and `features` says what a distance was measured on.
    """
    receipt = dict(
        metric=metric,
        value=value,
        config=dict(hash=config_hash(config), path=config_path),
        commit=extra.pop("commit", None) or commit(),
        seed=seed,
        hardware=extra.pop("hardware", None) or hardware(),
        images_seen=images_seen,
        seconds=seconds,
        sampler=sampler,
        nfe=nfe,
        guidance_scale=guidance_scale,
        ema=ema,
        evaluator=evaluator,
        samples=samples,
        command=extra.pop("command", None) or command(),
        **extra,
    )
    return _without_machine(plain(receipt))


def _without_machine(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_machine(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_machine(item) for item in value]
    return relative(value) if isinstance(value, str) else value


def check_receipt(receipt: Any, where: str = "The receipt") -> None:
    """Raises a ValueError when fields are missing, or a text holds an absolute path of a machine."""
    if not isinstance(receipt, Mapping):
        raise ValueError(f"{where} is a JSON {type(receipt).__name__}; a receipt is an object with fields.")
    missing = [field for field in REQUIRED if field not in receipt]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}. make_receipt fills every field: {', '.join(REQUIRED)}.")
    if not isinstance(receipt["config"], Mapping) or not {"hash", "path"} <= set(receipt["config"]):
        raise ValueError(f"{where} has config={receipt['config']!r}; expected an object with `hash` and `path`.")
    _refuse_paths(receipt, where, "")


def _refuse_paths(value: Any, where: str, field: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_paths(item, where, f"{field}.{key}" if field else str(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse_paths(item, where, field)
    elif isinstance(value, str) and (found := ABSOLUTE.search(value)):
        raise ValueError(
            f"{where} has the absolute path '{found[0]}' in its field `{field}`: nobody else has it. Make it relative."
        )


def file_name(receipt: Mapping[str, Any]) -> str:
    """A name from what was measured, not from the outcome: measuring again replaces the receipt."""
    identity = {key: value for key, value in receipt.items() if key not in OUTCOME}
    digest = hashlib.sha256(json.dumps(plain(identity), sort_keys=True).encode()).hexdigest()[:8]
    words = f"{receipt['metric']}_{receipt['sampler']}_{receipt['ema']}_seed{receipt['seed']}"
    return f"{re.sub(r'[^A-Za-z0-9.=-]+', '_', words).strip('_')}_{digest}.json"


def write_receipt(directory: str | os.PathLike, receipt: Mapping[str, Any]) -> pathlib.Path:
    """Checks a receipt and writes it atomically under its own name; returns the path."""
    check_receipt(receipt)
    path = pathlib.Path(directory) / file_name(receipt)
    write_atomically(path, json.dumps(plain(receipt), indent=2) + "\n")
    return path


def replace_receipts(
    folder: pathlib.Path,
    part: str,
    receipts: Sequence[Mapping[str, Any]],
    among: Callable[[Mapping[str, Any]], bool] = lambda receipt: True,
) -> None:
    """Writes the receipts of one part of an experiment in place of its earlier ones.

    Args:
      folder: of all receipts.
      part: of the experiment.
      receipts: the new ones.
      among: which of the earlier ones they replace; all by default.
    """
    for file in folder.glob("*.json"):
        earlier = read_json(file)
        if earlier.get("part") == part and among(earlier):
            file.unlink()
    for receipt in receipts:
        write_receipt(folder, {**receipt, "part": part})


def read_receipts(
    sources: str | os.PathLike | Iterable[str | os.PathLike], root: str | os.PathLike = "."
) -> list[dict[str, Any]]:
    """Reads and checks receipts, sorted by file: each source is a directory, a file or a glob, relative to `root`.

    A source that matches no file raises a FileNotFoundError, unless it is a directory (a run with no receipts yet).
    """
    sources = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    files: list[str] = []
    for source in sources:
        pattern = os.path.join(root, source)
        if os.path.isdir(pattern):
            files += globbing.glob(os.path.join(globbing.escape(pattern), "*.json"))
            continue
        found = globbing.glob(pattern, recursive=True)
        if not found:
            raise FileNotFoundError(
                f"No receipts match '{source}' (from directory '{root}'). Run the experiment first."
            )
        files += found
    receipts = []
    for file in sorted(set(files)):
        receipt = read_json(file)
        check_receipt(receipt, where=f"The receipt {file}")
        receipts.append(receipt)
    return receipts

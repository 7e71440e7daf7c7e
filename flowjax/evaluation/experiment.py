"""What the scripts of experiments/ share: parts to choose from, runs that are trained once, receipts and pictures of runs."""

import argparse
import inspect
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import absl.logging

from flowjax import disk
from flowjax.evaluation import run_files, tables
from flowjax.evaluation.receipts import read_receipts


def run_parts(
    script: str,
    parts: Mapping[str, Callable[[argparse.Namespace], None]],
    arguments: Sequence[str] | None = None,
    more: Callable[[argparse.ArgumentParser], Any] = lambda parser: None,
    default: Sequence[str] | None = None,
) -> int:
    """Runs the parts of an experiment that the command line names; returns the exit status.

    Each part gets the options `tiny`, `work` (the folder of its runs), `out` (of receipts and pictures) and `root` (of the
    project). With `--tiny` everything goes to the work folder. Afterwards the tables of `out`/README.md are made anew.

    Args:
      script: the path of the script, experiments/NAME/run.py; its docstring is the help.
      parts: name -> function.
      arguments: of the command line.
      more: adds options of the experiment's own.
      default: the parts that run when none are named; all by default.
    """
    here = pathlib.Path(script).resolve().parent
    root, name = here.parent.parent, here.name
    about = inspect.getmodule(next(iter(parts.values()))).__doc__
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a little of everything, into the work folder")
    parser.add_argument("--parts", nargs="+", default=list(default or parts), choices=parts)
    parser.add_argument(
        "--work", type=pathlib.Path, help=f"where runs live (default: runs/{name}, or runs/{name}_tiny)"
    )
    parser.add_argument("--out", type=pathlib.Path, help="of receipts and pictures (default: beside the script)")
    more(parser)
    options = parser.parse_args(arguments)
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax tells about each of its own steps otherwise
    options.root = root
    options.work = (options.work or root / "runs" / f"{name}{'_tiny' if options.tiny else ''}").absolute()
    options.out = options.out or (options.work / "published" if options.tiny else here)
    (options.out / "receipts").mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        began = time.perf_counter()
        try:
            parts[part](options)
        except disk.DiskFull as error:
            print(f"{part}: {error} Make room, then the same command goes on.", file=sys.stderr)
            return 1
        print(f"{part}: {time.perf_counter() - began:.0f} s", flush=True)
    readme = options.out / "README.md"
    return tables.main(["--partial", str(readme)]) if readme.exists() else 0


def train(root: pathlib.Path, config: str, workdir: pathlib.Path, *overrides: str) -> None:
    """Trains a config unless its run is finished; goes on where it was cut off."""
    status = run_files.read_json(workdir / run_files.STATUS) or {}
    if status.get("state") == "finished":
        return
    run_module(root, "flowjax.main", f"--config={config}", f"--workdir={workdir}", *overrides)


def sweep(root: pathlib.Path, config: str, out: pathlib.Path, *options: str) -> None:
    """`python -m flowjax.sweep`, which does not repeat finished runs either."""
    run_module(root, "flowjax.sweep", "--config", config, "--out", str(out), *options)


def run_module(root: pathlib.Path, module: str, *arguments: str) -> None:
    """`python -m module` in the project's folder; a RuntimeError where it fails, which has said why."""
    status = subprocess.run([sys.executable, "-m", module, *arguments], cwd=root).returncode
    if status:
        command = " ".join(["python", "-m", module, *arguments])
        raise RuntimeError(f"Exit status {status} of\n  {command}\nMend what it says, then run this again.")


def last_receipts(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The receipts that a run wrote of its last evaluation."""
    receipts = read_receipts(workdir / run_files.RECEIPTS)
    last = max(receipt["step"] for receipt in receipts)
    return [receipt for receipt in receipts if receipt["step"] == last]


def publish_picture(workdir: pathlib.Path, out: pathlib.Path, sampler: str = "default") -> None:
    """Copies the last picture of a run's sampler."""
    pictures = sorted((workdir / run_files.SAMPLES).glob(f"*_{sampler}.png"))
    shutil.copyfile(pictures[-1], out)

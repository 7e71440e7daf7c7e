"""The command line: python -m flowjax.sweep --config configs/points.py[:argument] --out DIR [--config.key=value ...].

The config file's sweep() says which points to run. All configs are loaded and their methods built before the first
is launched. A finished run of the same config is left alone, and so is one that its watchdog has ended; an unfinished one
goes on from its checkpoint, a failed one is tried again, from its checkpoint if it has one. DIR then holds

    runs/NAME/       the run directories, with log.txt      manifest.json   what each run sets, and how it stands
    receipts/        those of all runs, in one folder       results.md, results.png   one table, one figure

The results are of runs that finished. The exit status is 0 when all runs finished or were ended by their watchdogs, 1
when one failed, 2 when nothing was launched because of a mistake, and 130 after Ctrl-C, which lets the running ones save
a checkpoint.
"""

import argparse
import contextlib
import fnmatch
import os
import pathlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import absl.logging

from flowjax import disk


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Splits the command line into its own options and the --config.key=value overrides."""
    from flowjax import main

    parser = main.Parser(
        prog="python -m flowjax.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="a config file with sweep(), with an argument after a colon")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="the directory of the sweep")
    parser.add_argument("--workers", type=int, default=0, help="runs at a time (default: one a GPU, else one a core)")
    parser.add_argument("--launcher", default="local", choices=("local", "slurm"))
    parser.add_argument("--slurm", nargs="*", default=[], metavar="KEY=VALUE", help="submitit's parameters")
    parser.add_argument(
        "--only", default="*", metavar="PATTERN", help="run these, as 'preset=edm*'; the results are of all"
    )
    parser.add_argument(
        "--skip-refused", action="store_true", help="leave out the points that cannot be run, after saying why"
    )
    parser.add_argument("--metric", default="", help="of the figure (default: the first ratio to a floor)")
    parser.add_argument("--dry-run", action="store_true", help="check every config, print the commands, run nothing")
    options, rest = parser.parse_known_args(arguments)
    for word in rest:
        if word.startswith("-") and not word.startswith("--config."):
            parser.error(f"unknown option {word}; config entries are set as --config.key=value")
    for pair in options.slurm:
        if "=" not in pair:
            parser.error(f"--slurm takes KEY=VALUE, as timeout_min=60; got '{pair}'")
    if options.workers < 0:
        parser.error(f"--workers is {options.workers}; it must be 1 or more, or 0 for one a GPU or core")
    return options, main.parse(["--config", options.config, *rest])[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks, runs, reports; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options, overrides = parse(arguments)
    environ = dict(os.environ)
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax tells about each of its own steps otherwise
    with _on_cpu():  # this process only looks at configs: the accelerator belongs to the runs
        from flowjax.sweep import jobs as planning
        from flowjax.sweep import launch

        try:
            if options.launcher == "slurm" and not options.dry_run:
                launch.import_submitit()
            refused: list[str] | None = [] if options.skip_refused else None
            jobs = planning.plan(options.config, overrides, options.out, refused=refused)
        except (ValueError, ImportError) as error:  # a ConfigError, or what a config file says of its argument
            return _refuse(str(error))
        if refused:
            print(
                "\n".join([f"flowjax: left out, because they cannot be run: {len(refused)}", *refused]), file=sys.stderr
            )
        matching = lambda pattern: [job for job in jobs if fnmatch.fnmatch(job.name, pattern)]
        chosen = matching(options.only)
        if not chosen:
            wider = f"*{options.only}*"
            hint = f" Did you mean '{wider}', which matches {count}?" if (count := len(matching(wider))) else ""
            listed = "".join(f"\n  {job.name}" for job in jobs)
            return _refuse(f"No run matches --only '{options.only}'.{hint} Runs:{listed}")
        if options.dry_run:
            for job in chosen:
                print(f"# {job.name} ({'finished' if job.finished() else job.state()})\n{shlex.join(job.command)}")
            return 0
    # The environment is the user's again: Slurm hands it on to the nodes. JAX has read it by now, and stays on the CPU.
    try:
        return _run(options, jobs, chosen, environ)
    except disk.DiskFull as error:
        print(f"flowjax: {error} Make room, then the same command goes on.", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace, jobs: list, chosen: list, environ: dict[str, str]) -> int:
    from flowjax.evaluation.receipts import command
    from flowjax.sweep import launch, results

    done = [job for job in chosen if job.finished()]
    over = [job for job in chosen if job.ended()]
    due = [job for job in chosen if job not in done and job not in over]
    said = command(["flowjax/sweep.py", *sys.argv[1:]])
    results.manifest(jobs, options.out, said)
    ended = f"{len(over)} ended by their watchdogs, " if over else ""
    print(f"{len(chosen)} runs in {options.out}: {len(done)} finished before, {ended}{len(due)} to run", flush=True)
    count = 0

    def report(result: Any) -> None:
        nonlocal count
        count += 1
        print(f"[{count}/{len(due)}] {result.job.name}: {result.state} after {result.seconds:.0f} s", flush=True)
        results.manifest(jobs, options.out, said)

    outcomes: list = []
    try:
        if due and options.launcher == "slurm":
            slurm = {key: _number(value) for key, value in (pair.split("=", 1) for pair in options.slurm)}
            outcomes = launch.run_on_slurm(due, options.out / "slurm", options.workers, slurm, report)
        elif due:
            gpus = launch.gpu_names(environ)
            workers = launch.worker_environments(options.workers, len(due), launch.core_count(), gpus, environ)
            outcomes = launch.run_locally(due, workers, report)
    except KeyboardInterrupt:
        results.manifest(jobs, options.out, said)
        print("flowjax: stopped; the same command goes on from the checkpoints", file=sys.stderr)
        return 130
    failed = [result for result in outcomes if result.state not in ("finished", "ended")]
    # Of the whole sweep, not of those chosen by --only: runs that finished before stay in the table.
    finished = [job for job in jobs if job.finished() and job.name not in {result.job.name for result in failed}]
    if finished:
        title = f"Sweep of {pathlib.Path(options.config.partition(':')[0]).stem}"
        print(f"results: {results.write_results(finished, options.out, title, options.metric)}")
    for job in [*over, *(result.job for result in outcomes if result.state == "ended")]:
        print(f"\n{job.name} was ended by its watchdog {job.why()}", file=sys.stderr)
    for result in failed:
        print(f"\n{result.job.name} {result.state}; its log, {result.job.log}, ends with", file=sys.stderr)
        print("\n".join("    " + line for line in result.tail.splitlines()), file=sys.stderr)
    return 1 if failed else 0


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _refuse(message: str) -> int:
    print(f"flowjax: {message}", file=sys.stderr)
    return 2


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    before = os.environ.get("JAX_PLATFORMS")
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        yield
    finally:
        if before is None:
            del os.environ["JAX_PLATFORMS"]
        else:
            os.environ["JAX_PLATFORMS"] = before


if __name__ == "__main__":
    sys.exit(main())

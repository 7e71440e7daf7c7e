"""What each mode of the command line does."""

import argparse
import pathlib
import time

import numpy as np
from ml_collections import ConfigDict

from flowjax import disk
from flowjax.choices import choose
from flowjax.config import ConfigError, refuse_another_run
from flowjax.training.combination import combined
from flowjax.training.run import Run
from flowjax.training.synthesis import synthesise


def train_mode(config: ConfigDict, workdir: pathlib.Path, options: argparse.Namespace) -> int:
    """Trains to the end."""
    from flowjax.training.trainer import train

    train(Run(config, workdir))
    print(f"report: {workdir / 'report.html'}")
    return 0


def sample_mode(config: ConfigDict, workdir: pathlib.Path, options: argparse.Namespace) -> int:
    """Draws samples of the latest checkpoint into a picture and, with --out, an .npz file."""
    from flowjax.evaluation.pictures import save_png
    from flowjax.training.conditions import captions_of, pictured_under
    from flowjax.training.sampling import Drawer, sample_picture

    run, params, step, name = _latest(config, workdir, options)
    count = options.count or config.sample.count
    drawer = Drawer(run)
    conditions = pictured_under(run, name, count)
    samples = drawer.draw(params, name, conditions, count, "pictures", min(count, config.evaluation.batch_size))
    file = workdir / "samples" / f"{step:08d}_{name}_{count}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_png(file, sample_picture(samples, run.source, conditions))
    print(f"{count} samples of step {step}: {file}")
    if options.out:
        captions = captions_of(run.source, conditions)
        texts = {} if captions is None else {"captions": np.array(captions)}
        with disk.told(options.out):
            np.savez(options.out, samples=samples, **conditions, **texts)
        print(f"arrays: {options.out}")
    return 0


def eval_mode(config: ConfigDict, workdir: pathlib.Path, options: argparse.Namespace) -> int:
    """Measures the latest checkpoint; writes receipts and the report."""
    from flowjax.evaluation import run_files
    from flowjax.evaluation.receipts import write_receipt
    from flowjax.evaluation.report import write_report
    from flowjax.training.measures import Measuring
    from flowjax.training.sampling import Drawer, evaluate, make_evaluators

    run, params, step, name = _latest(config, workdir, options)
    evaluators = make_evaluators(run)
    if not evaluators and not run.method.measures:
        raise ConfigError(
            "The config has no evaluators. Add config.evaluators, for example sliced_w2=dict(name='sliced_w2')."
        )
    if options.count:
        with config.unlocked():
            config.evaluation.count = options.count
    began = time.perf_counter()
    trained = run_files.seconds_until(workdir, step)
    average = f"power, std {options.ema_std}" if options.ema_std is not None else None
    average = "combination" if options.combined else average
    values, receipts = evaluate(run, Drawer(run), evaluators, params, step, name, trained, average)
    found, written = Measuring(run).take(params, step, trained)
    values, receipts = {**values, **found}, [*receipts, *written]
    for receipt in receipts:
        write_receipt(workdir / "receipts", receipt)
    for metric, value in values.items():
        print(f"{metric:32} {value:.6g}")
    print(
        f"{config.evaluation.count} samples of step {step} with sampler '{name}' in {time.perf_counter() - began:.1f} s"
    )
    write_report(workdir)
    return 0


def combine_mode(config: ConfigDict, workdir: pathlib.Path, options: argparse.Namespace) -> int:
    """Searches a combination of the kept checkpoints, judges it, and keeps its coefficients."""
    from flowjax.training.combination import search

    run, params, step, name = _latest(config, workdir, options)
    checkpoints = run.checkpoints(read_only=True)
    lines = search(run, checkpoints, params, step, name, options.metric, options.trials)
    checkpoints.close()
    print("\n".join(lines))
    return 0


def plan_mode(config: ConfigDict, workdir: pathlib.Path, options: argparse.Namespace) -> int:
    """Prints parameters, operations and bytes."""
    from flowjax.training.plan import lines, plan

    print("\n".join(lines(plan(Run(config, workdir)))))
    return 0


def check_mode(config: ConfigDict, workdir: pathlib.Path, options: argparse.Namespace) -> int:
    """Runs the pre-flight doctor; exit status 1 when a check fails."""
    from flowjax.training.check import check

    results = check(Run(config, workdir), report=lambda line: print(line, flush=True))
    failed = [result for result in results if not result.passed]
    print(f"{len(results) - len(failed)} of {len(results)} checks passed")
    return 1 if failed else 0


def pairs_mode(config: ConfigDict, workdir: pathlib.Path, options: argparse.Namespace) -> int:
    """Makes the stored pairs of config.data."""
    from flowjax.training.pairs import make_pairs

    cache = make_pairs(config)
    print(f"{cache.header['count']['train']} pairs: {cache.folder}")
    return 0


def replay_mode(config: ConfigDict, workdir: pathlib.Path, options: argparse.Namespace) -> int:
    """Repeats the update of a NaN dump."""
    from flowjax.training.guard import replay

    run = Run(config, workdir)
    print("\n".join(replay(workdir, run.method, run.executor.abstract)))
    return 0


def _latest(config: ConfigDict, workdir: pathlib.Path, options: argparse.Namespace):
    """The run, the parameters of its latest checkpoint, its step, and the sampler asked for."""
    run = Run(config, workdir)
    name = options.sampler or run.default_sampler
    try:
        role = choose("sampler", name, run.method.samplers).role
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not (workdir / "checkpoints").is_dir():
        raise FileNotFoundError(
            f"There is no run in {workdir}: no folder checkpoints. Train first, or give its --workdir."
        )
    checkpoints = run.checkpoints(read_only=True)
    step = checkpoints.latest()
    if step is None:
        raise FileNotFoundError(f"There is no complete checkpoint in {workdir / 'checkpoints'}. Train first.")
    refuse_another_run(config, checkpoints.config(step), step)
    state, _ = checkpoints.restore(step, run.executor.abstract)
    params = dict(state.params)
    if options.ema_std is not None:
        params[role] = synthesise(run, checkpoints, options.ema_std, step)
    if options.combined:
        params[role] = combined(run, checkpoints, name)
    checkpoints.close()
    return run, params, step, name


MODES = {
    "train": train_mode,
    "sample": sample_mode,
    "eval": eval_mode,
    "plan": plan_mode,
    "check": check_mode,
    "combine": combine_mode,
    "pairs": pairs_mode,
    "replay": replay_mode,
}

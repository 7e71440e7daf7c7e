"""Students of few steps of pictures: every method of configs/students.py on one teacher, at one budget.

    python experiments/distillation/images.py [--tiny] [--parts fashion cost] [--only PATTERN] [--work DIR]

    fashion   the teacher is configs/fashion.py (python -m flowjax.data.prepare fashion_mnist), its students are networks of its
              own size that see equally many images; all are measured by the teacher's evaluators at one, two and four steps
    cost      time and memory of an update as a multiple of flow matching's, measured beside it in one process

Finished runs are not trained again. `--tiny` does a little of everything, on digits, and writes to the work folder.
"""

import argparse
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatch

import jax
import numpy as np

from flowjax.config import ConfigDict, load, load_module
from flowjax.evaluation.experiment import publish_picture, run_parts, sweep, train
from flowjax.evaluation.receipts import make_receipt, replace_receipts
from flowjax.sweep.jobs import plan
from flowjax.training.plan import plan as needs
from flowjax.training.run import Run
from flowjax.training.sampling import evaluate_samplers

STUDENTS = "configs/students.py"
STEPS = (1, 2, 4)  # of the teacher, by Euler
ROUNDS = 5  # of timed updates


def teacher_config(options: argparse.Namespace) -> str:
    """The config of the teacher, as a command line names it."""
    file, tiny = ("configs/digits.py", ":tiny,network=dit") if options.tiny else ("configs/fashion.py", "")
    return f"{options.root / file}{tiny}"


def teacher_of(options: argparse.Namespace) -> pathlib.Path:
    """The folder of the trained teacher."""
    workdir = options.work / "teacher"
    train(options.root, teacher_config(options), workdir)
    return workdir


def students_config(options: argparse.Namespace, teacher: pathlib.Path, **choices: str) -> str:
    """The config of its students."""
    chosen = [f"{key}={value}" for key, value in {"teacher": teacher, **choices}.items()]
    return f"{options.root / STUDENTS}:{','.join([*chosen, *(['tiny'] if options.tiny else [])])}"


def fashion(options: argparse.Namespace) -> None:
    """Trains teacher and students, and measures them all."""
    teacher, out = teacher_of(options), options.work / "students"
    config = students_config(options, teacher)
    sweep(options.root, config, out, "--workers", str(options.workers), "--only", options.only)
    receipts = measured(Run(with_few_steps(teacher_config(options)), teacher), "teacher")
    publish_picture(teacher, options.out / "teacher.png")
    for job in plan(config, [], out):
        if job.finished():
            name = job.point[":method"]
            receipts += measured(Run(ConfigDict(job.config), job.directory), name)
            publish_picture(job.directory, options.out / f"{name}.png")
            print(f"measured {name}", flush=True)
    replace_receipts(options.out / "receipts", "fashion", receipts)


def with_few_steps(argument: str) -> ConfigDict:
    """The teacher's config with samplers of as many steps as its students have."""
    config = ConfigDict(load(argument).to_dict())
    role = config.samplers.default.role
    for steps in STEPS:
        config.samplers[f"euler_{steps}"] = dict(name="euler", steps=steps, grid=dict(name="uniform"), role=role)
    return config


def measured(run: Run, method: str) -> list[dict]:
    """The receipts of a finished run at each of its samplers."""
    receipts = []
    for name, written in evaluate_samplers(run).items():
        steps = run.method.samplers[name].description["steps"]
        receipts += [{**receipt, "method": method, "steps": steps} for receipt in written]
    return receipts


def cost(options: argparse.Namespace) -> None:
    """Times one update of every method between two of flow matching, and asks the compiler for its memory."""
    teacher = teacher_of(options)
    plain_run = Run(ConfigDict(load(teacher_config(options)).to_dict()))
    plain, plain_bytes = updater(plain_run)
    receipts = []
    names = [
        name for name in load_module(str(options.root / STUDENTS)).METHODS if fnmatch(f"method={name}", options.only)
    ]
    for name in names:
        run = Run(load(students_config(options, teacher, method=name)))
        update, peak = updater(run)
        before, own, after = (statistics.median(u() for _ in range(ROUNDS)) for u in (plain, update, plain))
        about = dict(
            config=run.config.to_dict(),
            config_path=STUDENTS,
            seed=run.config.seed,
            images_seen=ROUNDS * run.config.batch_size,
            seconds=own,
            sampler="none",
            nfe=0,
            guidance_scale=None,
            ema="none",
            evaluator="updates timed between updates of flow matching",
            samples=ROUNDS,
            method=name,
            better="lower",
        )
        receipts += [
            make_receipt("update_time_ratio", own / ((before + after) / 2), **about),
            make_receipt("update_memory_ratio", peak / plain_bytes, **about),
        ]
        print(f"{name}: {receipts[-2]['value']:.2f} times the time, {receipts[-1]['value']:.2f} the memory", flush=True)
    replace_receipts(options.out / "receipts", "cost", receipts)


def updater(run: Run) -> tuple[Callable[[], float], int]:
    """What makes an update and returns its seconds, each phase in its share of the steps; and the bytes of the largest."""
    executor, source = run.executor, run.iterator()
    batches = {name: value[:1] for name, value in source.stack_batches(1).items()}
    source.close()
    cycle = run.method.cycle()
    shares = {due: cycle.count(due) / len(cycle) for due in dict.fromkeys(cycle) if due}
    programs = {due: executor.program(due, 1) for due in shares}
    state = [executor.start()]
    placed = executor.put(batches)

    def one(due) -> float:
        began = time.perf_counter()
        state[0], metrics = programs[due](state[0], placed, np.int32(1), executor.root)
        jax.block_until_ready((state[0], metrics))
        return time.perf_counter() - began

    for due in shares:
        one(due)  # compiles
    peaks = [entry["bytes_peak"] for entry in needs(run)["updates"].values()]
    return lambda: sum(share * one(due) for due, share in shares.items()), max(peaks)


def more(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment alone."""
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", default="*", help="only the students whose name matches")


PARTS = {"fashion": fashion, "cost": cost}


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts asked for; returns the exit status."""
    return run_parts(__file__, PARTS, arguments, more)


if __name__ == "__main__":
    sys.exit(main())

"""Students of few steps of pictures: every method of configs/students.py on one teacher, at one budget.

    python experiments/distillation/images.py [--tiny] [--parts fashion shapes small cost] [--only PATTERN] [--work DIR]

    fashion   the teacher is configs/fashion.py (python -m flowjax.data.prepare fashion_mnist), its students are networks of its
              own size that see equally many images; all are measured by the teacher's evaluators at one, two and four steps
    shapes    the same for text to image: the teacher is configs/shapes.py with its guidance, which students fold in
    small     SlimFlow on Fashion-MNIST: a student of a quarter of the parameters, and one that starts without its first half
    cost      time and memory of an update as a multiple of flow matching's, measured beside it in one process

`--seeds 0 1 2 --only "method=mean_flow*"` repeats what it names. `--teacher DIR` takes a finished run as the teacher of the
one part that is named. Finished runs are not trained again. `--tiny` does a little of everything, on small pictures, and
writes to the work folder.
"""

import argparse
import dataclasses
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatch

import jax
import numpy as np

from flowjax.config import ConfigDict, load, load_module
from flowjax.evaluation import tables
from flowjax.evaluation.experiment import publish_picture, run_parts, sweep, train
from flowjax.evaluation.receipts import make_receipt, replace_receipts
from flowjax.methods.finished import config_of_run
from flowjax.sweep.jobs import plan
from flowjax.training.plan import plan as needs
from flowjax.training.run import Run
from flowjax.training.sampling import evaluate_samplers

STUDENTS = "configs/students.py"
STEPS = (1, 2, 4)  # of the teacher, by Euler
ROUNDS = 5  # of timed updates
SEEDS = range(8)  # that may have been trained


@dataclasses.dataclass(frozen=True)
class Subject:
    """What students are compared on.

    Attributes:
      teacher: the config of the teacher.
      tiny: the one in its place for `--tiny`.
      guidance: the scale that students of a teacher take over; those that learn from data alone have none.
      steps: of a student.
      batch_size: of a student.
      shown: the metric of the figure.
    """

    teacher: str
    tiny: str
    guidance: float
    steps: int
    batch_size: int
    shown: str


FASHION = Subject("configs/fashion.py", "configs/digits.py:tiny,network=dit", 1.0, 1_000, 64, "frechet_ratio")
SHAPES = Subject("configs/shapes.py", "configs/shapes.py:tiny", 1.5, 1_000, 64, "caption_accuracy")
QUARTER = 56  # the width of a network with less than a quarter of the parameters of the teacher of Fashion-MNIST


def teacher_of(options: argparse.Namespace, name: str, subject: Subject) -> pathlib.Path:
    """The folder of the trained teacher."""
    if options.teacher and len(options.parts) > 1:
        raise ValueError(f"--teacher is for one part, and these are {', '.join(options.parts)}. Name one with --parts.")
    if options.teacher:
        return options.teacher.absolute()
    workdir = options.work / f"{name}_teacher"
    train(options.root, f"{options.root / (subject.tiny if options.tiny else subject.teacher)}", workdir)
    return workdir


def students_config(options: argparse.Namespace, subject: Subject, teacher: pathlib.Path, **choices) -> str:
    """The config of its students, as a command line names it."""
    chosen = {"teacher": teacher, "steps": subject.steps, **choices}
    return f"{options.root / STUDENTS}:{','.join(f'{key}={value}' for key, value in chosen.items())}" + (
        ",tiny" if options.tiny else ""
    )


def students(options: argparse.Namespace, name: str, subject: Subject) -> None:
    """Trains teacher and students, and measures them all."""
    teacher = teacher_of(options, name, subject)
    receipts = measured(Run(with_few_steps(teacher), teacher), "teacher")
    publish_picture(teacher, options.out / f"{name}_teacher.png")
    batch = () if options.tiny else (f"batch_size={subject.batch_size}",)
    for seed in SEEDS:
        config, out = students_config(options, subject, teacher), options.work / f"{name}_students" / f"seed_{seed}"
        overrides = (*batch, f"seed={seed}")
        if seed in options.seeds:
            asked = ("--workers", str(options.workers), "--only", options.only, "--skip-refused")
            sweep(options.root, config, out, *asked, *(f"--config.{override}" for override in overrides))
        for job in plan(config, overrides, out, refused=[]) if out.exists() else ():
            if job.finished():
                method = job.point[":method"]
                receipts += measured(Run(ConfigDict(job.config), job.directory), method)
                if seed == min(options.seeds):
                    publish_picture(job.directory, options.out / f"{name}_{method}.png")
                print(f"measured {method}, seed {seed}", flush=True)
    replace_receipts(options.out / "receipts", name, receipts)
    where = f"metric={subject.shown}"
    tables.figure(options.out / f"{name}.png", receipts, x="steps", lines="method", where=where, log_x=True)


def small(options: argparse.Namespace) -> None:
    """A student of a quarter of the size: annealed reflow and then distillation, and distillation alone."""
    teacher = teacher_of(options, "fashion", FASHION)
    batch = () if options.tiny else (f"--config.batch_size={FASHION.batch_size}",)
    width = 16 if options.tiny else QUARTER
    receipts = []
    for name, source, choices in (
        ("annealed_reflow", teacher, dict(method="annealed_reflow", width=width)),
        ("annealed_and_guided", options.work / "small" / "annealed_reflow", dict(method="guided_direct")),
        ("direct", teacher, dict(method="direct", width=width)),
    ):
        workdir = options.work / "small" / name
        config = students_config(options, FASHION, source, **choices)
        train(options.root, config, workdir, *batch)
        run = Run(load(config, [override.removeprefix("--config.") for override in batch]), workdir)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(run.latest_state().params["ema"]))
        receipts += [{**receipt, "parameters": parameters} for receipt in measured(run, name)]
        publish_picture(workdir, options.out / f"small_{name}.png")
    replace_receipts(options.out / "receipts", "small", receipts)


def with_few_steps(teacher: pathlib.Path) -> ConfigDict:
    """The teacher's config with samplers of as many steps as its students have, guided as its own."""
    config = config_of_run(str(teacher), "The teacher")
    theirs = config.samplers.default.to_dict()
    for steps in STEPS:
        config.samplers[f"euler_{steps}"] = {**theirs, "name": "euler", "steps": steps}
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
    teacher = teacher_of(options, "fashion", FASHION)
    plain_run = Run(config_of_run(str(teacher), "The teacher"))
    plain, plain_bytes = updater(plain_run)
    receipts = []
    names = [
        name for name in load_module(str(options.root / STUDENTS)).METHODS if fnmatch(f"method={name}", options.only)
    ]
    for name in names:
        run = Run(load(students_config(options, FASHION, teacher, method=name)))
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
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], choices=SEEDS, help="of the students (default: 0)")
    parser.add_argument("--teacher", type=pathlib.Path, help="a finished run to learn from, for one part")


PARTS = {
    "fashion": lambda options: students(options, "fashion", FASHION),
    "shapes": lambda options: students(options, "shapes", SHAPES),
    "small": small,
    "cost": cost,
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts asked for; returns the exit status."""
    return run_parts(__file__, PARTS, arguments, more)


if __name__ == "__main__":
    sys.exit(main())

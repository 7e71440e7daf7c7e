"""Students of few steps, measured: every method of configs/distillation.py on a flow that is known in closed form.

    python experiments/distillation/run.py [--tiny] [--parts oracle stability] [--only PATTERN] [--workers N] [--work DIR]

The teacher is the exact velocity of eight modes on a ring, with even and with uneven weights; all students are dense
networks of one size. Measured at the steps that each is meant for:

    sliced_w2_ratio     sliced W2 to true points over that of true points to true points
    mode_weight_error   sum of |share of the samples in a mode - its weight| over the modes
    stray               share of the samples further from their mode than 99.9% of the truth
    map_error           median distance of a sample from where the teacher's ODE leads from the same noise, by 400 steps of
                        Runge and Kutta; for samplers that draw no further noise, as a jump to the data does not in one step

and the teacher itself by as many steps of Euler. A student of progressive distillation is measured at the end of the stage in
which it has as many steps as its sampler; one that is told labels, under labels drawn as the modes are weighed, and its
distance is from where the flow of its label leads. `stability` trains every method with even weights on three seeds, computing
in float32 and in bfloat16. Finished runs are not trained again; with `--only` the receipts of all others stay as they are.
"""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Sequence
from fnmatch import fnmatch

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.arrays import example_keys
from flowjax.choices import build
from flowjax.config import ConfigDict
from flowjax.evaluation.coverage import mode_weights
from flowjax.evaluation.experiment import last_receipts, run_parts, sweep
from flowjax.evaluation.receipts import make_receipt, replace_receipts
from flowjax.evaluation.run_files import seconds_until
from flowjax.methods.progressive import stage_lengths
from flowjax.paths.noises import gaussian
from flowjax.paths.ode import solve
from flowjax.paths.oracles import GaussianMixture
from flowjax.paths.path import PATHS, GaussianPath, make_path
from flowjax.samplers.build import split_keys
from flowjax.sweep.jobs import Job, plan
from flowjax.training.run import Run
from flowjax.training.sampling import Drawer, evaluate, make_evaluators
from flowjax.training.state import step_key

CONFIG = "configs/distillation.py"
REFERENCE_STEPS = 400
STEPS = (1, 2, 4)
JUDGED = ("sliced_w2_ratio", "mode_weight_error", "stray")
SEEDS, PRECISIONS = (0, 1, 2), ("float32", "bfloat16")


def oracle(options: argparse.Namespace) -> None:
    """Trains the sweep and measures every run, and the teacher."""
    jobs = [job for job in trained(options, "oracle", options.only) if fnmatch(job.name, options.only)]
    receipts, teachers = [], {}
    for job in jobs:
        run = Run(ConfigDict(job.config), job.directory)
        receipts += measure(job, run)
        teachers.setdefault(job.config["data"]["weights"], run)
        print(f"measured {job.name}", flush=True)
    for weights, run in teachers.items():
        receipts += teacher(run, weights)
    cases = {(receipt["method"], receipt["weights"]) for receipt in receipts}
    measured_anew = lambda earlier: (earlier["method"], earlier["weights"]) in cases
    replace_receipts(options.out / "receipts", "oracle", receipts, measured_anew)


def stability(options: argparse.Namespace) -> None:
    """What every run measured at its own end, over seeds and precisions."""
    only = "*weights=even*" if options.only == "*" else options.only
    for precision, seed in itertools.product(PRECISIONS, SEEDS):
        overrides = (f"precision={precision}", f"seed={seed}")
        # The runs of the first part are those of one seed and float32.
        folder = "oracle" if (precision, seed) == ("float32", 0) else f"stability/{precision}_{seed}"
        overrides = () if folder == "oracle" else overrides
        receipts = []
        for job in trained(options, folder, only, overrides):
            if job.config["data"]["weights"] == "even":
                about = dict(method=job.point[":method"], precision=precision, seed=seed)
                last = last_receipts(job.directory)
                receipts += [{**receipt, **about} for receipt in last if receipt["metric"] in JUDGED]
        mine = lambda earlier, case=(precision, seed): (earlier["precision"], earlier["seed"]) == case
        replace_receipts(options.out / "receipts", "stability", receipts, mine)


def trained(options: argparse.Namespace, folder: str, only: str, overrides: Sequence[str] = ()) -> list[Job]:
    """Trains the sweep of the config, and returns all runs of it that are finished."""
    config, out = f"{options.root / CONFIG}{':tiny' if options.tiny else ''}", options.work / folder
    changes = [f"--config.{override}" for override in overrides]
    sweep(options.root, config, out, "--workers", str(options.workers), "--only", only, *changes)
    return [job for job in plan(config, overrides, out) if job.finished()]


def measure(job: Job, run: Run) -> list[dict]:
    """The receipts of a finished run at each of its samplers."""
    checkpoints, drawer, evaluators = run.checkpoints(read_only=True), Drawer(run), make_evaluators(run)
    conditions, receipts = labels(run), []
    for name, sampler in run.method.samplers.items():
        steps, kind = sampler.description["steps"], sampler.description["sampler"]
        step = trained_for(run.config, steps) or checkpoints.latest()
        params = {sampler.role: jax.tree.map(np.asarray, checkpoints.read_role(sampler.role, step))}
        seconds = seconds_until(run.workdir, step)
        _, written = evaluate(run, drawer, evaluators, params, step, name, seconds, conditions=conditions)
        about = dict(student=job.config["method"]["name"], method=job.point[":method"], steps=steps)
        about["weights"] = job.config["data"]["weights"]
        receipts += [{**receipt, **about} for receipt in written if receipt["metric"] in JUDGED]
        follows = kind in ("euler", "ddim", "flow_map") or (kind == "consistency" and steps == 1)
        if follows and not sampler.description.get("gamma"):
            error = map_error(run, drawer, params, name, conditions)
            receipts.append({**written[0], **about, "metric": "map_error", "value": error, "better": "lower"})
            for field in ("interval", "floor", "floor_std"):
                receipts[-1].pop(field, None)
    return receipts


def labels(run: Run) -> dict[str, np.ndarray]:
    """Labels for the samples, where a network reads them: drawn, so that shares of modes err as those of true points do."""
    if run.source.spec.num_classes is None:
        return {}
    weights, draw = np.asarray(run.source.oracle.weights, np.float64), np.random.default_rng(run.config.seed)
    drawn = draw.choice(len(weights), run.config.evaluation.count, p=weights / weights.sum())
    return {"label": drawn.astype(np.int32)}


def trained_for(config: ConfigDict, steps: int) -> int | None:
    """After how many updates a student of progressive distillation is one of so many steps; None for other students."""
    if config.method.name != "progressive":
        return None
    first = config.method.first_steps
    ends = itertools.accumulate(stage_lengths(config.steps, first, 1))
    return dict(zip((first // 2**stage for stage in itertools.count()), ends))[steps]


def map_error(run: Run, drawer: Drawer, params: dict, sampler: str, conditions: dict[str, np.ndarray]) -> float:
    """The median distance of samples from the ends of their trajectories."""
    count, stream = run.config.evaluation.count, "map_error"
    samples = drawer.draw(params, sampler, conditions, count, stream, count)
    keys = example_keys(step_key(run.config.seed, 0, f"draw/{stream}"), jnp.arange(count))
    path = build("path", run.config.path, PATHS)
    start = path.sigma(jnp.asarray(path.start)) * gaussian().sample(split_keys(keys)[0], (2,))
    ends = trajectory_ends(run.source.oracle, path, start, conditions.get("label"))
    return float(np.median(np.linalg.norm(samples - ends, axis=1)))


def trajectory_ends(mixture: GaussianMixture, path: GaussianPath, start, label=None) -> np.ndarray:
    """Where the exact velocity leads from the noise end to the data end: that of all modes, or of the one of each label."""
    if label is not None:
        mixture = dataclasses.replace(mixture, classes=jnp.arange(len(mixture.weights)))
    velocity = lambda x, t: mixture.prediction(path, "velocity", x, t, label)
    follow = jax.jit(lambda x: solve(velocity, x, path.start, path.end, REFERENCE_STEPS, "rk4"))
    return np.asarray(follow(start))


def teacher(run: Run, weights: str) -> list[dict]:
    """The exact velocity by few steps of Euler, on the linear path: what a student has to beat."""
    path, mixture, count = make_path("linear"), run.source.oracle, run.config.evaluation.count
    start = gaussian().sample(example_keys(jax.random.key(0), jnp.arange(count)), (2,))
    velocity = lambda x, t: mixture.prediction(path, "velocity", x, t)
    ends, receipts = trajectory_ends(mixture, path, start), []
    judge = make_evaluators(run)["sliced_w2"]
    for steps in (*STEPS, REFERENCE_STEPS):
        samples = np.asarray(solve(velocity, start, 0.0, 1.0, steps, "euler"))
        modes = mode_weights(samples, mixture)
        values = {
            "sliced_w2_ratio": judge(samples, {})["sliced_w2_ratio"],
            **{name: modes[name] for name in ("mode_weight_error", "stray")},
            "map_error": float(np.median(np.linalg.norm(samples - ends, axis=1))),
        }
        receipts += [
            make_receipt(
                name,
                value,
                config=run.config.data.to_dict(),
                config_path=CONFIG,
                seed=0,
                images_seen=0,
                seconds=0.0,
                sampler="euler",
                nfe=steps,
                guidance_scale=None,
                ema="exact",
                evaluator=name,
                samples=count,
                method="teacher",
                student="none",
                steps=steps,
                weights=weights,
                better="lower",
            )
            for name, value in values.items()
        ]
    return receipts


def more(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment alone."""
    parser.add_argument("--workers", type=int, default=0, help="runs at a time (default: one a core)")
    parser.add_argument("--only", default="*", help="only the runs whose name matches")


PARTS = {"oracle": oracle, "stability": stability}


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts asked for; returns the exit status."""
    return run_parts(__file__, PARTS, arguments, more)


if __name__ == "__main__":
    sys.exit(main())

"""The spine, measured: flows on points against their closed forms, samplers against a 1e-9 reference, digits.

    python experiments/spine/run.py [--tiny] [--parts samplers flows digits] [--work DIR] [--out DIR] [--workers N]

Trains through `python -m flowjax.sweep` and `python -m flowjax.main` (finished runs are not trained again), writes
receipts and pictures, and remakes the tables of README.md. `--tiny` does a little of everything in about a minute, and
writes to the work folder instead.

Two figures are measured here and not in the runs, because they need more samples than a run's own evaluation takes.

Ratio of sliced W2. Of two sets of 5,000 true points the distance varies by a third from one pair to the next (by chance
one mode has a few points more). So numerator and denominator are root mean squares over several pairs.

Excess of the loss. At its minimum, p* = E[target | x_t], the loss has a floor, and the Pythagorean theorem says

    E factor |p - target|^2  =  E factor |p - p*|^2  +  E factor Var[target | x_t],         loss = excess + floor.

p* and the variance are known in closed form for a mixture (flowjax/paths/oracles.py). So the excess is measured
directly, not as a small difference of large numbers, and loss = excess + floor is checked within statistical error.
"""

import argparse
import shutil
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.arrays import mean_per_example
from flowjax.config import ConfigDict
from flowjax.evaluation import run_files, tables
from flowjax.evaluation.coverage import mode_weights
from flowjax.evaluation.distances import sliced_w2
from flowjax.evaluation.experiment import last_receipts, publish_picture, run_parts, sweep, train
from flowjax.evaluation.receipts import make_receipt, replace_receipts
from flowjax.losses.denoising import prediction_loss
from flowjax.methods.parts import draw, make_setting
from flowjax.paths.oracles import three_modes_1d
from flowjax.paths.path import make_path
from flowjax.paths.predictions import error_ratio
from flowjax.paths.weights import loss_weight
from flowjax.samplers.build import STEPPERS
from flowjax.samplers.field import Field
from flowjax.samplers.loop import integrate
from flowjax.sweep.jobs import Job, plan
from flowjax.training.run import Run
from flowjax.training.sampling import Drawer

COUNT, DIRECTIONS = 5_000, 128  # points in a set, directions of the slices
GENERATED_SETS, TRUE_PAIRS = 8, 64
LOSS_BATCHES, LOSS_BATCH = 64, 8_192
FEW_STEPS = (2, 4, 8)
FORMAL_ORDERS = {"euler": 1, "heun": 2, "midpoint": 2, "rk4": 4, "dpmpp_2m": 2, "unipc": 3}
STEPS = (10, 20, 40, 80, 160, 320)
START, END = 0.05, 0.95


def solve(name: str, steps: int) -> np.ndarray:
    """The closed-form flow of the three-mode mixture from 41 points, by one sampler, in float64."""
    with jax.enable_x64(True):
        path, mixture = make_path("linear"), three_modes_1d()
        field = Field(lambda x, t: mixture.prediction(path, "velocity", x, t), "velocity", path)
        x = jnp.linspace(-2.5, 2.5, 41)[:, None]
        keys = jax.random.split(jax.random.key(0), len(x))
        return np.asarray(integrate(STEPPERS[name](), field, np.linspace(START, END, steps + 1), x, keys))


def samplers(options: argparse.Namespace) -> None:
    """Errors of the deterministic samplers for several step counts, and the orders that follow."""
    steps_list = STEPS[:4] if options.tiny else STEPS
    began = time.perf_counter()
    coarse, reference = solve("rk4", 2_000), solve("rk4", 4_000)
    doubt = float(np.abs(coarse - reference).max())
    if doubt > 1e-9:
        raise RuntimeError(f"The reference is only good to {doubt:.1e}; 1e-9 is wanted. Use more steps for it.")
    receipts = []
    for name, formal in FORMAL_ORDERS.items():
        errors = {steps: float(np.abs(solve(name, steps) - reference).mean()) for steps in steps_list}
        # RK4 meets rounding at hundreds of steps, so its order is read from smaller counts.
        few, many = (40, 80) if name == "rk4" else steps_list[-2:]
        about = dict(
            config=dict(mixture="three_modes_1d", path="linear", start=START, end=END, precision="float64"),
            config_path="experiments/spine/run.py",
            seed=0,
            images_seen=0,
            sampler=name,
            guidance_scale=None,
            ema="closed form",
            samples=41,
        )
        stages = len(STEPPERS[name]().stages)
        for steps, error in errors.items():
            evaluator = f"mean absolute error against RK4 with 4,000 steps, good to {doubt:.0e}"
            seconds = time.perf_counter() - began
            receipts.append(
                make_receipt(
                    "error", error, nfe=stages * steps, steps=steps, evaluator=evaluator, seconds=seconds, **about
                )
            )
        order = float(np.log2(errors[few] / errors[many]))
        evaluator = f"log2 of error({few} steps) / error({many} steps)"
        receipts.append(
            make_receipt("order", order, nfe=None, evaluator=evaluator, seconds=seconds, formal_order=formal, **about)
        )
    replace_receipts(options.out / "receipts", "samplers", receipts)
    tables.figure(
        options.out / "samplers.png",
        receipts,
        x="nfe",
        lines="sampler",
        where="metric=error",
        log_x=True,
        log_y=True,
        title="Samplers on a closed-form flow",
        titles={"nfe": "velocity evaluations", "value": "mean absolute error"},
    )


def flows(options: argparse.Namespace) -> None:
    """Trains the sweep of configs/points.py and measures every run."""
    config = "configs/points.py:tiny" if options.tiny else "configs/points.py"
    only = "preset=rectified_flow,seed=0-*" if options.tiny else options.only
    out = options.work / "points"
    sweep(options.root, config, out, "--workers", str(options.workers), "--only", only)
    jobs = [job for job in plan(str(options.root / config), [], out) if job.finished()]
    receipts = []
    for job in jobs:
        receipts += measure_run(job, options.tiny)
        print(f"measured {job.name}", flush=True)
    replace_receipts(options.out / "receipts", "flows", receipts)
    first = next(job for job in jobs if job.config["seed"] == 0 and job.config["name"].endswith("rectified_flow"))
    publish_picture(first.directory, options.out / "samples.png")
    shutil.copyfile(out / "results.png", options.out / "presets.png")


def measure_run(job: Job, tiny: bool) -> list[dict]:
    """Receipts of one run: the ratio with all else that was measured beside it, and ratios of samplers of few steps."""
    config = ConfigDict(job.config)
    preset = config.name.removeprefix("points_mixture_")
    plain_flow = preset == "rectified_flow"
    for steps in FEW_STEPS if plain_flow else ():
        config.samplers[f"euler_{steps}"] = dict(name="euler", steps=steps)
    run = Run(config, job.directory)
    state = run.latest_state()
    step = int(state.step)
    lines = [line for line in run_files.read_lines(job.directory / run_files.METRICS) if "loss" in line]
    sets, pairs, batches = (2, 4, 4) if tiny else (GENERATED_SETS, TRUE_PAIRS, LOSS_BATCHES)
    floor = true_distance(run.source, pairs)
    receipts = []
    for name, sampler in run.method.samplers.items():
        ratio, modes = sample_quality(run, state.params, name, sets, floor)
        default = name == run.default_sampler
        measured = {**modes, **loss_and_floor(run, state.params[sampler.role], batches)} if default else {}
        receipts.append(
            make_receipt(
                "sliced_w2_ratio",
                ratio,
                config=job.config,
                config_path="configs/points.py",
                seed=config.seed,
                images_seen=step * config.batch_size,
                seconds=lines[-1]["seconds"],
                sampler=sampler.description["sampler"],
                nfe=sampler.description["nfe"],
                guidance_scale=None,
                ema=sampler.role,
                evaluator=f"root mean square over {sets} sets, over that of {pairs} pairs of true sets",
                samples=COUNT,
                floor=1.0,
                preset=preset,
                coupling=config.coupling.name,
                steps=sampler.description["steps"],
                true_distance=floor,
                **measured,
            )
        )
    return receipts


def true_distance(source, pairs: int) -> float:
    """The root mean square of sliced W2 between two sets of true points."""
    distances = []
    for pair in range(pairs):
        points = source.reference("test", 2 * COUNT, seed=1_000 + pair)["data"]
        distances.append(sliced_w2(points[:COUNT], points[COUNT:], DIRECTIONS))
    return float(np.sqrt(np.mean(np.square(distances))))


def sample_quality(run: Run, params, sampler: str, sets: int, floor: float) -> tuple[float, dict[str, float]]:
    """The ratio of sliced W2, and the mean error of the mode weights beside that of true points."""
    drawer, distances, modes = Drawer(run), [], []
    for index in range(sets):
        samples = drawer.draw(params, sampler, {}, COUNT, f"spine/{index}", COUNT)
        true = run.source.reference("test", COUNT, seed=2_000 + index)["data"]
        distances.append(sliced_w2(samples, true, DIRECTIONS))
        errors, true_errors = mode_weights(samples, run.source.oracle), mode_weights(true, run.source.oracle)
        modes.append({**errors, **{f"{name}_floor": value for name, value in true_errors.items()}})
    means = {name: float(np.mean([mode[name] for mode in modes])) for name in modes[0]}
    return float(np.sqrt(np.mean(np.square(distances)))) / floor, means


def loss_and_floor(run: Run, tree, batches: int) -> dict[str, float]:
    """The loss on fresh data, its closed-form floor and the excess in percent; nothing where no closed form is known.

    The posterior of a mixture is known for independent Gaussian noise: not for transport couplings, nor for PFGM++.
    """
    config = run.config
    if config.coupling.name != "independent" or config.noise.name != "gaussian":
        return {}
    prediction, space = config.method.prediction, config.method.loss
    setting, oracle = make_setting(config, run.source.spec, prediction), run.source.oracle
    path = setting.path

    @jax.jit
    def terms(data, key):
        batch = {"data": data, "row": jnp.arange(len(data))}
        drawn = draw(setting, batch, key, 0.0)
        x, t = path.sample(drawn.noise, drawn.data, drawn.t), drawn.t
        weight = loss_weight(setting.weight, path, space, t)
        factor = weight * error_ratio(path, prediction, space, t) ** 2
        predict = lambda x, t: setting.network.apply(tree, x, t, {})
        loss, _ = prediction_loss(predict, path, prediction, drawn.noise, drawn.data, t, space, weight)
        off = mean_per_example((predict(x, t) - oracle.prediction(path, prediction, x, t)) ** 2)
        floor = factor * oracle.posterior_variance(path, x, t, prediction=prediction)
        difference = loss - floor - factor * off
        return jnp.stack([loss, floor, factor * off, difference, difference**2]).mean(axis=1)

    count = LOSS_BATCH
    values = [
        terms(jnp.asarray(run.source.reference("train", count, seed=3_000 + i)["data"]), jax.random.key(i))
        for i in range(batches)
    ]
    loss, floor, excess, difference, square = np.mean(np.asarray(values, np.float64), axis=0)
    error = float(np.sqrt(square / (count * batches)))
    if abs(difference) > 6 * error:
        raise RuntimeError(
            f"{config.name}: loss {loss:.6f} is not floor {floor:.6f} + excess {excess:.6f} within {6 * error:.1e}: "
            "the loss and its closed form disagree."
        )
    return dict(
        loss=float(loss),
        loss_floor=float(floor),
        loss_excess_percent=float(100 * excess / floor),
        loss_standard_error=error,
    )


def digits(options: argparse.Namespace) -> None:
    """Trains configs/digits.py and takes over its receipts."""
    workdir = options.work / "digits"
    train(options.root, "configs/digits.py:tiny" if options.tiny else "configs/digits.py", workdir)
    replace_receipts(options.out / "receipts", "digits", last_receipts(workdir))
    publish_picture(workdir, options.out / "digits.png")


PARTS = {"samplers": samplers, "flows": flows, "digits": digits}


def more(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment alone."""
    parser.add_argument("--workers", type=int, default=0, help="flows: runs at a time (default: one a core)")
    parser.add_argument("--only", default="*", help="flows: only the runs whose name matches")


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts asked for; returns the exit status."""
    return run_parts(__file__, PARTS, arguments, more)


if __name__ == "__main__":
    sys.exit(main())

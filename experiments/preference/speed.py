"""Where the time of tuning goes: rollouts, updates, and rewards on the host with and without overlap.

    python experiments/preference/speed.py --teacher runs/preference/careless [--tiny] [--work DIR] [--out DIR]

Flow-GRPO on the text-to-image flow with rewards that cost nothing (in JAX), the parser of scenes (on the host), and one that
takes 50 ms a call (slow_reward.py), each in one piece and in chunks. Of every update but the first few:

    score_share     of the time of a rollout and its update, what the host spends on rewards
    wait_share      of that time, how long the device waited for the host
    rollout_share   of that time, drawing samples, rewards included
    rollout_rate    pictures a second that are drawn and judged
    update_rate     pictures a second that are learnt from, all their steps
    time_ratio      of that time, against the reward in JAX

and MFU: operations over the peak of the device or, where that is not listed, over what a large matrix product reaches on it.
"""

import argparse
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from flowjax.evaluation import run_files
from flowjax.evaluation.experiment import run_parts, train
from flowjax.evaluation.receipts import make_receipt, replace_receipts
from flowjax.training.speed import peak_flops

UPDATES, SKIPPED, BATCH = 12, 4, 256
BRIGHT = dict(bright=dict(name="brightness"))
SCENE = dict(right=dict(name="scene"))
SLOW = dict(slow=dict(name="python", function="experiments.preference.slow_reward:slow"))
# case -> rewards, and chunks of a rollout.
CASES = {
    "in JAX": (BRIGHT, 1),
    "parser": (SCENE, 1),
    "parser, 4 chunks": (SCENE, 4),
    "50 ms": (SLOW, 1),
    "50 ms a chunk, 4 chunks": (SLOW, 4),
}
QUIET = (
    "--config.evaluators={}",
    "--config.watchdog={'name': 'none'}",
    "--config.writers.tensorboard=False",
    "--config.when.sample.at_percent=()",
    "--config.when.evaluate.at_percent=()",
    "--config.when.log.every_steps=1",
    "--config.when.checkpoint.every_steps=0",
)


def speed(options: argparse.Namespace) -> None:
    """Every case."""
    peak = measured_peak()
    chosen = {name: case for name, case in CASES.items() if case[1] == 1 or not options.tiny}
    seen = {name: shares(options, index, peak, *case) for index, (name, case) in enumerate(chosen.items())}
    least = seen["in JAX"]["seconds"]
    receipts = []
    for name, values in seen.items():
        about, seconds = values.pop("about"), values.pop("seconds")
        values["time_ratio"] = seconds / least
        receipts += [make_receipt(metric, value, **about, rewards=name) for metric, value in values.items()]
        print(name, {metric: round(value, 3) for metric, value in values.items()}, flush=True)
    replace_receipts(options.out / "receipts", "speed", receipts)


def shares(options: argparse.Namespace, index: int, peak: float, rewards: dict, chunks: int) -> dict[str, Any]:
    """The medians of a run's updates; a folder that is there already is not trained again."""
    work = options.work / "speed" / str(index)
    updates, skipped = (3, 1) if options.tiny else (UPDATES, SKIPPED)
    argument = f"run={options.teacher.absolute()},method=flow_grpo,held=none,updates={updates}"
    argument += ",tiny" if options.tiny else ""
    size = (
        [f"--config.steps={updates}"]
        if options.tiny
        else [f"--config.batch_size={BATCH}", "--config.method.rollout.steps=8"]
    )
    config = f"configs/preference.py:{argument}"
    more = [f"--config.method.rewards={rewards!r}", f"--config.method.chunks={chunks}", f"--config.peak_flops={peak}"]
    train(options.root, config, work, *QUIET, *size, *more)
    lines = [line for line in run_files.read_lines(work / run_files.METRICS) if "loss" in line]
    spent = [now["training_seconds"] - before["training_seconds"] for before, now in zip(lines, lines[1:])][
        skipped - 1 :
    ]
    kept = lines[skipped:]
    median = lambda values: float(statistics.median(values))
    of_all = lambda name: median(line.get(name, 0.0) / total for line, total in zip(kept, spent))
    updating = [total - line["collect/seconds"] for line, total in zip(kept, spent)]
    waits = (line.get("collect/score_wait", 0.0) * line["collect/seconds"] / total for line, total in zip(kept, spent))
    written = run_files.read_json(work / run_files.CONFIG)
    about = dict(
        config=written,
        config_path="configs/preference.py",
        seed=written["seed"],
        images_seen=written["steps"] * written["batch_size"],
        seconds=lines[-1]["training_seconds"],
        sampler=written["method"]["rollout"]["name"],
        nfe=written["method"]["rollout"]["steps"],
        guidance_scale=None,
        ema="student",
        evaluator="the clock of the run",
        samples=len(kept),
    )
    return dict(
        seconds=median(spent),
        score_share=of_all("collect/score_seconds"),
        wait_share=median(waits),
        rollout_share=of_all("collect/seconds"),
        rollout_rate=median(written["batch_size"] / line["collect/seconds"] for line in kept),
        update_rate=median(written["batch_size"] / took for took in updating),
        mfu=median(line["mfu"] for line in kept),
        about=about,
    )


def measured_peak(side: int = 2048, times: int = 5) -> float:
    """Operations a second of a product of two square matrices, in float32, the fastest of some; 0 where the peak is listed."""
    device = jax.devices()[0]
    if peak_flops(device.device_kind) is not None:
        return 0.0
    square, took = jnp.ones((side, side)), []
    product = jax.jit(jnp.matmul).lower(square, square).compile()
    for _ in range(times):
        began = time.perf_counter()
        jax.block_until_ready(product(square, square))
        took.append(time.perf_counter() - began)
    return 2.0 * side**3 / min(took)


def more(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment alone."""
    parser.add_argument("--teacher", type=pathlib.Path, required=True, help="the finished run that is tuned")


def main(arguments: list[str] | None = None) -> int:
    """Runs the only part; returns the exit status."""
    return run_parts(__file__, {"speed": speed}, arguments, more)


if __name__ == "__main__":
    sys.exit(main())

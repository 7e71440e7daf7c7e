"""Tuning the text-to-image flow of experiments/text_to_image by the parser, as a black box on the host.

    python experiments/preference/shapes.py --teacher runs/text_to_image/main [--tiny] [--parts ...] [--work DIR] [--out DIR]

    flow_grpo, dance_grpo, nft, dpo, refl, hacked

Each part goes on from the finished run with configs/preference.py, under captions of two objects, and compares what it has
become with what it was, on the same new captions and from the same noise:

    caption_accuracy_2    wholly right, by the parser
    frechet               distance of EfficientNet features to real pictures
    spread                mean distance of pictures of one caption, over that of the first model

`refl` follows the gradient of brightness, a reward that it can differentiate. `hacked` has no divergence in its loss and is
paid for bright pictures: the watchdog, which reads captions, has to end it.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from flowjax.config import ConfigDict, load
from flowjax.evaluation import run_files
from flowjax.evaluation.experiment import last_receipts, run_parts, train
from flowjax.evaluation.receipts import replace_receipts
from flowjax.training.run import Run
from flowjax.training.sampling import Drawer, evaluate, make_evaluators

COUNT = 1_000  # captions of an evaluation
FEATURES = dict(name="efficientnet_lite0", layer="b10", input_size=64)
METRICS = ("caption_accuracy_2", "frechet")
BEFORE, AFTER = "before", "after"
GRID = dict(name="uniform")
PICTURES = dict(name="heun", steps=16, grid=GRID)
FEW = {"method.rollout.steps": 8}
# part -> argument of the config, overrides, and updates.
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "flow_grpo": ("method=flow_grpo_fast,reward=scene,hold=0.04", FEW, 240),
    "dance_grpo": ("method=dance_grpo,reward=scene,hold=0.04", FEW, 240),
    "nft": ("method=nft,reward=scene", {}, 240),
    "dpo": ("method=dpo,reward=scene", {}, 240),
    "refl": ("method=refl,reward=brightness", {}, 100),
    "hacked": ("method=flow_grpo_fast,reward=brightness,hold=0,held=scene", FEW, 240),
}
WATCH = {"watchdog.count": 128, "watchdog.steps": 10}
QUIET = (
    "--config.evaluators={}",
    "--config.writers.tensorboard=False",
    "--config.when.sample.at_percent=(100,)",
    "--config.when.evaluate.at_percent=(10, 25, 50, 75, 100)",
)


def part(name: str) -> Callable[[argparse.Namespace], None]:
    """The part of one case."""

    def run(options: argparse.Namespace) -> None:
        argument, changes, updates = CASES[name]
        argument = f"run={options.teacher.absolute()},{argument},updates={updates}"
        argument += ",tiny" if options.tiny else ""
        own = dict(changes) if options.tiny else {**changes, **WATCH, "data.objects": (2, 2)}
        config = f"{options.root}/configs/preference.py:{argument}"
        overrides = [f"{key}={value!r}" for key, value in own.items()]
        work = options.work / "shapes" / name
        if not ended_by_watchdog(work):
            try:
                train(options.root, config, work, *(f"--config.{change}" for change in overrides), *QUIET)
            except RuntimeError:
                if not ended_by_watchdog(work):
                    raise
        size = (16, dict(name="identity")) if options.tiny else (COUNT, FEATURES)
        measured = compared(ConfigDict(load(config, overrides)), work, *size)
        receipts = [*measured, *watched(work)]
        replace_receipts(options.out / "receipts", f"shapes_{name}", [{**r, "method": name} for r in receipts])

    return run


def compared(config: ConfigDict, work: pathlib.Path, count: int, features: dict[str, Any]) -> list[dict[str, Any]]:
    """What a finished run draws and what it drew before, measured alike."""
    config.samplers = {"drawn": dict(PICTURES, role="ema", guidance=config.samplers.default.guidance)}
    config.evaluation = dict(count=count, batch_size=min(count, 250))
    config.evaluators = dict(captions=dict(name="caption_accuracy"), frechet=dict(name="frechet", features=features))
    run = Run(config, work)
    state, drawer, evaluators = run.latest_state(), Drawer(run), make_evaluators(run)
    step = int(state.step)
    seconds = run_files.seconds_until(work, step, "training_seconds")
    found = []
    for when, role in ((AFTER, "ema"), (BEFORE, "watchdog_reference")):
        params = {**state.params, "ema": state.params[role]}
        values, receipts = evaluate(run, drawer, evaluators, params, step, "drawn", seconds, average=role)
        print(when, {name: round(values[name], 4) for name in METRICS if name in values}, flush=True)
        found += [{**receipt, "when": when} for receipt in receipts if receipt["metric"] in METRICS]
    return found


def ended_by_watchdog(work: pathlib.Path) -> str:
    """Why the watchdog has ended a run; empty where it has not."""
    status = run_files.read_json(work / run_files.STATUS) or {}
    message = status.get("message", "")
    return message if status.get("state") == "stopped" and "watchdog" in message else ""


def watched(work: pathlib.Path) -> list[dict[str, Any]]:
    """What the watchdog saw last, and of a run that it ended, why."""
    reason = ended_by_watchdog(work)
    ended = dict(ended=reason) if reason else {}
    return [{**receipt, "when": AFTER, **ended} for receipt in last_receipts(work)]


def more(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment alone."""
    parser.add_argument("--teacher", type=pathlib.Path, required=True, help="the finished run that is tuned")


PARTS = {name: part(name) for name in CASES}


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts asked for; returns the exit status."""
    return run_parts(__file__, PARTS, arguments, more)


if __name__ == "__main__":
    sys.exit(main())

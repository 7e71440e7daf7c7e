"""Reward models held against the noise of the comparisons that they learn from.

    python experiments/preference/reward_model.py [--tiny] [--parts points style features ...] [--work DIR] [--out DIR]

    points, style, degraded, caption, features

Scores of points and of pictures of shapes are known, and so is how often the better example loses: held-out accuracy stands
beside the best there can be. `features` is `style` again, by a head on the features of a published network, which have to be
prepared (see the header of configs/reward_model.py).
"""

import argparse
import shutil
import sys
from collections.abc import Callable

from flowjax.evaluation.experiment import last_receipts, run_parts, train
from flowjax.evaluation.receipts import replace_receipts
from flowjax.evaluation.run_files import SAMPLES

POINTS = {"pair": "loss=pair", "tie": "loss=tie", "ranking": "loss=ranking,examples=5"}
SHAPES = {
    "style": ("pair", "data=shapes,kind=style", 800),
    "degraded": ("pair", "data=shapes,kind=degraded", 2_000),
    "caption": ("pair", "data=shapes,kind=caption", 4_000),
    "features": ("pair", "data=shapes,kind=style,features=efficientnet_lite0", 800),
}
SEEN = {"features": ("--config.method.scorer.trunk.input_size=64",)}


def reward_run(options: argparse.Namespace, name: str, argument: str, *overrides: str) -> list[dict]:
    """The receipts of a run, trained unless it is there."""
    argument += ",tiny" if options.tiny else ""
    work = options.work / name
    train(options.root, f"configs/reward_model.py:{argument}", work, "--config.writers.tensorboard=False", *overrides)
    return last_receipts(work)


def points(options: argparse.Namespace) -> None:
    """Every loss on points with a linear score."""
    found = []
    for loss, argument in POINTS.items():
        steps = [] if options.tiny else ["--config.steps=1000"]
        found += [
            {**r, "data": "points", "loss": loss} for r in reward_run(options, f"points_{loss}", argument, *steps)
        ]
    replace_receipts(options.out / "receipts", "reward_points", found)


def shapes(kind: str) -> Callable[[argparse.Namespace], None]:
    """The part of one kind of comparison: pictures of one object, by a taste, their quality or their caption."""

    def part(options: argparse.Namespace) -> None:
        loss, argument, steps = SHAPES[kind]
        more = ["--config.data.objects=(1, 1)", *SEEN.get(kind, ())]
        if not options.tiny:
            more.append(f"--config.steps={steps}")
        elif kind in SEEN:  # which nobody has to prepare
            more.append("--config.method.scorer.trunk.weights=random")
        found = reward_run(options, f"shapes_{kind}", argument, *more)
        picture = sorted((options.work / f"shapes_{kind}" / SAMPLES).glob("*_default.png"))[-1]
        shutil.copyfile(picture, options.out / f"reward_{kind}.png")
        receipts = [{**receipt, "data": kind, "loss": loss} for receipt in found]
        replace_receipts(options.out / "receipts", f"reward_{kind}", receipts)

    return part


PARTS = {"points": points, **{kind: shapes(kind) for kind in SHAPES}}


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts asked for; returns the exit status."""
    return run_parts(__file__, PARTS, arguments)


if __name__ == "__main__":
    sys.exit(main())

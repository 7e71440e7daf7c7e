"""Shapes, measured: how often the parser reads a scene wholly right, and how fast scenes are drawn and read.

    python experiments/parser/run.py [--tiny] [--parts accuracy speed] [--work DIR] [--out DIR]

Scenes have one to six objects of every kind, colour, size and texture, and a written
word in half of them; at 16 x 16, where small objects have no kind, up to four large plain ones without words.
"""

import argparse
import sys
import time

import numpy as np
from scipy import ndimage, stats

from flowjax.data.shapes import shapes
from flowjax.evaluation.experiment import run_parts
from flowjax.evaluation.receipts import make_receipt, replace_receipts
from flowjax.shapes.agreement import agree
from flowjax.shapes.parse import parse
from flowjax.shapes.render import render
from flowjax.shapes.scenes import COLUMNS, Scene, SceneLaw

COUNT, TIMED, ROUNDS = 2_000, 1_000, 5
ALL = dict(objects=(1, 6), words=0.5)
LARGE = dict(objects=(1, 4), words=0.0, sizes=("large",), textures=("plain",))
SIZES = {16: LARGE, 32: ALL, 64: ALL}
CORRUPTIONS = (
    (0.0, 0.0),
    (0.5, 0.0),
    (0.0, 8.0),
    (0.5, 8.0),
    (0.0, 16.0),
    (1.0, 0.0),
)  # blur in pixels, noise in levels


def draw(law: dict, count: int) -> Scene:
    """Scenes of a law."""
    return SceneLaw(**law).draw(np.random.default_rng(0).random((count, COLUMNS)))


def corrupted(images: np.ndarray, blur: float, noise: float) -> np.ndarray:
    """Blurred, then with normal noise, rounded to bytes."""
    values = ndimage.gaussian_filter(images.astype(np.float32), (0, blur, blur, 0)) if blur else images
    values = values + np.random.default_rng(1).normal(0, noise, images.shape)
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def receipt(metric: str, value: float, count: int, seconds: float, evaluator: str, law: dict, **more) -> dict:
    """A receipt of something that no model took part in."""
    return make_receipt(
        metric,
        value,
        config=law,
        config_path="experiments/parser/run.py",
        seed=0,
        images_seen=0,
        seconds=seconds,
        sampler="none",
        nfe=None,
        guidance_scale=None,
        ema="none",
        evaluator=evaluator,
        samples=count,
        better="higher",
        **more,
    )


def accuracy(options: argparse.Namespace) -> None:
    """Scenes read wholly right, by the size of the picture, blur and noise."""
    count, receipts = 40 if options.tiny else COUNT, []
    for side, law in SIZES.items():
        scenes = draw(law, count)
        images = render(scenes, side, side)
        for blur, noise in CORRUPTIONS:
            began = time.perf_counter()
            right = agree(scenes, parse(corrupted(images, blur, noise)))
            low, high = stats.binomtest(int(right.sum()), count).proportion_ci()  # Clopper and Pearson's
            receipts.append(
                receipt(
                    "parser_accuracy",
                    float(right.mean()),
                    count,
                    time.perf_counter() - began,
                    "scenes wholly right: number, kind, colour, size, texture, place, background, word",
                    law,
                    interval=[float(low), float(high)],
                    side=side,
                    blur=blur,
                    noise=noise,
                )
            )
            print(f"{side} x {side}, blur {blur}, noise {noise}: {receipts[-1]['value']:.4f}", flush=True)
    replace_receipts(options.out / "receipts", "accuracy", receipts)


def speed(options: argparse.Namespace) -> None:
    """Pictures a second: captioned scenes drawn as training draws them, and pictures read."""
    count, receipts = 40 if options.tiny else TIMED, []
    for objects in ((1, 2), (1, 6)):
        law = dict(ALL, objects=objects)
        images = corrupted(render(draw(law, count), 32, 32), 0.5, 8.0)
        source = shapes(resolution=32, objects=objects)
        calls = {
            "drawn": lambda source=source: source.examples("train", count),
            "read": lambda images=images: parse(images),
        }
        for work, call in calls.items():
            call()
            times = []
            for _ in range(ROUNDS):
                began = time.perf_counter()
                call()
                times.append(time.perf_counter() - began)
            rate = count / float(np.median(times))
            law_of_work = dict(law, work=work)
            receipts.append(
                receipt(
                    "images_per_second", rate, count, sum(times), f"median of {ROUNDS} times", law_of_work,
                    work=work, objects=f"{objects[0]} to {objects[1]}",
                )
            )  # fmt: skip
            print(f"{objects[0]} to {objects[1]} objects, {work}: {rate:,.0f} pictures/s", flush=True)
    replace_receipts(options.out / "receipts", "speed", receipts)


PARTS = {"accuracy": accuracy, "speed": speed}


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts asked for; returns the exit status."""
    return run_parts(__file__, PARTS, arguments)


if __name__ == "__main__":
    sys.exit(main())

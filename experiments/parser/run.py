"""Shapes, measured: how often the parser reads a scene wholly right, and how fast pictures are drawn, read and delivered.

    python experiments/parser/run.py [--tiny] [--parts accuracy speed loading] [--work DIR] [--out DIR]

    accuracy    scenes read wholly right, by size, blur and noise
    speed       scenes drawn and read, pictures a second
    loading     batches of scenes and of prepared emoji, pictures a second; what a short training takes of them, and for how
                much of its time it waited. Emoji are left out where `python -m flowjax.data.prepare emoji` was not run

Scenes have one to six objects of every kind, colour, size and texture, and a written
word in half of them; at 16 x 16, where small objects have no kind, up to four large plain ones without words.
"""

import argparse
import sys
import time

import numpy as np
from scipy import ndimage, stats

from flowjax.choices import build
from flowjax.config import load
from flowjax.data import SOURCES, make_iterator
from flowjax.data.records import NotPrepared
from flowjax.data.shapes import shapes
from flowjax.evaluation import run_files
from flowjax.evaluation.experiment import run_parts, train
from flowjax.evaluation.receipts import replace_receipts, sampler_free
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

UPDATES = 100
# What is trained: the config with its choices.
TRAINED = {
    "shapes, 16 x 16": ("configs/shapes.py",),
    "shapes, 32 x 32": ("configs/shapes.py", "resolution=32"),
    "emoji, 32 x 32": ("configs/emoji.py", "text=words"),
}


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
    return sampler_free(
        metric,
        value,
        config=law,
        config_path="experiments/parser/run.py",
        seed=0,
        images_seen=0,
        seconds=seconds,
        evaluator=evaluator,
        samples=count,
        **{"better": "higher", **more},
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


def loading(options: argparse.Namespace) -> None:
    """What the pipeline of a config gives, alone; and what its training takes, by the log of a run of some updates."""
    receipts, steps = [], 8 if options.tiny else UPDATES
    for name, (config_file, *choices) in TRAINED.items():
        chosen = ",".join([*choices, *(["tiny"] if options.tiny else [])])
        config_name = ":".join(filter(None, (str(options.root / config_file), chosen)))
        config = load(config_name)
        try:
            source = build("data source", config.data, SOURCES, seed=0, total_steps=steps)
        except NotPrepared as error:
            print(f"{name}: left out. {error}", flush=True)
            continue
        batch, loader = config.batch_size, config.loader
        iterator = make_iterator(source, batch, threads=loader.threads, prefetch=loader.prefetch)
        times = []
        for _ in range(ROUNDS + 1):
            began = time.perf_counter()
            for _ in range(steps // config.steps_per_dispatch):
                iterator.stack_batches(config.steps_per_dispatch)
            times.append(time.perf_counter() - began)
        iterator.close()
        workdir = options.work / f"loading_{name.replace(' ', '_').replace(',', '')}"
        never = [f"--config.when.{event}.at_percent=()" for event in ("evaluate", "sample")]
        log = f"--config.when.log.every_steps={steps // 2 if options.tiny else 20}"
        train(options.root, config_name, workdir, f"--config.steps={steps}", log, *never, "--config.evaluators={}")
        # The first line has the compilation in it.
        lines = [line for line in run_files.read_lines(workdir / run_files.METRICS) if "loss" in line][1:]
        pictures, about = batch * steps, dict(law=config.data.to_dict(), data=name)
        wait = float(np.median([line["data_wait"] for line in lines]))
        taken = float(np.median([line["images_per_second"] for line in lines]))
        given = pictures / float(np.median(times[1:]))
        receipts += [
            receipt("images_per_second", given, pictures, sum(times[1:]), f"median of {ROUNDS} times", work="given", **about),
            receipt("images_per_second", taken, pictures, lines[-1]["seconds"], "median of log lines", work="taken", **about),
            receipt(
                "data_wait", wait, pictures, lines[-1]["seconds"], "median of log lines", work="waited", better="lower", **about
            ),
        ]  # fmt: skip
        print(f"{name}: {given:,.0f} pictures/s given, {taken:,.0f} taken, {wait:.1%} waited", flush=True)
    replace_receipts(options.out / "receipts", "loading", receipts)


PARTS = {"accuracy": accuracy, "speed": speed, "loading": loading}


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts asked for; returns the exit status."""
    return run_parts(__file__, PARTS, arguments)


if __name__ == "__main__":
    sys.exit(main())

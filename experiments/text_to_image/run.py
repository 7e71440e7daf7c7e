"""Text to image on scenes, measured by a parser: how many captions come out wholly right, and what that depends on.

    python experiments/text_to_image/run.py [--tiny] [--parts main networks ablations accelerator] [--work DIR] [--out DIR]

    main        configs/shapes.py, then accuracy by number of objects, by attribute, on
                held-out combinations and by guidance scale
    networks    the learning curves of all networks of the config, eight minutes of training each
    ablations   python -m flowjax.sweep --config=configs/shapes.py: one change at a time, equal updates
    accelerator configs/shapes.py:accelerator, 64 x 64, measured on one to six objects and on written words; it is not
                among the parts that run unless asked for

Finished runs are not trained again. `--tiny` does a little of everything in some minutes, and writes to the work folder.
"""

import argparse
import pathlib
import sys
import time

from flowjax.config import ConfigDict, load
from flowjax.data import SOURCES
from flowjax.evaluation import run_files, tables
from flowjax.evaluation.captions import shares
from flowjax.evaluation.experiment import last_receipts, publish_picture, run_parts, sweep, train
from flowjax.evaluation.receipts import make_receipt, read_receipts, replace_receipts
from flowjax.shapes.requirements import understand
from flowjax.sweep.jobs import plan
from flowjax.training.run import Run
from flowjax.training.sampling import Drawer

CONFIG = "configs/shapes.py"
FIRST, NETWORKS = "main", ("unet", "dit", "mmdit")
CURVE_SECONDS = 480  # of training, for each network
CURVE = (
    "--config.when.evaluate.at_percent=(20, 40, 60, 80, 100)",
    "--config.when.sample.at_percent=(100,)",
    "--config.evaluation.count=256",
)
SCALES = (1.0, 1.5, 2.5, 4.0)
PROGRESS = (
    "caption_accuracy",
    "caption_accuracy_1",
    "caption_accuracy_2",
    "caption_accuracy_real",
    "caption_accuracy_floor",
)
COMPARED = (
    *("caption_accuracy", "caption_accuracy_1", "caption_accuracy_2"),
    *("caption_count", "caption_colour", "caption_kind", "sliced_w2_ratio"),
)
COUNT, FEW = 1_000, 16  # captions of one kind
SEED = 7  # of the captions: no run evaluates itself on them


def measure(argument: str, workdir: pathlib.Path, count: int, numbers=(1, 2), words: bool = False) -> list[dict]:
    """Accuracy of a finished run by number of objects, on held-out combinations, on written words, and by guidance."""
    config = ConfigDict(load(argument).to_dict())
    default = config.samplers.default.to_dict()
    scales = {f"scale_{index}": scale for index, scale in enumerate(SCALES)}
    for name, scale in scales.items():
        guidance = {**default["guidance"], "scale": scale} if scale != 1.0 else dict(name="none")
        config.samplers[name] = {**default, "guidance": guidance}
    run = Run(config, workdir)
    state = run.latest_state()
    drawer = Drawer(run)
    chosen = next(name for name, scale in scales.items() if scale == default["guidance"]["scale"])
    cases = [(chosen, split, number) for split in ("test", "held_out") for number in numbers]
    cases += [(chosen, "words", 1)] if words else []
    cases += [(name, "test", 2) for name in scales if name != chosen]
    receipts = []
    for sampler, split, number in cases:
        tokens = captions_of(config, split, number, count, run.source.spec.text_length)
        began = time.perf_counter()
        samples = drawer.draw(state.params, sampler, {"tokens": tokens}, count, f"text_to_image/{split}/{number}", 128)
        sampling = time.perf_counter() - began
        values = shares(samples, understand(run.source.tokenizer.decode(tokens)))
        described = run.method.samplers[sampler].description
        receipts.append(
            make_receipt(
                "caption_accuracy",
                values.pop("caption_accuracy"),
                config=config.to_dict(),
                config_path=CONFIG,
                seed=config.seed,
                images_seen=int(state.step) * config.batch_size,
                seconds=run_files.seconds_until(workdir, int(state.step)),
                sampler=described["sampler"],
                nfe=described["nfe"],
                guidance_scale=scales[sampler],
                ema=run.method.samplers[sampler].role,
                evaluator="the parser of flowjax/shapes, wholly right",
                samples=count,
                interval=[values.pop("caption_accuracy_low"), values.pop("caption_accuracy_high")],
                network=config.network.name,
                split=split,
                objects=number,
                step=int(state.step),
                better="higher",
                sampling_seconds=sampling,
                **{name: value for name, value in values.items() if not name.startswith("caption_accuracy_")},
            )
        )
        print(f"guidance {scales[sampler]}, {split}, {number} objects: {receipts[-1]['value']:.3f}", flush=True)
    return receipts


def captions_of(config: ConfigDict, split: str, number: int, count: int, length: int):
    """Tokens of captions of scenes with so many objects; held-out combinations are those of kind and colour."""
    options = {**config.data.to_dict(), "objects": (number, number), "text_length": length}
    if split == "held_out":
        options["textures"] = ("plain",)
    elif split == "words":
        options["words"], split = 1.0, "test"
    source = SOURCES[options.pop("name")](**options)
    return source.reference(split, count, SEED)["tokens"]


def config_of(options: argparse.Namespace, *choices: str) -> str:
    """The config with its choices, as a command line names it."""
    chosen = ",".join([*(["tiny"] if options.tiny else []), *choices])
    return f"{options.root / CONFIG}:{chosen}" if chosen else str(options.root / CONFIG)


def main_run(options: argparse.Namespace) -> None:
    """Trains the config and measures it."""
    workdir, config = options.work / FIRST, config_of(options)
    train(options.root, config, workdir)
    replace_receipts(options.out / "receipts", "main", measure(config, workdir, FEW if options.tiny else COUNT))
    written = read_receipts(workdir / run_files.RECEIPTS)
    progress = [{**r, "minutes": round(r["seconds"] / 60)} for r in written if r["metric"] in PROGRESS]
    replace_receipts(options.out / "receipts", "progress", progress)
    publish_picture(workdir, options.out / "samples.png")


def networks(options: argparse.Namespace) -> None:
    """Trains every network for the same time, and draws accuracy against time."""
    receipts = []
    for network in NETWORKS:
        config = config_of(options, f"network={network}")
        steps = 8 if options.tiny else updates_in(options, config, options.work / f"{network}_trial")
        workdir = options.work / network
        train(options.root, config, workdir, f"--config.steps={steps}", *CURVE)
        written = read_receipts(workdir / run_files.RECEIPTS)
        for receipt in (receipt for receipt in written if receipt["metric"] in COMPARED):
            trained = run_files.seconds_until(workdir, receipt["step"], "training_seconds")
            receipts.append({**receipt, "network": network, "minutes": round(trained / 60, 1)})
    replace_receipts(options.out / "receipts", "networks", receipts)
    about = dict(x="minutes", lines="network", where="metric=caption_accuracy")
    titles = {"minutes": "minutes of training", "value": "captions wholly right"}
    tables.figure(options.out / "networks.png", receipts, title="Networks at equal time", titles=titles, **about)


def updates_in(options: argparse.Namespace, config: str, trial: pathlib.Path) -> int:
    """How many updates of a config take CURVE_SECONDS, from a short trial of it."""
    quiet = ("--config.evaluators={}", "--config.when.sample.at_percent=()", "--config.when.evaluate.at_percent=()")
    train(options.root, config, trial, "--config.steps=300", *quiet)
    speeds = [line["images_per_second"] for line in run_files.read_lines(trial / run_files.METRICS) if "loss" in line]
    batch = run_files.read_json(trial / run_files.CONFIG)["batch_size"]
    return int(CURVE_SECONDS * speeds[-1] / batch) // 100 * 100


def ablations(options: argparse.Namespace) -> None:
    """One change at a time, by the sweep of the config."""
    out, config = options.work / "ablations", config_of(options)
    sweep(options.root, config, out)
    receipts = [
        {**receipt, "change": job.point[":change"]}
        for job in plan(config, [], out)
        for receipt in last_receipts(job.directory)
        if receipt["metric"] in COMPARED
    ]
    replace_receipts(options.out / "receipts", "ablations", receipts)


def accelerator(options: argparse.Namespace) -> None:
    """Trains and measures the large config."""
    workdir, config = options.work / "accelerator", config_of(options, "accelerator")
    train(options.root, config, workdir)
    receipts = measure(config, workdir, FEW if options.tiny else COUNT, range(1, 7), words=True)
    replace_receipts(options.out / "receipts", "accelerator", receipts)
    publish_picture(workdir, options.out / "samples_accelerator.png")


PARTS = {"main": main_run, "networks": networks, "ablations": ablations, "accelerator": accelerator}


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts asked for; returns the exit status."""
    return run_parts(__file__, PARTS, arguments, default=("main", "networks", "ablations"))


if __name__ == "__main__":
    sys.exit(main())

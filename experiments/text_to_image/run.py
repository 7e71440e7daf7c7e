"""Text to image on scenes, measured by a parser: how many captions come out wholly right, and what that depends on.

    python experiments/text_to_image/run.py [--tiny] [--parts main networks ablations full accelerator] [--work DIR]
        [--out DIR] [--features efficientnet_lite0 | pixels]

    main        configs/shapes.py; the scale of guidance, chosen on captions of its own; then, on others, accuracy by number
                of objects, by attribute and on held-out combinations, distances to real pictures, and pictures
    networks    the learning curves of all networks of the config, eight minutes of training each
    ablations   python -m flowjax.sweep --config=configs/shapes.py: one change at a time, equal updates
    full        configs/shapes.py:resolution=32,captions=both, measured like `main` and on captions that say everything: sizes,
                textures, backgrounds
    accelerator configs/shapes.py:accelerator, 64 x 64, the same on one to six objects, and on written words

The last two run only when they are asked for. Distances are between features of EfficientNet-Lite0, whose weights
`python -m flowjax.data.prepare efficientnet_lite0` fetches; `--features pixels` does without. Finished runs are not trained
again. `--tiny` does a little of everything in some minutes, without weights, and writes to the work folder.
"""

import argparse
import pathlib
import sys
import time
from collections.abc import Iterable, Sequence

import numpy as np

from flowjax.config import ConfigDict, load
from flowjax.data import SOURCES
from flowjax.evaluation import run_files, tables
from flowjax.evaluation.captions import shares
from flowjax.evaluation.experiment import last_receipts, publish_picture, run_parts, sweep, train
from flowjax.evaluation.pictures import captioned_grid, save_png
from flowjax.evaluation.receipts import make_receipt, read_receipts, replace_receipts
from flowjax.models.weights import MissingWeights, find_weights
from flowjax.shapes.requirements import understand
from flowjax.sweep.jobs import plan
from flowjax.training.run import Run
from flowjax.training.sampling import Drawer, evaluate, make_evaluators

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
SEED = 7  # of the captions that are reported: no run evaluates itself on them
CHOOSING_SEED = 8  # of those that the scale of guidance is chosen on
PICTURED = 48  # held-out captions in the picture
FEATURES = {  # what distances are measured on
    "efficientnet_lite0": dict(name="efficientnet_lite0", layer="b10", input_size=64),
    "pixels": dict(name="identity"),
}


class Measured:
    """A finished run with a sampler for every scale of guidance.

    Args:
      config_name: its config, as a command line names it.
      workdir: where it is.
      count: how many captions of one kind.
      features: for distances, a name in FEATURES.
    """

    def __init__(self, config_name: str, workdir: pathlib.Path, count: int, features: str):
        self.config, self.count = ConfigDict(load(config_name).to_dict()), count
        default = self.config.samplers.default.to_dict()
        for scale in SCALES:
            guidance = dict(name="none") if scale == 1.0 else {**default["guidance"], "scale": scale}
            self.config.samplers[sampler_of(scale)] = {**default, "guidance": guidance}
        seen = dict(features=FEATURES[features], split="test")
        self.config.evaluation.count = count
        self.config.evaluators = dict(
            frechet=dict(name="frechet", **seen),
            kid=dict(name="kid", subset_size=max(2, count // 5), **seen),
            precision_recall=dict(name="precision_recall", **seen),
        )
        self.run = Run(self.config, workdir)
        self.state, self.drawer = self.run.latest_state(), Drawer(self.run)
        self.step = int(self.state.step)
        self.seconds = run_files.seconds_until(workdir, self.step)

    def drawn(self, scale: float, split: str, number: int, seed: int = SEED) -> tuple[np.ndarray, list[str], float]:
        """Samples, their captions, and the seconds it took.

        Args:
          scale: of guidance.
          split: 'test', 'held_out', 'full' for captions that say everything, or 'words' for scenes with a written word.
          number: of objects in a scene.
          seed: of the captions.
        """
        tokens = captions_of(self.config, split, number, self.count, self.run.source.spec.text_length, seed)
        conditions, stream = {"tokens": tokens}, f"text_to_image/{split}/{number}/{seed}"
        began = time.perf_counter()
        samples = self.drawer.draw(
            self.state.params, sampler_of(scale), conditions, self.count, stream, self.config.evaluation.batch_size
        )
        return samples, self.run.source.tokenizer.decode(tokens), time.perf_counter() - began

    def accuracy(self, scale: float, split: str, number: int, seed: int = SEED) -> dict:
        """The receipt of the share of captions that are drawn wholly right, and of what they say, attribute by attribute."""
        samples, captions, sampling = self.drawn(scale, split, number, seed)
        values = shares(samples, understand(captions))
        sampler = self.run.method.samplers[sampler_of(scale)]
        receipt = make_receipt(
            "caption_accuracy",
            values.pop("caption_accuracy"),
            config=self.config.to_dict(),
            config_path=CONFIG,
            seed=self.config.seed,
            images_seen=self.step * self.config.batch_size,
            seconds=self.seconds,
            sampler=sampler.description["sampler"],
            nfe=sampler.description["nfe"],
            guidance_scale=scale,
            ema=sampler.role,
            evaluator="the parser of flowjax/shapes, wholly right",
            samples=self.count,
            interval=[values.pop("caption_accuracy_low"), values.pop("caption_accuracy_high")],
            network=self.config.network.name,
            split=split,
            objects=number,
            captions_seed=seed,
            step=self.step,
            better="higher",
            sampling_seconds=sampling,
            **{name: value for name, value in values.items() if not name.startswith("caption_accuracy_")},
        )
        print(f"guidance {scale}, {split}, {number} objects: {receipt['value']:.3f}", flush=True)
        return receipt

    def distances(self, scale: float) -> list[dict]:
        """Receipts of the distances to real pictures, each with that of real pictures to each other."""
        evaluators, sampler = make_evaluators(self.run), sampler_of(scale)
        return evaluate(self.run, self.drawer, evaluators, self.state.params, self.step, sampler, self.seconds)[1]

    def held_out_picture(self, scale: float, numbers: Sequence[int]) -> np.ndarray:
        """Samples under captions of held-out combinations, as many for each number of objects."""
        each, samples, captions = PICTURED // len(numbers), [], []
        for number in numbers:
            drawn, said, _ = self.drawn(scale, "held_out", number)
            samples.append(drawn[:each])
            captions += said[:each]
        return captioned_grid(np.concatenate(samples), captions)


def sampler_of(scale: float) -> str:
    """The name of the sampler with a scale of guidance."""
    return f"scale_{SCALES.index(scale)}"


def captions_of(config: ConfigDict, split: str, number: int, count: int, length: int, seed: int) -> np.ndarray:
    """Tokens of captions of scenes with so many objects; held-out combinations are those of kind and colour."""
    options = {**config.data.to_dict(), "objects": (number, number), "text_length": length}
    if split == "held_out":
        options["textures"] = ("plain",)
    elif split == "full":
        options["captions"], split = "full", "test"
    elif split == "words":
        options["words"], split = 1.0, "test"
    source = SOURCES[options.pop("name")](**options)
    return source.reference(split, count, seed)["tokens"]


def measure(
    options: argparse.Namespace,
    part: str,
    choices: Iterable[str] = (),
    numbers: Sequence[int] = (1, 2),
    words: bool = False,
) -> None:
    """Trains the config with its choices, chooses the scale of guidance, measures; writes receipts and pictures.

    Args:
      options: of the command line.
      part: of the experiment. Receipts of the choice and of distances are parts of their own, PART_guidance and
        PART_distances.
      choices: of the config.
      numbers: of objects.
      words: whether the config has written words.
    """
    features = options.features or ("pixels" if options.tiny else "efficientnet_lite0")
    try:
        if features != "pixels":
            find_weights(features)  # before hours of training
    except MissingWeights as error:
        raise SystemExit(f"{error} Or measure distances of pixels: --features pixels.") from error
    workdir, config = options.work / part, config_of(options, *choices)
    train(options.root, config, workdir)
    measured = Measured(config, workdir, FEW if options.tiny else COUNT, features)
    publish = lambda name, receipts: replace_receipts(options.out / "receipts", name, receipts)
    choosing = [measured.accuracy(scale, "test", max(numbers), CHOOSING_SEED) for scale in SCALES]
    publish(f"{part}_guidance", choosing)
    scale = max(choosing, key=lambda receipt: receipt["value"])["guidance_scale"]
    splits = ["test", "held_out"] + (["full"] if measured.config.data.captions != "short" else [])
    cases = [(split, number) for split in splits for number in numbers] + ([("words", 1)] if words else [])
    publish(part, [measured.accuracy(scale, *case) for case in cases])
    publish(f"{part}_distances", measured.distances(scale))
    ending = "" if part == FIRST else f"_{part}"
    save_png(options.out / f"held_out{ending}.png", measured.held_out_picture(scale, numbers))
    publish_picture(workdir, options.out / f"samples{ending}.png")


def config_of(options: argparse.Namespace, *choices: str) -> str:
    """The config with its choices, as a command line names it."""
    chosen = ",".join([*(["tiny"] if options.tiny else []), *choices])
    return f"{options.root / CONFIG}:{chosen}" if chosen else str(options.root / CONFIG)


def main_run(options: argparse.Namespace) -> None:
    """Trains the config and measures it, and how it came there."""
    measure(options, FIRST)
    written = read_receipts(options.work / FIRST / run_files.RECEIPTS)
    progress = [{**r, "minutes": round(r["seconds"] / 60)} for r in written if r["metric"] in PROGRESS]
    replace_receipts(options.out / "receipts", "progress", progress)


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


PARTS = {
    FIRST: main_run,
    "networks": networks,
    "ablations": ablations,
    "full": lambda options: measure(options, "full", ("resolution=32", "captions=both")),
    "accelerator": lambda options: measure(options, "accelerator", ("accelerator",), range(1, 7), words=True),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts asked for; returns the exit status."""
    more = lambda parser: parser.add_argument("--features", choices=FEATURES, help="what distances are measured on")
    return run_parts(__file__, PARTS, arguments, more, default=("main", "networks", "ablations"))


if __name__ == "__main__":
    sys.exit(main())

"""Text to image on scenes, measured by a parser: how many captions come out wholly right, and what that depends on.

    python experiments/text_to_image/run.py [--tiny] [--parts main networks ablations] [--work DIR] [--out DIR]

    main        configs/shapes.py, about 45 minutes on two CPU cores, then accuracy by number of objects, by attribute, on
                held-out combinations and by guidance scale
    networks    the learning curves of all networks of the config, each for the time `main` took
    ablations   python -m flowjax.sweep --config=configs/shapes.py: one change at a time, equal updates

Finished runs are not trained again. `--tiny` does a little of everything in some minutes, and writes to the work folder.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
import time

from flowjax.config import ConfigDict, load
from flowjax.data import SOURCES
from flowjax.evaluation import run_files, tables
from flowjax.evaluation.captions import shares
from flowjax.evaluation.receipts import make_receipt, replace_receipts
from flowjax.shapes.requirements import understand
from flowjax.sweep.jobs import plan
from flowjax.training.run import Run
from flowjax.training.sampling import Drawer

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
CONFIG = "configs/shapes.py"
FIRST, OTHERS = "unet", ("dit", "mmdit")
SCALES = (1.0, 1.5, 2.5, 4.0)
COUNT, FEW = 1_000, 16  # captions of one kind
SEED = 7  # of the captions: no run evaluates itself on them


def train(config: str, workdir: pathlib.Path, *overrides: str) -> None:
    """Trains a config unless it is finished; goes on where it was cut off."""
    status = run_files.read_json(workdir / run_files.STATUS) or {}
    if status.get("state") == "finished":
        return
    arguments = [sys.executable, "-m", "flowjax.main", f"--config={config}", f"--workdir={workdir}", *overrides]
    if subprocess.run(arguments, cwd=ROOT).returncode:
        raise RuntimeError(f"The run in {workdir} failed. Mend what it says, then run this again.")


def seconds_of(workdir: pathlib.Path) -> float:
    """How long a run trained, evaluation included."""
    return [line for line in run_files.read_lines(workdir / run_files.METRICS) if "loss" in line][-1]["seconds"]


def measure(argument: str, workdir: pathlib.Path, count: int) -> list[dict]:
    """Accuracy of a finished run on captions of one object, of two, and with held-out combinations; and by guidance."""
    config = ConfigDict(load(argument).to_dict())
    default = config.samplers.default.to_dict()
    scales = {f"scale_{index}": scale for index, scale in enumerate(SCALES)}
    for name, scale in scales.items():
        guidance = {**default["guidance"], "scale": scale} if scale != 1.0 else dict(name="none")
        config.samplers[name] = {**default, "guidance": guidance}
    run = Run(config, workdir)
    checkpoints = run.checkpoints(read_only=True)
    state, _ = checkpoints.restore(checkpoints.latest(), run.executor.abstract)
    checkpoints.close()
    drawer = Drawer(run)
    chosen = next(name for name, scale in scales.items() if scale == default["guidance"]["scale"])
    cases = [(chosen, split, number) for split in ("test", "held_out") for number in (1, 2)]
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
                seconds=seconds_of(workdir),
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
    source = SOURCES[options.pop("name")](**options)
    return source.reference(split, count, SEED)["tokens"]


def publish_picture(workdir: pathlib.Path, out: pathlib.Path) -> None:
    """The last picture of a run's default sampler."""
    pictures = sorted((workdir / run_files.SAMPLES).glob("*_default.png"))
    shutil.copyfile(pictures[-1], out)


def main_run(options: argparse.Namespace) -> None:
    """Trains the config and measures it."""
    workdir = options.work / FIRST
    train(options.config, workdir)
    replace_receipts(options.out / "receipts", "main", measure(options.config, workdir, FEW if options.tiny else COUNT))
    publish_picture(workdir, options.out / "samples.png")


def networks(options: argparse.Namespace) -> None:
    """Trains the other networks for as long as the first took, and draws accuracy against time."""
    first = options.work / FIRST
    train(options.config, first)
    runs = {FIRST: first}
    for network in OTHERS:
        separator = "," if ":" in options.config else ":"
        config = f"{options.config}{separator}network={network}"
        runs[network] = options.work / network
        steps = same_time(config, options.work / f"{network}_trial", first, options.tiny)
        train(config, runs[network], f"--config.steps={steps}")
    receipts = []
    for network, workdir in runs.items():
        receipts += curve(network, workdir)
    replace_receipts(options.out / "receipts", "networks", receipts)
    about = dict(x="seconds", lines="network", where="metric=caption_accuracy")
    titles = {"seconds": "seconds of training", "value": "captions wholly right"}
    tables.figure(options.out / "networks.png", receipts, title="Networks at equal time", titles=titles, **about)


def same_time(config: str, trial: pathlib.Path, first: pathlib.Path, tiny: bool) -> int:
    """How many updates of a config take as long as the first run did, from a short trial of it."""
    if tiny:
        return load(config).steps
    train(config, trial, "--config.steps=300", "--config.evaluators={}", "--config.when.sample.at_percent=()")
    speeds = [line["images_per_second"] for line in run_files.read_lines(trial / run_files.METRICS) if "loss" in line]
    batch = run_files.read_json(trial / run_files.CONFIG)["batch_size"]
    return int(seconds_of(first) * speeds[-1] / batch) // 100 * 100


def curve(network: str, workdir: pathlib.Path) -> list[dict]:
    """The receipts that a run wrote of itself while it trained."""
    files = sorted((workdir / run_files.RECEIPTS).glob("*.json"))
    written = [run_files.read_json(file) for file in files]
    return [{**receipt, "network": network} for receipt in written if receipt["metric"] == "caption_accuracy"]


def ablations(options: argparse.Namespace) -> None:
    """One change at a time, by the sweep of the config."""
    out = options.work / "ablations"
    arguments = ["--config", options.config, "--out", str(out), "--workers", "1"]
    if subprocess.run([sys.executable, "-m", "flowjax.sweep", *arguments], cwd=ROOT).returncode:
        raise RuntimeError("The sweep failed. Mend what it says, then run this again.")
    receipts = []
    for job in plan(options.config, [], out):
        written = [run_files.read_json(file) for file in sorted((job.directory / run_files.RECEIPTS).glob("*.json"))]
        last = max(receipt["step"] for receipt in written)
        receipts += [{**receipt, "change": job.name} for receipt in written if receipt["step"] == last]
    replace_receipts(options.out / "receipts", "ablations", receipts)


PARTS = {"main": main_run, "networks": networks, "ablations": ablations}


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts asked for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a little of everything, into the work folder")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--work", type=pathlib.Path, help="where runs live (default: runs/text_to_image, or ..._tiny)")
    parser.add_argument("--out", type=pathlib.Path, help="of receipts and pictures (default: beside this file)")
    options = parser.parse_args(arguments)
    options.config = str(ROOT / CONFIG) + (":tiny" if options.tiny else "")
    options.work = (options.work or ROOT / "runs" / f"text_to_image{'_tiny' if options.tiny else ''}").absolute()
    options.out = options.out or (options.work / "published" if options.tiny else HERE)
    (options.out / "receipts").mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        began = time.perf_counter()
        PARTS[part](options)
        print(f"{part}: {time.perf_counter() - began:.0f} s", flush=True)
    readme = options.out / "README.md"
    return tables.main([str(readme)]) if readme.exists() else 0


if __name__ == "__main__":
    sys.exit(main())

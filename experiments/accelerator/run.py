"""Everything to measure on an accelerator, in one go: agreement with the CPU, throughput and utilisation, whole runs.

    python experiments/accelerator/run.py                  # on a machine with a GPU or TPU
    python experiments/accelerator/run.py --tiny           # the same steps in some minutes, on any machine

It needs `pip install -e ".[cuda]"` (or ".[tpu]"), and for the comparison with PyTorch the extra "parity". Parts that fail
are named at the end and do not stop the others. Receipts go to experiments/accelerator/receipts.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
SMALL = ["--config.sample.count=16", "--config.evaluation.count=200", "--config.writers.tensorboard=False"]


def main_command(config: str, workdir: pathlib.Path, *arguments: str) -> list[str]:
    """python -m flowjax.main with this interpreter."""
    return [sys.executable, "-m", "flowjax.main", f"--config={config}", f"--workdir={workdir}", *arguments]


def call(command: list[str]) -> None:
    """Runs a command from the repository's root and raises when it fails."""
    print("+", " ".join(command[1:]), flush=True)
    subprocess.run(command, cwd=ROOT, check=True)


def metrics(workdir: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl that have a loss."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def agree(folder: pathlib.Path, tiny: bool) -> list[dict]:
    """The same run on the CPU and here: the largest relative difference of the losses of the log lines."""
    lines = {}
    for name, extra in dict(cpu=["--platform=cpu"], here=[]).items():
        workdir = folder / f"agree_{name}"
        call(main_command("configs/points.py:tiny", workdir, "--config.optimizer.decay=constant", *SMALL, *extra))
        lines[name] = metrics(workdir)
    gaps = [abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(lines["cpu"], lines["here"], strict=True)]
    return [dict(metric="relative_loss_difference_from_cpu", value=max(gaps), config=folder / "agree_here")]


def throughput(folder: pathlib.Path, tiny: bool) -> list[dict]:
    """Images a second (and utilisation, where the peak is known) of a transformer, float32 and bfloat16."""
    found = []
    size = (
        ["network.width=64", "network.depth=2"]
        if tiny
        else ["network.width=768", "network.depth=12", "network.heads=12"]
    )
    batch, steps = (32, 40) if tiny else (512, 400)
    for precision in ("float32", "bfloat16"):
        workdir = folder / f"throughput_{precision}"
        entries = [
            f"precision={precision}",
            f"batch_size={batch}",
            f"steps={steps}",
            "steps_per_dispatch=10",
            "network.patch=1",
            f"when.log.every_steps={steps // 4}",
            "when.sample.at_percent=()",
            "when.evaluate.at_percent=()",
            *size,
        ]
        options = [f"--config.{entry}" for entry in entries]
        call(main_command("configs/digits.py:network=dit", workdir, *options))
        last = metrics(workdir)[-1]  # the first line includes the compilation
        found.append(dict(metric="images_per_second", value=last["images_per_second"], config=workdir))
        if "mfu" in last:
            found.append(dict(metric="mfu", value=last["mfu"], config=workdir))
    return found


def whole_runs(folder: pathlib.Path, tiny: bool) -> list[dict]:
    """The configs of the README from start to report: seconds, and the measures of each."""
    found = []
    for config in ("configs/points.py", "configs/digits.py"):
        workdir = folder / pathlib.Path(config).stem
        began = time.perf_counter()
        call(main_command(f"{config}:tiny" if tiny else config, workdir))
        found.append(dict(metric="seconds_in_all", value=time.perf_counter() - began, config=workdir))
        for path in (workdir / "receipts").glob("*_ratio_*.json"):
            receipt = json.loads(path.read_text())
            found.append(dict(metric=receipt["metric"], value=receipt["value"], config=workdir))
    return found


def script(name: str, tiny: bool, *arguments: str) -> list[dict]:
    """Runs another script of experiments/, which writes receipts of its own and goes on where it was cut off."""
    call([sys.executable, f"experiments/{name}", *arguments, *(["--tiny"] if tiny else [])])
    return []


def bench(folder: pathlib.Path, tiny: bool) -> list[dict]:
    """The comparison with PyTorch."""
    return script("bench/run.py", tiny)


def text_to_image(folder: pathlib.Path, tiny: bool) -> list[dict]:
    """Scenes at 64 x 64, trained and measured."""
    return script("text_to_image/run.py", tiny, "--parts", "accelerator")


def emoji(folder: pathlib.Path, tiny: bool) -> list[dict]:
    """Emoji at 64 x 64, which have to be prepared (see the config's header)."""
    return script("emoji/run.py", tiny, "--parts", "accelerator")


def distillation(folder: pathlib.Path, tiny: bool) -> list[dict]:
    """Students of few steps of pictures and of scenes, for which data have to be prepared (see the script's header)."""
    return script("distillation/images.py", tiny, "--parts", "fashion", "shapes")


def preference(folder: pathlib.Path, tiny: bool) -> list[dict]:
    """Scores from comparisons; tuning of points, and of a text-to-image flow, trained first; rollouts by the second."""
    script("preference/reward_model.py", tiny)
    script("preference/mixtures.py", tiny)
    script("preference/shapes.py", tiny)
    script("preference/shapes.py", tiny, "--resolution", "32", "--parts", "first", "flow_grpo", "dance_grpo")
    return script("preference/speed.py", tiny, "--teacher", f"runs/preference{'_tiny' if tiny else ''}/careless")


PARTS = {
    part.__name__: part
    for part in (agree, throughput, whole_runs, bench, text_to_image, emoji, distillation, preference)
}


def main() -> int:
    """Runs the parts asked for; exit status 1 when one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=pathlib.Path, help="where receipts go (default: receipts beside this file)")
    options = parser.parse_args()
    from flowjax.evaluation.receipts import make_receipt, write_receipt

    out = options.out or (pathlib.Path(tempfile.mkdtemp()) if options.tiny else HERE / "receipts")
    failed = []
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = PARTS[name](pathlib.Path(folder), options.tiny)
            except (subprocess.CalledProcessError, OSError, ValueError, KeyError) as error:
                failed.append(f"{name}: {error}")
                continue
            for item in found:
                config = json.loads((item["config"] / "config.json").read_text())
                receipt = make_receipt(
                    item["metric"],
                    item["value"],
                    config=config,
                    config_path=config["name"],
                    seed=config["seed"],
                    images_seen=config["steps"] * config["batch_size"],
                    seconds=metrics(item["config"])[-1]["seconds"],
                    sampler="",
                    nfe=None,
                    guidance_scale=None,
                    ema="",
                    evaluator=name,
                    samples=0,
                    command=f"python experiments/accelerator/run.py --only {name}",
                    precision=config["precision"],
                )
                write_receipt(out, receipt)
                print(f"{name:12} {item['metric']:36} {item['value']:.6g}  ({config['precision']})", flush=True)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

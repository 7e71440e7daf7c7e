"""A run directory with every file a real run leaves, made from closed-form curves and seeded noise."""

import json
import pathlib

import numpy as np

from flowjax.evaluation.pictures import grid, save_png, scatter
from flowjax.evaluation.receipts import make_receipt, write_receipt

CONFIG = dict(
    seed=0,
    steps=5000,
    batch_size=256,
    data=dict(name="digits"),
    network=dict(name="unet", width=64),
    method=dict(name="flow_matching", prediction="velocity"),
    path=dict(name="linear"),
    time=dict(name="logit_normal", mean=0.0, std=1.0),
)
EDGES = np.linspace(0, 1, 21)


def write_metrics(workdir: pathlib.Path, rng: np.random.Generator) -> None:
    """metrics.jsonl: a power-law loss with noise, a warm-up and cosine learning rate, three evaluations."""
    with (workdir / "metrics.jsonl").open("w") as file:
        for step in range(10, 5001, 10):
            line = dict(
                step=step, seconds=step * 0.021, loss=(0.21 + 2.2 * step**-0.5) * float(np.exp(0.08 * rng.normal()))
            )
            line["grad_norm"] = float(0.2 + 4 * step**-0.4 * np.exp(0.25 * rng.normal()))
            line["learning_rate"] = 1e-3 * min(1, step / 250) * (0.5 + 0.5 * np.cos(np.pi * step / 5000))
            line["images_per_second"] = float(12100 + 250 * rng.normal())
            line["param_norm"] = float(20 + 3 * np.log(step))
            if step % 500 == 0:
                line["eval/default/sliced_w2"] = 0.03 + 9 / step
                line["eval/euler_8/sliced_w2"] = 0.06 + 15 / step
                line["eval/default/accuracy"] = 0.97 - 100 / step
            file.write(json.dumps(line) + "\n")


def write_by_time(workdir: pathlib.Path, rng: np.random.Generator) -> None:
    """by_time.jsonl: a U-shaped loss that falls, counts of a logit-normal t."""
    middle = (EDGES[1:] + EDGES[:-1]) / 2
    with (workdir / "by_time.jsonl").open("w") as file:
        for step in range(250, 5001, 250):
            t = 1 / (1 + np.exp(-rng.normal(size=64000)))
            loss = (0.25 + 0.9 * (middle - 0.45) ** 2 + 0.4 * np.exp(-30 * (1 - middle))) * (1 + 300 / step)
            count = np.histogram(t, EDGES)[0]
            line = dict(step=step, phase="train", edges=EDGES.tolist(), loss=loss.tolist(), count=count.tolist())
            file.write(json.dumps(line) + "\n")


def write_samples(workdir: pathlib.Path, rng: np.random.Generator) -> None:
    """samples/: blobs that sharpen, and a spiral that settles."""
    yy, xx = np.mgrid[-1:1:16j, -1:1:16j]
    centres = rng.uniform(-0.4, 0.4, (64, 2))
    blobs = np.exp(-8 * ((xx - centres[:, :1, None]) ** 2 + (yy - centres[:, 1:, None]) ** 2))[..., None] * 2 - 1
    angle = rng.uniform(1, 9, 1500)
    spiral = np.stack([angle * np.cos(angle), angle * np.sin(angle)], 1) / 9
    for step in (500, 1000, 2000, 3000, 4000, 5000):
        noise = 600 / step
        images = blobs + noise * rng.normal(size=blobs.shape)
        save_png(workdir / f"samples/{step:08d}_default.png", grid(images, 8))
        save_png(
            workdir / f"samples/{step:08d}_plane.png", scatter(spiral + noise / 4 * rng.normal(size=(1500, 2)), spiral)
        )


def write_receipts(workdir: pathlib.Path) -> None:
    """receipts/: two metrics of two samplers, with floors."""
    rows = (
        ("sliced_w2", 0.0318, 0.0214, "lower", "heun", 39, None),
        ("sliced_w2", 0.0631, 0.0214, "lower", "euler", 8, None),
        ("classifier_accuracy", 0.952, 0.981, "higher", "heun", 39, 1.5),
        ("kernel_inception_distance", 0.00412, 0.00102, "lower", "heun", 39, 1.5),
    )
    for metric, value, floor, better, sampler, nfe, scale in rows:
        receipt = make_receipt(
            metric, value, config=CONFIG, config_path="config.json", seed=0, images_seen=1_280_000, seconds=105.3,
            sampler=sampler, nfe=nfe, guidance_scale=scale, ema="ema", evaluator=f"{metric} against 1,797 digits",
            samples=4096, floor=floor, better=better, commit="0123456789abcdef", hardware="1 x Test Device",
            command="python -m flowjax.main --config=configs/digits.py --workdir=runs/digits",
        )  # fmt: skip
        write_receipt(workdir / "receipts", receipt)


def fake_run(workdir: pathlib.Path) -> pathlib.Path:
    """Writes every file of a finished run and returns the directory."""
    rng = np.random.default_rng(0)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(CONFIG))
    (workdir / "config_difference.txt").write_text(
        "network.name: mlp -> unet\nnetwork.width: 128 -> 64\ntime.name: uniform -> logit_normal\n"
        "optimizer.schedule: constant -> warmup_cosine\n"
    )
    write_metrics(workdir, rng)
    write_by_time(workdir, rng)
    write_samples(workdir, rng)
    write_receipts(workdir)
    checks = [
        dict(name="initial loss", passed=True, detail="1.98, expected 2.01 for a network that outputs zero", fix=""),
        dict(
            name="time grid", passed=False, detail="12% of the sampler's steps see under 1% of t", fix="Raise time.std."
        ),
    ]
    grids = dict(heun=np.linspace(0, 1, 21).tolist(), euler=(np.linspace(0, 1, 9) ** 1.5).tolist())
    (workdir / "check.json").write_text(json.dumps(checks))
    (workdir / "samplers.json").write_text(json.dumps({name: dict(grid_times=grid) for name, grid in grids.items()}))
    (workdir / "readings.json").write_text(json.dumps({"loss": "Falls & stays above zero."}))
    return workdir

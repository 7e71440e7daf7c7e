"""Images of several sizes on one canvas, from a config: training, pictures, measuring, prompts, and what does not fit."""

import json

import numpy as np
import pytest
from PIL import Image
from real_data import noise_png, write_folder

from flowjax.config import load
from flowjax.data.prepare import __main__ as command
from flowjax.main import main
from flowjax.training.plan import abstract_batches, batch_shares
from flowjax.training.run import Run

CONFIG = """
from flowjax.config import defaults, schedule

def get_config(argument=""):
    config = defaults()
    config.steps, config.batch_size = 2, 8
    config.data = dict(name="records", path="PATH", size=16, mask_multiple=4, tokenizer=dict(name="words"))
    config.text = dict(name="embedding", width=16)
    config.network = dict(name="dit", width=16, depth=1, heads=2, patch=4, position="rope", masked=True, max_tokens=16)
    sampler = dict(name="euler", steps=2, role="ema")
    guided = dict(sampler, guidance=dict(name="cfg", scale=2.0))
    config.samplers = dict(default=guided, wide=dict(sampler, shape=(8, 24)))
    config.sample.count = 8
    config.evaluation = dict(count=8, batch_size=8)
    config.evaluators = dict(mmd=dict(name="mmd", features="identity"), copies=dict(name="nearest_neighbour"))
    config.when.log = schedule(every_steps=1)
    config.when.sample = schedule(at_percent=(100,))
    config.when.checkpoint = schedule(at_percent=(100,))
    config.writers.tensorboard = False
    return config
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("masks")
    sizes = {"wide": (32, 12), "tall": (14, 24), "square": (20, 20)}
    files = {f"{kind}{i}.png": noise_png(i, size)[0] for kind, size in sizes.items() for i in range(12)}
    lines = [{"file_name": name, "text": name.rstrip("0123456789.png")} for name in files]
    write_folder(root / "in", files, lines)
    command.run(["folder", "--from", str(root / "in"), "--to", str(root / "out"), "--test-share", "0.3"], say=str)
    (root / "config.py").write_text(CONFIG.replace("PATH", str(root / "out")))
    return str(root / "config.py")


def flowjax(config, workdir, *arguments):
    return main([f"--config={config}", f"--workdir={workdir}", *arguments])


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    assert flowjax(config, workdir) == 0
    return workdir


def test_a_run_trains_draws_and_measures(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["loss"] for line in lines if "loss" in line]).all()
    measured = next(line for line in lines if "eval/mmd" in line)
    assert np.isfinite([measured["eval/mmd"], measured["eval/nearest_train"]]).all()
    drawn = {path.name: Image.open(path).size for path in (trained / "samples").glob("*.png")}
    assert set(drawn) == {"00000002_default.png", "00000002_wide.png", "00000002_copies.png"}
    width, height = drawn["00000002_wide.png"]
    assert width > 1.5 * height


def test_samples_lie_within_their_masks_and_prompts_are_squares(config, trained, tmp_path):
    drawn = {}
    for name, more in {"held_out": (), "prompts": ("--config.sample.prompts=('wide','tall')",)}.items():
        assert flowjax(config, trained, *more, "--mode=sample", f"--out={tmp_path / name}.npz") == 0
        with np.load(tmp_path / f"{name}.npz") as arrays:
            samples, mask = arrays["samples"], arrays["pixel_mask"]
            drawn[name] = mask
            assert samples.shape == (8, 20, 20, 3) and np.isfinite(samples).all()
            assert not samples[~mask].any() and samples[mask].all()
            captions = arrays["captions"].tolist()
        if name == "held_out":  # 12 x 32 is scaled by 0.625 to 7.5 x 20; 24 x 14 by 0.83 to 20 x 11.7
            sizes = {"wide": (4, 20), "tall": (20, 8), "square": (16, 16)}
            found = [(one.any(axis=1).sum(), one.any(axis=0).sum()) for one in mask]
            assert found == [sizes[caption] for caption in captions] and len(set(found)) > 1
    assert drawn["prompts"][:, :16, :16].all() and drawn["prompts"].sum() == 8 * 16 * 16


def test_batches_of_several_canvases_have_masks_of_their_shape_in_the_plan(config):
    loaded = load(config)
    own = loaded.data.to_dict()
    with loaded.unlocked():
        loaded.data = dict(name="mix", sources=tuple(dict(own, canvas=canvas) for canvas in ((20, 20), (16, 24))))
    run = Run(loaded)
    assert set(batch_shares(run)) == {(20, 20, 3), (16, 24, 3)}
    for shape in batch_shares(run):
        batch = abstract_batches(run, run.executor.mesh, shape)
        assert batch["pixel_mask"].shape == (1, 8, *shape[:2]) and batch["data"].shape == (1, 8, *shape)


SHAPES = ["--config.data={'name': 'shapes', 'resolution': 8}", "--config.evaluators={}"]
BAD = {
    "a network that reads no masks": (
        ["--config.network.masked=False", "--config.network.max_tokens=0"],
        "would learn the padding",
        "Set network.masked=True",
    ),
    "masks that are not there": (SHAPES, "these data have none", "network.masked=False"),
    "patches that hold a picture in part": (
        ["--config.network.patch=5"],
        "multiples of 4, which patches of side 5 do not tile",
        "another mask_multiple",
    ),
    "fewer tokens than a square has": (
        ["--config.network.max_tokens=15"],
        "max_tokens=15 is fewer than the 16 patches of an image of (16, 16) pixels",
        "Use 16",
    ),
    "an autoencoder": (
        ["--config.method={'name': 'autoencoder'}", "--config.network={'name': 'convolutional'}"],
        "An autoencoder reads no masks",
        "Leave mask_multiple out",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_one_clear_line(config, tmp_path, capsys, name):
    arguments, message, fix = BAD[name]
    assert flowjax(config, tmp_path / "run", *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("flowjax: "), lines
    assert message in lines[0] and fix in lines[0], lines[0]

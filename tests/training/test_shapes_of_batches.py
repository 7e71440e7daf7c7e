"""A run whose batches come in several shapes: trained, drawn at shapes of one's choice, evaluated at the data's own."""

import json
import shutil

import jax
import numpy as np
from PIL import Image

from flowjax.choices import build
from flowjax.config import load
from flowjax.data import SOURCES, make_iterator
from flowjax.main import main
from flowjax.training.checkpoints import Checkpoints

CONFIG = """
from flowjax.config import defaults, schedule

def get_config(argument=""):
    config = defaults()
    config.steps, config.batch_size, config.steps_per_dispatch = 6, 8, 3
    scenes = lambda side: dict(name="shapes", resolution=side, objects=(1, 1))
    config.data = dict(name="mix", sources=(scenes(8), scenes(16)), weights=(1, 1))
    config.text = dict(name="embedding", width=16)
    config.network = dict(name="dit", width=16, depth=1, heads=2, patch=4, position="rope")
    sampler = dict(name="euler", steps=2, role="ema")
    config.samplers = dict(default=sampler, wide=dict(sampler, shape=(8, 24)))
    config.sample.count = 4
    config.evaluation = dict(count=4, batch_size=4)
    config.evaluators = dict(mmd=dict(name="mmd", features="identity"))
    config.when.log = schedule(every_steps=1)
    config.when.sample = schedule(at_percent=(100,))
    config.when.checkpoint = schedule(every_steps=2, at_percent=(100,))
    config.writers.tensorboard = False
    return config
"""


def test_training_drawing_and_resuming(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    run = lambda workdir, *more: main([f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / workdir}", *more])
    assert run("whole") == 0
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["loss"] for line in lines if "loss" in line]).all()
    assert any("eval/mmd" in line for line in lines)
    drawn = {path.name: Image.open(path).size for path in (tmp_path / "whole" / "samples").glob("*.png")}
    assert set(drawn) == {"00000006_default.png", "00000006_wide.png"}
    (square_width, square_height), (width, height) = drawn["00000006_default.png"], drawn["00000006_wide.png"]
    assert width > square_width and height <= square_height

    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "6")
    assert run("again") == 0
    read = lambda workdir: Checkpoints(tmp_path / workdir / "checkpoints", read_only=True).read_role("student")
    jax.tree.map(np.testing.assert_array_equal, read("whole"), read("again"))
    assert (tmp_path / "again" / "checkpoints" / "6").is_dir()


def batches_of(choices):
    config = load(f"configs/shapes.py:tiny,{choices}")
    iterator = make_iterator(build("data source", config.data, SOURCES, total_steps=config.steps), config.batch_size)
    return [next(iterator) for _ in range(config.steps)]


def test_curricula_of_scenes_begin_with_small_pictures_or_short_captions(tmp_path):
    sides = [batch["data"].shape[1] for batch in batches_of("change=resolution_curriculum")]
    assert sides == [8] * 4 + [16] * 4
    lengths = [np.mean((batch["tokens"] > 0).sum(1)) for batch in batches_of("captions=full,change=caption_curriculum")]
    assert lengths[0] < 6 and min(lengths[3:]) > 10
    # The network of the config reads both sizes.
    options = ["--config.evaluators={}", "--config.when.sample.at_percent=()", "--config.writers.tensorboard=False"]
    assert (
        main(["--config=configs/shapes.py:tiny,change=resolution_curriculum", f"--workdir={tmp_path}", *options]) == 0
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["loss"] for line in lines]).all() and [line["step"] for line in lines] == [4, 8]

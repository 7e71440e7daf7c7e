"""An aligned run from the command line: it leaves its figures, and a cut-off run ends with the same bits."""

import json
import shutil

import jax
import numpy as np
import pytest

from flowjax.main import main
from flowjax.models import features
from flowjax.models.features.extractor import FeatureExtractor, Unit
from flowjax.training.checkpoints import Checkpoints

CONFIG = """
from flowjax.config import defaults, schedule

def get_config(argument=""):
    config = defaults()
    config.steps, config.batch_size = 4, 8
    config.data = dict(name="digits", shift=1)
    config.network = dict(name="unet", channels=8, multipliers=(1,), blocks=1, attention=())
    encoder = dict(name="pixels", weights="random")
    config.method.alignment = dict(encoder=encoder, layer=2, until=3, projector=dict(name="convolution"))
    config.samplers = dict(default=dict(name="euler", steps=2, role="ema"))
    config.when.log = schedule(every_steps=1)
    config.when.sample = schedule()
    config.when.checkpoint = schedule(every_steps=2)
    config.writers.tensorboard = False
    return config
"""


def pixels(input_size: int = 8) -> FeatureExtractor:
    """Five mixtures of a pixel and a constant."""
    units = (Unit("one", (1, 1, 1, 5), "one.conv", "one.norm"),)
    apply = lambda tree, images: {"near": images * tree["one"]["kernel"][0, 0] + tree["one"]["bias"]}
    return FeatureExtractor("pixels", input_size, dict(near=5), "near", units, 0.0, apply)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aligned")
    (folder / "config.py").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(features.EXTRACTORS, "pixels", pixels)
        assert main([f"--config={folder / 'config.py'}", f"--workdir={folder / 'whole'}"]) == 0
        shutil.copytree(folder / "whole", folder / "cut")
        shutil.rmtree(folder / "cut" / "checkpoints" / "4")
        assert main([f"--config={folder / 'config.py'}", f"--workdir={folder / 'cut'}"]) == 0
    return folder


def test_the_figures_of_the_term_are_logged(run):
    lines = [json.loads(line) for line in (run / "whole" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    assert [line["alignment_weight"] for line in lines] == [0.5, 0.5, 0.5, 0.0]
    for line in lines:
        assert line["loss"] == pytest.approx(line["flow_loss"] - line["alignment_weight"] * line["alignment"], rel=1e-4)
    assert all(-1 <= line["alignment"] <= 1 and line["alignment"] != 0 for line in lines[:3])


def test_a_resumed_run_ends_with_the_same_bits_and_averages_hold_no_projector(run):
    whole, cut = (Checkpoints(run / name / "checkpoints", read_only=True) for name in ("whole", "cut"))
    assert whole.steps() == cut.steps() == [2, 4]
    for role in ("student", "ema", "encoder", "projector"):
        jax.tree.map(np.testing.assert_array_equal, whole.read_role(role, 4), cut.read_role(role, 4))
    jax.tree.map(np.testing.assert_array_equal, whole.read_role("encoder", 4), whole.read_role("encoder", 2))
    assert set(whole.read_role("ema")) == set(whole.read_role("student"))
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), whole.read_role("projector", 2), whole.read_role("projector", 4)
    )
    assert all(value > 0 for value in jax.tree.leaves(moved))

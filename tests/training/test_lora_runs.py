"""Adapters from the command line: a run tuned by them resumes with the same bits, and serves as any finished run does."""

import json
import shutil

import jax
import numpy as np
import pytest

from flowjax.config import load
from flowjax.contract import DataSpec
from flowjax.main import main
from flowjax.methods.parts import make_setting
from flowjax.methods.teacher import make_teacher
from flowjax.models import stored
from flowjax.models.lora import Adapter, merged
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.run import Run, read_role

SMALL = [
    "--config=configs/points.py:tiny",
    "--config.network.width=16",
    "--config.steps=20",
    "--config.sample.count=16",
    "--config.evaluation.count=100",
    "--config.writers.tensorboard=False",
    "--config.when.checkpoint.every_steps=10",
    "--config.when.log.every_steps=10",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    assert main([*SMALL, f"--workdir={folder / 'whole'}"]) == 0
    tuned = [*SMALL, f"--config.restore=dict(student='{folder / 'whole'}:ema')", "--config.lora.rank=4"]
    assert main([*tuned, f"--workdir={folder / 'tuned'}"]) == 0
    shutil.copytree(folder / "tuned", folder / "cut")
    shutil.rmtree(folder / "cut" / "checkpoints" / "20")
    assert main([*tuned, f"--workdir={folder / 'cut'}"]) == 0
    return folder


def roles(folder, *names):
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    return [checkpoints.read_role(name) for name in names]


def test_the_base_stays_as_it_was_and_a_cut_run_ends_with_the_same_bits(runs):
    (source,) = roles(runs / "whole", "ema")
    whole, cut = (roles(runs / name, "base", "student", "ema") for name in ("tuned", "cut"))
    jax.tree.map(np.testing.assert_array_equal, source, whole[0])
    jax.tree.map(np.testing.assert_array_equal, whole, cut)
    assert all(float(np.abs(leaf["up"]).max()) > 0 for leaf in (node["kernel"] for node in whole[1].values()))
    lines = [json.loads(line) for line in (runs / "tuned" / "metrics.jsonl").read_text().splitlines()]
    assert any("loss" in line for line in lines)


def test_a_finished_run_is_read_as_the_sum(runs):
    base, adapter = roles(runs / "tuned", "base", "ema")
    expected = merged(base, Adapter(adapter))
    folder = runs / "tuned" / "checkpoints"
    jax.tree.map(np.testing.assert_array_equal, stored.read_network(folder.absolute(), "ema", 20), expected)
    # as a teacher, and as what another run starts from
    config = load("configs/points.py:tiny", ["network.width=16"])
    spec = DataSpec((2,))
    teacher = make_teacher(
        dict(name="run", restore_from=str(runs / "tuned")), spec, make_setting(config, spec, "velocity")
    )
    jax.tree.map(np.testing.assert_array_equal, read_role("teacher", teacher.role, 0), expected)
    run = Run(load("configs/points.py:tiny", ["network.width=16", f"restore=dict(student='{runs / 'tuned'}:ema')"]))
    jax.tree.map(np.testing.assert_array_equal, run.restored["student"], expected)

"""Students of trajectories from the command line, in small: every config runs; a run is the next one's teacher; hand-overs."""

import json

import jax
import numpy as np
import pytest

from flowjax.main import main
from flowjax.training.checkpoints import Checkpoints

SMALL = ["--config.writers.tensorboard=False", "--config.network.width=16", "--config.when.sample.at_percent=()"]
SHORT = {
    "direct": ["--config.method.teacher_steps=4"],
    "direct_map": ["--config.method.teacher_steps=4"],
    "progressive": ["--config.method.first_steps=4"],
    "reflow": ["--config.method.teacher_steps=4"],
    "rectified_flow_pp": ["--config.method.teacher_steps=4"],
    "rectified_diffusion": ["--config.method.teacher_steps=4"],
    "annealed_reflow": ["--config.method.teacher_steps=4"],
    "boot": [],
    "perflow": [
        "--config.method.teacher_steps=2",
        "--config.method.updates=2",
        "--config.method.told=True",
        "--config.network.two_times=True",
    ],
}


def flowjax(workdir, method, *arguments):
    config = f"--config=configs/distillation.py:tiny,method={method}"
    assert main([config, f"--workdir={workdir}", *SMALL, *SHORT[method], *arguments]) == 0
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def reflowed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "reflow"
    return workdir, flowjax(workdir, "reflow")


@pytest.mark.parametrize("method", [name for name in SHORT if name not in ("reflow", "progressive")])
def test_every_config_runs(method, tmp_path):
    lines = flowjax(tmp_path, method, "--config.steps=20", "--config.when.log.every_steps=10")
    assert np.isfinite([line["loss"] for line in lines if "loss" in line]).all()
    assert np.isfinite([line["eval/sliced_w2_ratio"] for line in lines if "eval/sliced_w2_ratio" in line]).any()


def test_progressive_hands_over_and_resumes_in_the_middle_of_a_stage(tmp_path):
    lines = flowjax(
        tmp_path / "whole", "progressive", "--config.when.log.every_steps=10", "--config.optimizer.warmup_steps=2"
    )
    steps = [line["student_steps"] for line in lines if "student_steps" in line]
    assert steps == [4, 4, 2, 2, 1, 1]
    parts = ["--config.when.checkpoint.every_steps=20", "--config.when.checkpoint.at_percent=()"]
    parts.append("--config.optimizer.warmup_steps=2")
    flowjax(tmp_path / "kept", "progressive", *parts, "--config.checkpoint.keep_latest=3")
    saved = Checkpoints(tmp_path / "kept" / "checkpoints", read_only=True)
    assert saved.steps() == [20, 40, 60]
    role = lambda name, step: jax.tree.leaves(saved.read_role(name, step))
    for step in (20, 40):  # the ends of the first two stages: the copy has just been made
        for copy, student in zip(role("previous", step), role("student", step)):
            np.testing.assert_array_equal(copy, student)
    for old, new in zip(role("previous", 60), role("student", 40)):
        np.testing.assert_array_equal(old, new)
    assert any((a != b).any() for a, b in zip(role("previous", 60), role("student", 60)))


@pytest.mark.parametrize("method", ["direct", "progressive"])
def test_a_reflowed_run_is_the_teacher_from_which_a_student_starts(reflowed, tmp_path, method):
    """The two halves of InstaFlow: reflow, then one step; and halving from a network that can be copied."""
    workdir, lines = reflowed
    assert lines[-1]["step"] == 60 and all(line["curvature"] > 0 for line in lines if "curvature" in line)
    teacher = f"--config.method.teacher=dict(name='run',restore_from='{workdir}:student')"
    one = ["--config.steps=3", "--config.when.log.every_steps=1", "--config.steps_per_dispatch=1"]
    flowjax(tmp_path, method, teacher, "--config.method.start=teacher", *one, "--config.optimizer.warmup_steps=0")
    theirs = Checkpoints(workdir / "checkpoints", read_only=True).read_role("student")
    own = Checkpoints(tmp_path / "checkpoints", read_only=True)
    for a, b in zip(jax.tree.leaves(theirs), jax.tree.leaves(own.read_role("teacher"))):
        np.testing.assert_array_equal(a, b)
    gaps = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(theirs), jax.tree.leaves(own.read_role("student")))]
    assert 0 < max(gaps) < 0.02  # three updates away

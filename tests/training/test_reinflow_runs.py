"""Cloning and tuning through the command line: in JAX and on the host, stopped and resumed to the bit."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.config import load
from flowjax.main import main
from flowjax.methods import METHODS, reinflow
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.conditions import drawn_under
from flowjax.training.run import Run
from flowjax.training.trainer import Stopped

QUIET = ["--config.writers.tensorboard=False"]
ROLES = ("student", "noise", "critic")


def role(folder, name):
    return Checkpoints(folder / "checkpoints", read_only=True).read_role(name, None)


def ran(folder, options, *more):
    assert main([f"--config=configs/reinflow.py:tiny,{options}", f"--workdir={folder}", *QUIET, *more]) == 0
    return folder


@pytest.fixture(scope="module")
def cloned(tmp_path_factory):
    return ran(tmp_path_factory.mktemp("reinflow") / "cloned", "task=lqr")


@functools.wraps(reinflow)
def stops(*args, **options):
    """The method, which asks to be stopped after its first period."""
    method = reinflow(*args, **options)
    return dataclasses.replace(method, watch=lambda step, means: "enough" if step == 4 else None)


def resumes(cloned, folder, monkeypatch):
    """A run from end to end, and one that was stopped half-way and goes on; both are the same."""
    whole = ran(folder / "whole", f"run={cloned}")
    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "reinflow", stops)
        with pytest.raises(Stopped):
            ran(folder / "cut", f"run={cloned}")
    assert json.loads((folder / "cut" / "status.json").read_text())["step"] == 4
    cut = ran(folder / "cut", f"run={cloned}")
    for name in ROLES:
        jax.tree.map(np.testing.assert_array_equal, role(whole, name), role(cut, name))
    return whole


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(cloned, tmp_path, monkeypatch):
    whole = resumes(cloned, tmp_path, monkeypatch)
    began = role(cloned, "ema")
    moved = jax.tree.map(lambda one, two: float(np.abs(one - two).max()), role(whole, "student"), began)
    assert 0 < max(jax.tree.leaves(moved)) < 0.1
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "collect/return" in line][-1]
    assert {"policy/ratio", "policy/moved", "policy/noise", "value/loss", "collect/explained"} <= set(last)
    receipts = [json.loads(file.read_text()) for file in (whole / "receipts").glob("*.json")]
    values = {receipt["metric"]: receipt for receipt in receipts}
    watched = {f"watchdog_{name}" for name in ("divergence", "spread", "spread_kept")}
    assert {"return", "return_expert", "return_best", "shortfall"} | watched == set(values)
    assert 0 < values["watchdog_divergence"]["value"] < 1 and 0.5 < values["watchdog_spread_kept"]["value"] < 2
    assert "Return of an episode" in (whole / "report.html").read_text()
    assert values["return"]["nfe"] == 4 and values["return"]["better"] == "higher"
    assert values["return"]["value"] < values["return_best"]["value"] < 0
    assert "towards one" in (whole / "report.html").read_text()  # the reading of collect/explained


def test_worlds_on_the_host_resume_to_the_bit_too(tmp_path, monkeypatch):
    pytest.importorskip("gymnasium")
    whole = resumes(ran(tmp_path / "cloned", "task=pendulum"), tmp_path, monkeypatch)
    metrics = {json.loads(file.read_text())["metric"] for file in (whole / "receipts").glob("*.json")}
    assert metrics == {"return", "return_expert", "watchdog_divergence", "watchdog_spread", "watchdog_spread_kept"}


def test_the_doctor_finds_the_ratio_at_one(cloned, tmp_path, capsys):
    ran(tmp_path, f"run={cloned}", "--mode=check")
    assert "ok   ratio before the first update" in capsys.readouterr().out


@pytest.mark.parametrize("steps", [1, 2])
def test_chains_may_have_one_step_or_two(cloned, steps):
    run = Run(load(f"configs/reinflow.py:tiny,run={cloned},steps={steps}"))
    batch = {name: value[0] for name, value in run.iterator().stack_batches(1).items()}
    batch["step"] = np.zeros(len(batch["row"]), np.int32)
    made = jax.eval_shape(run.method.collect.rollout, run.executor.abstract.params, batch, jax.random.key(0))
    assert made["steps"]["rollout_x"].shape == (8, 10, steps, 1)
    assert run.method.samplers["default"].description["nfe"] == steps


def test_cloned_actions_are_drawn_under_held_out_observations(cloned):
    run = Run(load("configs/reinflow.py:tiny,task=lqr"), cloned)
    conditions = drawn_under(run, "default", 50)
    assert set(conditions) == {"observation"} and conditions["observation"].shape == (50, 2)  # of 40, some twice
    held_out = {tuple(row) for row in run.source.test["observation"]}
    assert {tuple(row) for row in conditions["observation"]} == held_out
    params, keys = run.latest_state().params, jax.random.split(jax.random.key(0), 2)
    seen = np.float32([[1.0, 0.0], [-1.0, 0.0]])
    both = [
        run.method.samplers["default"].draw(params, {"observation": jnp.asarray(rows)}, keys)
        for rows in (seen, seen[::-1])
    ]
    assert np.abs(both[0] - both[1]).min() > 1e-4

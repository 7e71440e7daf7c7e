"""Tuning a finished run by rewards, through the command line: every method, an adapter, and a run that was cut off."""

import json
from functools import partial

import jax
import numpy as np
import pytest

from flowjax.choices import build
from flowjax.config import ConfigError, load, load_module
from flowjax.contract import DataSpec
from flowjax.evaluation.run_files import read_lines
from flowjax.main import main
from flowjax.methods import METHODS
from flowjax.models import stored
from flowjax.shapes import VOCABULARY
from flowjax.training import operations
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.run import Run
from flowjax.training.update import phase_gradients

CONFIG = load_module("configs/preference.py")
QUIET = [
    "--config.writers.tensorboard=False",
    "--config.when.sample.at_percent=()",
    "--config.when.evaluate.at_percent=()",
]
UNWATCHED = ["--config.watchdog={'name': 'none'}"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preference") / "base"
    assert main(["--config=configs/points.py:tiny", f"--workdir={folder}", *QUIET]) == 0
    return folder


def role(folder, name, step=None):
    return Checkpoints(folder / "checkpoints", read_only=True).read_role(name, step)


def tuned(base, folder, options="", *more):
    config = f"configs/preference.py:tiny,run={base}{options}"
    assert main([f"--config={config}", f"--workdir={folder}", *QUIET, *more]) == 0
    return folder


def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(base, tmp_path):
    whole = tuned(base, tmp_path / "whole")
    tuned(base, tmp_path / "cut", "", "--config.steps=2")
    cut = tuned(base, tmp_path / "cut")
    for name in ("student", "ema", "reference"):
        jax.tree.map(np.testing.assert_array_equal, role(whole, name), role(cut, name))
    jax.tree.map(np.testing.assert_array_equal, role(whole, "reference"), role(base, "ema"))
    moved = jax.tree.map(lambda one, two: float(np.abs(one - two).max()), role(whole, "student"), role(base, "ema"))
    assert max(jax.tree.leaves(moved)) > 0
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "loss" in line][-1]
    assert {"ratio", "divergence", "collect/reward_right", "collect/flat", "collect/spread"} <= set(last)
    assert "when all is well" not in (whole / "report.html").read_text()  # the words are those of each curve
    assert "1 in the first update of a period" in (whole / "report.html").read_text()


def test_a_run_that_died_between_the_updates_of_a_rollout_draws_it_again(base, tmp_path, monkeypatch):
    """Two updates a rollout: it dies after the third, and what it goes on from is the end of the first rollout's."""
    more = ("--config.method.updates=2", "--config.steps_per_dispatch=1", *UNWATCHED)
    whole = tuned(base, tmp_path / "whole", "", *more)
    updates, sent = [], operations.Meter.sent

    def dies(meter, name, *rest):
        updates.append(name)
        if updates.count(("policy",)) == 3:
            raise KeyboardInterrupt("pulled the plug")
        return sent(meter, name, *rest)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(operations.Meter, "sent", dies)
        tuned(base, tmp_path / "cut", "", *more)
    checkpoints = tmp_path / "cut" / "checkpoints"
    assert max(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()) == 2
    cut = tuned(base, tmp_path / "cut", "", *more)
    for name in ("student", "ema"):
        jax.tree.map(np.testing.assert_array_equal, role(whole, name), role(cut, name))
    keep = ("step", "loss", "ratio", "collect/reward_right", "collect/spread")
    lines = [
        [[line[name] for name in keep] for line in read_lines(run / "metrics.jsonl") if "loss" in line]
        for run in (whole, cut)
    ]
    assert lines[0] == lines[1]


def test_rollouts_are_timed_and_their_operations_counted(base, tmp_path, monkeypatch):
    monkeypatch.setattr(operations, "peak_flops", lambda device: 1e9)
    counted, sent = [], operations.Meter.sent
    note = lambda meter, name, times, *rest: counted.append((name, times)) or sent(meter, name, times, *rest)
    monkeypatch.setattr(operations.Meter, "sent", note)
    folder = tuned(base, tmp_path, "", *UNWATCHED)
    lines = [line for line in read_lines(folder / "metrics.jsonl") if "loss" in line]
    assert all(line["mfu"] > 0 and 0 < line["collect/seconds"] < line["seconds"] for line in lines)
    assert counted[:2] == [("rollout", 1), (("policy",), 1)] and len(counted) == 8


def test_an_adapter_is_held_to_its_base(base, tmp_path):
    watch = ("--config.when.evaluate.at_percent=(100,)", "--config.evaluators={}")
    folder = tuned(base, tmp_path, ",rank=2", *watch)
    lines = read_lines(folder / "metrics.jsonl")
    assert any(line.get("eval/watchdog_divergence", 0.0) > 0 for line in lines)
    jax.tree.map(np.testing.assert_array_equal, role(folder, "base"), role(base, "ema"))
    for name in ("reference", "watchdog_reference"):  # they are the base
        with pytest.raises(Exception, match=name):
            role(folder, name)
    student = jax.tree.leaves(role(folder, "student"))
    size = lambda leaves: sum(leaf.size for leaf in leaves)
    assert 0 < size(student) < size(jax.tree.leaves(role(base, "ema")))
    assert max(np.abs(layer["up"]).max() for layer in kernels(role(folder, "student"))) > 0


@pytest.mark.parametrize("method", CONFIG.METHODS)
@pytest.mark.parametrize("reward", ["linear", "quadratic", "brightness"])
def test_every_method_fits_a_finished_run(base, method, reward):
    run = Run(load(f"configs/preference.py:tiny,run={base},method={method},reward={reward}"))
    assert run.config.data == load("configs/points.py:tiny").data
    batch = {name: value[0] for name, value in run.iterator().stack_batches(1).items()}
    batch["step"] = np.zeros(len(batch["row"]), np.int32)
    params, key = run.executor.abstract.params, jax.random.key(0)
    if method in CONFIG.GRADIENT:
        (phase,) = run.method.phases.values()
        assert jax.eval_shape(phase.loss, params, batch, key)[0].shape == (32,)
        return
    assert run.method.collect.every == 1
    made = jax.eval_shape(run.method.collect.rollout, params, batch, key)
    assert made["batch"]["data"].shape == (32, 2)
    if method.endswith("grpo"):
        drawn = 4 if method == "mix_grpo" else run.config.method.rollout.steps - 1
        assert made["batch"]["rollout_x"].shape == (32, drawn, 2)
    assert [value.shape for value in made["rewards"].values()] == [(32,)]


@pytest.mark.parametrize("method", CONFIG.METHODS)
def test_every_method_is_watched_unless_told_otherwise(base, method):
    config = load(f"configs/preference.py:run={base},method={method}")
    limits = {name for name in config.watchdog if name.startswith(("largest", "least"))}
    own = {"largest_flat": method not in CONFIG.GRADIENT, "largest_clipped": "clip" in config.method}
    assert limits == {"largest_divergence", "least_spread", *(name for name, there in own.items() if there)}
    assert list(config.watchdog.rewards) == ["held_quadratic"] and Run(config).method.watch is not None


@pytest.mark.parametrize("method", CONFIG.METHODS)
def test_every_method_tunes_an_adapter_and_keeps_rollouts_in_single_precision(base, method):
    run = Run(load(f"configs/preference.py:tiny,run={base},method={method},rank=2", ["precision='bfloat16'"]))
    batch = {name: value[0] for name, value in run.iterator().stack_batches(1).items()}
    params, key = run.executor.abstract.params, jax.random.key(0)
    batch["step"] = np.zeros(len(batch["row"]), np.int32)
    if run.method.collect is not None:
        made = jax.eval_shape(run.method.collect.rollout, params, batch, key)
        assert {x.dtype for x in jax.tree.leaves(made) if np.issubdtype(x.dtype, np.inexact)} == {np.dtype("float32")}
        made["batch"] = {name: np.zeros(x.shape, x.dtype) for name, x in made["batch"].items()}
        made["rewards"] = {name: np.arange(x.size, dtype=np.float32) for name, x in made["rewards"].items()}
        batch = dict(run.method.collect.batches(made, None, 0)[0])
        batch["step"] = np.zeros(len(batch["row"]), np.int32)
    (phase,) = run.method.phases.values()
    loss, gradients, _ = jax.eval_shape(partial(phase_gradients, phase), params, batch, key)
    assert loss.dtype == np.float32 and set(gradients) == {"student"}
    assert all(set(layer) == {"down", "up"} for layer in kernels(gradients["student"]))


def kernels(tree):
    """Everything of a name `kernel`."""
    for name, value in tree.items():
        if name == "kernel":
            yield value
        elif isinstance(value, dict):
            yield from kernels(value)


@pytest.mark.parametrize("reward", ["scene", "compressibility"])
def test_rewards_of_pictures_refuse_points(base, reward):
    with pytest.raises(ConfigError, match=f"'{reward}'"):
        assert not Run(load(f"configs/preference.py:tiny,run={base},reward={reward}")).method


@pytest.mark.parametrize("reward", ["scene", "compressibility"])
@pytest.mark.parametrize("method", CONFIG.GRADIENT)
def test_a_reward_without_gradient_is_refused_by_the_methods_that_follow_one_in_their_own_words(base, method, reward):
    config = load(f"configs/preference.py:tiny,run={base},method={method},reward={reward}")
    config.network = dict(name="unet", text_conditional=False)
    pictures = DataSpec((16, 16, 3), text_length=12, vocabulary=len(VOCABULARY))
    with pytest.raises(ValueError, match=f"'{method}' follows the gradient of its rewards.* is scored on the host"):
        build("method", config.method, METHODS, config=config, data=pictures)


@pytest.mark.parametrize("method", ["nft", "dpo", "draft"])
def test_methods_without_likelihoods_go_on_too(base, tmp_path, method):
    whole = tuned(base, tmp_path / "whole", f",method={method}", *UNWATCHED)
    tuned(base, tmp_path / "cut", f",method={method}", *UNWATCHED, "--config.steps=2")
    cut = tuned(base, tmp_path / "cut", f",method={method}", *UNWATCHED)
    for name in ("student", "ema", *(["old"] if method == "nft" else [])):
        jax.tree.map(np.testing.assert_array_equal, role(whole, name), role(cut, name))
        moved = jax.tree.map(lambda one, two: float(np.abs(one - two).max()), role(whole, name), role(base, "ema"))
        assert max(jax.tree.leaves(moved)) > 0


@pytest.mark.parametrize("method", ["draft", "refl"])
def test_a_student_of_few_steps_is_tuned_through_its_own(base, tmp_path, method):
    student = tmp_path / "student"
    distilled = f"--config=configs/students.py:tiny,teacher={base},method=consistency_distillation"
    assert main([distilled, f"--workdir={student}", *QUIET]) == 0
    watch = ("--config.when.evaluate.at_percent=(100,)", "--config.evaluators={}")
    folder = tuned(student, tmp_path / "tuned", f",method={method},sampler=own", *watch)
    (line,) = [line for line in read_lines(folder / "metrics.jsonl") if "eval/watchdog_gain_right" in line]
    assert line["eval/watchdog_gain_right"] > 0 and "eval/watchdog_divergence" not in line
    assert json.loads((folder / "samplers.json").read_text())["default"]["sampler"] == "consistency"
    jax.tree.map(np.testing.assert_array_equal, role(folder, "watchdog_reference"), role(student, "ema"))


def test_what_a_student_of_few_steps_is_not_tuned_by_is_refused(base):
    for options in ("method=nft", "method=draft,hold=1", "method=draft,guidance=2.0", "method=draft,divergence=5.0"):
        with pytest.raises(ConfigError, match="held by nothing"):
            load(f"configs/preference.py:tiny,run={base},{options},sampler=own")


def test_only_what_was_drawn_is_counted(base, tmp_path):
    """Two updates share a rollout of 32: each learns from 16 of them."""
    watch = ("--config.when.evaluate.at_percent=(100,)", "--config.evaluators={}")
    folder = tuned(base, tmp_path, ",method=nft", *watch, "--config.method.updates=2")
    receipts = [json.loads(file.read_text()) for file in (folder / "receipts").glob("*.json")]
    assert {(receipt["step"], receipt["images_seen"]) for receipt in receipts} == {(4, 4 * 16)}
    first, last = [line for line in read_lines(folder / "metrics.jsonl") if "loss" in line]
    between = last["training_seconds"] - first["training_seconds"]
    assert last["images_per_second"] * between == pytest.approx((last["step"] - first["step"]) * 16, rel=0.05)
    assert json.loads((folder / "status.json").read_text())["images"] == 64


def test_the_watchdog_measures_as_a_run_is_evaluated_and_stops_it_at_a_limit(base, tmp_path, capsys):
    # Along the path even the smallest move costs something; likelihoods of 32 samples say it with an error.
    evaluated = [*QUIET[:2], "--config.evaluators={}", "--config.watchdog.divergence=path"]
    config = f"--config=configs/preference.py:tiny,run={base},method=nft"
    assert main([config, f"--workdir={tmp_path / 'free'}", *evaluated]) == 0
    lines = [json.loads(line) for line in (tmp_path / "free" / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if "eval/watchdog_divergence" in line]
    assert [line["step"] for line in found] == [2, 4] and found[0]["eval/watchdog_divergence"] > 0
    assert {"eval/watchdog_spread_kept", "eval/watchdog_gain_right", "eval/watchdog_reward_right"} <= set(found[1])
    report = (tmp_path / "free" / "report.html").read_text()
    assert "Reward against divergence" in report and "It grows with the reward; growing without it is drift" in report
    receipts = {path.name for path in (tmp_path / "free" / "receipts").iterdir()}
    assert any("watchdog_gain_right" in name for name in receipts)
    capsys.readouterr()
    stopped = [config + ",divergence=1e-9", f"--workdir={tmp_path / 'held'}", *evaluated]
    with pytest.raises(SystemExit) as stop:
        main(stopped)
    assert stop.value.code == 143
    assert "the watchdog saw watchdog_divergence" in capsys.readouterr().err
    assert Checkpoints(tmp_path / "held" / "checkpoints", read_only=True).latest() == 2
    with pytest.raises(SystemExit) as again:  # the same command does not train on, however often
        main(stopped)
    told = capsys.readouterr().err
    assert again.value.code == 143 and "nothing was trained" in told
    assert "widen --config.watchdog.largest_divergence, or set it to None" in told
    with pytest.raises(SystemExit):  # too little
        main([*stopped, "--config.watchdog.largest_divergence=2e-9"])
    assert Checkpoints(tmp_path / "held" / "checkpoints", read_only=True).latest() == 2
    with pytest.raises(SystemExit):
        main([*stopped, "--config.when.log.every_steps=1"])
    assert "nothing was trained" in capsys.readouterr().err
    assert main([*stopped, "--config.watchdog.largest_divergence=None"]) == 0
    assert Checkpoints(tmp_path / "held" / "checkpoints", read_only=True).latest() == 4
    assert main([config, f"--workdir={tmp_path / 'free'}", "--mode=eval", *evaluated]) == 0
    assert "watchdog_divergence" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_doctor_finds_the_ratio_at_one(base, tmp_path, capsys, precision):
    tuned(base, tmp_path, "", "--mode=check", f"--config.precision={precision}")
    assert "ok   ratio before the first update" in capsys.readouterr().out


def test_times_are_those_that_the_run_was_trained_at(base, monkeypatch):
    theirs = dict(name="logit_normal", high=0.95)
    read = stored.read_config
    monkeypatch.setattr(stored, "read_config", lambda *arguments: {**read(*arguments), "time": theirs})
    assert load(f"configs/preference.py:tiny,run={base},method=nft").time.to_dict() == theirs
    for options in ("", ",method=draft,hold=0"):  # a policy reads no law of times, nor does a reward alone
        assert load(f"configs/preference.py:tiny,run={base}{options}").time.name == "uniform"


def test_a_run_is_needed():
    with pytest.raises(ConfigError, match="Which run is tuned"):
        load("configs/preference.py")

"""Reward models through the command line: measured, resumed, seen through a finished flow, and as rewards of other runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.choices import build
from flowjax.config import load
from flowjax.contract import DataSpec
from flowjax.data import SOURCES, compare
from flowjax.data.compared_shapes import compared_shapes
from flowjax.main import main
from flowjax.rewards.learned import model
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.run import Run

QUIET = "--config.writers.tensorboard=False"


def run(folder, options="", *more, file="reward_model"):
    return main([f"--config=configs/{file}.py:{options}", f"--workdir={folder}", QUIET, *more])


def role(folder, name):
    return jax.tree.map(jnp.asarray, Checkpoints(folder / "checkpoints", read_only=True).read_role(name))


def measured(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "eval/comparison_accuracy" in line][-1]
    return {name.removeprefix("eval/"): value for name, value in last.items()}


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """A reward model of points, trained for some seconds."""
    folder = tmp_path_factory.mktemp("reward") / "points"
    more = ["--config.steps=600", "--config.optimizer.learning_rate=3e-3", "--config.method.scorer.widths=(32, 32)"]
    assert run(folder, "", *more) == 0
    return folder


def test_held_out_accuracy_is_within_two_points_of_the_best(points):
    found = measured(points)
    assert found["comparison_accuracy"] > found["comparison_accuracy_best"] - 0.02
    assert 0.85 < found["comparison_accuracy_best"] < 0.95
    receipts = [json.loads(file.read_text()) for file in (points / "receipts").glob("comparison_accuracy_scores*")]
    last = max(receipts, key=lambda receipt: receipt["step"])
    assert last["better"] == "higher" and last["interval"][0] < last["value"] < last["interval"][1]
    assert last["samples"] == 4000 and last["sampler"] == "scores" and last["ema"] == "ema"
    assert "How often the better example has the higher score" in (points / "report.html").read_text()


def test_it_is_measured_again_by_the_command(points, capsys):
    config = points / "config.json"
    options = json.loads(config.read_text())
    more = [
        f"--config.steps={options['steps']}",
        "--config.optimizer.learning_rate=3e-3",
        "--config.method.scorer.widths=(32, 32)",
    ]
    assert run(points, "", "--mode=eval", *more) == 0
    assert f"{measured(points)['comparison_accuracy']:.6g}" in capsys.readouterr().out


def test_as_a_reward_it_is_standardised_on_what_it_was_measured_on(points):
    reward = model(data=DataSpec((2,)), restore_from=str(points))
    ((name, frozen),) = reward.roles.items()
    assert frozen.tx is None and frozen.restore_from == f"{points}:ema"
    params, source = {name: role(points, "ema")}, build("data", load("configs/reward_model.py").data, SOURCES)
    held = source.reference("test", 4000, 0)
    examples = jnp.asarray(np.concatenate([held["data"], held["others"][:, 0]]))
    value = np.asarray(reward.value(params, examples, {}))
    assert abs(value.mean()) < 1e-3 and abs(value.std() - 1) < 1e-3
    # the known score, up to its unit and a constant
    assert np.corrcoef(value, np.asarray(examples) @ [1.5, -1.0])[0, 1] > 0.99
    slope = np.asarray(jax.grad(lambda x: jnp.mean(reward.value(params, x, {})))(examples)).sum(0)
    assert slope[0] / slope[1] == pytest.approx(-1.5, abs=0.2)
    raw = model(data=DataSpec((2,)), restore_from=str(points), standardise=False)
    np.testing.assert_allclose(
        (np.asarray(raw.value(params, examples, {})) - value.mean()).std(), measured(points)["score_std"], rtol=1e-3
    )
    own = model(data=DataSpec((2,)), restore_from=f"{points}:scorer", mean=1.0, deviation=2.0)
    params = {next(iter(own.roles)): role(points, "scorer")}
    other = model(data=DataSpec((2,)), restore_from=f"{points}:scorer", standardise=False)
    np.testing.assert_allclose(own.value(params, examples, {}), (other.value(params, examples, {}) - 1) / 2, rtol=1e-5)


def test_a_reward_that_has_no_unit_is_refused(points, tmp_path):
    spec = DataSpec((2,))
    with pytest.raises(ValueError, match="the scores that were measured are those of 'ema'"):
        model(data=spec, restore_from=f"{points}:scorer")
    with pytest.raises(ValueError, match="give both numbers"):
        model(data=spec, restore_from=str(points), mean=1.0)
    assert run(tmp_path / "flow", "tiny", "--config.when.sample.at_percent=()", file="points") == 0
    with pytest.raises(ValueError, match="is one of 'flow_matching'"):
        model(data=spec, restore_from=str(tmp_path / "flow"))
    assert run(tmp_path / "unmeasured", "tiny", "--config.when.evaluate.at_percent=()") == 0
    with pytest.raises(ValueError, match="and nothing was"):
        model(data=spec, restore_from=str(tmp_path / "unmeasured"))


@pytest.mark.parametrize("method", ["flow_grpo", "refl"])
def test_a_flow_is_tuned_by_it(points, tmp_path, method):
    off = ["--config.when.sample.at_percent=()", "--config.when.evaluate.at_percent=()"]
    assert run(tmp_path / "flow", "tiny", *off, file="points") == 0
    rewards = {"liked": dict(name="model", restore_from=str(points))}
    options = f"tiny,run={tmp_path / 'flow'},method={method}"
    assert run(tmp_path / "tuned", options, *off, f"--config.method.rewards={rewards}", file="preference") == 0
    (name,) = model(data=DataSpec((2,)), restore_from=str(points)).roles
    jax.tree.map(np.testing.assert_array_equal, role(tmp_path / "tuned", name), role(points, "ema"))
    moved = jax.tree.map(
        lambda one, two: jnp.abs(one - two).max(), *(role(tmp_path / f, "student") for f in ("tuned", "flow"))
    )
    assert max(jax.tree.leaves(moved)) > 0


@pytest.mark.parametrize("options", ["loss=tie", "loss=ranking,examples=4"])
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path, options):
    constant = ["--config.optimizer.decay=constant", "--config.optimizer.final_fraction=0.0"]
    assert run(tmp_path / "whole", f"tiny,{options}", *constant) == 0
    assert run(tmp_path / "cut", f"tiny,{options}", *constant, "--config.steps=4") == 0
    assert run(tmp_path / "cut", f"tiny,{options}", *constant) == 0
    for name in ("scorer", "ema"):
        jax.tree.map(np.testing.assert_array_equal, role(tmp_path / "whole", name), role(tmp_path / "cut", name))


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """A tiny text-to-image run whose tokens are looked at."""
    folder = tmp_path_factory.mktemp("flow") / "flow"
    off = ["--config.when.sample.at_percent=()", "--config.when.evaluate.at_percent=()"]
    assert run(folder, "tiny,network=dit", *off, file="shapes") == 0
    return folder


@pytest.mark.parametrize("frozen", [True, False])
def test_a_finished_flow_is_seen_through(flow, tmp_path, frozen):
    more = [] if frozen else ["--config.method.scorer.trunk.frozen=False"]
    assert run(tmp_path, f"tiny,data=shapes,run={flow}", *more) == 0
    theirs = role(flow, "ema")
    if frozen:
        jax.tree.map(np.testing.assert_array_equal, role(tmp_path, "trunk"), theirs)
        assert set(role(tmp_path, "scorer")) == {"head"}
    else:
        mine = role(tmp_path, "scorer")["trunk"]
        assert "output" not in mine["network"] and "output" in theirs["network"]  # which no token depends on
        gaps = jax.tree.map(lambda one, two: np.abs(one - two).max(), mine["text"], theirs["text"])
        assert 0 < max(jax.tree.leaves(gaps)) < 0.1  # begun there, and moved
    assert {"shortcut_brightness", "shortcut_caption_length", "score_std"} <= set(measured(tmp_path))
    assert list((tmp_path / "samples").glob("*.png"))
    source = Run(load(f"configs/reward_model.py:tiny,data=shapes,run={flow}")).source
    batch = source.reference("test", 4)
    reward = model(data=Run(load("configs/shapes.py:tiny,network=dit")).source.spec, restore_from=str(tmp_path))
    roles = {name: own.restore_from.rpartition(":")[2] for name, own in reward.roles.items()}
    assert sorted(roles.values()) == (["ema", "trunk"] if frozen else ["ema"])
    params = {name: role(tmp_path, theirs) for name, theirs in roles.items()}
    cond = {"tokens": jnp.asarray(batch["tokens"])}
    assert reward.value(params, jnp.asarray(batch["data"]), cond).shape == (4,)
    with pytest.raises(ValueError, match=r"reads the condition\(s\) tokens; samples were drawn under none"):
        reward.value(params, jnp.asarray(batch["data"]), {})


def test_a_folder_of_comparisons_is_learnt_from(tmp_path):
    compare.write_comparisons(compared_shapes(kind="style", resolution=16, examples=3), tmp_path / "in", 60)
    more = ["--config.evaluation.count=4", "--config.sample.count=4", "--config.data.test_share=0.3"]
    assert run(tmp_path / "out", f"tiny,data={tmp_path / 'in'},size=16,loss=ranking", *more) == 0
    assert "comparison_accuracy_best" not in measured(tmp_path / "out")  # people do not tell
    assert list((tmp_path / "out" / "samples").glob("*.png"))


@pytest.mark.parametrize("options", ["data=shapes,kind=degraded", "data=shapes,kind=style,examples=3,loss=ranking"])
def test_the_doctor_passes_what_the_config_builds(tmp_path, options, capsys):
    assert run(tmp_path, f"tiny,{options}", "--mode=check") in (0, 1)
    said = capsys.readouterr().out
    assert "ok   gradient reaches every parameter of 'comparisons'" in said and "ok   scores before training" in said


def test_pictures_of_points_are_refused_in_one_line(tmp_path, capsys):
    assert run(tmp_path, "tiny", "--config.when.sample.at_percent=(100,)") == 2
    assert "There is no picture of scores of points" in capsys.readouterr().err


def test_without_comparisons_there_is_nothing_to_learn(tmp_path, capsys):
    more = '--config.data={"name": "mixture"}'
    assert run(tmp_path, "tiny", more) == 2
    assert "these data have none" in capsys.readouterr().err

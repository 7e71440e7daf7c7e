"""Tuning by a folder of comparisons, and by a reward model's folder, through the command line."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from flowjax.config import ConfigError, load
from flowjax.data import compare
from flowjax.data.compared_shapes import compared_shapes
from flowjax.data.tokenizers import make_tokenizer
from flowjax.main import main
from flowjax.methods.finished import open_finished
from flowjax.models import stored
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.run import Run

OFF = ["--config.when.sample.at_percent=()", "--config.when.evaluate.at_percent=()"]


def run(folder, file, options, *more):
    arguments = [
        f"--config=configs/{file}.py:tiny,{options}",
        f"--workdir={folder}",
        "--config.writers.tensorboard=False",
    ]
    return main([*arguments, *more])


def role(folder, name):
    return jax.tree.map(np.asarray, Checkpoints(folder / "checkpoints", read_only=True).read_role(name))


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """A tiny text-to-image run."""
    folder = tmp_path_factory.mktemp("flow") / "flow"
    assert run(folder, "shapes", "network=dit", *OFF) == 0
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What somebody found better, and their words: not all the run's."""
    out = tmp_path_factory.mktemp("compared") / "in"
    compare.write_comparisons(compared_shapes(resolution=16, sizes=("large",)), out, 40)
    with (out / "comparisons.jsonl").open("a") as file:
        odd = dict(prompt="a mauve elephant", images=["000000_0.png", "000000_1.png"], outcome="first")
        file.write(json.dumps(odd) + "\n")
    return out


def test_a_run_learns_from_a_folder_in_its_own_words_and_is_watched(flow, folder, tmp_path, capsys):
    watch = ["--config.when.evaluate.at_percent=(100,)", "--config.watchdog.divergence=path"]
    assert run(tmp_path, "preference", f"run={flow},method=dpo,data={folder}", OFF[0], *watch) == 0
    assert "prompt that the tokenizer refuses 1 (a mauve elephant)" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if "eval/watchdog_divergence" in line][-1]
    assert found["eval/watchdog_divergence"] > 0 and "eval/watchdog_gain_held_scene" in found
    assert "Reward against divergence" in (tmp_path / "report.html").read_text()
    check_moved(tmp_path, flow)


def test_what_was_judged_by_itself_teaches_too(flow, folder, tmp_path, capsys):
    apart = "--config.data.examples=1"
    assert run(tmp_path, "preference", f"run={flow},method=kto,data={folder}", *OFF, apart) == 0
    assert "prompt that the tokenizer refuses 2 (a mauve elephant, a mauve elephant)" in capsys.readouterr().out
    check_moved(tmp_path, flow)


def test_winners_alone_teach_too(flow, folder, tmp_path):
    assert run(tmp_path, "preference", f"run={flow},method=best_of,data={folder}", *OFF) == 0
    check_moved(tmp_path, flow, "watchdog_reference")


def check_moved(tuned, flow, kept="reference"):
    """The reference is still the flow, and the student is not."""
    reference = role(tuned, kept)
    jax.tree.map(np.testing.assert_array_equal, reference, role(flow, "ema"))
    moved = jax.tree.map(lambda one, two: np.abs(one - two).max(), role(tuned, "student"), reference)
    assert max(jax.tree.leaves(moved)) > 0


def test_it_reads_pictures_of_the_runs_size_with_the_runs_tokenizer(flow, folder):
    tuned = Run(load(f"configs/preference.py:tiny,run={flow},method=dpo,data={folder}"))
    theirs = Run(load("configs/shapes.py:tiny,network=dit")).source
    assert tuned.source.tokenizer.fingerprint() == theirs.tokenizer.fingerprint()
    assert tuned.source.spec.shape == theirs.spec.shape and tuned.source.spec.compared == 2
    assert tuned.method.collect is None and tuned.config.name.endswith("_dpo_in_tiny")


@pytest.mark.parametrize("options", ["method=nft", "method=dpo,reward=scene", "method=refl,sampler=own"])
def test_what_draws_its_own_learns_from_no_folder(flow, folder, options):
    with pytest.raises(ConfigError, match="comparisons are learnt from by dpo, kto, best_of"):
        load(f"configs/preference.py:tiny,run={flow},data={folder},{options}")


def test_the_words_of_a_run_are_those_of_its_data(flow, tmp_path):
    words = make_tokenizer(dict(name="run", restore_from=str(flow)), ["not read"])
    assert words.encode(["a red circle"]).shape == (1, words.length)
    with pytest.raises(ValueError, match=f"has captions of {words.length} ids"):
        make_tokenizer(dict(name="run", restore_from=str(flow), length=words.length + 1))
    with pytest.raises(Exception, match="there is no folder"):
        make_tokenizer(dict(name="run", restore_from=str(tmp_path / "nowhere")))
    assert run(tmp_path / "points", "points", "", *OFF) == 0
    with pytest.raises(ValueError, match="whose data have no captions"):
        make_tokenizer(dict(name="run", restore_from=str(tmp_path / "points")))
    with pytest.raises(ConfigError, match="name no size that other pictures"):
        load(f"configs/preference.py:tiny,run={tmp_path / 'points'},method=dpo,data={tmp_path}")


def test_a_flow_that_goes_on_in_other_words_is_told_so_and_a_teacher_of_others_refused(flow, capsys):
    config = load("configs/shapes.py:tiny,network=dit")
    config.restore = dict(student=f"{flow}:ema")
    again = Run(config)
    spec = again.source.spec
    other = dataclasses.replace(spec, words="another")
    assert "student" in again.restored and open_finished(str(flow), spec, "The teacher")
    assert "other words" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="The teacher reads captions as .*would take one word for another"):
        open_finished(str(flow), other, "The teacher")
    assert open_finished(str(flow), dataclasses.replace(spec, words=""), "The teacher")  # nobody knows
    stored.check_words(str(flow), ("label",), "another", "A network without captions")
    with pytest.raises(ValueError, match="A network of encoded ones reads captions"):
        stored.check_words(str(flow), ("label", "text"), "another", "A network of encoded ones")
    del again.__dict__["restored"]
    again.__dict__["source"] = dataclasses.replace(again.source, spec=other)
    assert "student" in again.restored and "Role 'student' starts from" in capsys.readouterr().out


def test_a_reward_models_folder_is_a_reward_and_may_be_held_out(flow, folder, tmp_path):
    judge = tmp_path / "judge"
    assert run(judge, "reward_model", f"data=shapes,run={flow}") == 0
    config = load(f"configs/preference.py:tiny,run={flow},method=refl,reward={judge}")
    assert config.method.rewards.to_dict() == dict(liked=dict(name="model", restore_from=str(judge)))
    assert list(config.watchdog.rewards) == ["held_scene"] and Run(config).method
    held = load(f"configs/preference.py:tiny,run={flow},reward=scene,held={judge}")
    assert held.watchdog.rewards.to_dict() == dict(held_judge=dict(name="model", restore_from=str(judge)))
    assert Run(held).method
    seen = load(f"configs/reward_model.py:tiny,data={tmp_path},run={flow}").data  # a folder, as the flow sees pictures
    assert seen.size == 16 and seen.tokenizer.to_dict() == dict(name="run", restore_from=str(flow))
    # The same shapes of batches, and other words.
    words = f"--config.data.tokenizer=dict(name='bytes', length={Run(held).source.spec.text_length})"
    few = [f"--config.evaluation={dict(count=6, batch_size=6)}", "--config.sample.count=6"]
    assert run(tmp_path / "other", "reward_model", f"data={folder}", words, "--config.data.size=16", *few) == 0
    with pytest.raises(ConfigError, match="The reward 'model' reads captions as .*other' learnt to"):
        _ = Run(load(f"configs/preference.py:tiny,run={flow},method=refl,reward={tmp_path / 'other'}")).method
    with pytest.raises(ConfigError, match="Unknown reward 'juge'"):
        load(f"configs/preference.py:tiny,run={flow},reward=juge")

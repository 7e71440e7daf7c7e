"""An autoencoder from the command line, in small: two phases, a resume, reconstructions, and a flow on its latents."""

import json

import jax
import numpy as np
import pytest

from flowjax.main import main
from flowjax.training.checkpoints import Checkpoints

SMALL = [
    "--config.network.channels=4",
    "--config.network.multipliers=(1, 1)",
    "--config.method.discriminator.channels=4",
    "--config.method.discriminator.layers=1",
    "--config.method.adversarial_start=2",
    "--config.optimizer.decay=constant",
    "--config.optimizer.final_fraction=0.0",
    "--config.steps_per_dispatch=2",
    "--config.when.log.every_steps=2",
    "--config.when.checkpoint.at_percent=(50, 100)",
    "--config.writers.tensorboard=False",
]
FLOW = ["--config.network.width=16", "--config.steps=4", "--config.writers.tensorboard=False"]


def flowjax(workdir, *arguments, argument="tiny"):
    return main([f"--config=configs/autoencoder.py:{argument}", f"--workdir={workdir}", *arguments])


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "autoencoder"
    assert flowjax(workdir, *SMALL, "--config.steps=6") == 0
    return workdir


def test_two_phases_are_trained_and_logged_and_reconstructions_measured(trained):
    logged = lines(trained)
    first, *later = [line for line in logged if "autoencoder/loss" in line]
    assert first["step"] == 2 and "discriminator/loss" not in first and first["autoencoder/adaptive_weight"] == 0
    assert all(line["discriminator/loss"] > 0 and line["autoencoder/adaptive_weight"] > 0 for line in later)
    measured = next(line for line in logged if "eval/psnr" in line)
    assert 0 < measured["eval/psnr"] < 60 and measured["eval/frechet_floor"] > 0
    assert {path.name for path in (trained / "samples").iterdir()} == {"00000006_default.png", "00000006_prior.png"}
    receipts = [json.loads(path.read_text()) for path in (trained / "receipts").iterdir()]
    assert {"psnr"} <= {receipt["metric"] for receipt in receipts if receipt["sampler"] == "reconstruct"}
    roles = {
        name: Checkpoints(trained / "checkpoints", read_only=True).read_role(name) for name in ("autoencoder", "ema")
    }
    assert set(roles["ema"]) == {"encoder", "decoder", "output"}


def test_a_resumed_run_ends_as_an_uninterrupted_one(trained, tmp_path):
    """Stopped after the adversary has entered: both optimizers, and the step at which it entered, come back."""
    assert flowjax(tmp_path / "run", *SMALL, "--config.steps=4") == 0
    assert flowjax(tmp_path / "run", *SMALL, "--config.steps=6") == 0
    for role in ("autoencoder", "discriminator", "ema"):
        one, other = (
            Checkpoints(w / "checkpoints", read_only=True).read_role(role) for w in (trained, tmp_path / "run")
        )
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), one, other))), role


def test_it_samples_and_evaluates_what_is_trained(trained, tmp_path, capsys):
    arguments = [*SMALL, "--config.steps=6", "--count=10"]
    assert flowjax(trained, *arguments, "--mode=sample", f"--out={tmp_path / 'pairs.npz'}") == 0
    arrays = np.load(tmp_path / "pairs.npz")
    assert arrays["samples"].shape == arrays["data"].shape == (10, 8, 8, 1)
    assert flowjax(trained, *arguments, "--mode=sample", "--sampler=prior") == 0
    assert flowjax(trained, *arguments, "--mode=eval") == 0
    assert "psnr" in capsys.readouterr().out
    assert flowjax(trained, *SMALL, "--config.steps=6", "--mode=sample", "--count=400") == 2
    assert "Ask for at most 359" in capsys.readouterr().err


def test_a_flow_learns_its_latents_and_is_judged_by_decoded_images(trained, tmp_path):
    workdir = tmp_path / "flow"
    assert flowjax(workdir, *FLOW, argument=f"tiny,latents={trained}") == 0
    values = {name: value for line in lines(workdir) for name, value in line.items()}
    assert values["eval/frechet"] > values["eval/frechet_floor"] > 0 and 0 <= values["eval/class_accuracy"] <= 1
    arguments = ["--mode=sample", "--count=10", f"--out={tmp_path / 'images.npz'}"]
    assert flowjax(workdir, *FLOW, *arguments, argument=f"tiny,latents={trained}") == 0
    assert np.load(tmp_path / "images.npz")["samples"].shape == (10, 8, 8, 1)
    assert (trained / "moments" / "header.json").is_file()


def test_an_adversary_that_would_enter_after_the_end_is_refused_before_anything_is_written(tmp_path, capsys):
    assert flowjax(tmp_path / "run", *SMALL, "--config.steps=6", "--config.method.adversarial_start=6") == 2
    assert "Phase 'discriminator' would never run" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

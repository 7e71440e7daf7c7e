"""Captions encoded by a frozen encoder, with a vector for each whole caption, from a config to samples of prompts."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from small_minilm import place_minilm

from flowjax.config import load
from flowjax.main import main
from flowjax.methods.parts import make_network
from flowjax.training.run import Run

CONFIG = """
from flowjax.config import defaults, schedule

def get_config(argument=""):
    config = defaults()
    config.steps, config.batch_size = 2, 8
    scenes = dict(name="shapes", resolution=8, objects=(1, 1))
    config.data = dict(name="encoded", source=scenes, folder="FOLDER", text_length=8, pooled=True)
    config.network = dict(name="mmdit", width=16, depth=1, heads=2, patch=4)
    config.samplers = dict(default=dict(name="euler", steps=2, guidance=dict(name="cfg", scale=2.0), role="ema"))
    config.sample.count = 8
    config.when.log = schedule(every_steps=1)
    config.when.sample = schedule(at_percent=(100,))
    config.when.checkpoint = schedule(at_percent=(100,))
    config.writers.tensorboard = False
    return config
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    place_minilm(tmp_path, monkeypatch)
    (tmp_path / "config.py").write_text(CONFIG.replace("FOLDER", str(tmp_path)))
    return str(tmp_path / "config.py")


def test_a_run_reads_them_in_training_and_in_prompts(config, tmp_path):
    run = lambda *more: main([f"--config={config}", f"--workdir={tmp_path / 'run'}", *more])
    assert run() == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["loss"] for line in lines if "loss" in line]).all()
    prompts = "--config.sample.prompts=('a red circle','a blue square')"
    assert run(prompts, "--mode=sample", f"--out={tmp_path / 'out.npz'}") == 0
    with np.load(tmp_path / "out.npz") as arrays:
        assert np.isfinite(arrays["samples"]).all()
        pooled, captions = arrays["text_pooled"], arrays["captions"].tolist()
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), 1, atol=1e-5)
    assert captions == ["a red circle"] * 4 + ["a blue square"] * 4
    np.testing.assert_array_equal(pooled[:4], pooled[[0] * 4])


def test_a_dropped_caption_is_dropped_whole(config):
    loaded = load(config)
    source = Run(loaded).source
    network = make_network(loaded, source.spec)
    assert {"text", "text_mask", "text_pooled"} <= set(network.conditions)
    rows = source.reference("test", 2)
    dropped = network.drop({name: jnp.asarray(rows[name]) for name in network.conditions}, jnp.array([True, False]))
    assert not dropped["text_pooled"][0].any() and not dropped["text_mask"][0].any()
    for name in network.conditions:
        np.testing.assert_array_equal(dropped[name][1], rows[name][1])


def test_a_network_that_would_not_read_them_is_refused(config, tmp_path, capsys):
    network = "--config.network={'name': 'dit', 'width': 16, 'depth': 1, 'heads': 2, 'patch': 4}"
    run = lambda *more: main([f"--config={config}", f"--workdir={tmp_path / 'run'}", network, "--mode=plan", *more])
    assert run() == 2
    message = capsys.readouterr().err.strip()
    assert "text_pooled" in message and "'dit' does not read" in message and "use network 'mmdit'" in message

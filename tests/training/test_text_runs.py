"""Text to image from the command line, in small: training, pictures with captions, measuring, prompts, and bad input."""

import json

import numpy as np
import pytest

from flowjax.main import main

CONFIG = """
from flowjax.config import defaults, schedule

def get_config(argument=""):
    config = defaults()
    config.steps, config.batch_size = 2, 8
    config.data = dict(name="shapes", resolution=8, objects=(1, 1))
    config.text = dict(name="transformer", width=16, depth=1, heads=2)
    config.network = dict(name="dit", width=16, depth=1, heads=2, patch=4)
    config.samplers = dict(default=dict(name="euler", steps=2, guidance=dict(name="cfg", scale=2.0), role="ema"))
    config.sample.count = 8  # as many as are measured: one program draws both
    config.evaluation = dict(count=8, batch_size=8)
    config.evaluators = dict(mmd=dict(name="mmd", features="identity"))
    config.when.log = schedule(every_steps=1)
    config.when.sample = schedule(at_percent=(100,))
    config.when.checkpoint = schedule(at_percent=(100,))
    config.writers.tensorboard = False
    return config
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "words.py"
    file.write_text(CONFIG)
    return str(file)


def flowjax(config, workdir, *arguments):
    return main([f"--config={config}", f"--workdir={workdir}", *arguments])


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    assert flowjax(config, workdir) == 0
    return workdir


def test_a_run_trains_the_encoder_and_leaves_captioned_pictures_and_receipts(trained):
    from flowjax.training.checkpoints import Checkpoints

    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2] and any("eval/mmd" in line for line in lines)
    role = Checkpoints(trained / "checkpoints", read_only=True).read_role("student")
    assert set(role) == {"text", "network"}
    assert [path.name for path in (trained / "samples").iterdir()] == ["00000002_default.png"]
    assert any(json.loads(path.read_text())["metric"] == "mmd" for path in (trained / "receipts").iterdir())


def test_prompts_are_drawn_and_written_with_their_words(config, trained, tmp_path):
    from flowjax.data.shapes import shapes

    out = tmp_path / "samples.npz"
    prompts = "--config.sample.prompts=('a red circle','a blue square')"
    assert flowjax(config, trained, prompts, "--mode=sample", f"--out={out}") == 0
    with np.load(out) as arrays:
        assert arrays["samples"].shape == (8, 8, 8, 3) and np.isfinite(arrays["samples"]).all()
        assert arrays["captions"].tolist() == ["a red circle"] * 4 + ["a blue square"] * 4
        known = shapes(resolution=8, objects=(1, 1)).tokenizer.encode(["a red circle"])
        np.testing.assert_array_equal(arrays["tokens"][:1], known)
        assert np.abs(arrays["samples"][0] - arrays["samples"][1]).max() > 1e-3


BAD = {
    "an unknown word": (
        ["--config.sample.prompts=('a red cirkle',)"],
        "'cirkle'",
        "circle",
    ),
    "more prompts than pictures": (["--config.sample.prompts=('a','a','a','a','a','a','a','a','a')"],
                                   "sample.prompts has 9 texts", "Raise"),
    "prompts without captions": (
        ["--config.data={'name': 'digits'}", "--config.text={'name': 'none'}", "--config.sample.prompts=a",
         "--config.evaluators={}"],
        "these data have no captions", "sample.prompts",
    ),
    "captions that no one reads": (["--config.text={'name': 'none'}"], "which no one would read", "transformer"),
    "an encoder without captions": (
        ["--config.data={'name': 'digits'}"], "those of these data are not there", "text=dict(name='none')"
    ),
    "a network that reads no text": (["--config.network={'name': 'mlp'}"], "does not read the text", "'dit'"),
    "an unknown encoder": (["--config.text.name=transfomer"], "Unknown text encoder", "Did you mean 'transformer'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(config, tmp_path, capsys, name):
    arguments, message, fix = BAD[name]
    assert flowjax(config, tmp_path / "run", *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("flowjax: "), lines
    assert message in lines[0] and fix in lines[0], lines[0]

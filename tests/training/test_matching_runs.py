"""Distribution matching and adversarial distillation from the command line, on points and on a trained transformer."""

import json

import jax
import numpy as np
import pytest

from flowjax.main import main
from flowjax.training.checkpoints import Checkpoints

POINTS = ["dmd", "dmd2", "sid", "add", "ladd"]
FEW = [
    "--config.steps=4",
    "--config.when.log.every_steps=2",
    "--config.evaluation=dict(count=64,batch_size=64)",
    "--config.sample.count=16",
    "--config.writers.tensorboard=False",
]
IMAGES = """
from flowjax.config import defaults, schedule

def get_config(argument=""):
    config = defaults()
    config.steps, config.batch_size = 2, 8
    config.data = dict(name="digits")
    config.network = dict(name="dit", width=16, depth=2, heads=2)
    config.samplers = dict(default=dict(name="consistency", steps=2, role="ema"))
    config.when.log = schedule(every_steps=1)
    config.when.sample = schedule()
    config.writers.tensorboard = False
    return config
"""


def figures(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    values = [value for line in lines for value in line.values() if isinstance(value, float)]
    assert values and np.isfinite(values).all()
    return lines


@pytest.mark.parametrize("method", POINTS)
def test_every_method_runs_from_its_config(method, tmp_path):
    config = f"--config=configs/distillation.py:tiny,weights=uneven,method={method}"
    few = [*FEW, "--config.method.fake_warmup=1"] if method in ("dmd", "dmd2", "sid") else FEW
    assert main([config, f"--workdir={tmp_path}", *few]) == 0
    lines = figures(tmp_path)
    assert any("student/loss" in line for line in lines) and any("eval/sliced_w2" in line for line in lines)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["method"]["teacher"]["weights"] == written["data"]["weights"] == "uneven"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    (folder / "config.py").write_text(IMAGES)
    assert main([f"--config={folder / 'config.py'}", f"--workdir={folder / 'teacher'}"]) == 0
    return folder


def distil(folder, run, **method):
    spec = dict(teacher=dict(name="run", restore_from=str(folder / "teacher"), guidance_scale=1.5), **method)
    lora = spec.pop("lora", {})
    arguments = [f"--config.method={spec!r}", *(f"--config.lora.{key}={value!r}" for key, value in lora.items())]
    assert main([f"--config={folder / 'config.py'}", f"--workdir={folder / run}", *arguments]) == 0
    return Checkpoints(folder / run / "checkpoints", read_only=True), figures(folder / run)


def test_ladd_judges_by_the_frozen_teachers_tokens(teacher):
    judge = dict(name="tokens", layers=(1, 2), width=8)
    saved, lines = distil(teacher, "ladd", name="ladd", discriminator=judge, penalty_weight=0.1, penalty_step=0.1)
    assert set(saved.read_role("discriminator")) == {"head_0", "head_1"}
    (source,) = (Checkpoints(teacher / "teacher" / "checkpoints", read_only=True).read_role("ema"),)
    jax.tree.map(np.testing.assert_array_equal, source, saved.read_role("teacher"))
    assert any("discriminator/penalty" in line for line in lines)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), source, saved.read_role("student"))
    assert max(jax.tree.leaves(moved)) > 0


def test_dmd2_adapts_one_base_for_student_fake_and_teacher(teacher):
    options = dict(name="dmd2", steps=2, student_every=1, adversarial_weight=0.01)
    saved, lines = distil(teacher, "dmd2", **options, lora=dict(rank=2, roles=("student", "fake")))
    source = Checkpoints(teacher / "teacher" / "checkpoints", read_only=True).read_role("ema")
    jax.tree.map(np.testing.assert_array_equal, source, saved.read_role("base"))
    with pytest.raises(Exception, match="has no role 'teacher'"):
        saved.read_role("teacher")
    for role in ("student", "fake"):
        assert set(saved.read_role(role)["output"]["kernel"]) == {"down", "up"}
    assert any("fake/critic" in line for line in lines)


def test_add_judges_by_the_features_of_an_image_network(teacher):
    judge = dict(name="features", input_size=32, weights="random", layers=("b2",), width=8)
    saved, lines = distil(teacher, "add", name="add", discriminator=judge)
    assert "stem" in saved.read_role("features") and set(saved.read_role("discriminator")) == {"head_0"}
    assert any("student/distillation" in line for line in lines)


def test_dmd_compares_its_pairs_as_a_network_sees_them(teacher):
    seen = dict(name="features", layers=("b2",), weights="random", input_size=32)
    saved, lines = distil(teacher, "dmd", name="dmd", distance=dict(name="perceptual", network=seen), teacher_steps=2)
    assert "stem" in saved.read_role("perceptual")
    assert all(line["student/regression"] > 0 for line in lines if "student/regression" in line)

"""MeanFlow as a method: its two times, guidance whose fixed point is known, a run from the command line, refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.config import ConfigError, load
from flowjax.main import main
from flowjax.methods.parts import make_setting
from flowjax.methods.students import second_times
from flowjax.training.run import Run
from flowjax.training.update import with_step

CONFIG = "configs/distillation.py:tiny"


def run_of(*overrides):
    return Run(load(CONFIG, list(overrides)))


def batch_of(run, count=64):
    rows = {name: jnp.asarray(value) for name, value in run.source.reference("train", count).items()}
    return with_step({**rows, "row": jnp.arange(count), "mask": jnp.ones(count)}, 0)


def params_of(run):
    roles = run.method.roles
    trees = {name: role.init(jax.random.key(0)) for name, role in roles.items() if role.init}
    return trees


def test_two_times_of_one_law_the_earlier_first():
    run = run_of("time=dict(name='uniform')")
    setting = make_setting(run.config, run.source.spec, "velocity")
    rows, count = {"row": jnp.arange(20_000)}, 20_000
    t = jnp.asarray(np.random.default_rng(0).uniform(size=count), jnp.float32)
    low, high = second_times(setting, t, rows, jax.random.key(0), equal=0.25)
    same = np.asarray(low == high)
    assert (low <= high).all() and same.mean() == pytest.approx(0.25, abs=0.015)
    np.testing.assert_array_equal(low[same], t[same])
    # of two independent uniforms the smaller has mean 1/3, the larger 2/3
    assert float(low[~same].mean()) == pytest.approx(1 / 3, abs=0.01)
    assert float(high[~same].mean()) == pytest.approx(2 / 3, abs=0.01)


def test_the_loss_is_that_of_a_pair_or_of_the_teacher():
    """At s = t and without weight it is |p - v|^2: its mean over the pairs of a point exceeds the teacher's."""
    options = ("method.equal_times=1.0", "method.power=0.0")
    pair, taught = run_of(*options), run_of(*options, "method.teacher=dict(name='mixture')")
    batch, key = batch_of(pair, 512), jax.random.key(3)
    values = {}
    for name, run in (("pair", pair), ("teacher", taught)):
        loss = run.method.phases["flow_map"].loss
        values[name] = np.asarray(jax.jit(loss)(params_of(run), batch, key)[0])
    # The teacher's velocity is the mean of the pair's: what is left over is the variance of the pairs.
    assert 0 < values["teacher"].mean() < values["pair"].mean()
    leaves = jax.grad(lambda p: jnp.sum(taught.method.phases["flow_map"].loss(p, batch, key)[0]))(params_of(taught))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(leaves["teacher"]))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(leaves["student"]))


def test_guidance_changes_the_target_of_the_kept_and_not_of_the_dropped():
    """p is made linear: c under a condition, u under its null; the target is omega v + (1 - omega - kappa) u + kappa c."""
    labels = ("data.labels=True", "method.equal_times=1.0", "method.power=0.0", "method.label_dropout=0.5")
    plain, guided = run_of(*labels), run_of(*labels, "method.omega=1.0", "method.kappa=0.5")
    params, batch, key = params_of(plain), batch_of(plain), jax.random.key(1)
    plain_loss, guided_loss = (run.method.phases["flow_map"].loss(params, batch, key)[0] for run in (plain, guided))
    same = np.isclose(plain_loss, guided_loss, rtol=1e-5)
    assert 0.3 < same.mean() < 0.7  # the dropped half


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("network.two_times=False",), "trains a network of two times. Set network.two_times=True"),
        (("method.kappa=1.0",), "expected omega > 0 and 0 <= kappa < 1"),
        (("method.equal_times=1.5",), "method.equal_times is 1.5; expected a share"),
        (("method.kappa=0.5",), "Guidance needs a condition to drop"),
        (("method.start='teacher'",), "was given none. Set method.teacher"),
        (("method.kappa=0.5", "method.teacher=dict(name='mixture')"), "A teacher brings its own guidance"),
    ],
)
def test_refusals(overrides, message):
    with pytest.raises(ConfigError, match=message):
        run_of(*overrides).method  # noqa: B018 - building it is what is tested


def test_from_the_command_line(tmp_path):
    teacher = "--config.method.teacher=dict(name='mixture')"
    assert main([f"--config={CONFIG}", f"--workdir={tmp_path}", teacher]) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["loss"] for line in lines if "loss" in line]).all()
    assert any("eval/sliced_w2" in line for line in lines)
    assert {path.name.split("_")[1] for path in (tmp_path / "samples").glob("*.png")} == {
        "default.png", "two.png", "four.png"
    }  # fmt: skip

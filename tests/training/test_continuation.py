"""A run that goes on at another resolution: the same weights, a head start, the times tied to the number of pixels."""

import json
import re

import jax
import numpy as np
import pytest

from flowjax.config import ConfigError
from flowjax.config import load as load_config
from flowjax.main import main
from flowjax.methods.parts import make_setting
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.run import Run

CONFIG = """
from flowjax.config import defaults, schedule, parse_argument

def get_config(argument=""):
    side = parse_argument(argument, side=8).side
    config = defaults()
    config.steps, config.batch_size, config.steps_per_dispatch = 120 if side == 8 else 4, 32, 60
    config.data = dict(name="shapes", resolution=side, objects=(1, 1), colours=("red",), backgrounds=("white",))
    config.network = dict(name="dit", width=32, depth=1, heads=2, patch=2, text_conditional=False)
    config.network.trained_grid, config.network.extrapolation = (4, 4), "interpolation"
    config.time = dict(name="uniform", shift="resolution", base_shape=(8, 8))
    config.optimizer = dict(name="adam", learning_rate=1e-2, warmup_steps=1)
    config.ema = dict(ema=dict(name="constant", decay=0.95))
    grid = dict(name="shifted", shift="resolution", base_shape=(8, 8))
    config.samplers = dict(default=dict(name="euler", steps=4, grid=grid, role="ema"))
    config.when.log = schedule(every_steps=1)
    config.when.sample = schedule()
    config.when.checkpoint = schedule(at_percent=(100,))
    config.writers.tensorboard = False
    return config
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("continuation")
    file = folder / "resolutions.py"
    file.write_text(CONFIG)
    assert main([f"--config={file}:side=8", f"--workdir={folder / 'small'}"]) == 0
    return folder


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return np.array([line["loss"] for line in lines if "loss" in line])


def test_training_goes_on_at_the_next_resolution_with_a_head_start(place):
    large = f"--config={place / 'resolutions.py'}:side=16"
    assert main([large, f"--workdir={place / 'scratch'}"]) == 0
    assert main([large, f"--workdir={place / 'on'}", f"--config.restore.student={place / 'small'}:ema"]) == 0
    scratch, on = losses(place / "scratch"), losses(place / "on")  # the same batches, noise and times
    assert len(on) == len(scratch) == 4
    assert on[0] < 0.7 * scratch[0], (on, scratch)
    assert (on < scratch).all(), (on, scratch)


def test_it_starts_from_the_very_arrays_and_averages_follow(place):
    config = load_config(f"{place / 'resolutions.py'}:side=16", [f"restore.student={place / 'small'}:ema"])
    state = Run(config).executor.start()
    stored = Checkpoints(place / "small" / "checkpoints", read_only=True).read_role("ema")
    for role in ("student", "ema"):
        jax.tree.map(np.testing.assert_array_equal, state.params[role], stored)
    grid = Run(config).method.samplers["default"].grid
    u = np.linspace(0, 1, 5)
    np.testing.assert_allclose(grid, u / (2 - u), atol=1e-6)  # 16 x 16 from 8 x 8: s = 2


def test_a_network_with_more_inputs_starts_as_the_smaller_one(place, capsys):
    """MeanFlow from data alone, from a flow: a second time that does nothing yet."""
    changes = ["method=dict(name='mean_flow')", "network.two_times=True", f"restore.student={place / 'small'}:ema"]
    sampler = "samplers=dict(default=dict(name='flow_map', steps=1, role='ema'))"
    run = Run(load_config(f"{place / 'resolutions.py'}:side=8", [*changes, sampler]))
    tree = run.executor.start().params["student"]
    assert "whose network is smaller. New or longer: embedding/gap/" in capsys.readouterr().out
    small = Run(load_config(f"{place / 'resolutions.py'}:side=8"))
    network = lambda run: make_setting(run.config, run.source.spec, "velocity").network
    given = Checkpoints(place / "small" / "checkpoints", read_only=True).read_role("ema")
    x, t = jax.random.normal(jax.random.key(0), (3, 8, 8, 3)), jax.numpy.array([0.1, 0.5, 0.9])
    cond = {name: np.zeros((3, *entry.shape), entry.dtype) for name, entry in network(small).conditions.items()}
    expected = network(small).apply(given, x, t, cond)
    np.testing.assert_allclose(network(run).apply(tree, x, t, cond, s=t + 0.05), expected, atol=1e-5)


@pytest.mark.parametrize(
    "entry, message",
    [
        ("restore.student={small}:emma", "no role 'emma'. Its roles: ema, student"),
        ("restore.student={small}/nowhere", "there is no folder"),
        ("restore.ema={small}", "starts as a copy of 'student': restore that"),
        ("restore.sudent={small}", "no role 'sudent'.*Did you mean 'student'"),
        ("restore.student=3", "restore.student' is 3; expected 'RUN_DIRECTORY'"),
        ("network.width=64", "cannot start from .*wanted .*64.*found .*32"),
    ],
)
def test_what_cannot_be_restored_is_one_line(place, tmp_path, capsys, entry, message):
    arguments = [f"--config={place / 'resolutions.py'}:side=16", f"--workdir={tmp_path / 'run'}"]
    restore = [] if entry.startswith("restore") else [f"--config.restore.student={place / 'small'}"]
    assert main([*arguments, *restore, "--config." + entry.format(small=place / "small")]) in (1, 2)
    printed = capsys.readouterr().err.strip()
    assert printed.startswith("flowjax: ")
    assert re.search(message, printed, re.DOTALL), printed


def test_a_resumed_run_does_not_ask_where_it_started(place):
    """Once a run has a checkpoint, the run it was started from may be gone, but the config may not change."""
    config = load_config(f"{place / 'resolutions.py'}:side=16", [f"restore.student={place / 'small'}:ema"])
    (place / "small").rename(place / "gone")
    try:
        run = Run(config, place / "on")
        state, _ = run.start_or_resume(run.checkpoints(read_only=True))
        assert int(state.step) == 4
    finally:
        (place / "gone").rename(place / "small")
    other = load_config(f"{place / 'resolutions.py'}:side=16")
    run = Run(other, place / "on")
    with pytest.raises(ConfigError, match="restore.student"):
        run.start_or_resume(run.checkpoints(read_only=True))

"""Averages made after training equal the one that was tracked during it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import toy_config

from flowjax.config import ConfigError
from flowjax.contract import Method, Phase, Role, Track
from flowjax.models.ema import power
from flowjax.training.executors import JitExecutor
from flowjax.training.run import Run
from flowjax.training.synthesis import synthesise

STDS = {"short": 0.05, "long": 0.1, "wanted": 0.08}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A random walk under the gradient of random data, with three averages tracked; two of them may be used."""

    def loss(params, batch, key):
        return jnp.sum(params["student"]["w"] * batch["data"], -1), {}

    averages = {name: Role(copy_of="student", track=Track("student", power(std))) for name, std in STDS.items()}
    start = lambda key: {"w": jax.random.normal(key, (64,))}
    method = Method({"student": Role(init=start, tx=optax.sgd(1.0)), **averages}, {"walk": Phase(loss, ("student",))})
    config = toy_config(steps_per_dispatch=20, steps=320)
    config.ema = {name: dict(name="power", std=STDS[name]) for name in ("short", "long")}
    config.checkpoint.keep_every_steps = 40
    run = Run(config, tmp_path_factory.mktemp("walk"))
    run.__dict__["method"] = method
    executor = JitExecutor(method, config)
    run.__dict__["executor"] = executor
    state, checkpoints, rng = executor.start(), run.checkpoints(), np.random.default_rng(0)
    for step in range(0, 320, 20):
        data = rng.normal(size=(20, 16, 64)).astype(np.float32)
        batch = dict(data=data, mask=np.ones((20, 16), np.float32), row=np.tile(np.arange(16, dtype=np.int32), (20, 1)))
        state, _ = executor.run(state, batch, ("walk",), 20)
        if (step + 20) % 40 == 0:
            checkpoints.save(step + 20, state, {}, {})
    checkpoints.close()
    return run, state


def test_a_stored_average_is_recovered_and_another_is_made(finished):
    run, state = finished
    checkpoints = run.checkpoints(read_only=True)
    again = synthesise(run, checkpoints, STDS["long"], 320)["w"]
    np.testing.assert_allclose(again, state.params["long"]["w"], rtol=1e-4, atol=1e-5)
    made, tracked = synthesise(run, checkpoints, STDS["wanted"], 320)["w"], np.asarray(state.params["wanted"]["w"])
    error = np.linalg.norm(made - tracked)
    nearest = min(np.linalg.norm(np.asarray(state.params[name]["w"]) - tracked) for name in ("short", "long"))
    assert error < 0.1 * nearest


def test_without_power_averages_it_says_what_to_train_with(finished):
    run, _ = finished
    plain = Run(toy_config(), run.workdir)
    with pytest.raises(ConfigError, match="this config has none. Train with"):
        synthesise(plain, run.checkpoints(read_only=True), 0.08, 320)
    with pytest.raises(ConfigError, match="often 0.05 to 0.15; it is 0.5"):
        synthesise(run, run.checkpoints(read_only=True), 0.5, 320)

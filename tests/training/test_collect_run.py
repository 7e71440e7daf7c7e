"""Training on rollouts through the whole trainer: crashed and resumed, in one chunk or several, with a score that fails."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowjax.arrays import example_keys, normal_rows
from flowjax.config import ConfigError, defaults, schedule
from flowjax.contract import Collect, Method, Phase, Role
from flowjax.methods import METHODS
from flowjax.training.run import Run
from flowjax.training.trainer import Stopped, train

EVERY, STEPS, SIZE = 4, 24, 16
TARGET = np.array([2.0, -1.0], np.float32)


class Broken(Exception):
    """What a test breaks a run with."""


def imitation(
    breaks_at: int | None = None, score_fails_at: int | None = None, chunks: int = 1, fails: tuple[str, int] = ("", 0)
) -> Method:
    """A Gaussian policy, shifted by the data, imitates its own actions, weighted by their rewards over a running mean.

    The running mean is the host's memory: without it in the checkpoint, a resumed run would weigh differently.
    """
    memory = {"mean": 0.0, "collections": 0}

    def rollout(params, batch, key):
        noise = normal_rows(example_keys(key, batch["row"]), (EVERY, 2))
        return {"actions": params["policy"]["mean"] + 0.1 * batch["data"][:, None] + noise}

    def score(arrays):
        if score_fails_at == memory["collections"] * EVERY:
            raise Broken("the judge is out")
        return {"reward": -np.square(arrays["actions"] - TARGET).sum(-1)}

    def batches(arrays, scores, step):
        reward = scores["reward"]
        memory["mean"] = 0.8 * memory["mean"] + 0.2 * float(reward.mean())
        memory["collections"] += 1
        assert memory["collections"] == step // EVERY + 1
        if fails == ("batches", step):
            raise Broken("no number")
        weight = (reward > memory["mean"]).astype(np.float32)
        common = dict(mask=np.ones(SIZE, np.float32), row=np.arange(SIZE, dtype=np.int32))
        return [dict(data=arrays["actions"][:, i], weight=weight[:, i], **common) for i in range(EVERY)]

    def metrics(arrays, scores):
        if fails == ("metrics", memory["collections"] * EVERY):
            raise Broken("no number")
        return {"reward": float(scores["reward"].mean())}

    def loss(params, batch, key):
        return batch["weight"] * jnp.sum((params["policy"]["mean"] - batch["data"]) ** 2, axis=-1), {}

    def watch(step, means):
        if step == breaks_at:
            raise Broken("pulled the plug")

    return Method(
        roles={"policy": Role(init=lambda key: {"mean": jnp.zeros(2)}, tx=optax.adam(0.1))},
        phases={"imitate": Phase(loss, ("policy",))},
        collect=Collect(
            rollout,
            batches,
            EVERY,
            score,
            chunks,
            metrics=metrics,
            get_state=lambda: dict(memory),
            set_state=memory.update,
        ),
        watch=watch,
    )


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start(folder, method, **config entries) -> (final parameters, log lines)."""

    def start(folder, method, **changes):
        monkeypatch.setitem(METHODS, "imitation", lambda *, config, data: method)
        config = defaults()
        config.update({**dict(steps=STEPS, batch_size=SIZE, steps_per_dispatch=3), **changes})
        config.method = dict(name="imitation")
        never, every = schedule(), lambda steps: schedule(every_steps=steps)
        # Neither the log nor the checkpoint goes into the period of 4: checkpoints wait for its end.
        config.when = dict(log=every(5), sample=never, evaluate=never, checkpoint=every(6))
        config.writers.tensorboard = False
        workdir = tmp_path / folder
        state = train(Run(config, workdir))
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        keep = ("step", "loss", "grad_norm", "collect/reward")
        return jax.tree.map(np.asarray, state), [[line[name] for name in keep] for line in lines]

    return start


def test_it_learns_and_a_run_that_crashed_is_the_same_to_the_last_bit(start, tmp_path):
    whole, lines = start("whole", imitation())
    assert [line[0] for line in lines] == [5, 10, 15, 20, 24]
    assert lines[-1][3] > lines[0][3] + 1.0  # the mean reward
    with pytest.raises(Broken):
        start("crashed", imitation(breaks_at=15))  # in the middle of the fourth period
    folder = tmp_path / "crashed"
    assert json.loads((folder / "status.json").read_text())["message"] == "pulled the plug"
    assert max(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()) == 12
    resumed, again = start("crashed", imitation())
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert again == lines


@pytest.mark.parametrize("chunks", [2, 4])
def test_the_number_of_chunks_does_not_change_the_run(start, chunks):
    """Four chunks of a batch of 16 are smaller than the eight devices: each is then on all of them."""
    whole, lines = start("whole", imitation())
    cut, others = start("cut", imitation(chunks=chunks))
    np.testing.assert_allclose(cut.params["policy"]["mean"], whole.params["policy"]["mean"], rtol=1e-5)
    np.testing.assert_allclose(others, lines, rtol=1e-5)


def test_pmap_agrees(start):
    _, lines = start("jit", imitation())
    _, others = start("pmap", imitation(chunks=2), parallel="pmap")
    np.testing.assert_allclose(others, lines, rtol=1e-5)


def test_a_score_that_fails_says_where_and_the_run_goes_on_once_it_is_mended(start, tmp_path):
    whole, lines = start("whole", imitation())
    told = "failed at step 16, chunk 1 of 2: Broken: the judge is out. Once it is mended, the same command goes on"
    with pytest.raises(RuntimeError, match=told):
        start("broken", imitation(score_fails_at=16, chunks=2))
    status = json.loads((tmp_path / "broken" / "status.json").read_text())
    assert status["state"] == "failed" and "the judge is out" in status["message"]
    assert newest(tmp_path / "broken") == 16
    mended, again = start("broken", imitation(chunks=2))
    np.testing.assert_allclose(again, lines, rtol=1e-5)


def newest(folder):
    """The step of the latest checkpoint."""
    return max(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


@pytest.mark.parametrize("fails", ["metrics", "batches"])
def test_what_fails_after_a_rollout_says_where_and_loses_no_update(start, tmp_path, fails):
    """The state of step 16, the place in the data and the memory are those from before the rollout that failed."""
    whole, lines = start("whole", imitation())
    with pytest.raises(RuntimeError, match="rollout failed at step 16: Broken: no number. Once it is mended, the same"):
        start("broken", imitation(fails=(fails, 16)))
    assert newest(tmp_path / "broken") == 16  # not 12, the last that was due
    mended, again = start("broken", imitation())
    jax.tree.map(np.testing.assert_array_equal, mended, whole)
    assert again == lines


def test_a_run_that_its_watch_has_ended_is_not_trained_on(start, tmp_path, capsys):
    whole, lines = start("whole", imitation())
    high = lambda limit: lambda step, seen: "the reward is too high" if seen["collect/reward"] > limit else None
    held = lambda limit: dataclasses.replace(imitation(), watch=high(limit))
    limit = (lines[0][3] + lines[1][3]) / 2
    status = lambda: json.loads((tmp_path / "held" / "status.json").read_text())
    for told in ("stopped at step 12: the reward is too high; the same command does not go on", "nothing was trained"):
        with pytest.raises(Stopped) as stop:
            start("held", held(limit))
        assert stop.value.code == 143 and told in capsys.readouterr().err
        assert status()["state"] == "stopped" and status()["step"] == 12
    with pytest.raises(Stopped):  # wider, and still not wide enough
        start("held", held((limit + lines[1][3]) / 2))
    assert status()["step"] == 12
    resumed, again = start("held", imitation())
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert again == lines and status()["state"] == "finished"


def test_what_cannot_work_is_refused_before_a_folder_is_made(start, tmp_path):
    with pytest.raises(ConfigError, match=r"steps=22 is not a multiple of the 4 steps.*Use 24"):
        start("run", imitation(), steps=22)
    with pytest.raises(ConfigError, match="batch_size=16 does not divide into the 3 chunks"):
        start("run", imitation(chunks=3))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="chunks=0; it must be 1 or more"):
        Collect(lambda *_: {}, lambda *_: [], every=1, chunks=0)
    with pytest.raises(ValueError, match="only one of get_state and set_state"):
        Collect(lambda *_: {}, lambda *_: [], every=1, get_state=dict)

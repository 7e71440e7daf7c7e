"""Dispatch lengths, and training on rollouts: a method that improves its own samples, resumed where a period ends."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import toy_config

from flowjax.arrays import example_keys, normal_rows
from flowjax.contract import Collect, Method, Phase, Role
from flowjax.training.executors import JitExecutor
from flowjax.training.feed import dispatch_length, make_feed

TARGET, EVERY, SIZE = 3.0, 4, 16


def loss(params, batch, key):
    return (params["policy"]["mean"] - batch["data"][:, 0]) ** 2 * batch["weight"], {}


def rollout_method(score=True, batches_made=EVERY) -> Method:
    """A Gaussian policy that imitates its own samples, weighted by a reward: its mean climbs to the target.

    The best of many samples with a sharp weight lies nearer to the target than the mean does, so each period must help.
    """

    def rollout(params, batch, key):
        actions = params["policy"]["mean"] + jax.random.normal(key, (EVERY, SIZE, 1)) + 0.0 * batch["data"].sum()
        return {"actions": actions, "reward": -jnp.abs(actions[..., 0] - TARGET)}

    def host_score(arrays):
        assert isinstance(arrays["actions"], np.ndarray)
        return np.exp(2 * -np.abs(arrays["actions"][..., 0] - TARGET))

    def cut(arrays, scores, step):
        weights = scores if scores is not None else np.exp(2 * arrays["reward"])
        common = dict(mask=np.ones(SIZE, np.float32), row=np.arange(SIZE, dtype=np.int32))
        return [
            dict(data=arrays["actions"][i], weight=(weights[i] / weights[i].mean()).astype(np.float32), **common)
            for i in range(batches_made)
        ]

    return Method(
        roles={"policy": Role(init=lambda key: {"mean": jnp.zeros(())}, tx=optax.sgd(0.1))},
        phases={"imitate": Phase(loss, ("policy",))},
        collect=Collect(rollout, cut, EVERY, host_score if score else None),
    )


class Ones:
    """An iterator of constant batches that counts, like the data's."""

    def __init__(self, start=0):
        self.next = start

    def stack_batches(self, count):
        self.next += count
        row = np.broadcast_to(np.arange(SIZE, dtype=np.int32), (count, SIZE))
        return {"data": np.ones((count, SIZE, 1), np.float32), "row": row}

    def get_state(self):
        return {"next_index": self.next}


def climb(method, steps, start=None, first=0, length=3):
    executor = JitExecutor(method, toy_config(steps_per_dispatch=length))
    iterator = Ones(first // EVERY)
    feed, state, step = make_feed(iterator, method, executor), start or executor.start(), first
    while step < steps:
        count = dispatch_length(method, step, steps, length, lambda done: False)
        state, _ = executor.run(state, feed.take(state, step, count), method.due(step), count)
        step += count
    return state, feed


@pytest.mark.parametrize("score", [True, False], ids=["reward on the host", "reward in JAX"])
def test_a_policy_climbs_on_its_own_rollouts(score):
    state, feed = climb(rollout_method(score), 120)
    assert abs(float(state.params["policy"]["mean"]) - TARGET) < 0.3
    assert feed.get_state() == {"data": {"next_index": 120 // EVERY}, "collect": None}


def test_resumed_at_the_end_of_a_period_it_is_the_same_run():
    method = rollout_method()
    whole, _ = climb(method, 24)
    half, _ = climb(method, 12)
    resumed, _ = climb(method, 24, start=half, first=12)
    np.testing.assert_array_equal(resumed.params["policy"]["mean"], whole.params["policy"]["mean"])
    other, _ = climb(method, 24, length=1)
    np.testing.assert_allclose(other.params["policy"]["mean"], whole.params["policy"]["mean"], rtol=1e-6)


def test_a_collection_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="made 3 batches, but collect.every is 4"):
        climb(rollout_method(batches_made=3), 8)


def test_dispatches_stop_at_events_phase_changes_periods_and_the_end():
    def lengths(method, total, largest, events=()):
        step, found = 0, []
        while step < total:
            found.append(dispatch_length(method, step, total, largest, lambda done: done in events))
            step += found[-1]
        return found

    role = {"a": Role(init=lambda key: jnp.zeros(()), tx=optax.sgd(0.1))}
    zero = lambda params, batch, key: (jnp.zeros(1), {})
    plain = Method(roles=role, phases={"a": Phase(zero, ("a",))})
    assert lengths(plain, 10, 4) == [4, 4, 2]
    assert lengths(plain, 10, 4, events=(3, 5)) == [3, 2, 4, 1]
    alternating = Method(roles=role, phases={"a": Phase(zero, ("a",)), "b": Phase(zero, ("a",), every=4, offset=3)})
    assert lengths(alternating, 8, 8) == [3, 1, 3, 1]
    assert lengths(rollout_method(), 9, 3) == [3, 1, 3, 1, 1]


def test_chunks_are_scored_one_by_one_and_joined_and_the_host_remembers():
    seen, memory = [], {"count": 0}

    def score(arrays):
        seen.append(arrays["actions"].shape)
        memory["count"] += len(arrays["actions"])
        return {"reward": arrays["actions"].sum(-1)}

    def cut(arrays, scores, step):
        np.testing.assert_allclose(scores["reward"], arrays["actions"].sum(-1))
        assert len({tuple(row) for row in arrays["actions"].tolist()}) == SIZE  # each row has noise of its own
        return [
            dict(
                data=arrays["actions"],
                mask=np.ones(SIZE, np.float32),
                weight=np.ones(SIZE, np.float32),
                row=np.arange(SIZE),
            )
        ]

    collect = Collect(
        rollout=lambda params, batch, key: {"actions": normal_rows(example_keys(key, batch["row"]), (1,))},
        batches=cut,
        every=1,
        score=score,
        chunks=4,
        metrics=lambda arrays, scores: {"reward": float(scores["reward"].mean())},
        get_state=lambda: dict(memory),
        set_state=memory.update,
    )
    method = Method(
        roles={"policy": Role(init=lambda key: {"mean": jnp.zeros(())}, tx=optax.sgd(0.1))},
        phases={"imitate": Phase(loss, ("policy",))},
        collect=collect,
    )
    _, feed = climb(method, 3)
    assert seen == [(SIZE // 4, 1)] * 12 and "reward" in feed.metrics
    state = feed.get_state()
    assert state["collect"] == {"count": 3 * SIZE}
    memory["count"] = 0

    class Settable(Ones):
        def set_state(self, state):
            self.next = state["next_index"]

    again = make_feed(Settable(), method, JitExecutor(method, toy_config()))
    again.set_state(state)
    assert memory["count"] == 3 * SIZE and again.get_state() == state


def test_a_slow_score_is_timed_and_hidden_behind_the_device():
    """Scores of 50 ms behind rollouts that take longer: the device waits for the last of them alone."""
    size = 900 if jax.default_backend() == "cpu" else 9000
    matrix = jnp.eye(size)

    def rollout(params, batch, key):
        still = jax.lax.fori_loop(0, 4, lambda _, x: x @ matrix, jnp.ones((size, size)))  # keeps the device busy
        return {"actions": normal_rows(example_keys(key, batch["row"]), (1,)) + 0.0 * still[0, 0]}

    def score(arrays):
        time.sleep(0.05)
        return arrays["actions"].sum(-1)

    rows = dict(mask=np.ones(SIZE, np.float32), weight=np.ones(SIZE, np.float32), row=np.arange(SIZE))
    cut = lambda arrays, scores, step: [dict(data=arrays["actions"], **rows)]
    method = Method(
        roles={"policy": Role(init=lambda key: {"mean": jnp.zeros(())}, tx=optax.sgd(0.1))},
        phases={"imitate": Phase(loss, ("policy",))},
        collect=Collect(rollout, cut, every=1, score=score, chunks=4),
    )
    _, feed = climb(method, 2)  # the first one compiles
    assert feed.times["seconds"] > feed.times["score_seconds"] >= 4 * 0.05
    waited = feed.times["score_wait"] * feed.times["seconds"]
    assert 0.05 <= waited <= feed.times["score_seconds"] - 0.05

"""Demonstrations are what the expert did, split by episodes, and batches of them are checked."""

import numpy as np
import pytest

from flowjax.choices import build
from flowjax.data import SOURCES, check_batch, make_iterator

LQR = dict(name="lqr", horizon=10)
EXPERT = dict(name="linear", share=0.5)


def source(**options):
    options = dict(name="demonstrations", environment=LQR, expert=EXPERT, episodes=6, test_episodes=3) | options
    return build("data source", options, SOURCES, seed=0, total_steps=1)


def test_actions_are_the_experts_answers():
    shown = source()
    assert shown.size == 60 and shown.test_size == 30
    assert shown.spec.shape == (1,) and shown.spec.observation_shape == (2,)
    gain = np.asarray(0.5 * shown.environment.oracle.gain)
    for part in (shown.train, shown.test):
        np.testing.assert_allclose(part["data"], -part["observation"] @ gain.T, atol=1e-5)
    assert shown.spec.std == pytest.approx(shown.train["data"].std(), rel=1e-6)
    problem, seen = shown.environment.oracle, shown.test["observation"].reshape(3, 10, 2)
    cost = np.einsum("bti,ij,btj->b", seen, problem.Q, seen) + 0.5 * (shown.test["data"].reshape(3, -1) ** 2).sum(
        axis=1
    )
    np.testing.assert_allclose(shown.returns, -cost, rtol=1e-4)


def test_they_are_the_same_each_time_and_others_for_another_seed():
    assert source().fingerprint() == source().fingerprint() != source(played=1).fingerprint()


def test_batches_bring_observations_along():
    shown = source()
    batch = next(make_iterator(shown, 8))
    assert batch["observation"].shape == (8, 2)
    without = {name: value for name, value in batch.items() if name != "observation"}
    with pytest.raises(ValueError, match="the batch entry 'observation' is missing"):
        check_batch(without, shown.spec)
    with pytest.raises(ValueError, match=r"'observation' is float32\[8, 1\]"):
        check_batch({**batch, "observation": batch["observation"][:, :1]}, shown.spec)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(episodes=0), "episodes=0 and test_episodes=3"),
        (dict(expert=dict(name="liner")), "Did you mean 'linear'"),
        (dict(expert=dict(name="linear", share=-1e9)), "Use a steadier expert"),
    ],
)
def test_what_cannot_be_shown_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        source(**options)

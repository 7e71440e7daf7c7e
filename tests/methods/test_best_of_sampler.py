"""The best of several draws: order statistics of a Gaussian, by rewards in JAX and on the host."""

import gaussian_line as line
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.arrays import example_keys
from flowjax.contract import Role
from flowjax.models import NETWORKS
from flowjax.rewards import REWARDS, Reward

HEUN = dict(name="heun", steps=12, grid=dict(name="uniform"), role="student")
HOST = dict(liked=dict(name="python", function="host_functions:first"))
# The means of the greatest of N standard normal numbers (Harter 1961).
GREATEST = {2: 0.56419, 16: 1.76599}


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    monkeypatch.setitem(NETWORKS, "exact", line.exact)


def sampler(**best_of):
    """The default sampler of a method on the exact flow, and its method."""
    samplers = dict(default={**HEUN, **({"best_of": best_of} if best_of else {})})
    rollout = {name: value for name, value in HEUN.items() if name != "role"}
    method, _ = line.made("nft", dict(samplers=samplers), rewards=line.RIGHT, rollout=rollout, group_size=4)
    return method.samplers["default"], method


def drawn(chosen, rows, cond=None):
    params = {"student": {"mean": jnp.full(1, line.MEAN)}}
    draw = jax.jit(lambda cond, rows: chosen.draw(params, cond, example_keys(jax.random.key(3), rows)))
    return np.asarray(draw(cond or {}, rows))


@pytest.mark.parametrize("rewards", [line.RIGHT, HOST], ids=["jax", "host"])
@pytest.mark.parametrize("count", [2, 16])
def test_the_best_of_several_draws_is_their_order_statistic(count, rewards, monkeypatch):
    monkeypatch.syspath_prepend("tests/rewards")
    chosen, _ = sampler(count=count, rewards=rewards)
    plain, _ = sampler()
    found, alone = drawn(chosen, jnp.arange(4000))[:, 0], drawn(plain, jnp.arange(4000))[:, 0]
    expected = line.MEAN + line.STD * GREATEST[count]
    # Four standard errors; the greatest of several normal numbers spread less than one of them.
    np.testing.assert_allclose(found.mean(), expected, atol=4 * line.STD / 4000**0.5 + 0.01)
    np.testing.assert_allclose(alone.mean(), line.MEAN, atol=4 * line.STD / 4000**0.5)
    assert found.std() < alone.std()
    assert chosen.description["nfe"] == count * plain.description["nfe"] and chosen.description["best_of"] == count


def test_a_choice_depends_on_its_row_and_condition_alone(monkeypatch):
    monkeypatch.syspath_prepend("tests/rewards")
    chosen, _ = sampler(count=4, rewards={**HOST, "near": dict(name="quadratic", weight=0.5)})
    label = {"label": jnp.zeros(8, jnp.int32)}
    whole = drawn(chosen, jnp.arange(8), label)
    part = drawn(chosen, jnp.arange(5, 8), {"label": label["label"][5:]})
    np.testing.assert_allclose(part, whole[5:], rtol=1e-6)


def test_failed_draws_are_never_chosen_and_all_failed_is_the_first(monkeypatch):
    monkeypatch.syspath_prepend("tests/rewards")
    half = dict(liked=dict(name="python", function="host_functions:known_below"))
    chosen, _ = sampler(count=8, rewards=half, failures="skip")
    found = drawn(chosen, jnp.arange(64))[:, 0]
    assert np.all(found < line.MEAN) and found.mean() > line.MEAN - line.STD
    strict, _ = sampler(count=8, rewards=half)
    with pytest.raises(Exception, match="is no finite number for"):
        drawn(strict, jnp.arange(64))
    none = dict(liked=dict(name="python", function="host_functions:raising"))
    chosen, _ = sampler(count=3, rewards=none, failures="skip")
    assert np.isfinite(drawn(chosen, jnp.arange(4))).all()


def learnt():
    """A reward that reads parameters, as a reward model does."""
    role = Role(init=lambda key: {"side": jnp.full(1, 2.0)})
    return Reward(lambda params, samples, cond: params["liking"]["side"] * samples[:, 0], roles={"liking": role})


@pytest.mark.parametrize(
    ("name", "options"),
    [("nft", {}), ("best_of", {}), ("dpo", dict(temperature=1.0)), ("dpo", dict(policy="reference", temperature=1.0))],
)
def test_rollouts_of_the_best_draws_read_a_learnt_reward(name, options, monkeypatch):
    monkeypatch.setitem(REWARDS, "learnt", learnt)
    rollout = dict(name="heun", steps=12, best_of=dict(count=2, rewards=dict(liked=dict(name="learnt"))))
    own = dict(liked=dict(name="learnt"))
    for rewards in (line.RIGHT, own):  # the method's own may be the same one
        method, executor = line.made(name, rewards=rewards, rollout=rollout, group_size=4, **options)
        assert "liking" in method.roles
    feed = line.first_batch(method, executor)[-1]
    expected = 2.0 * (line.MEAN + line.STD * GREATEST[2])
    assert feed.metrics["reward_liked"] == pytest.approx(expected, abs=8 * line.STD / line.SIZE**0.5)


@pytest.mark.parametrize(
    "best_of, message",
    [
        (dict(count=1, rewards=line.RIGHT), "of how many draws"),
        (dict(count=4, rewards={}), "No reward is named"),
        (dict(count=4), "rewards"),
        (dict(count=4, rewards=line.RIGHT, failure="skip"), "failures"),
    ],
)
def test_mistakes_are_refused(best_of, message):
    with pytest.raises((ValueError, TypeError), match=message):
        sampler(**best_of)

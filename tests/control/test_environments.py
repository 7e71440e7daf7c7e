"""Episodes end where they end, gymnasium's worlds are stepped as anyone would step them, and experts are where they belong."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.control import Environment, make_environment, make_expert, roll_out
from flowjax.control.environment import Step

PENDULUM = dict(name="gym", id="Pendulum-v1", horizon=30)


def ending():
    """World i ends of its own at step i + 1, and pays 1 a step, whatever anyone does."""

    def reset(keys):
        places = jnp.arange(len(keys), dtype=jnp.float32)
        return (places, jnp.zeros_like(places)), places[:, None]

    def step(state, action, keys):
        places, count = state
        return Step((places, count + 1), places[:, None] + action, jnp.ones_like(places), count >= places)

    return Environment((1,), (1,), 3, reset, step)


def test_nothing_counts_after_the_end():
    keys = jax.random.split(jax.random.key(0), 5)
    episodes = roll_out(ending(), lambda seen, keys: (jnp.ones_like(seen), {"seen": seen}), keys)
    np.testing.assert_array_equal(episodes.alive, [[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]])
    np.testing.assert_array_equal(episodes.going, [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]])
    np.testing.assert_array_equal(episodes.returns, [1, 2, 3, 3, 3])
    np.testing.assert_array_equal(episodes.more["seen"], episodes.observations)
    np.testing.assert_array_equal(episodes.last[:, 0], np.arange(5) + 1)
    assert ending().best_return is None


def test_an_episode_is_a_function_of_its_key():
    environment = make_environment(dict(name="lqr", horizon=5))
    keys = jax.random.split(jax.random.key(1), 8)
    act = lambda seen, keys: (jax.vmap(lambda key: jax.random.normal(key, (1,)))(keys), ())
    whole, part = (roll_out(environment, act, chosen) for chosen in (keys, keys[3:5]))
    np.testing.assert_allclose(part.observations, whole.observations[3:5], rtol=1e-6)
    np.testing.assert_allclose(part.rewards, whole.rewards[3:5], rtol=1e-5)
    drawn = np.asarray(whole.actions).ravel()
    assert len(np.unique(drawn)) == drawn.size


def test_worlds_of_gymnasium_are_stepped_as_by_hand():
    gymnasium = pytest.importorskip("gymnasium")
    environment = make_environment(PENDULUM)
    keys = jax.random.split(jax.random.key(0), 3)
    act = lambda seen, keys: (1.5 * jax.vmap(lambda key: jax.random.normal(key, (1,)))(keys), ())
    play = jax.jit(lambda keys: roll_out(environment, act, keys))
    episodes = jax.tree.map(np.asarray, play(keys))
    assert np.abs(episodes.actions).max() > 1  # beyond the bounds, where the world cuts them off
    for index, key in enumerate(keys):
        world = gymnasium.make("Pendulum-v1")
        first = jax.random.fold_in(key, 0)
        seen, _ = world.reset(seed=int(jax.random.bits(first, (), jnp.uint32)))
        for step in range(30):
            np.testing.assert_allclose(episodes.observations[index, step] * [1, 1, 8], seen, atol=1e-5)
            action = np.clip(2 * episodes.actions[index, step], -2, 2)
            seen, reward, *_ = world.step(action)
            assert episodes.rewards[index, step] == pytest.approx(float(reward), abs=1e-5)
        np.testing.assert_allclose(episodes.last[index] * [1, 1, 8], seen, atol=1e-5)
    again = jax.tree.map(np.asarray, play(keys))  # in the same worlds, reset
    jax.tree.map(np.testing.assert_array_equal, episodes, again)


def test_rollouts_on_the_host_may_be_mixed():
    pytest.importorskip("gymnasium")
    environment = make_environment(PENDULUM)
    keys = jax.random.split(jax.random.key(0), 4)
    push = jnp.full((2, 1), 0.5)
    states = [environment.reset(part) for part in (keys[:2], keys[2:])]
    assert int(states[0][0]) != int(states[1][0])
    seen = [np.asarray(environment.step(state, push, keys[:2]).observation) for state, _ in states]
    alone = environment.step(environment.reset(keys[2:])[0], push, keys[:2]).observation
    np.testing.assert_array_equal(seen[1], alone)
    assert np.abs(seen[0] - seen[1]).max() > 0


def test_a_world_that_ends_is_not_stepped_again():
    gymnasium = pytest.importorskip("gymnasium")

    class Short(gymnasium.Env):
        action_space = gymnasium.spaces.Box(-2.0, 4.0, (2,))
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.left = 2 + seed % 2
            return np.float32([self.left]), {}

        def step(self, action):
            assert self.left > 0
            self.left -= 1
            return np.float32([self.left]), float(action.sum()), self.left == 0, False, {}

    gymnasium.register("Short-v0", Short)
    environment = make_environment(dict(name="gym", id="Short-v0", horizon=4))
    keys = jax.random.split(jax.random.key(3), 16)
    episodes = roll_out(environment, lambda seen, keys: (jnp.full((16, 2), 0.5), ()), keys)
    first = np.asarray(episodes.observations[:, 0, 0])
    assert set(first) == {2, 3}
    np.testing.assert_array_equal(episodes.alive.sum(axis=1), first)
    np.testing.assert_allclose(episodes.returns, first * 2 * 2.5, rtol=1e-6)  # 0.5 of [-2, 4] is 2.5


@pytest.mark.parametrize(
    "spec, message",
    [
        (dict(name="gim"), "Did you mean 'gym'"),
        (dict(name="gym", id="NoSuchWorld-v9"), "gymnasium does not make 'NoSuchWorld-v9'"),
        (dict(name="gym", id="CartPole-v1"), "'CartPole-v1' has actions of Discrete"),
        (dict(name="gym", horizon=0), "horizon=0"),
    ],
)
def test_environments_that_are_none_are_refused(spec, message):
    if spec["name"] == "gym":
        pytest.importorskip("gymnasium")
    with pytest.raises(ValueError, match=message):
        make_environment(spec)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match=r"needs the package gymnasium.*flowjax-research\[control\]"):
        make_environment(PENDULUM)


def test_a_pendulum_that_is_caught_stands():
    pytest.importorskip("gymnasium")
    environment = make_environment(dict(PENDULUM, horizon=200))
    keys = jax.random.split(jax.random.key(0), 16)
    returns, heights = {}, {}
    for name, options in dict(caught=dict(pump=1.0), dropped=dict(pump=0.3, catch=0.0)).items():
        act = make_expert(dict(name="swing_up", **options), environment)
        episodes = roll_out(environment, lambda seen, keys, act=act: (act(seen, keys), ()), keys)
        returns[name], heights[name] = episodes.returns.mean(), np.asarray(episodes.observations[:, -20:, 0])
    assert (heights["caught"] > 0.99).all() and (heights["dropped"] > 0.99).mean() < 0.5
    assert returns["caught"] > -250 and returns["dropped"] < -600


def test_experts_are_held_to_their_worlds():
    lqr = make_environment(dict(name="lqr"))
    with pytest.raises(ValueError, match="'swing_up' reads the three numbers"):
        make_expert(dict(name="swing_up"), lqr)
    with pytest.raises(ValueError, match="'linear' knows the best gain of the environment 'lqr'"):
        make_expert(dict(name="linear"), ending())

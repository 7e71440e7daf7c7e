"""Rewards by hand, and several of them as one number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.rewards import REWARDS, make_rewards

SAMPLES = jnp.array([[1.0, 2.0], [-1.0, 0.5], [0.0, 0.0]])


def values(name, **options):
    rewards = make_rewards({"own": dict(name=name, **options)}, REWARDS)
    assert rewards.roles == {}
    return rewards.values({}, SAMPLES, {})["own"]


def test_rewards_by_hand():
    np.testing.assert_allclose(values("linear", direction=(2.0, -1.0)), [0.0, -2.5, 0.0])
    np.testing.assert_allclose(values("quadratic", centre=(1.0, 0.0), curvature=2.0), [-4.0, -4.25, -1.0])
    np.testing.assert_allclose(values("quadratic"), [-2.5, -0.625, 0.0])
    np.testing.assert_allclose(values("brightness"), [1.5, -0.25, 0.0])
    with pytest.raises(ValueError, match=r"direction of shape \(3,\), and an example has \(2,\)"):
        values("linear", direction=(1.0, 0.0, 0.0))


def test_a_function_of_ones_own_in_jax():
    cubed = dict(function="traced_functions:cubed", options=dict(scale=2.0))
    np.testing.assert_allclose(values("jax", **cubed), [18.0, -1.75, 0.0])
    near = dict(function="traced_functions:Near", options=dict(place=(1.0, 0.0)))
    np.testing.assert_allclose(values("jax", **near), [-2.0, -(4.25**0.5), -1.0], rtol=1e-6)
    reward = REWARDS["jax"](**cubed)
    worth = lambda samples: jnp.sum(reward.value({}, samples, {"label": jnp.arange(3)}))
    np.testing.assert_allclose(jax.jit(jax.grad(worth))(SAMPLES), 6 * SAMPLES**2, rtol=1e-6)
    assert reward.differentiable and not REWARDS["jax"](**cubed, differentiable=False).differentiable


@pytest.mark.parametrize("name, message", [("on_the_host", "name='python'"), ("decides", "decides by a value")])
def test_a_function_that_needs_the_numbers_is_told_from_one_in_jax(name, message):
    reward = REWARDS["jax"](function=f"traced_functions:{name}")
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda samples: reward.value({}, samples, {}))(SAMPLES)


def test_a_function_in_jax_gives_one_number_for_each_sample():
    with pytest.raises(ValueError, match=r"shape \(3, 1\) for 3 samples"):
        values("jax", function="traced_functions:column")
    with pytest.raises(ValueError, match="Did you mean 'cubed'"):
        REWARDS["jax"](function="traced_functions:cubes")


def test_one_reward_keeps_its_units_and_several_are_measured_by_their_spread():
    groups = np.repeat(np.arange(4), 6)
    draw = np.random.default_rng(0)
    one, other = draw.normal(size=24), draw.normal(size=24)
    alone = make_rewards({"a": dict(name="brightness", weight=-3.0)}, REWARDS)
    np.testing.assert_allclose(alone.total({"a": one}, groups), -3.0 * one)
    both = make_rewards({"a": dict(name="brightness"), "b": dict(name="quadratic", weight=3.0)}, REWARDS)
    assert both.weights == {"a": 1.0, "b": 3.0}
    total = both.total({"a": 1e4 * one, "b": other}, groups)
    unit = lambda x: (x - x.reshape(4, 6).mean(1).repeat(6)) / x.reshape(4, 6).std(1).repeat(6)
    np.testing.assert_allclose(total, 0.25 * unit(one) + 0.75 * unit(other), atol=1e-3)

"""The clipped loss, its gradient on policy, divergences of steps, and advantages by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.losses.policy import clipped_loss, combined_rewards, group_advantages
from flowjax.paths.path import linear_path
from flowjax.samplers.diffusions import flow_grpo_diffusion
from flowjax.samplers.transition import Transition


def test_on_policy_the_gradient_is_that_of_the_log_probability():
    advantage = jnp.array([1.5, -0.3, 0.0])
    value, metrics = clipped_loss(jnp.zeros(3), advantage, 1e-4)
    np.testing.assert_allclose(value, -advantage)
    np.testing.assert_array_equal(metrics["ratio"], 1.0)
    assert not metrics["clipped"].any() and not metrics["divergence"].any()
    slope = jax.grad(lambda log_ratio: clipped_loss(log_ratio, advantage, 1e-4)[0].sum())(jnp.zeros(3))
    np.testing.assert_allclose(slope, -advantage)


@pytest.mark.parametrize(
    ("advantage", "log_ratio", "cut"), [(1.0, 0.2, True), (1.0, -0.2, False), (-1.0, 0.2, False), (-1.0, -0.2, True)]
)
def test_the_gradient_is_cut_off_where_a_step_has_gone_far_enough(advantage, log_ratio, cut):
    one = jnp.array([log_ratio])
    slope = jax.grad(lambda r: clipped_loss(r, jnp.array([advantage]), 0.1)[0].sum())(one)
    value, metrics = clipped_loss(one, jnp.array([advantage]), 0.1)
    assert bool(metrics["clipped"][0]) == cut and (slope[0] == 0) == cut
    bound = 1.1 if log_ratio > 0 else 0.9
    np.testing.assert_allclose(value, -advantage * (bound if cut else np.exp(log_ratio)), rtol=1e-6)
    assert metrics["divergence"][0] > 0
    held = jax.grad(lambda r: clipped_loss(r, jnp.array([advantage]), 0.1)[1]["divergence"].sum())(one)
    assert held[0] == 0  # figures are no part of the loss


def test_the_score_has_no_mean_on_policy():
    """E[grad log p] = 0: without advantages nothing is learnt, whatever is drawn."""
    keys = jax.random.split(jax.random.key(0), 20_000)
    still = Transition(jnp.full((20_000, 2), 0.3), jnp.asarray(0.5))
    drawn = jax.lax.stop_gradient(still.sample(keys))

    def log_prob(mean):
        return Transition(jnp.broadcast_to(mean, drawn.shape), jnp.asarray(0.5)).log_prob(drawn).mean()

    slope = jax.grad(log_prob)(jnp.full(2, 0.3))
    np.testing.assert_allclose(slope, 0, atol=4 / 0.5 / np.sqrt(20_000))


@pytest.mark.parametrize("t", [0.2, 0.7])
def test_the_divergence_of_a_step_is_that_of_the_velocities(t):
    """KL = h (1 + a^2 / 2)^2 t / (2 a^2 (1 - t)) |v - v_ref|^2 for the SDE of Flow-GRPO."""
    a, h, path, t = 0.7, jnp.asarray(0.1), linear_path(), jnp.asarray(t)
    x, v, other = (jax.random.normal(key, (3, 4)) for key in jax.random.split(jax.random.key(1), 3))
    w = flow_grpo_diffusion(a)(path, t, t + h)
    score = lambda v: (t * v - x) / (1 - t)
    step = lambda v: Transition(x + h * (v + w * score(v)), jnp.sqrt(2 * w * h))
    expected = h * (1 + a**2 / 2) ** 2 * t / (2 * a**2 * (1 - t)) * jnp.sum((v - other) ** 2, axis=1)
    np.testing.assert_allclose(step(v).kl(step(other)), expected, rtol=1e-5)
    np.testing.assert_allclose(step(v).kl(step(other), "mean"), expected / 4, rtol=1e-5)


def test_advantages_by_hand():
    rewards = np.array([1.0, 3.0, 2.0, 2.0, 10.0, 0.0])
    groups = np.array([7, 7, 2, 2, 3, 3])
    own = group_advantages(rewards, groups, floor=0.0)
    np.testing.assert_allclose(own.values, [-1, 1, 0, 0, 1, -1], rtol=1e-6)
    assert own.flat == pytest.approx(1 / 3)
    np.testing.assert_allclose(
        group_advantages(rewards, groups, floor=0.0, unbiased=True).values[:2], own.values[:2] / np.sqrt(2), rtol=1e-6
    )
    every = group_advantages(rewards, groups, scope="all", floor=0.0)
    np.testing.assert_allclose(every.values, np.array([-1, 1, 0, 0, 5, -5]) / rewards.std(), rtol=1e-6)
    np.testing.assert_allclose(group_advantages(rewards, groups, limit=0.5).values, [-0.5, 0.5, 0, 0, 0.5, -0.5])
    # Rewards that are equal up to rounding teach nothing, instead of noise divided by noise.
    same = np.full(3, 0.1 + 0.2)
    assert not group_advantages(same, np.zeros(3, int), floor=0.0).values.any()
    with pytest.raises(ValueError, match="1 of 3 rewards are infinite"):
        group_advantages(np.array([1.0, np.nan, np.inf]), np.zeros(3, int))
    with pytest.raises(ValueError, match="Did you mean 'group'"):
        group_advantages(rewards, groups, scope="grop")


def test_several_rewards_count_by_their_weights_not_by_their_units():
    draw, groups = np.random.default_rng(0), np.repeat(np.arange(5), 8)
    first, second = draw.normal(size=40), draw.normal(size=40)
    both = combined_rewards(dict(a=first, b=second), dict(a=0.75, b=0.25), groups)
    scaled = combined_rewards(dict(a=1e3 * first + 7, b=second), dict(a=3.0, b=1.0), groups)
    np.testing.assert_allclose(both, scaled, atol=1e-3)
    of_all = combined_rewards(dict(a=first, b=9 * second), dict(a=1.0, b=-3.0), groups, "all", floor=0.0, unbiased=True)
    unit = lambda x: (x - x.reshape(5, 8).mean(1).repeat(8)) / x.std(ddof=1)
    np.testing.assert_allclose(of_all, 0.25 * unit(first) - 0.75 * unit(second), atol=1e-6)
    alone = combined_rewards(dict(a=first), dict(a=-2.0), groups)
    np.testing.assert_allclose(alone, -group_advantages(first, groups).values, rtol=1e-5)
    with pytest.raises(ValueError, match="one set of names"):
        combined_rewards(dict(a=first), dict(b=1.0), groups)
    with pytest.raises(ValueError, match="All weights of rewards are zero"):
        combined_rewards(dict(a=first), dict(a=0.0), groups)


@pytest.mark.parametrize("scope", ["group", "all"])
def test_what_is_not_known_has_no_part_in_its_group(scope):
    rewards, groups = np.array([1.0, np.nan, 3.0, 8.0, 2.0, np.nan, np.nan]), np.array([0, 0, 0, 1, 1, 2, 2])
    found, known = group_advantages(rewards, groups, scope), ~np.isnan(rewards)
    alone = group_advantages(rewards[known], groups[known], scope)
    np.testing.assert_allclose(found.values[known], alone.values, rtol=1e-6)
    assert not found.values[~known].any() and found.flat == pytest.approx(1 / 3) and alone.flat == 0
    nothing = group_advantages(np.full(4, np.nan), np.array([0, 0, 1, 1]), scope)
    assert not nothing.values.any() and nothing.flat == 1

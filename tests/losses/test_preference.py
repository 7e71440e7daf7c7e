"""Preference losses: their values at the reference, their slopes there, and the rewards that their optimum stands for."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flowjax.losses.preference import average_gain, paired_preference_loss, unpaired_preference_loss

BETA = 3.0


def test_at_the_reference_nothing_is_told_apart():
    zero = jnp.zeros(4)
    loss, metrics = paired_preference_loss(zero, zero, BETA)
    np.testing.assert_allclose(loss, math.log(2), rtol=1e-6)
    np.testing.assert_array_equal(metrics["accuracy"], 0.5)
    loss, metrics = unpaired_preference_loss(zero, jnp.array([1.0, -1, 1, -1]), jnp.zeros(()), BETA)
    np.testing.assert_array_equal(loss, 0.5)
    np.testing.assert_array_equal(metrics["accuracy"], 0.5)


def test_the_slope_at_the_reference_is_a_quarter_of_beta():
    slope = jax.grad(lambda costs: paired_preference_loss(costs[0], costs[1], BETA)[0].sum())(jnp.zeros((2, 3)))
    np.testing.assert_allclose(slope, BETA / 4 * np.array([[1.0] * 3, [-1.0] * 3]), rtol=1e-6)
    good = jnp.array([1.0, -1.0])
    slope = jax.grad(lambda cost: unpaired_preference_loss(cost, good, jnp.zeros(()), BETA)[0].sum())(jnp.zeros(2))
    np.testing.assert_allclose(slope, BETA / 4 * good, rtol=1e-6)  # costs of good examples fall, of bad ones rise


def test_the_optimum_stands_for_the_reward_that_made_the_comparisons():
    """With a cost of its own for each of four examples: d = -(2 / beta) r, up to a constant."""
    rewards = np.array([0.0, 1.0, -0.5, 2.0])
    pairs = np.array(list(itertools.permutations(range(4), 2)))
    won = jax.nn.sigmoid(rewards[pairs[:, 0]] - rewards[pairs[:, 1]])
    loss = lambda cost: jnp.sum(won * paired_preference_loss(cost[pairs[:, 0]], cost[pairs[:, 1]], BETA)[0])
    solver = optax.lbfgs()
    cost, state = jnp.zeros(4), solver.init(jnp.zeros(4))
    for _ in range(60):
        value, slope = jax.value_and_grad(loss)(cost)
        move, state = solver.update(slope, state, cost, value=value, grad=slope, value_fn=loss)
        cost = optax.apply_updates(cost, move)
    np.testing.assert_allclose(cost - cost[0], -2 / BETA * rewards, atol=2e-3)
    accuracy = paired_preference_loss(cost[pairs[:, 0]], cost[pairs[:, 1]], BETA)[1]["accuracy"]
    np.testing.assert_array_equal(accuracy, rewards[pairs[:, 0]] > rewards[pairs[:, 1]])


def test_good_and_bad_are_felt_from_the_average_gain_which_has_no_gradient():
    cost, mask = jnp.array([-0.4, 0.2, -0.8, 9.0]), jnp.array([1.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(average_gain(cost, mask), 1.0 / 3, rtol=1e-6)
    assert average_gain(-cost, mask) == 0
    good = jnp.array([1.0, 1.0, -1.0, -1.0])
    value, metrics = unpaired_preference_loss(cost, good, average_gain(cost, mask), BETA, 2.0, 0.5)
    expected = [2.0, 2.0, 0.5, 0.5] * (1 - 1 / (1 + np.exp(-np.asarray(good) * BETA * (-np.asarray(cost) - 1 / 3))))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_array_equal(metrics["accuracy"], [1.0, 0.0, 0.0, 1.0])
    free = jax.grad(lambda cost: unpaired_preference_loss(cost, good, average_gain(cost, mask), BETA)[0][0])(cost)
    assert free[0] > 0 and not np.any(free[1:])

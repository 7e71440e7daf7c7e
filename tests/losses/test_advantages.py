"""Generalised advantages by hand, against a plain loop, and at both ends of their decay."""

import jax.numpy as jnp
import numpy as np

from flowjax.losses.advantages import generalised_advantages, value_loss


def test_two_steps_by_hand():
    """delta_1 = 2 + .5 * 3 - 4 = -.5; delta_0 = 1 + .5 * 4 - 2 = 1; A_0 = 1 + .5 * .8 * -.5 = .8."""
    found = generalised_advantages(
        jnp.array([[1.0, 2.0]]), jnp.array([[2.0, 4.0]]), jnp.array([3.0]), jnp.ones((1, 2)), 0.5, 0.8
    )
    np.testing.assert_allclose(found, [[0.8, -0.5]], rtol=1e-6)
    ended = generalised_advantages(
        jnp.array([[1.0, 2.0]]), jnp.array([[2.0, 4.0]]), jnp.array([3.0]), jnp.array([[1.0, 0.0]]), 0.5, 0.8
    )
    np.testing.assert_allclose(ended, [[1 + 0.4 * -2, -2.0]], rtol=1e-6)


def drawn():
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 6, 9))
    going = (rng.random((6, 9)) > 0.2).astype(float)
    return rewards, values, rng.normal(size=6), going


def test_a_plain_loop_agrees():
    rewards, values, last, going = drawn()
    discount, decay = 0.9, 0.7
    expected = np.zeros_like(rewards)
    for world in range(6):
        for start in range(9):
            weight = 1.0
            for step in range(start, 9):
                following = last[world] if step == 8 else values[world, step + 1]
                error = rewards[world, step] + discount * going[world, step] * following - values[world, step]
                expected[world, start] += weight * error
                weight *= discount * decay * going[world, step]
    arrays = (jnp.asarray(array, jnp.float32) for array in (rewards, values, last, going))
    np.testing.assert_allclose(generalised_advantages(*arrays, discount, decay), expected, atol=1e-5)


def test_without_decay_they_are_returns_and_with_all_of_it_errors_of_one_step():
    rewards, values, last, _ = (jnp.asarray(array, jnp.float32) for array in drawn())
    going = jnp.ones_like(rewards)
    powers = 0.9 ** np.arange(10)
    plain = generalised_advantages(rewards, values, last, going, 0.9, 1.0)
    for start in range(9):
        coming = np.concatenate([rewards[:, start:], last[:, None]], axis=1)
        np.testing.assert_allclose(plain[:, start] + values[:, start], coming @ powers[: 10 - start], atol=1e-5)
    errors = generalised_advantages(rewards, values, last, going, 0.9, 0.0)
    following = np.concatenate([values[:, 1:], last[:, None]], axis=1)
    np.testing.assert_allclose(errors, rewards + 0.9 * following - values, atol=1e-6)


def test_the_loss_of_the_critic():
    np.testing.assert_allclose(value_loss(jnp.array([1.0, 2.0]), jnp.array([3.0, 2.0])), [2.0, 0.0])

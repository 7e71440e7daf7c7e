"""Scores learnt from comparisons are those that made them: known win rates, probabilities that add up, known rankings."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowjax.losses.comparisons import (
    FIRST,
    SECOND,
    TIE,
    outcome_log_probabilities,
    pair_loss,
    ranking_loss,
    tie_loss,
)


def minimised(loss, start, steps=400):
    """The minimum of a convex function."""
    solver = optax.lbfgs()
    state, x = solver.init(start), start
    value_and_slope = optax.value_and_grad_from_state(loss)

    @jax.jit
    def update(x, state):
        value, slope = value_and_slope(x, state=state)
        move, state = solver.update(slope, state, x, value=value, grad=slope, value_fn=loss)
        return optax.apply_updates(x, move), state

    for _ in range(steps):
        x, state = update(x, state)
    return np.asarray(x)


@pytest.mark.parametrize("rate", [0.5, 0.7, 0.95])
def test_the_difference_of_two_scores_is_the_logit_of_their_win_rate(rate):
    loss = lambda d: rate * pair_loss(d, jnp.zeros(1))[0] + (1 - rate) * pair_loss(jnp.zeros(1), d)[0]
    assert minimised(loss, jnp.zeros(1))[0] == pytest.approx(math.log(rate / (1 - rate)), abs=1e-3)


def test_a_margin_moves_the_loss():
    scores = jnp.array([2.0, 0.5])
    np.testing.assert_allclose(pair_loss(scores, 0 * scores, 0.5), pair_loss(scores - 0.5, 0 * scores), rtol=1e-6)
    np.testing.assert_allclose(pair_loss(scores, scores), math.log(2), rtol=1e-6)


@pytest.mark.parametrize("theta", [1.2, 5.0])
def test_the_three_outcomes_are_all_there_is(theta):
    d = jnp.linspace(-30, 30, 61)
    logs = outcome_log_probabilities(d, jnp.zeros(61), theta)
    np.testing.assert_allclose(jnp.exp(logs).sum(axis=1), 1.0, rtol=2e-5)
    assert np.isfinite(logs).all()
    np.testing.assert_allclose(jnp.exp(logs)[30, 1], (theta - 1) / (theta + 1), rtol=1e-5)
    np.testing.assert_allclose(logs, logs[::-1, ::-1], rtol=1e-5)  # who is first does not matter
    chosen = jnp.array([FIRST, TIE, SECOND])
    found = tie_loss(jnp.full(3, 0.7), jnp.zeros(3), chosen, theta)
    np.testing.assert_allclose(found, -outcome_log_probabilities(jnp.array([0.7]), jnp.zeros(1), theta)[0], rtol=1e-6)


def test_scores_are_recovered_from_outcomes_with_ties():
    scores, theta = jnp.array([0.0, 0.8, -1.2, 2.0]), 3.0
    pairs = np.array(list(itertools.combinations(range(4), 2)))
    shares = jnp.exp(outcome_log_probabilities(scores[pairs[:, 0]], scores[pairs[:, 1]], theta))

    def loss(guess):
        logs = outcome_log_probabilities(guess[pairs[:, 0]], guess[pairs[:, 1]], theta)
        return -jnp.sum(shares * logs)

    found = minimised(loss, jnp.zeros(4))
    np.testing.assert_allclose(found - found[0], scores, atol=1e-3)


def test_a_ranking_of_two_is_a_pair_and_all_rankings_are_all_there_is():
    scores = jnp.array([[1.3, -0.4], [0.2, 0.9]])
    np.testing.assert_allclose(ranking_loss(scores), pair_loss(scores[:, 0], scores[:, 1]), rtol=1e-6)
    four = np.array([0.3, -1.0, 2.0, 0.0])
    orders = np.array(list(itertools.permutations(range(4))))
    np.testing.assert_allclose(jnp.exp(-ranking_loss(jnp.asarray(four[orders], jnp.float32))).sum(), 1.0, rtol=1e-5)


def test_a_short_ranking_is_that_of_those_who_are_there():
    long, present = jnp.array([[0.4, -0.3, 1.0, 9.0]]), jnp.array([[True, True, True, False]])
    np.testing.assert_allclose(ranking_loss(long, present), ranking_loss(long[:, :3]), rtol=1e-6)
    slope = jax.grad(lambda scores: ranking_loss(scores, present).sum())(long)
    assert np.isfinite(slope).all() and slope[0, 3] == 0


def test_known_scores_are_recovered_from_their_rankings():
    """Rankings are scores with Gumbel noise, sorted (Yellott 1977)."""
    scores, draw = np.array([0.0, 0.5, 1.0, -0.7, 1.8]), np.random.default_rng(0)
    orders = np.argsort(-(scores + draw.gumbel(size=(20_000, 5))), axis=1)
    found = minimised(lambda guess: ranking_loss(guess[orders]).mean(), jnp.zeros(5), 60)
    # The standard error of a difference is about sqrt(2 / 20,000 / 0.6), a hundredth and a half.
    np.testing.assert_allclose(found - found[0], scores, atol=0.06)


def test_ties_need_room():
    with pytest.raises(ValueError, match="theta is 1.0; comparisons with ties need a number above 1"):
        outcome_log_probabilities(jnp.zeros(1), jnp.zeros(1), 1.0)

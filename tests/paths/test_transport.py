"""Transport against brute force, sorting, and closed forms."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.paths.transport import (
    assignment,
    entropic_cost,
    plan_cost,
    sinkhorn_plan,
    sinkhorn_potentials,
    squared_distances,
)


def clouds(n, m, dimensions=2, shift=2.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dimensions)).astype(np.float32), rng.normal(size=(m, dimensions)).astype(
        np.float32
    ) + shift


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_squared_distances_far_from_the_origin(offset):
    x, y = (cloud + np.float32(offset) for cloud in clouds(5, 7, 12))
    x, y = x.reshape(5, 3, 4), y.reshape(7, 3, 4)
    expected = ((x[:, None].astype(np.float64) - y[None]) ** 2).sum((2, 3))
    np.testing.assert_allclose(squared_distances(jnp.asarray(x), jnp.asarray(y)), expected, rtol=2e-4)


def test_assignment_against_all_permutations():
    cost = np.random.default_rng(0).random((6, 6))
    best = min(sum(cost[i, p[i]] for i in range(6)) for p in itertools.permutations(range(6)))
    found = assignment(cost)
    assert sorted(found) == list(range(6))
    assert cost[np.arange(6), found].sum() == pytest.approx(best)


def test_sinkhorn_tends_to_the_assignment():
    x, y = clouds(24, 24)
    cost = squared_distances(jnp.asarray(x), jnp.asarray(y))
    permutation = assignment(np.asarray(cost))
    exact = float(np.asarray(cost)[np.arange(24), permutation].mean())
    gaps = []
    for epsilon in (1.0, 0.1, 0.01):
        potentials = sinkhorn_potentials(cost, epsilon, max_rounds=20_000)
        plan = sinkhorn_plan(cost, potentials, epsilon)
        assert potentials.error <= 1e-4
        np.testing.assert_allclose(plan.sum(0), 1 / 24, rtol=1e-3)
        np.testing.assert_allclose(plan.sum(1), 1 / 24, rtol=3e-3)
        gaps.append(float(plan_cost(plan, cost)) - exact)
    assert gaps[0] > gaps[1] > gaps[2] > -1e-3 and gaps[2] < 2e-3
    np.testing.assert_array_equal(np.argmax(plan, axis=1), permutation)


def test_dual_value_is_the_primal():
    """OT_eps = <P, C> + eps KL(P | a x b), for clouds of different sizes."""
    x, y = clouds(9, 14)
    cost, epsilon = squared_distances(jnp.asarray(x), jnp.asarray(y)), 0.7
    potentials = sinkhorn_potentials(cost, epsilon, tolerance=1e-6)
    plan = np.asarray(sinkhorn_plan(cost, potentials, epsilon), np.float64)
    primal = np.sum(plan * np.asarray(cost)) + epsilon * np.sum(plan * np.log(plan * 9 * 14))
    assert float(entropic_cost(potentials)) == pytest.approx(primal, rel=1e-4)


def test_a_translation_costs_its_square():
    """The debiased divergence of a cloud and its translate by m is |m|^2, at any temperature."""
    x, _ = clouds(40, 40)
    y = x + np.array([0.6, -0.8], np.float32) * 3
    x, y = jnp.asarray(x), jnp.asarray(y)
    value = lambda a, b: float(entropic_cost(sinkhorn_potentials(squared_distances(a, b), 0.5, tolerance=1e-5)))
    assert value(x, y) - 0.5 * value(x, x) - 0.5 * value(y, y) == pytest.approx(9.0, rel=1e-3)


def test_forbidden_pairs_carry_no_mass():
    cost = squared_distances(*(jnp.asarray(cloud) for cloud in clouds(6, 6)))
    group = np.arange(6) % 2
    cost = jnp.where(group[:, None] != group, jnp.inf, cost)
    plan = np.asarray(sinkhorn_plan(cost, sinkhorn_potentials(cost, 0.3), 0.3))
    assert np.all(plan[group[:, None] != group] == 0) and plan.sum() == pytest.approx(1.0, abs=1e-3)


def test_no_convergence_is_reported():
    cost = squared_distances(*(jnp.asarray(cloud) for cloud in clouds(20, 20)))
    potentials = sinkhorn_potentials(cost, 1e-3, max_rounds=5)
    assert potentials.rounds == 5 and potentials.error > 1e-4


def test_refusals():
    with pytest.raises(ValueError, match="square matrix"):
        assignment(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="2 and 3 coordinates"):
        squared_distances(jnp.zeros((4, 2)), jnp.zeros((4, 3)))

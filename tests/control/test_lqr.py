"""The linear-quadratic regulator against scipy, against least squares over whole episodes, and against episodes played."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

from flowjax.control import make_environment, make_expert, roll_out
from flowjax.control.lqr import (
    average_reward,
    linear_return,
    make_problem,
    riccati,
    stationary_covariance,
)


def drawn(seed, n=4, m=2):
    """A random problem with costs of all kinds, in float64."""
    rng = np.random.default_rng(seed)
    square = lambda size: (lambda a: a @ a.T + 0.1 * np.eye(size))(rng.normal(size=(size, size)))
    A = rng.normal(size=(n, n))
    A *= 1.1 / np.abs(np.linalg.eigvals(A)).max()  # unstable on its own
    return dict(A=A, B=rng.normal(size=(n, m)), Q=square(n), R=square(m), W=square(n), S=square(n))


@pytest.mark.parametrize("seed", range(3))
def test_the_riccati_equation_is_solved_as_scipy_solves_it(seed):
    with jax.enable_x64(True):
        given = drawn(seed)
        problem = make_problem(**given)
        A, B, Q, R = (given[name] for name in "ABQR")
        P = linalg.solve_discrete_are(A, B, Q, R)
        np.testing.assert_allclose(riccati(problem), P, rtol=1e-8)
        gain = np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)
        np.testing.assert_allclose(problem.gain, gain, rtol=1e-8, atol=1e-10)
        covariance = linalg.solve_discrete_lyapunov(A - B @ gain, given["W"])
        np.testing.assert_allclose(stationary_covariance(problem, problem.gain), covariance, rtol=1e-8)
        # The best an endless episode can do costs tr(P W) a step, and no change of the gain does better.
        assert average_reward(problem, problem.gain) == pytest.approx(-np.trace(P @ given["W"]), rel=1e-8)
        other = gain + 0.05 * np.random.default_rng(seed).normal(size=gain.shape)
        assert average_reward(problem, jnp.asarray(other)) < average_reward(problem, problem.gain)


def test_the_best_return_is_that_of_the_best_actions_in_hindsight_where_nothing_is_drawn():
    """Without noise an episode is a quadratic function of all actions at once: least squares knows its minimum."""
    horizon, given = 6, drawn(0)
    A, B, Q, R = (given[name] for name in "ABQR")

    def least(steps):
        states, actions = np.eye(4), np.zeros((4, 2 * steps))  # x_t = states x_0 + actions u
        rows = []
        for step in range(steps):
            rows.append(np.linalg.cholesky(Q).T @ np.concatenate([states, actions], axis=1))
            pushed = np.zeros((2, 4 + 2 * steps))
            pushed[:, 4 + 2 * step : 6 + 2 * step] = np.eye(2)
            rows.append(np.linalg.cholesky(R).T @ pushed)
            states, actions = A @ states, A @ actions + B @ pushed[:, 4:]
        rows = np.concatenate(rows)
        by_state, by_action = rows[:, :4], rows[:, 4:]
        left = by_state - by_action @ np.linalg.lstsq(by_action, by_state)[0]
        return left.T @ left

    with jax.enable_x64(True):
        problem = make_problem(**given)
        noise = sum(np.trace(least(steps) @ given["W"]) for steps in range(1, horizon))
        expected = -(np.trace(least(horizon) @ given["S"]) + noise)
        assert float(problem.best_return(horizon)) == pytest.approx(expected, rel=1e-9)


def test_what_a_gain_costs_goes_on_as_an_endless_episode_and_discounts():
    with jax.enable_x64(True):
        problem = make_problem(**drawn(1))
        gain = 0.95 * problem.gain
        step = linear_return(problem, gain, 301) - linear_return(problem, gain, 300)
        assert float(step) == pytest.approx(average_reward(problem, gain), rel=1e-9)
        parts = [float(linear_return(problem, gain, count)) for count in range(4)]
        discounted = sum(0.9**index * (parts[index + 1] - parts[index]) for index in range(3))
        assert float(linear_return(problem, gain, 3, discount=0.9)) == pytest.approx(discounted, rel=1e-12)
        assert parts[3] < float(problem.best_return(3))


@pytest.mark.parametrize("share, noise", [(1.0, 0.0), (0.4, 0.3)])
def test_episodes_return_what_they_should(share, noise):
    environment = make_environment(dict(name="lqr", horizon=20, noise=0.2, start=0.5))
    act = make_expert(dict(name="linear", share=share, noise=noise), environment)
    keys = jax.random.split(jax.random.key(0), 4096)
    returns = roll_out(environment, lambda seen, keys: (act(seen, keys), ()), keys).returns
    problem = environment.oracle
    expected = float(linear_return(problem, share * problem.gain, 20, noise**2))
    assert float(returns.mean()) == pytest.approx(expected, abs=4 * float(returns.std()) / 64)
    assert expected < environment.best_return
    if share == 1:  # the best gain of an endless episode is the best of a long one, but for its last steps
        assert float(linear_return(problem, problem.gain, 2_000)) == pytest.approx(
            float(problem.best_return(2_000)), rel=2e-3
        )


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(control=((1.0, 0.0),)), "B of shape"),
        (dict(action_cost=((0.0,),)), "R must be symmetric with eigenvalues above zero"),
        (dict(state_cost=((1.0, 1.0), (0.0, 1.0))), "Q must be symmetric"),
        (dict(horizon=0), "horizon=0 steps; expected 1 or more"),
        (dict(horizn=3), "Did you mean 'horizon'"),
    ],
)
def test_what_is_no_problem_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_environment(dict(name="lqr", **options))


def test_a_gain_under_which_states_grow_has_no_average():
    problem = make_environment(dict(name="lqr")).oracle
    with pytest.raises(ValueError, match="states grow by a factor of"):
        average_reward(problem, -problem.gain)

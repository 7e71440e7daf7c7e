"""Solvers: each converges at its order to the closed-form flow map, from each example's own time to its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.paths.closed_forms import flow_map
from flowjax.paths.ode import REACH_THE_END, SOLVERS, solve
from flowjax.paths.oracles import three_modes_1d
from flowjax.paths.path import make_path

RNG = np.random.default_rng(0)
ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_converges_at_its_order_both_ways(solver):
    with jax.enable_x64(True):
        path, mixture = make_path("linear"), three_modes_1d()
        x = jnp.asarray(RNG.normal(size=(16, 1)))
        early, late = jnp.asarray(RNG.uniform(0.05, 0.3, 16)), jnp.asarray(RNG.uniform(0.5, 0.8, 16))
        velocity = lambda x, t: mixture.prediction(path, "velocity", x, t)
        for t, s in ((early, late), (late, early)):
            exact = flow_map(mixture, path, x, t, s)
            errors = [float(jnp.abs(solve(velocity, x, t, s, n, solver) - exact).max()) for n in (20, 40)]
            assert np.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[solver], abs=0.35)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_its_times_begin_and_end_where_they_should(solver):
    seen = []

    def velocity(x, t):
        jax.debug.callback(lambda t: seen.append(np.asarray(t)), t)
        return 0 * x

    t, s = jnp.array([0.0, 0.1, 0.3]), jnp.array([1.0, 0.9999, 0.3])
    x = jnp.ones((3, 2))
    np.testing.assert_array_equal(solve(velocity, x, t, s, 7, solver), x)
    jax.effects_barrier()
    times = np.array(seen)
    np.testing.assert_array_equal(times.min(0), t)
    assert (times.max(0) <= s).all() and ((times.max(0) == s).all() or solver not in REACH_THE_END)


def test_a_point_stays_where_the_times_agree_and_bad_calls_are_refused():
    x = jnp.ones((2, 1))
    np.testing.assert_allclose(solve(lambda x, t: 1e3 * x, x, 0.4, 0.4, 3), x)
    with pytest.raises(ValueError, match="steps is 0"):
        solve(lambda x, t: x, x, 0.0, 1.0, 0)
    with pytest.raises(ValueError, match="Unknown solver 'huen'.*Did you mean 'heun'"):
        solve(lambda x, t: x, x, 0.0, 1.0, 1, "huen")

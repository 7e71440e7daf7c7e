"""Samplers of students, held against exact flow maps: any number of steps, any share of fresh noise, the same law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax.paths.closed_forms import average_velocity, flow_map
from flowjax.paths.noises import gaussian
from flowjax.paths.oracles import three_modes_1d
from flowjax.paths.path import make_path
from flowjax.samplers.build import make_parts, make_sampler

MIXTURE, COUNT = three_modes_1d(), 4096
KEYS = jax.random.split(jax.random.key(0), COUNT)


def distribution(x):
    parts = zip(MIXTURE.weights, MIXTURE.means[:, 0], MIXTURE.stds)
    return sum(float(w) * stats.norm.cdf(x, float(m), float(s)) for w, m, s in parts)


def check_law(samples):
    """Kolmogorov and Smirnov's distance; its 1e-4 quantile for this many samples is 0.0345."""
    assert stats.kstest(samples, distribution).statistic < 0.0345


def draw(spec, predict, prediction, path):
    built = make_sampler(
        spec, predict=predict, null=None, prediction=prediction, path=path, noise=gaussian(), shape=(1,)
    )
    return np.asarray(jax.jit(built.draw)({"ema": 0.0}, {}, KEYS))[:, 0], built


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_exact_average_velocity_reaches_the_data_in_any_number_of_jumps(steps, gamma):
    path = make_path("linear")
    predict = lambda tree, x, t, conditions, s: average_velocity(MIXTURE, path, x, t, s)
    samples, built = draw({"name": "flow_map", "steps": steps, "gamma": gamma}, predict, "velocity", path)
    check_law(samples)
    assert built.description["nfe"] == steps
    if gamma == 0:
        start = np.asarray(jax.vmap(lambda key: jax.random.normal(jax.random.split(key)[0], (1,)))(KEYS))
        expected = flow_map(MIXTURE, path, jnp.asarray(start), 0.0, 1.0)[:, 0]
        np.testing.assert_allclose(samples, expected, atol=2e-4)


def test_fresh_noise_makes_fresh_samples():
    path = make_path("linear")
    predict = lambda tree, x, t, conditions, s: average_velocity(MIXTURE, path, x, t, s)
    one, other = (draw({"name": "flow_map", "steps": 4, "gamma": g}, predict, "velocity", path)[0] for g in (0.0, 1.0))
    # With gamma = 0 a sample is a function of its starting noise; with gamma = 1 hardly any of it is left.
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.5


@pytest.mark.parametrize("path_name", ["linear", "trigonometric", "vp"])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_exact_consistency_function_of_one_time(path_name, steps):
    path = make_path(path_name)
    predict = lambda tree, x, t, conditions: flow_map(MIXTURE, path, x, t, path.end)
    samples, _ = draw({"name": "consistency", "steps": steps}, predict, "data", path)
    check_law(samples)


def test_guidance_reaches_both_branches_of_a_network_of_two_times():
    path, seen = make_path("linear"), []

    def predict(tree, x, t, conditions, s):
        seen.append((x.shape, s.shape))
        return jnp.broadcast_to(conditions["push"][:, None], x.shape)

    built = make_sampler(
        {"name": "flow_map", "steps": 2, "guidance": {"name": "cfg", "scale": 3.0}},
        predict=predict, null=lambda c: jax.tree.map(jnp.zeros_like, c), prediction="velocity", path=path,
        noise=gaussian(), shape=(1,),
    )  # fmt: skip
    base = built.draw({"ema": 0.0}, {"push": jnp.zeros(8)}, KEYS[:8])
    pushed = built.draw({"ema": 0.0}, {"push": jnp.ones(8)}, KEYS[:8])
    np.testing.assert_allclose(pushed - base, 3.0, rtol=1e-5)
    assert set(seen) == {((16, 1), (16,))}


def test_a_gamma_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="gamma=1.5; expected a number between 0 and 1"):
        make_parts({"name": "flow_map", "steps": 2, "gamma": 1.5}, "velocity", make_path("linear"))

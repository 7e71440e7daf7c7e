"""Reflow against the straightened Gaussian flow: its fixed point, one exact Euler step, annealing that keeps noise normal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.losses.reflow import annealed, make_annealing, pair_loss
from flowjax.losses.trajectories import squared_distance
from flowjax.paths.closed_forms import flow_map, straight_velocity
from flowjax.paths.oracles import gaussian
from flowjax.paths.path import make_path
from flowjax.paths.predictions import convert

RNG = np.random.default_rng(0)
EXACT, LINEAR = gaussian(0.7, 0.4, 2), make_path("linear")
NOISE = jnp.asarray(RNG.normal(size=(64, 2)), jnp.float32)
DATA = flow_map(EXACT, LINEAR, NOISE, 0.0, 1.0)
T = jnp.asarray(RNG.uniform(0.02, 0.98, 64), jnp.float32)


def test_the_straightened_field_has_no_loss_on_the_pairs_of_the_flow():
    straight = lambda x, t: straight_velocity(EXACT, x, t)
    loss, x, value = pair_loss(straight, LINEAR, "velocity", NOISE, DATA, T, squared_distance)
    np.testing.assert_allclose(loss, 0, atol=1e-8)
    np.testing.assert_allclose(value, DATA - NOISE, atol=1e-4)
    np.testing.assert_allclose(NOISE + straight(NOISE, jnp.zeros(64)), DATA, atol=1e-5)  # one Euler step
    curved = lambda x, t: EXACT.prediction(LINEAR, "velocity", x, t)
    assert float(pair_loss(curved, LINEAR, "velocity", NOISE, DATA, T, squared_distance)[0].mean()) > 0.02


@pytest.mark.parametrize("path_name", ["trigonometric", "vp"])
def test_rectified_diffusion_takes_any_path(path_name):
    """On matched pairs the data of x_t is known exactly, whatever the path; the DDIM step from noise then is exact too."""
    path = make_path(path_name)
    t = path.start + (path.end - path.start) * T
    alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
    known = lambda x, t: EXACT.means + 0.4 * (x - alpha * EXACT.means) / (sigma + 0.4 * alpha)  # x1 of x = a x1 + s x0
    noise = lambda x, t: convert(path, "data", "noise", known(x, t), x, t)
    for prediction, predict in (("data", known), ("noise", noise)):
        loss, _, _ = pair_loss(predict, path, prediction, NOISE, DATA, t, squared_distance, "data")
        np.testing.assert_allclose(loss, 0, atol=1e-5)


def test_the_space_of_the_error_is_that_of_the_loss():
    wrong = lambda x, t: straight_velocity(EXACT, x, t) + 0.3
    loss, _, _ = pair_loss(wrong, LINEAR, "velocity", NOISE, DATA, T, squared_distance, "data")
    np.testing.assert_allclose(loss, (0.3 * (1 - T)) ** 2, rtol=1e-3)


def test_annealing_goes_from_independent_to_matched_and_noise_stays_normal():
    step = jnp.array([0, 25, 50, 100, 200])
    np.testing.assert_allclose(make_annealing(dict(name="linear", steps=100))(step), [1, 0.75, 0.5, 0, 0], atol=1e-6)
    np.testing.assert_allclose(
        make_annealing(dict(name="cosine", steps=100))(step), [1, 0.5 + 0.5**1.5, 0.5, 0, 0], atol=1e-6
    )
    np.testing.assert_allclose(
        make_annealing(dict(name="exponential", steps=100))(step), np.exp(-np.array([0, 0.25, 0.5, 1, 2])), rtol=1e-5
    )
    key, other = jax.random.split(jax.random.key(0))
    noise, fresh = jax.random.normal(key, (40_000, 1)), jax.random.normal(other, (40_000, 1))
    np.testing.assert_array_equal(annealed(noise, fresh, jnp.zeros(40_000)), noise)
    np.testing.assert_array_equal(annealed(noise, fresh, jnp.ones(40_000)), fresh)
    half = annealed(noise, fresh, jnp.full(40_000, 0.6))
    assert float(half.std()) == pytest.approx(1, abs=0.01)
    assert float(jnp.mean(half * noise)) == pytest.approx(0.8, abs=0.02)
    for spec, message in (
        (dict(name="linear", steps=0), "steps is 0"),
        (dict(name="exponential", steps=0), "steps is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make_annealing(spec)

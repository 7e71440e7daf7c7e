"""Guidance rules against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.paths.oracles import GaussianMixture
from flowjax.paths.path import make_path
from flowjax.samplers.field import Field, MemoryField
from flowjax.samplers.guidance import apg, autoguidance, cfg, cfg_zero_star, guide, make_guidance
from flowjax.samplers.loop import integrate
from flowjax.samplers.steppers import Euler, RungeKutta4

PATH = make_path("linear")
FOLLOWED = jnp.asarray([[1.0, 2.0, -1.0], [0.5, 0.0, 2.0]])
LEFT = jnp.asarray([[0.5, 1.0, 1.0], [1.0, -1.0, 0.5]])
T = jnp.asarray([0.5, 0.5])


def field_of(guidance, prediction="data"):
    return guide(guidance, lambda x, t: FOLLOWED, lambda x, t: (FOLLOWED, LEFT), prediction, PATH)


def gaussian(std):
    return GaussianMixture(jnp.ones(1), jnp.zeros((1, 1)), jnp.full((1,), std))


def test_cfg_on_gaussians():
    """The guided flow of N(0, Sc^2) against N(0, Su^2) ends with std Sc^w Su^(1-w): variance 1/16 here."""
    followed, left = gaussian(0.5), gaussian(1.0)
    predict = lambda oracle: lambda x, t: oracle.prediction(PATH, "velocity", x, t)
    both = lambda x, t: (predict(followed)(x, t), predict(left)(x, t))
    field = guide(cfg(2.0), predict(followed), both, "velocity", PATH)
    x = jnp.asarray([[1.0]])
    y = integrate(RungeKutta4(), field, np.linspace(0, 1, 51), x, jax.random.split(jax.random.key(0), 1))
    assert float(y[0, 0]) ** 2 == pytest.approx(0.0625, rel=1e-3)


def test_scale_one_is_off_and_scale_zero_is_the_other():
    np.testing.assert_allclose(field_of(cfg(1.0)).evaluate(FOLLOWED, 0.5), FOLLOWED, rtol=1e-6)
    np.testing.assert_allclose(field_of(cfg(0.0)).evaluate(FOLLOWED, 0.5), LEFT, rtol=1e-6)
    np.testing.assert_allclose(
        field_of(autoguidance(3.0)).evaluate(FOLLOWED, 0.5), LEFT + 3 * (FOLLOWED - LEFT), rtol=1e-6
    )


@pytest.mark.parametrize("t, guided", [(0.2, False), (0.3, True), (0.5, True), (0.7, True), (0.8, False)])
def test_interval(t, guided):
    got = field_of(cfg(3.0, low=0.3, high=0.7)).evaluate(FOLLOWED, t)
    np.testing.assert_allclose(got, LEFT + 3 * (FOLLOWED - LEFT) if guided else FOLLOWED, rtol=1e-6)


def test_cfg_zero_star():
    grid = np.linspace(0, 1, 11)
    field = field_of(cfg_zero_star(4.0, zero_steps=2, grid=grid), "velocity")
    c, u = np.asarray(FOLLOWED), np.asarray(LEFT)
    s = (c * u).sum(1, keepdims=True) / (u * u).sum(1, keepdims=True)
    expected = s * u + 4.0 * (c - s * u)
    np.testing.assert_allclose(field.velocity(FOLLOWED, 0.2), expected, rtol=1e-5)
    assert not np.any(field.velocity(FOLLOWED, 0.1))
    assert field.prediction == "velocity"


@pytest.mark.parametrize("form", ["followed", "left"])
def test_apg_without_its_parts_is_cfg(form):
    rule = apg(3.0, eta=1.0, momentum=0.0, form=form)
    got, _ = rule.combine(FOLLOWED, LEFT, T, jnp.zeros_like(FOLLOWED))
    np.testing.assert_allclose(got, LEFT + 3 * (FOLLOWED - LEFT), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["followed", "left"])
def test_apg(form):
    rule = apg(3.0, eta=0.3, momentum=-0.5, norm_threshold=1.0, form=form)
    memory = jnp.asarray([[0.1, 0.2, 0.3], [-0.4, 0.5, 0.1]])
    got, kept = rule.combine(FOLLOWED, LEFT, T, memory)
    for row in range(2):
        c, u = np.asarray(FOLLOWED[row]), np.asarray(LEFT[row])
        m = c - u - 0.5 * np.asarray(memory[row])
        np.testing.assert_allclose(kept[row], m, rtol=1e-5)
        m = m * min(1.0, 1.0 / np.linalg.norm(m))
        unit = c / np.linalg.norm(c)
        parallel = (m @ unit) * unit
        update = m - parallel + 0.3 * parallel
        expected = c + 2.0 * update if form == "followed" else u + 3.0 * update
        np.testing.assert_allclose(got[row], expected, rtol=1e-5)


def test_apg_momentum_runs_through_the_loop():
    """Constant branches: the memory after n evaluations is Delta (1 + b + ... + b^(n-1))."""
    rule, steps = apg(2.0, eta=1.0, momentum=0.5), 4
    field = field_of(rule)
    assert isinstance(field, MemoryField)
    x = jnp.zeros_like(FOLLOWED)
    keys = jax.random.split(jax.random.key(0), 2)
    grid = np.linspace(0, 0.8, steps + 1)
    got, trajectory = integrate(Euler(), field, grid, x, keys, outputs=True)
    delta = np.asarray(FOLLOWED - LEFT)
    y, factor = np.zeros_like(delta), 0.0
    for t, s, seen in zip(grid[:-1], grid[1:], trajectory["data"]):
        factor = 1.0 + 0.5 * factor
        data = np.asarray(FOLLOWED) + factor * delta
        np.testing.assert_allclose(seen, data, rtol=1e-5)
        y = y + (s - t) * (data - y) / (1 - t)
    np.testing.assert_allclose(got, y, rtol=1e-5, atol=1e-5)


def test_apg_works_on_data_estimates_of_a_velocity_network():
    rule = apg(2.0, eta=1.0, momentum=0.0)
    field = field_of(rule, "velocity")
    value, _ = field.predict(FOLLOWED, T, field.init(FOLLOWED))
    data = lambda v: FOLLOWED + 0.5 * v
    assert field.prediction == "data"
    np.testing.assert_allclose(value, 2 * data(FOLLOWED) - data(LEFT), rtol=1e-5)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="Did you mean 'cfg_zero_star'"):
        make_guidance({"name": "cfg_zerostar", "scale": 1.0})
    with pytest.raises(ValueError, match="needs a sampler with a grid"):
        make_guidance({"name": "cfg_zero_star", "scale": 1.0})
    assert isinstance(field_of(cfg(1.0)), Field)

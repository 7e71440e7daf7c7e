"""Distances between where students land and where they should, and which teachers can be followed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation import config_of

from flowjax.contract import DataSpec, Role
from flowjax.losses.trajectories import squared_distance
from flowjax.methods.endpoints import make_distance, make_follow
from flowjax.methods.parts import make_setting
from flowjax.methods.teacher import Teacher
from flowjax.models.perceptual import DISTANCES, Perceptual
from flowjax.paths.path import make_path


def fourth_power():
    """A distance between images with one parameter."""
    distance = lambda tree, x, y: jnp.mean((tree["gain"] * (x - y)) ** 4, axis=(1, 2, 3))
    return Perceptual(distance, Role(init=lambda key: {"gain": jnp.float32(1.5)}), "fourth power")


def test_a_perceptual_distance_after_a_start_on_squared_errors(monkeypatch):
    monkeypatch.setitem(DISTANCES, "fourth_power", fourth_power)
    eye = dict(name="fourth_power")
    distance = make_distance(dict(name="perceptual", network=eye, squared_weight=0.5, squared_until=10))
    params = {name: role.init(jax.random.key(0)) for name, role in distance.roles.items()}
    assert set(params) == {"perceptual"}
    x, y = jax.random.normal(jax.random.key(1), (2, 2, 4, 4, 3))
    plain = squared_distance(x, y)
    compare = lambda x, y, step: distance.compare(params, x, y, jnp.full(2, step))
    np.testing.assert_allclose(compare(x, y, 9), plain, rtol=1e-6)
    fourth = jnp.mean((1.5 * (x - y)) ** 4, axis=(1, 2, 3))
    np.testing.assert_allclose(compare(x, y, 10), fourth + 0.5 * plain, rtol=1e-4)
    np.testing.assert_allclose(compare(x, x, 10), 0, atol=1e-6)
    gradient = jax.grad(lambda params: jnp.sum(distance.compare(params, x, y, jnp.full(2, 10))))(params)
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))
    assert jax.grad(lambda x: jnp.sum(compare(x, y, 10) - 0.5 * squared_distance(x, y)))(x).any()
    with pytest.raises(ValueError, match="squared_until -1"):
        make_distance(dict(name="perceptual", network=eye, squared_until=-1))


def test_a_teacher_is_asked_only_where_it_knows_a_velocity():
    network = make_setting(config_of(), DataSpec((2,)), "data").network
    teacher = lambda prediction: Teacher(Role(init=network.init), network, prediction, make_path("linear"))
    with pytest.raises(ValueError, match="at the end of the path 'linear'.*Use the solver 'midpoint'"):
        make_follow(teacher("data"), 4, "heun")
    with pytest.raises(ValueError, match="at the start of the path 'linear'.*predicts velocity or data"):
        make_follow(teacher("noise"), 4, "midpoint")
    follow = make_follow(teacher("data"), 4, "midpoint")
    tree = network.init(jax.random.key(0))
    x = jnp.ones((3, 2))
    end = lambda tree: jnp.sum(follow({"teacher": tree}, x, 0.0, 1.0, {}))
    assert np.isfinite(end(tree)) and all(not leaf.any() for leaf in jax.tree.leaves(jax.grad(end)(tree)))

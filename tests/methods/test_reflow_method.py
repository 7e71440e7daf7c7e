"""Reflow as a method: pairs of either direction are the closed form's, from a teacher or stored; relatives; refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation import EXACT, TEACHER, batch_of, config_of, exact_map, method_of, params_of

from flowjax.models import NETWORKS
from flowjax.models.network import Network
from flowjax.paths.closed_forms import straight_velocity
from flowjax.paths.path import make_path

KEY = jax.random.key(3)
FINE = dict(name="reflow", teacher=TEACHER, teacher_steps=16, solver="rk4")
STILL = dict(name="mlp", width=8, depth=1, zero_output=True)


def straight(data, dtype="float32"):
    """The closed form of the fixed point, as a network with one parameter that leads astray."""
    apply = lambda tree, x, t, cond, *, s=None, keys=None: straight_velocity(EXACT, x, t) + tree["astray"]
    return Network(lambda key: {"astray": jnp.zeros(2)}, apply, lambda cond, dropped: dict(cond))


@pytest.mark.parametrize("real", [0.0, 1.0, 0.5])
def test_the_straightened_flow_is_the_fixed_point_forwards_and_backwards(real, monkeypatch):
    monkeypatch.setitem(NETWORKS, "straight", straight)
    method = method_of(config_of(network=dict(name="straight")), **FINE, real=real)
    params, batch, loss = params_of(method), batch_of(), method.phases["pairs"].loss
    value, metrics = loss(params, batch, KEY)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(metrics["curvature"], 0, atol=1e-6)
    gradient = jax.grad(lambda params: jnp.sum(loss(params, batch, KEY)[0]))(
        {**params, "student": {"astray": jnp.ones(2)}}
    )
    assert gradient["student"]["astray"].all()
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient["teacher"]))


def test_real_examples_are_paired_with_the_noise_that_leads_to_them():
    """A student that says 0 has the slope of the pair for its error."""
    batch, path = batch_of(), make_path("linear")
    for real, slope in (
        (0.0, exact_map(path, batch["noise"], 0.0, 1.0) - batch["noise"]),
        (1.0, batch["data"] - exact_map(path, batch["data"], 1.0, 0.0)),
    ):
        method = method_of(config_of(network=STILL), **FINE, real=real)
        value, _ = method.phases["pairs"].loss(params_of(method), batch, KEY)
        np.testing.assert_allclose(value, jnp.mean(slope**2, axis=1), rtol=1e-3)


def test_stored_pairs_need_no_teacher():
    method, batch = method_of(config_of(network=STILL, coupling=dict(name="stored")), name="reflow"), batch_of()
    value, _ = method.phases["pairs"].loss(params_of(method), batch, KEY)
    np.testing.assert_allclose(value, jnp.mean((batch["data"] - batch["noise"]) ** 2, axis=1), rtol=1e-4)


def test_the_loss_of_rectified_flow_plus_plus():
    """t H(v - v*) + |x1_hat - x1|^2 / (1 - t) of a student that says 0: then x1_hat - x1 = -(1 - t) v*."""
    options = dict(distance=dict(name="pseudo_huber", width=0.3), perceptual=dict(name="squared"))
    config = config_of(network=STILL, coupling=dict(name="stored"), weight=dict(name="ramp"))
    method, batch = method_of(config, name="reflow", **options), batch_of()
    value, metrics = method.phases["pairs"].loss(params_of(method), batch, KEY)
    t, square = metrics["t"], jnp.sum((batch["data"] - batch["noise"]) ** 2, axis=1)
    huber = (jnp.sqrt(square + 2 * 0.09) - np.sqrt(2) * 0.3) / 2
    np.testing.assert_allclose(value, t * huber + (1 - t) * square / 2, rtol=1e-3)


def test_annealing_begins_with_independent_noise():
    config = config_of(network=STILL, coupling=dict(name="stored"))
    method = method_of(config, name="reflow", annealing=dict(name="linear", steps=50))
    loss, params = method.phases["pairs"].loss, params_of(method)
    first, last = (loss(params, batch_of(step), KEY)[0] for step in (0, 50))
    batch = batch_of()
    np.testing.assert_allclose(last, jnp.mean((batch["data"] - batch["noise"]) ** 2, axis=1), rtol=1e-4)
    assert float(jnp.abs(first - last).min()) > 1e-3
    other = {**batch_of(0), "noise": batch["noise"] + 5}
    np.testing.assert_array_equal(loss(params, other, KEY)[0], first)  # nothing of the pair's noise is left


@pytest.mark.parametrize(
    "message, changes, options",
    [
        ("makes pairs with a teacher or takes those of the batch", {}, dict(teacher=None)),
        ("leave teacher and real out", dict(coupling=dict(name="stored")), {}),
        ("leave teacher and real out", dict(coupling=dict(name="stored")), dict(teacher=None, real=0.5)),
        ("real is 2", {}, dict(real=2.0)),
        ("perceptual_weight is 3", {}, dict(perceptual_weight=3.0)),
        ("Set method.perceptual to that", {}, dict(distance=dict(name="perceptual"))),
        (
            "stated for a squared error of 'data'",
            dict(weight=dict(name="edm")),
            dict(distance=dict(name="pseudo_huber")),
        ),
        ("Unknown annealing 'lin'", {}, dict(annealing=dict(name="lin", steps=3))),
        ("Unknown prediction 'speed'", {}, dict(prediction="speed")),
    ],
)
def test_what_would_do_nothing_or_go_wrong_is_refused(message, changes, options):
    with pytest.raises(ValueError, match=message):
        method_of(config_of(**changes), **{**FINE, **options})

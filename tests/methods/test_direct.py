"""Direct distillation: the exact student has no loss, one that stays put has the closed form's, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation import EXACT, TEACHER, batch_of, config_of, exact_map, exact_network, method_of, params_of

from flowjax.methods.endpoints import DISTANCES, Distance
from flowjax.models import NETWORKS
from flowjax.paths.path import make_path

KEY = jax.random.key(3)
FINE = dict(name="direct", teacher=TEACHER, teacher_steps=16, solver="rk4")


@pytest.mark.parametrize("two_times", [False, True])
@pytest.mark.parametrize("path_name", ["linear", "trigonometric"])
def test_the_exact_flow_map_has_no_loss(path_name, two_times, monkeypatch):
    monkeypatch.setitem(NETWORKS, "exact", exact_network(make_path(path_name)))
    method = method_of(config_of(path=dict(name=path_name), network=dict(name="exact", two_times=two_times)), **FINE)
    loss, params, batch = method.phases["endpoint"].loss, params_of(method), batch_of()
    value, metrics = loss(params, batch, KEY)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    assert (np.ptp(metrics["t"]) > 0.2) == two_times  # one time: every example goes the whole way
    astray = {**params, "student": {"astray": jnp.full(2, 0.5)}}
    assert float(jnp.mean(loss(astray, batch, KEY)[0])) > 1e-3
    gradient = jax.grad(lambda params: jnp.sum(loss(params, batch, KEY)[0]))({**params, **astray})
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient["teacher"]))
    assert gradient["student"]["astray"].any()


def test_a_student_that_stays_put_is_as_far_off_as_the_closed_form_says():
    config = config_of(network=dict(name="mlp", width=8, depth=1, zero_output=True))
    method = method_of(config, **FINE)
    batch, path = batch_of(), make_path("linear")
    value, _ = method.phases["endpoint"].loss(params_of(method), batch, KEY)
    way = batch["noise"] - exact_map(path, batch["noise"], 0.0, 1.0)
    np.testing.assert_allclose(value, jnp.mean(way**2, axis=1), rtol=1e-4)
    huber = method_of(config, **FINE, distance=dict(name="pseudo_huber", width=0.2))
    expected = (jnp.sqrt(jnp.sum(way**2, axis=1) + 0.08) - np.sqrt(0.08)) / 2
    np.testing.assert_allclose(huber.phases["endpoint"].loss(params_of(huber), batch, KEY)[0], expected, rtol=1e-4)


def test_stored_pairs_are_the_target_where_there_is_no_teacher():
    config = config_of(network=dict(name="mlp", width=8, depth=1, zero_output=True), coupling=dict(name="stored"))
    method, batch = method_of(config, name="direct"), batch_of()
    assert set(method.roles) == {"student", "ema"}
    value, _ = method.phases["endpoint"].loss(params_of(method), batch, KEY)
    np.testing.assert_allclose(value, jnp.mean((batch["noise"] - batch["data"]) ** 2, axis=1), rtol=1e-5)


def test_the_flow_guided_term_of_slim_flow():
    """A student that says 0 stays at e: the term is |(1 - t) v(e, t)|^2, whose mean over e and t is an integral in t."""
    config = config_of(network=dict(name="mlp", width=8, depth=1, zero_output=True))
    batch = batch_of(rows=4096)
    values = {weight: method_of(config, **FINE, guided_weight=weight) for weight in (0.0, 2.0)}
    plain, guided = (
        jax.jit(method.phases["endpoint"].loss)(params_of(method), batch, KEY)[0] for method in values.values()
    )
    t = jnp.linspace(0.2, 0.8, 1001)
    variance = (0.4 * t) ** 2 + (1 - t) ** 2
    pull = (0.16 * t - (1 - t)) / variance
    squares = [((mean * (1 - pull * t)) ** 2 + pull**2) * (1 - t) ** 2 for mean in np.asarray(EXACT.means)[0]]
    expected = float(jnp.mean(sum(squares) / 2))
    assert float(jnp.mean(guided - plain)) / 2 == pytest.approx(expected, rel=0.05)


def test_the_flow_guided_term_moves_the_jump_to_the_end_alone(monkeypatch):
    """Under a distance that is linear the slope of each term is that of the student's end point: 1 for each example."""
    monkeypatch.setitem(NETWORKS, "exact", exact_network(make_path("linear")))
    monkeypatch.setitem(DISTANCES, "signed", lambda: Distance(lambda params, x, y, step: (x - y)[:, 0]))
    method = method_of(config_of(network=dict(name="exact")), **FINE, guided_weight=2.0, distance=dict(name="signed"))
    params, batch = params_of(method), batch_of()
    value = lambda astray: jnp.sum(
        method.phases["endpoint"].loss({**params, "student": {"astray": astray}}, batch, KEY)[0]
    )
    np.testing.assert_allclose(jax.grad(value)(jnp.ones(2)), [8 + 2 * 8, 0], rtol=1e-5)


@pytest.mark.parametrize(
    "message, changes, options",
    [
        ("a teacher or on the pairs", {}, dict(teacher=None)),
        ("a teacher or on the pairs", dict(coupling=dict(name="stored")), {}),
        ("moves nothing at the start of the path 'linear'", {}, dict(prediction="noise")),
        ("'weight' is .*does not read", dict(weight=dict(name="edm")), {}),
        ("'time' is .*does not read", dict(time=dict(name="cosmap")), {}),
        ("followed by 0 steps", {}, dict(teacher_steps=0)),
        ("guided_weight is -1", {}, dict(guided_weight=-1.0)),
        ("two rising shares", {}, dict(guided_times=(0.5, 0.5))),
        ("network of one time. Leave it at 0", dict(network__two_times=True), dict(guided_weight=1.0)),
        ("Unknown distance 'hubert'", {}, dict(distance=dict(name="hubert"))),
        ("width is -1", {}, dict(distance=dict(name="pseudo_huber", width=-1.0))),
    ],
)
def test_what_would_do_nothing_or_go_wrong_is_refused(message, changes, options):
    with pytest.raises(ValueError, match=message):
        method_of(config_of(**changes), **{**FINE, **options})

"""BOOT and PeRFlow as methods: their fixed points on a Gaussian are closed forms, neither moves the teacher, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation import EXACT, TEACHER, batch_of, config_of, exact_map, exact_network, method_of, params_of

from flowjax.models import NETWORKS
from flowjax.models.network import Network
from flowjax.paths.ode import solve
from flowjax.paths.path import make_path

KEY = jax.random.key(3)
BOOT = dict(name="boot", teacher=TEACHER, solver="rk4", teacher_steps=4)
PERFLOW = dict(name="perflow", teacher=TEACHER, solver="rk4")
LINEAR = make_path("linear")
EDGES = jnp.linspace(0, 1, 5)


def check(method, phase):
    """No loss at the fixed point; some beside it, whose gradient reaches the student alone."""
    loss, params, batch = method.phases[phase].loss, params_of(method), batch_of()
    np.testing.assert_allclose(loss(params, batch, KEY)[0], 0, atol=2e-5)
    astray = {**params, "student": {"astray": jnp.full(2, 0.5)}}
    assert float(jnp.mean(loss(astray, batch, KEY)[0])) > 1e-3
    gradient = jax.grad(lambda params: jnp.sum(loss(params, batch, KEY)[0]))(astray)
    assert gradient["student"]["astray"].all()
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient["teacher"]))
    return loss, params, batch


@pytest.mark.parametrize("path_name", ["linear", "trigonometric"])
def test_boot_has_the_flow_map_for_its_fixed_point_and_reads_no_data(path_name, monkeypatch):
    monkeypatch.setitem(NETWORKS, "exact", exact_network(make_path(path_name)))
    config = config_of(path=dict(name=path_name), network=dict(name="exact", two_times=True))
    loss, params, batch = check(method_of(config, **BOOT, stride=0.2), "boot")
    other = {**batch, "data": batch["data"] + 100}
    np.testing.assert_array_equal(loss(params, other, KEY)[0], loss(params, batch, KEY)[0])


def straight_in_windows(x, t):
    """The closed form: on the chord from x_s at a window's beginning to X(x_s) at its end the velocity is its slope."""
    index = jnp.clip(jnp.searchsorted(EDGES, t, side="right") - 1, 0, 3)
    first, last = EDGES[index][:, None], EDGES[index + 1][:, None]
    mean = EXACT.means
    std = lambda time: jnp.sqrt((0.4 * time) ** 2 + (1 - time) ** 2)
    ratio, along = std(last) / std(first), (t[:, None] - first) / (last - first)
    begin = (x - along * (last - ratio * first) * mean) / (1 - along + along * ratio)
    return (last * mean + ratio * (begin - first * mean) - begin) / (last - first)


def test_perflow_is_straight_in_every_window_and_four_euler_steps_are_exact(monkeypatch):
    apply = lambda tree, x, t, cond, *, s=None, keys=None: straight_in_windows(x, t) + tree["astray"]
    network = Network(lambda key: {"astray": jnp.zeros(2)}, apply, lambda cond, dropped: dict(cond))
    monkeypatch.setitem(NETWORKS, "windows", lambda data, dtype="float32": network)
    check(method_of(config_of(network=dict(name="windows")), **PERFLOW), "windows")
    noise = batch_of()["noise"]
    exact = exact_map(LINEAR, noise, 0.0, 1.0)
    np.testing.assert_allclose(solve(straight_in_windows, noise, 0.0, 1.0, 4, "euler"), exact, atol=1e-5)
    assert float(jnp.abs(solve(straight_in_windows, noise, 0.0, 1.0, 3, "euler") - exact).max()) > 1e-2


def test_perflow_with_one_window_is_reflow():
    still = dict(name="mlp", width=8, depth=1, zero_output=True)
    method, batch = method_of(config_of(network=still), **PERFLOW, windows=1), batch_of()
    value, _ = method.phases["windows"].loss(params_of(method), batch, KEY)
    slope = exact_map(LINEAR, batch["noise"], 0.0, 1.0) - batch["noise"]
    np.testing.assert_allclose(value, jnp.mean(slope**2, axis=1), rtol=1e-3)


@pytest.mark.parametrize(
    "message, changes, options",
    [
        ("network of two times. Set network.two_times=True", {}, BOOT),
        ("stride is 0", dict(network__two_times=True), {**BOOT, "stride": 0.0}),
        ("stride is 2", dict(network__two_times=True), {**BOOT, "stride": 2.0}),
        ("'weight' is .*does not read", dict(weight=dict(name="ramp")), BOOT),
        ("windows is 0", {}, {**PERFLOW, "windows": 0}),
        ("followed by 0 steps", {}, {**PERFLOW, "teacher_steps": 0}),
    ],
)
def test_refusals(message, changes, options):
    with pytest.raises(ValueError, match=message):
        method_of(config_of(**changes), **options)

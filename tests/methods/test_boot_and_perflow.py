"""BOOT and PeRFlow as methods: their fixed points on a Gaussian are closed forms, neither moves the teacher, refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation import EXACT, TEACHER, batch_of, config_of, exact_map, exact_network, method_of, params_of

from flowjax.arrays import example_keys
from flowjax.contract import DataSpec
from flowjax.methods import endpoints
from flowjax.models import NETWORKS
from flowjax.models.network import Network, label_condition
from flowjax.paths.ode import solve
from flowjax.paths.path import make_path

compile_quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
KEY = jax.random.key(3)
BOOT = dict(name="boot", teacher=TEACHER, solver="rk4", teacher_steps=4)
PERFLOW = dict(name="perflow", teacher=TEACHER, solver="rk4")
LINEAR = make_path("linear")
EDGES = jnp.linspace(0, 1, 5)


def check(method, phase):
    """No loss at the fixed point; some beside it, whose gradient reaches the student alone."""
    loss, params, batch = compile_quickly(method.phases[phase].loss), params_of(method), batch_of()
    np.testing.assert_allclose(loss(params, batch, KEY)[0], 0, atol=2e-5)
    astray = {**params, "student": {"astray": jnp.full(2, 0.5)}}
    assert float(jnp.mean(loss(astray, batch, KEY)[0])) > 1e-3
    total = lambda params: jnp.sum(method.phases[phase].loss(params, batch, KEY)[0])
    gradient = compile_quickly(jax.grad(total))(astray)
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
    euler = lambda steps: compile_quickly(lambda x: solve(straight_in_windows, x, 0.0, 1.0, steps, "euler"))(noise)
    np.testing.assert_allclose(euler(4), exact, atol=1e-5)
    assert float(jnp.abs(euler(3) - exact).max()) > 1e-2


def test_perflow_with_one_window_is_reflow():
    still = dict(name="mlp", width=8, depth=1, zero_output=True)
    method, batch = method_of(config_of(network=still), **PERFLOW, windows=1), batch_of()
    value, _ = compile_quickly(method.phases["windows"].loss)(params_of(method), batch, KEY)
    slope = exact_map(LINEAR, batch["noise"], 0.0, 1.0) - batch["noise"]
    np.testing.assert_allclose(value, jnp.mean(slope**2, axis=1), rtol=1e-3)


def test_perflow_follows_its_teacher_once_for_several_updates(monkeypatch):
    """Every update finds the ends, the windows and the dropped labels of the one rollout, at times of its own."""
    apply = lambda tree, x, t, cond, *, s=None, keys=None: cond["label"][:, None] + x + tree["astray"]
    drop = lambda cond, dropped: {**cond, "label": jnp.where(dropped, 3, cond["label"])}
    labelled = Network(lambda key: {"astray": jnp.zeros(2)}, apply, drop, {"label": label_condition(3)})
    monkeypatch.setitem(NETWORKS, "labelled", lambda data, dtype="float32": labelled)
    followed = []
    once = lambda *a: followed.append(a) or solve(*a)
    monkeypatch.setattr(endpoints, "solve", once)
    config, data = config_of(network=dict(name="labelled")), DataSpec((2,), 3)
    one = method_of(config, data, **PERFLOW, label_dropout=0.5)
    three = method_of(config, data, **PERFLOW, label_dropout=0.5, updates=3)
    batch, params = batch_of(label=jnp.arange(8) % 3), params_of(three)
    assert one.collect is None and three.collect.every == 3
    made = three.collect.rollout(params, batch, KEY)
    batches = three.collect.batches(jax.tree.map(np.asarray, made), None, 0)
    assert len(followed) == 1 and len(batches) == 3 and 0 < made["rollout_dropped"].sum() < 8
    # With the rollout's own key the first update is the one of a run without rollouts.
    loss, times = three.phases["windows"].loss, []
    np.testing.assert_array_equal(loss(params, made, KEY)[0], one.phases["windows"].loss(params, batch, KEY)[0])
    followed.clear()
    for index, given in enumerate(batches):
        error, metrics = loss(params, jax.tree.map(jnp.asarray, given), jax.random.key(index))
        noise, sample, t = given["rollout_noise"], given["rollout_sample"], np.asarray(metrics["t"])
        assert ((given["rollout_first"] <= t) & (t <= given["rollout_last"])).all()
        label = np.where(given["rollout_dropped"], 3, given["label"])[:, None]
        x = noise + t[:, None] * (sample - noise)
        np.testing.assert_allclose(error, np.mean((label + x - (sample - noise)) ** 2, axis=1), rtol=1e-4)
        times.append(t)
    assert not followed and (times[0] != times[1]).any() and (times[1] != times[2]).any()


def test_perflow_tells_its_student_where_the_window_ends(monkeypatch):
    """A network that answers with what it is told, in training and from a sampler of one step or two a window."""
    apply = lambda tree, x, t, cond, *, s=None, keys=None: jnp.broadcast_to(s[:, None], x.shape) + tree["astray"]
    network = Network(lambda key: {"astray": jnp.zeros(2)}, apply, lambda cond, dropped: dict(cond), {}, True)
    monkeypatch.setitem(NETWORKS, "told", lambda data, dtype="float32", two_times=True: network)
    samplers = {f"at_{steps}": dict(name="euler", steps=steps, role="student") for steps in (4, 8, 12)}
    config = config_of(network=dict(name="told", two_times=True), ema={}, samplers=samplers)
    method = method_of(config, **PERFLOW, told=True, updates=2)
    params, batch = params_of(method), batch_of()
    made = method.collect.rollout(params, batch, KEY)
    error, _ = method.phases["windows"].loss(params, made, KEY)
    slope = made["rollout_sample"] - made["rollout_noise"]
    np.testing.assert_allclose(error, np.mean((made["rollout_last"][:, None] - slope) ** 2, axis=1), rtol=1e-4)
    keys = example_keys(KEY, jnp.arange(8))
    ends = [np.asarray(sampler.draw(params, {}, keys)) for sampler in method.samplers.values()]
    for drawn in ends[1:]:  # the sum of h s is the mean of the ends, (1/4 + 2/4 + 3/4 + 1) / 4, for every multiple of K
        np.testing.assert_allclose(drawn, ends[0], atol=1e-6)
    with pytest.raises(ValueError, match="network of one time. Set network.two_times=False"):
        method_of(config, **PERFLOW)
    flow_map = config_of(network=dict(name="told", two_times=True), samplers=dict(a=dict(name="flow_map", steps=4)))
    with pytest.raises(ValueError, match="told its window .* use the sampler 'euler'"):
        method_of(flow_map, **PERFLOW, told=True).samplers["a"].draw(
            params_of(method) | {"ema": params["student"]}, {}, keys
        )


@pytest.mark.parametrize(
    "message, changes, options",
    [
        ("network of two times. Set network.two_times=True", {}, BOOT),
        ("stride is 0", dict(network__two_times=True), {**BOOT, "stride": 0.0}),
        ("stride is 2", dict(network__two_times=True), {**BOOT, "stride": 2.0}),
        ("'weight' is .*does not read", dict(weight=dict(name="ramp")), BOOT),
        ("windows is 0", {}, {**PERFLOW, "windows": 0}),
        ("updates 0; expected at least 1", {}, {**PERFLOW, "updates": 0}),
        ("trains a network of two times. Set network.two_times=True", {}, {**PERFLOW, "told": True}),
        ("followed by 0 steps", {}, {**PERFLOW, "teacher_steps": 0}),
    ],
)
def test_refusals(message, changes, options):
    with pytest.raises(ValueError, match=message):
        method_of(config_of(**changes), **options)

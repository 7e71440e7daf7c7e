"""Updates against NumPy: masks, accumulation, phases, tracked roles, the guard, and every executor the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import WIDTH, host, regression, regression_batch, squared_error, toy_config

from flowjax.contract import Collect, Method, Phase, Role, Track
from flowjax.training.executors import JitExecutor, PmapExecutor, pad_stack
from flowjax.training.state import initial_state, step_key
from flowjax.training.update import TIME_BINS, follow, make_update, phase_gradients


def numpy_step(w, batch, rate):
    """One step of gradient descent on the masked mean, in float64."""
    x, y, mask = (batch[name].astype(np.float64) for name in ("data", "target", "mask"))
    error = x @ w - y
    loss = (mask * (error**2).sum(-1)).sum() / mask.sum()
    return w - rate * 2 * x.T @ (mask[:, None] * error) / mask.sum(), loss


def as_jax(batch):
    return jax.tree.map(jnp.asarray, batch)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_update_is_gradient_descent_on_the_masked_mean(accumulation):
    method = regression()
    state = initial_state(method, 0, {})
    batch = regression_batch(1)
    batch["mask"][[0, 5, 6]] = 0
    batch["data"][5] = np.inf  # a padded row may hold anything
    update = jax.jit(make_update(method, ("fit",), accumulation))
    w = np.asarray(state.params["student"]["w"], np.float64)
    clean = {**batch, "data": np.where(np.isinf(batch["data"]), 0, batch["data"])}
    expected, loss = numpy_step(w, clean, 1e-3)
    new, metrics = update(state, as_jax(batch), jax.random.key(0))
    np.testing.assert_allclose(new.params["student"]["w"], expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(new.params["ema"]["w"], 0.9 * w + 0.1 * expected, rtol=2e-5, atol=1e-6)
    assert int(new.step) == 1 and bool(new.healthy)


def test_histogram_by_time_counts_every_unmasked_example():
    method, batch = regression(), regression_batch(2)
    batch["mask"][:3] = 0
    loss, _, metrics = phase_gradients(
        method.phases["fit"], initial_state(method, 0, {}).params, as_jax(batch), jax.random.key(0)
    )
    expected = np.histogram(batch["time"][3:], TIME_BINS, (0, 1))[0]
    np.testing.assert_array_equal(metrics["by_time/count"], expected)
    np.testing.assert_allclose(metrics["by_time/loss"].sum() / 13, loss, rtol=1e-5)


def test_a_loss_that_averages_over_the_batch_is_refused():
    phase = Phase(lambda p, b, k: (jnp.mean(squared_error(p, b, k)[0]), {}), ("student",))
    with pytest.raises(ValueError, match="one value per example"):
        phase_gradients(
            phase, initial_state(regression(), 0, {}).params, as_jax(regression_batch(0)), jax.random.key(0)
        )


def test_follow_keeps_and_copies_to_the_last_bit():
    a, b = {"x": jnp.array([1e-3, 1.7, -3e7])}, {"x": jnp.array([1e7, 1.1, 3e-7])}
    np.testing.assert_array_equal(follow(a, b, jnp.float32(0))["x"], a["x"])
    np.testing.assert_array_equal(follow(a, b, jnp.float32(1))["x"], b["x"])


def two_phase_method():
    """A 'fake' updated at every step and a 'student' every third, each with its own loss; plus a hand-over every fourth."""

    def student_loss(params, batch, key):
        return jnp.sum((batch["data"] @ params["student"]["w"] - batch["data"] @ params["fake"]["w"]) ** 2, -1), {}

    def fake_loss(params, batch, key):
        return jnp.sum((batch["data"] @ params["fake"]["w"]) ** 2, -1), {}

    start = lambda key: {"w": jax.random.normal(key, (WIDTH, 2))}
    return Method(
        roles={
            "student": Role(init=start, tx=optax.sgd(1e-3)),
            "fake": Role(init=start, tx=optax.sgd(1e-3)),
            "teacher": Role(
                copy_of="student", track=Track("student", lambda step: (step % 4 == 3).astype(jnp.float32))
            ),
        },
        phases={"fake": Phase(fake_loss, ("fake",)), "student": Phase(student_loss, ("student",), every=3, offset=2)},
    )


def test_phases_train_only_their_roles_and_a_teacher_is_handed_over():
    method = two_phase_method()
    assert [method.due(step) for step in range(4)] == [("fake",), ("fake",), ("fake", "student"), ("fake",)]
    state = initial_state(method, 0, {})
    assert not np.allclose(state.params["student"]["w"], state.params["fake"]["w"])  # each role has a key of its own
    batch, history = as_jax(regression_batch(0)), [host(state.params)]
    for step in range(4):
        state, metrics = make_update(method, method.due(step))(state, batch, jax.random.key(0))
        history.append(host(state.params))
    changed = lambda role: [not np.array_equal(a[role]["w"], b[role]["w"]) for a, b in zip(history, history[1:])]
    assert changed("student") == [False, False, True, False]
    assert changed("fake") == [True] * 4
    assert changed("teacher") == [False, False, False, True]
    np.testing.assert_array_equal(history[4]["teacher"]["w"], history[4]["student"]["w"])
    assert {"fake/loss", "fake/grad_norm", "healthy"} <= set(metrics)


def test_guard_keeps_the_state_from_the_first_bad_update_on():
    method = regression(optax.adam(1e-2))
    executor = JitExecutor(method, toy_config(steps_per_dispatch=6, mesh=dict(data=0, fsdp=0, tensor=1)))
    batches = regression_batch(0, stack=6)
    batches["data"][3, 4, 0] = np.nan
    three, _ = executor.run(executor.start(), {k: v[:3] for k, v in batches.items()}, ("fit",), 3)
    three = host(three)
    state, metrics = executor.run(executor.start(), batches, ("fit",), 6)
    np.testing.assert_array_equal(metrics["healthy"], [True] * 3 + [False] * 3)
    assert not np.isfinite(metrics["loss"][3])
    assert int(state.step) == 3
    jax.tree.map(np.testing.assert_array_equal, host(state.replace(healthy=jnp.bool_(True))), three)


VARIANTS = {
    "replicated": dict(),
    "zero1": dict(sharding="zero1"),
    "zero2": dict(sharding="zero2", gradient_accumulation=2),
    "zero3": dict(sharding="zero3"),
    "zero3 on a 2x4 mesh": dict(sharding="zero3", mesh=dict(data=2, fsdp=4, tensor=1)),
    "tensor": dict(mesh=dict(data=0, fsdp=1, tensor=4), partition_rules=((".*/w", (None, "tensor")),)),
    "pmap": dict(parallel="pmap"),
    "pmap, accumulated": dict(parallel="pmap", gradient_accumulation=2),
}


def weighed():
    """The regression on rollouts, whose batches may be all masked, by an optimizer that moves without a gradient."""
    method = regression(optax.adamw(1e-2, weight_decay=0.1))
    collect = Collect(lambda params, batch, key: {}, lambda made, scores, step: [], every=1)
    return dataclasses.replace(method, collect=collect)


@pytest.mark.parametrize("name", ["replicated", "zero2", "zero3", "pmap", "pmap, accumulated"])
def test_an_update_without_a_single_sample_moves_nothing_that_is_trained(name):
    config = toy_config(steps_per_dispatch=1, **VARIANTS[name])
    executor = {"jit": JitExecutor, "pmap": PmapExecutor}[config.parallel](weighed(), config)
    batches = regression_batch(0, stack=3)
    batches["mask"][1:] = 0.0
    batches["mask"][2, 5] = 1.0  # of one device alone: all of them move
    states = [executor.start()]
    for step in range(3):
        last = jax.tree.map(jnp.copy, states[-1])  # what is given away cannot be looked at
        states[-1], batch = host(executor.logical(states[-1])), {k: v[step : step + 1] for k, v in batches.items()}
        states.append(executor.run(last, batch, ("fit",), 1)[0])
    if config.parallel == "pmap":  # every device has decided alike
        copies = np.asarray(states[-1].params["student"]["w"])
        np.testing.assert_array_equal(copies, np.broadcast_to(copies[:1], copies.shape))
    _, one, two, three = [*states[:3], host(executor.logical(states[3]))]
    jax.tree.map(np.testing.assert_array_equal, one.optimizer, two.optimizer)
    np.testing.assert_array_equal(one.params["student"]["w"], two.params["student"]["w"])
    assert int(two.step) == int(one.step) + 1
    follows = one.params["ema"]["w"] + 0.1 * (one.params["student"]["w"] - one.params["ema"]["w"])
    np.testing.assert_allclose(two.params["ema"]["w"], follows, rtol=1e-5, atol=1e-7)  # of one that stands still
    assert np.abs(three.params["student"]["w"] - two.params["student"]["w"]).min() > 0
    assert int(three.optimizer["student"][0].count) == 2


def run_executor(executor, dispatches):
    state, losses = executor.start(), []
    for count, batches in dispatches:
        state, metrics = executor.run(state, batches, ("fit",), count)
        losses += list(np.asarray(metrics["loss"][:count]))
    return host(executor.logical(state)), np.array(losses)


@pytest.fixture(scope="module")
def batches():
    return regression_batch(0, stack=7)


@pytest.fixture(scope="module")
def reference(batches):
    """Seven updates by themselves, on one device's worth of arithmetic: the plain jitted update in a Python loop."""
    method = regression(optax.adam(1e-2))
    state, losses, update = initial_state(method, 0, {}), [], jax.jit(make_update(method, ("fit",)))
    for i in range(7):
        state, metrics = update(state, as_jax({k: v[i] for k, v in batches.items()}), jax.random.key(0))
        losses.append(float(metrics["loss"]))
    return host(state), np.array(losses)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_executor_agrees_with_one_device(name, batches, reference):
    assert jax.device_count() == 8
    config = toy_config(steps_per_dispatch=4, **VARIANTS[name])
    executor = {"jit": JitExecutor, "pmap": PmapExecutor}[config.parallel](regression(optax.adam(1e-2)), config)
    dispatches = [(4, {k: v[:4] for k, v in batches.items()}), (3, {k: v[4:] for k, v in batches.items()})]
    state, losses = run_executor(executor, dispatches)
    np.testing.assert_allclose(losses, reference[1], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), state, reference[0])


def test_where_a_run_is_cut_does_not_change_its_bits(batches):
    config = toy_config(steps_per_dispatch=4)
    executor = JitExecutor(regression(optax.adam(1e-2)), config)
    cuts = lambda *counts: [
        (count, {k: v[end - count : end] for k, v in batches.items()}) for count, end in zip(counts, np.cumsum(counts))
    ]
    one, other = run_executor(executor, cuts(4, 3)), run_executor(executor, cuts(1, 2, 4))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_zero_levels_split_what_they_name():
    specs = {}
    for level in ("replicated", "zero1", "zero3"):
        executor = JitExecutor(regression(optax.adam(1e-2)), toy_config(sharding=level))
        state = executor.start()
        split = lambda leaf: leaf.addressable_shards[0].data.size * 8 == leaf.size
        specs[level] = split(state.params["student"]["w"]), split(state.optimizer["student"][0].mu["w"])
    assert specs == {"replicated": (False, False), "zero1": (False, True), "zero3": (True, True)}


def test_batches_that_do_not_divide_are_refused_with_the_nearest_that_do():
    with pytest.raises(
        ValueError, match="batch_size=20 does not divide into 8 device shards x 1 micro-batches. Use 16 or 24"
    ):
        JitExecutor(regression(), toy_config(batch_size=20))
    with pytest.raises(ValueError, match="needs a multiple of 3 devices"):
        JitExecutor(regression(), toy_config(mesh=dict(data=3, fsdp=0, tensor=1)))


def test_pad_stack_repeats_the_last_batch():
    padded = pad_stack({"data": np.arange(6).reshape(2, 3)}, 4)
    np.testing.assert_array_equal(padded["data"], [[0, 1, 2], [3, 4, 5], [3, 4, 5], [3, 4, 5]])


def test_keys_differ_by_step_and_stream():
    root = jax.random.key(0)
    drawn = [
        np.asarray(jax.random.key_data(step_key(root, step, stream))) for step in range(5) for stream in ("a", "b")
    ]
    assert len({tuple(key.ravel()) for key in drawn}) == 10

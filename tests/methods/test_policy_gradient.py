"""Policy gradients of flows end at the optimum that is known, learn from the steps they say, and refuse what cannot be."""

import gaussian_line
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_line import GROUP, MEAN, RIGHT, SIZE, STD, Rows, exact, first_batch, slope, train

from flowjax.methods import policy_gradient
from flowjax.methods.groups import spread
from flowjax.models import NETWORKS
from flowjax.samplers.rollouts import step_transitions

STEPS = 8


@pytest.fixture(autouse=True)
def network(monkeypatch):
    monkeypatch.setitem(NETWORKS, "exact", exact)


def made(name="flow_grpo", sampler=None, changes=None, **options):
    rollout = {"name": "dance_grpo" if name == "dance_grpo" else "flow_grpo", "steps": STEPS, **(sampler or {})}
    options = dict(rewards=RIGHT, rollout=rollout, group_size=GROUP, clip=0.2, log_prob="sum") | options
    return gaussian_line.made(name, changes, **options)


def chain(a):
    """Of the discretised SDE: how far a shift of the mean moves a sample, what it costs in divergence, and the spread.

    The last step has no noise, so no likelihood of it depends on the mean: what it adds is not learnt from.
    """
    times, variance, gain, cost = np.linspace(0, 1, STEPS + 1), 1.0, 0.0, 0.0
    for t, t_next in zip(times[:-1], times[1:]):
        h, divisor = t_next - t, t or times[1]
        noise = a**2 * (1 - t) / divisor  # g^2
        c = slope(t)  # v = c x + (1 - t c) m
        factor = 1 + h * c + h * noise / 2 * (t * c - 1) / (1 - t)
        pull = h * (1 - t * c) * (1 + noise / 2 * t / (1 - t))
        last = t_next == 1
        cost += 0.0 if last else pull**2 / (noise * h)
        gain, variance = factor * gain + (0.0 if last else pull), factor**2 * variance + (0.0 if last else noise * h)
    return gain, cost, np.sqrt(variance)


@pytest.mark.parametrize("a", [0.7, 1.2])
def test_the_optimum_is_where_reward_and_divergence_balance(a):
    """Moving the mean by d is worth gain d / std and costs weight cost d^2 / 2: the best d is gain / (std weight cost)."""
    gain, cost, std = chain(a)
    weight = 1.0
    best = gain / (std * weight * cost)
    method, executor = made(sampler=dict(a=a), divergence_weight=weight)
    means, state, metrics, feed = train(method, executor, 150)
    found = means - MEAN
    # The spread of seeds of the mean over the last hundred updates is below two hundredths of a standard deviation.
    assert np.mean(found[50:]) == pytest.approx(best, rel=0.06)
    assert state.params["reference"]["mean"] == 1
    np.testing.assert_allclose(metrics["divergence"][0], cost * best**2 / 2 / (STEPS - 1), rtol=0.25)
    assert feed.metrics["reward_right"] == pytest.approx(1 + best, abs=0.15) and feed.metrics["flat"] == 0


def test_before_the_first_update_the_ratio_is_one_and_later_it_is_not():
    method, executor = made(updates=4)
    batch, params, _ = first_batch(method, executor)
    assert batch["data"].shape == (SIZE // 4, 1) and method.checks["ratio"](params, batch, jax.random.key(0)).passed
    value, metrics = method.phases["policy"].loss(params, batch, jax.random.key(0))
    np.testing.assert_allclose(metrics["ratio"], 1, atol=1e-4)
    np.testing.assert_allclose(value, -batch["rollout_advantage"], atol=1e-4)
    moved = {**params, "student": {"mean": params["student"]["mean"] + 0.3}}
    assert not method.checks["ratio"](moved, batch, jax.random.key(0)).passed
    assert (method.phases["policy"].loss(moved, batch, jax.random.key(0))[1]["divergence"] > 0).all()


def test_the_doctor_finds_a_loss_that_scores_steps_at_other_times(monkeypatch):
    for options in ({}, dict(window=3, window_every=1)):
        method, executor = made(**options)
        batch, params, _ = first_batch(method, executor, step=4)
        found = method.checks["grid"](params, batch, jax.random.key(0))
        first = 4 if options else 0
        times = np.linspace(0, 1, STEPS + 1)[first:][: 3 if options else STEPS - 1]
        assert found.passed and found.detail.endswith(", ".join(f"{t:.4g}" for t in times))
    shifted = lambda stepper, field, grid, x, first=0: step_transitions(
        stepper, field, np.asarray(grid) ** 1.1, x, first
    )
    monkeypatch.setattr(policy_gradient, "step_transitions", shifted)
    method, executor = made()
    batch, params, _ = first_batch(method, executor)
    assert not method.checks["grid"](params, batch, jax.random.key(0)).passed


def test_the_published_divergence_is_that_of_a_step_times_its_length():
    values = {}
    for kind in ("exact", "published"):
        method, executor = made(divergence=kind, divergence_weight=1.0)
        batch, params, _ = first_batch(method, executor)
        moved = {**params, "student": {"mean": params["student"]["mean"] + 0.5}}
        with_it, without = (m.phases["policy"].loss(moved, batch, jax.random.key(0))[0] for m in (method, made()[0]))
        values[kind] = with_it - without
    np.testing.assert_allclose(values["published"], values["exact"] / STEPS, rtol=1e-2)


def test_groups_share_their_noise_where_that_is_asked_for_and_the_clean_prediction_is_judged():
    for name, shared in (("flow_grpo", False), ("dance_grpo", True)):
        method, executor = made(name)
        starts = np.asarray(first_batch(method, executor)[0]["rollout_x"])[:, 0].reshape(-1, GROUP)
        assert (np.ptp(starts, axis=1) == 0).all() == shared and np.ptp(starts) > 0.5
    state = executor.start()
    made_of = method.collect.rollout(state.params, first_of_rows(), jax.random.key(0))
    clean = np.asarray(made_of["rewards"]["right"])
    assert np.abs(clean - np.asarray(made_of["batch"]["data"])[:, 0]).max() > 0  # the last step is not the prediction


def first_of_rows():
    return {
        **{name: jnp.asarray(value[0]) for name, value in Rows().stack_batches(1).items()},
        "step": jnp.zeros(SIZE, int),
    }


def test_a_share_of_the_steps_is_another_one_for_each_sample():
    method, executor = made(share=0.5)
    batch, params, _ = first_batch(method, executor)
    loss = lambda x: method.phases["policy"].loss(params, {**batch, "rollout_log_prob": x}, jax.random.key(3))[0].sum()
    slope = np.asarray(jax.grad(loss)(batch["rollout_log_prob"]))
    assert ((slope != 0).sum(axis=1) == round(0.5 * (STEPS - 1))).all()
    assert (slope != 0).mean(axis=0).min() > 0.3 and len(np.unique(slope != 0, axis=0)) > 20


def test_the_window_moves_towards_the_data_and_back_and_a_whole_one_is_none():
    method, executor = made("mix_grpo", window=3, window_every=2, window_stride=2, shared_noise=False)
    for step, first in ((0, 0), (1, 0), (2, 2), (4, 4), (6, 1), (8, 3)):
        batch, params, _ = first_batch(method, executor, step)
        assert batch["rollout_x"].shape == (SIZE, 3, 1)
        _, metrics = method.phases["policy"].loss(params, batch, jax.random.key(0))
        np.testing.assert_allclose(metrics["ratio"], 1, atol=1e-4)  # scored at the times at which it was drawn
        path = np.linspace(0, 1, STEPS + 1)
        # Points of the exact flow from unit noise have this spread where the window begins.
        spread_there = np.sqrt((1 - path[first]) ** 2 + path[first] ** 2 * STD**2)
        assert np.std(batch["rollout_x"][:, 0]) == pytest.approx(spread_there, rel=0.15)
    whole, _ = first_batch(
        *made("mix_grpo", window=STEPS - 1, shared_noise=False, advantage_scope="all", advantage_floor=1e-4)
    )[:2]
    plain, _ = first_batch(*made())[:2]
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, atol=1e-6), whole, plain)


def test_the_window_of_the_fast_form_begins_at_one_of_the_first_steps_drawn_anew():
    method, executor = made("flow_grpo_fast", window_drawn=4, updates=2)
    places = []
    for step in range(0, 24, 2):
        batch, params, _ = first_batch(method, executor, step)
        found = method.checks["grid"](params, batch, jax.random.key(0))
        assert found.passed and method.checks["ratio"](params, batch, jax.random.key(0)).passed
        places.append(round(float(found.detail.split("= ")[1].split(",")[0]) * STEPS))
    assert set(places) <= {0, 1, 2, 3} and len(set(places)) > 2


def test_groups_that_teach_nothing_are_left_out():
    method, _ = made()
    rewards = np.random.default_rng(0).normal(size=SIZE)
    rewards[:GROUP] = 2.0
    arrays = {"data": np.zeros((SIZE, 1), np.float32), "row": np.arange(SIZE)}
    (batch,) = method.collect.batches({"batch": arrays, "rewards": {"right": rewards}}, None, 0)
    assert batch["mask"].sum() == SIZE - GROUP and not batch["mask"][:GROUP].any()
    (batch,) = method.collect.batches({"batch": arrays, "rewards": {"right": np.ones(SIZE)}}, None, 0)
    assert batch["mask"].all() and not batch["rollout_advantage"].any()
    method, _ = made(updates=4)
    rewards[: SIZE // 4] = 2.0  # the whole of the first update
    first, second, *_ = method.collect.batches({"batch": arrays, "rewards": {"right": rewards}}, None, 0)
    assert first["mask"].all() and second["mask"].all() and first["rollout_advantage"].sum() == 0


@pytest.mark.parametrize(
    ("name", "floor", "unbiased", "scope"),
    [("dance_grpo", 1e-8, 1, "group"), ("mix_grpo", 1e-8, 0, "group"), ("flow_grpo", 1e-4, 0, "all")],
)
def test_the_advantage_of_several_rewards_is_the_weighted_mean_of_theirs_and_not_normalised_again(
    name, floor, unbiased, scope
):
    """A = sum_m w_m (r_m - mean) / (s_m + floor) / sum |w_m|, of rewards of different units, with the method's own s."""
    rewards = {**RIGHT, "near": dict(name="quadratic", weight=3.0)}
    method, _ = made(name, rewards=rewards)
    draw, arrays = np.random.default_rng(0), {"data": np.zeros((SIZE, 1), np.float32), "row": np.arange(SIZE)}
    values = {"right": 1e3 * draw.normal(size=SIZE), "near": 1e-5 * draw.normal(size=SIZE) - 7.0}
    values["near"][:GROUP] = -7.0  # one reward has nothing to say of the first group: the other's share is all there is
    (batch,) = method.collect.batches({"batch": arrays, "rewards": values}, None, 0)
    of_groups = lambda x: x.reshape(-1, GROUP)

    def own(x):
        centred = of_groups(x) - of_groups(x).mean(axis=1, keepdims=True)
        spread = of_groups(x).std(axis=1, ddof=unbiased, keepdims=True) if scope == "group" else x.std(ddof=unbiased)
        return (centred / (spread + floor)).ravel()

    expected = 0.25 * own(values["right"]) + 0.75 * own(values["near"])
    np.testing.assert_allclose(batch["rollout_advantage"], expected, rtol=1e-4, atol=1e-5)
    assert batch["mask"].all()


def test_a_sample_of_which_one_of_several_rewards_is_not_known_is_left_out():
    rewards = {**RIGHT, "near": dict(name="quadratic")}
    method, _ = made(rewards=rewards, failures="skip", advantage_limit=1.5)
    draw, arrays = np.random.default_rng(0), {"data": np.zeros((SIZE, 1), np.float32), "row": np.arange(SIZE)}
    values = {name: draw.normal(size=SIZE) for name in rewards}
    values["near"][3] = np.nan
    (batch,) = method.collect.batches({"batch": arrays, "rewards": values}, None, 0)
    assert batch["mask"].sum() == SIZE - 1 and batch["mask"][3] == 0 and batch["rollout_advantage"][3] == 0
    assert np.abs(batch["rollout_advantage"]).max() == 1.5


def test_every_curve_has_a_reading_and_every_reading_a_curve():
    method, executor = made()
    batch, params, feed = first_batch(method, executor)
    _, metrics = method.phases["policy"].loss(params, batch, jax.random.key(0))
    collected = {f"collect/{name}" for name in feed.metrics if not name.startswith("reward_")}
    assert set(method.readings) - {"collect/failed"} == set(metrics) | collected


def test_the_spread_of_groups_by_hand():
    samples = np.array([[[0.0, 0.0], [3.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]])
    assert spread(samples) == pytest.approx(5 / np.sqrt(2) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(group_size=1), "whole groups of two or more"),
        (dict(window=2, window_drawn=STEPS), "can begin at 6 places"),
        (dict(rollout=dict(name="ddim", eta=1.0, steps=4)), "Step 4 of the 4 .* has no noise.*Set last_step='mean'"),
        (dict(rollout=dict(name="flow_grpo", steps=4, denoise=True)), "which is of whole samplers"),
        (dict(updates=3), "Use a multiple of 96"),
        (dict(clip=0.0), "expected positive numbers"),
        (dict(log_prob="men"), "Did you mean 'mean'"),
        (dict(window=9), "method.window=9 of 7 drawn steps"),
        (dict(window_every=3), "window_every=3 would do nothing: method.window=0.*Leave it at 25"),
        (dict(window_stride=2), "window_stride=2 would do nothing: method.window=0"),
        (dict(window=7, window_every=3), "window_every=3 would do nothing: the window is of all steps"),
        (dict(window=7, window_drawn=1), "window_drawn=1 would do nothing: the window is of all steps"),
        (dict(window_drawn=1), "window_drawn=1 would do nothing: method.window=0"),
        (dict(window=2, window_drawn=3, window_every=3), "window_every=3 would do nothing: with method.window_drawn=3"),
        (dict(window=2, window_drawn=3, window_stride=2), "window_stride=2 would do nothing"),
        (dict(divergence="published"), "divergence='published' would do nothing: method.divergence_weight is 0"),
        (dict(changes=dict(coupling=dict(name="sinkhorn"))), "'coupling' is .* 'flow_grpo' does not read it"),
        (dict(rewards={}), "No reward is named"),
        (dict(rewards=dict(a=dict(name="liner"))), "Did you mean 'linear'"),
        (dict(rewards=dict(a=dict(name="linear", weight=0.0))), "other than zero"),
        (dict(rewards=dict(a=dict(name="quadratic", curvature=0.0))), "expected a positive number"),
        (dict(sampler=dict(name="heun")), "Heun does not. Use 'flow_grpo'"),
        (dict(sampler=dict(name="ddim")), "'ddim' with eta above 0"),
        (dict(sampler=dict(guidance=dict(name="cfg", scale=2.0))), "no condition to drop"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)

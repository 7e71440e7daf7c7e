"""Gradients of rewards through sampling are those of the recursion that a known flow follows, and come from nowhere else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_line import MEAN, RIGHT, STD, Rows, exact, made, mean_loss, slope

from flowjax.arrays import example_keys
from flowjax.models import NETWORKS

STEPS = 8
EULER = dict(name="euler", steps=STEPS)
GRID = np.linspace(0, 1, STEPS + 1)


@pytest.fixture(autouse=True)
def network(monkeypatch):
    monkeypatch.setitem(NETWORKS, "exact", exact)


def started(name, rollout=EULER, **options):
    method, executor = made(name, **{"rewards": RIGHT, "rollout": rollout, "pretraining_weight": 0.0, **options})
    arrays = {name: jnp.asarray(value[0]) for name, value in Rows().stack_batches(1).items()}
    return method, executor.start().params, {**arrays, "mask": jnp.ones(len(arrays["row"]))}


@pytest.mark.parametrize("name", ["refl", "draft"])
def test_what_only_the_datas_own_loss_reads_is_refused_without_it(name):
    more = dict(stop=(7, 7)) if name == "refl" else {}
    for changes, options, message in (
        (dict(time=dict(name="logit_normal")), {}, "'time' is .* does not read it"),
        (dict(weight=dict(name="evidence")), {}, "'weight' is .* does not read it"),
        ({}, dict(label_dropout=0.2), "label_dropout=0.2 would do nothing: it is of the data's own loss"),
    ):
        given = dict(rewards=RIGHT, rollout=EULER, **more)
        with pytest.raises(ValueError, match=message):
            made(name, changes, **given, **options, pretraining_weight=0.0)
        made(name, changes, **given, **options, pretraining_weight=1.0)


def test_the_check_sees_a_reward_without_a_slope():
    for ceiling, fine in ((100.0, True), (-100.0, False)):
        method, params, batch = started("refl", stop=(7, 7), ceiling=ceiling)
        assert method.checks["gradient"](params, batch, jax.random.key(0)).passed == fine


def pull(steps):
    """How far the sample moves with the mean through the last steps: one Euler step is x + h (c x + (1 - t c) mean)."""
    gain = 0.0
    for t in GRID[STEPS - steps : STEPS]:
        gain = (1 + slope(t) / STEPS) * gain + (1 - t * slope(t)) / STEPS
    return gain


@pytest.mark.parametrize("steps", [1, 3, STEPS])
def test_the_gradient_through_the_last_steps_is_that_of_the_recursion(steps):
    method, params, batch = started("draft", steps=steps, reward_weight=2.0)
    np.testing.assert_allclose(jax.grad(mean_loss(method, params, batch))(0.0), -2.0 * pull(steps), rtol=1e-5)
    assert method.checks["gradient"](params, batch, jax.random.key(0)).passed


@pytest.mark.parametrize("sampler", ["consistency", "flow_map"])
@pytest.mark.parametrize("steps", [1, STEPS])
def test_the_gradient_flows_through_the_jumps_of_a_student_too(sampler, steps):
    """A jump to the data and noise again is t' (x + (1 - t) (c x + (1 - t c) mean)) + noise; one to t' is a step of Euler."""
    gain = 0.0
    for t, end in zip(GRID[STEPS - steps : STEPS], GRID[STEPS - steps + 1 :]):
        gain = end * ((1 + (1 - t) * slope(t)) * gain + (1 - t) * (1 - t * slope(t)))
    expected = gain if sampler == "consistency" else pull(steps)
    method, params, batch = started("draft", dict(name=sampler, steps=STEPS), steps=steps, reward_weight=1.0)
    np.testing.assert_allclose(jax.grad(mean_loss(method, params, batch))(0.0), -expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("rollout", "options"),
    [
        (dict(name="sde", last_step="mean"), dict(steps=1)),
        (dict(name="sde", last_step="noise"), dict(steps=3)),
        (dict(name="sde", last_step="tweedie"), dict(steps=1)),
        (dict(name="heun"), dict(steps=3, prediction="data")),
        (dict(name="rk4"), dict(steps=1, prediction="data")),
    ],
    ids=["mean", "noise", "tweedie", "heun", "rk4"],
)
def test_samples_are_those_of_the_sampler_to_the_last_step_which_may_be_another_formula(rollout, options):
    """Without noise, or without a velocity at the end, where a data prediction has none."""
    rollout = dict(rollout, steps=STEPS)
    own = dict(samplers=dict(default=dict(rollout, role="student")))
    method, params, batch = started("draft", rollout, changes=own, **options)
    key = jax.random.key(0)
    found = method.phases["reward"].loss(params, batch, key)[1]["reward"]  # is the sample itself
    key_draw = jax.random.split(jax.random.split(key)[0], 3)[0]
    drawn = method.samplers["default"].draw(params, {}, example_keys(key_draw, batch["row"]))[:, 0]
    assert np.isfinite(found).all() and np.ptp(found) > 0
    np.testing.assert_allclose(found, drawn, atol=1e-5)
    assert np.isfinite(jax.grad(mean_loss(method, params, batch))(0.0))


def test_a_sample_that_is_noised_anew_takes_that_last_step_too():
    """Heun's own would ask a data prediction for the velocity at the end, which is none."""
    method, params, batch = started("draft", dict(name="heun", steps=STEPS), prediction="data", renoised=2)
    assert np.isfinite(method.phases["reward"].loss(params, batch, jax.random.key(0))[0]).all()


def test_a_number_of_steps_that_is_drawn_is_another_one_for_each_sample():
    method, params, batch = started("draft", steps=(2, 5))
    one = lambda row: {**batch, "mask": jnp.zeros_like(batch["mask"]).at[row].set(1.0)}
    slopes = jax.vmap(lambda row: jax.grad(lambda by: mean_loss(method, params, one(row))(by))(0.0))(jnp.arange(64))
    kinds = [-pull(steps) for steps in (2, 3, 4, 5)]
    found = np.abs(np.asarray(slopes)[:, None] - kinds).argmin(axis=1)
    np.testing.assert_allclose(slopes, np.asarray(kinds)[found], rtol=1e-4)
    assert np.bincount(found, minlength=4).min() >= 8  # of 16 expected, with a deviation of 3.5


@pytest.mark.parametrize("index", [0, 5, STEPS - 1])
def test_the_gradient_of_a_late_clean_prediction_is_that_of_one_evaluation(index):
    method, params, batch = started("refl", stop=(index, index), ceiling=None, reward_weight=1.0)
    t = GRID[index]
    # x1 = x + (1 - t) v, and v moves with the mean by 1 - t c; x itself was drawn without gradient.
    expected = -(1 - t) * (1 - t * slope(t))
    np.testing.assert_allclose(jax.grad(mean_loss(method, params, batch))(0.0), expected, rtol=1e-5)
    assert method.checks["gradient"](params, batch, jax.random.key(0)).passed
    value, metrics = method.phases["reward"].loss(params, batch, jax.random.key(0))
    # At the exact flow, of which these are Euler's points, clean predictions have the mean of the data.
    assert float(metrics["reward"].mean()) == pytest.approx(MEAN, abs=0.1)
    np.testing.assert_allclose(value, -metrics["reward"])


def test_the_judged_step_is_drawn_evenly_and_the_ceiling_cuts_the_gradient():
    method, params, batch = started("refl", stop=(4, 7), ceiling=MEAN, reward_weight=1.0)
    loss = lambda by, row: method.phases["reward"].loss(
        {**params, "student": {"mean": params["student"]["mean"] + by}}, batch, jax.random.key(0)
    )[0][row]
    slopes = np.asarray(jax.jacobian(lambda by: loss(by, jnp.arange(256)))(0.0))
    value, metrics = method.phases["reward"].loss(params, batch, jax.random.key(0))
    below = np.asarray(metrics["reward"])[:256] < MEAN
    np.testing.assert_allclose(value, np.maximum(MEAN - np.asarray(metrics["reward"]), 0), atol=1e-6)
    assert not slopes[~below].any() and below.sum() > 64
    kinds = np.array([-(1 - t) * (1 - t * slope(t)) for t in GRID[4:8]])
    found = np.abs(slopes[below][:, None] - kinds).argmin(axis=1)
    np.testing.assert_allclose(slopes[below], kinds[found], rtol=1e-4)
    assert np.bincount(found, minlength=4).min() > 0.15 * below.sum()


def test_renoised_samples_have_the_same_gradient_with_less_variance():
    reward = dict(near=dict(name="quadratic", centre=2.0))

    def slopes(renoised):
        method, params, batch = started("draft", rewards=reward, renoised=renoised)
        by = lambda key: jax.jacobian(
            lambda by: method.phases["reward"].loss(
                {**params, "student": {"mean": params["student"]["mean"] + by}}, batch, key
            )[0]
        )(0.0)
        return np.asarray(by(jax.random.key(0)))

    plain, several = slopes(0), slopes(6)
    t = GRID[-2]
    factor = (1 - t * slope(t)) / STEPS
    # d/dm of (x - 2)^2 / 2 is (x - 2) times the factor; x is about N(MEAN, STD^2).
    error = 4 * STD * factor / np.sqrt(len(plain))
    assert plain.mean() == pytest.approx((MEAN - 2.0) * factor, abs=error + 0.05 * factor)
    assert several.mean() == pytest.approx(plain.mean(), abs=2 * error)
    # Noise at the last time moves a sample little: its seven versions are alike, and yet their mean varies less.
    assert 0.5 < several.std() / plain.std() < 0.999


def test_the_pretraining_loss_is_flow_matching_on_the_data():
    method, params, batch = started("refl", stop=(7, 7), ceiling=-100.0, pretraining_weight=0.5, label_dropout=0.0)
    draw = np.random.default_rng(0)
    batch["data"] = jnp.asarray(MEAN + STD * draw.normal(size=batch["data"].shape), jnp.float32)
    value, metrics = method.phases["reward"].loss(params, batch, jax.random.key(0))
    np.testing.assert_allclose(value, 0.5 * metrics["pretraining"], rtol=1e-6)  # all are above the ceiling
    # The least that flow matching can reach: the integral over t of var(x1 - x0 | x_t) = S / ((1-t)^2 + t^2 S).
    t = np.linspace(0, 1, 2001)
    floor = np.trapezoid(STD**2 / ((1 - t) ** 2 + t**2 * STD**2), t)
    assert float(metrics["pretraining"].mean()) == pytest.approx(floor, rel=0.2)
    moved = jax.grad(mean_loss(method, params, batch))(0.0)
    assert abs(float(moved)) < 0.1  # it starts at its minimum
    assert set(method.readings) == set(metrics)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("refl", dict(stop=(6, 8)), "0 <= first <= last <= 7"),
        ("refl", dict(stop=(3, 2)), "expected \\(first, last\\)"),
        ("draft", dict(steps=9), "from 1 to 8"),
        ("draft", dict(steps=2, renoised=1), "0 unless steps=1"),
        ("draft", dict(reward_weight=0.0), "expected above 0"),
        ("draft", dict(rollout=dict(name="dpmpp_2m", steps=4)), "remembers steps"),
        ("draft", dict(rollout=dict(name="dopri5")), "adaptive"),
        ("draft", dict(rollout=dict(EULER, role="ema")), "is decided already"),
        ("draft", dict(rollout=dict(EULER, guidance=dict(name="cfg", scale=2.0))), "no condition to drop"),
        ("refl", dict(rewards={}), "No reward is named"),
        ("draft", dict(changes=dict(coupling=dict(name="sinkhorn"))), "'draft' does not read it"),
        ("draft", dict(rewards=dict(own=dict(name="python", function="math:dist"))), "is scored on the host"),
    ],
)
def test_what_cannot_be_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        started(name, **{"stop": (5, 6), **options} if name == "refl" else options)

"""DPO, KTO, DiffusionNFT and best of N move a known flow as their closed forms say, and refuse what cannot be."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_line import GROUP, MEAN, RIGHT, SIZE, STD, Rows, exact, first_batch, made, mean_loss, moved, slope, train
from scipy.integrate import quad
from scipy.stats import norm

from flowjax.contract import DataSpec
from flowjax.methods.negative_aware import follow_rate
from flowjax.methods.own_pairs import comparisons, extremes
from flowjax.models import NETWORKS

HEUN = dict(name="heun", steps=8)
OWN = dict(rewards=RIGHT, rollout=HEUN, group_size=GROUP)


@pytest.fixture(autouse=True)
def network(monkeypatch):
    monkeypatch.setitem(NETWORKS, "exact", exact)


@pytest.mark.parametrize(("name", "share"), [("dpo", 0.5), ("kto", 0.25)])
def test_the_first_gradient_of_preferences_is_the_closed_form(name, share):
    """With errors e and e + (1 - t c) d of reference and student, the two costs differ by -2 (1 - t c)^2 d (x_w - x_l)."""
    beta = 3.0
    method, executor = made(name, beta=beta, **OWN)
    batch, params, _ = first_batch(method, executor)
    assert batch["data"].shape == (16, 1) and batch["others"].shape == (16, 1, 1) and batch["mask"].all()
    away = (batch["data"] - batch["others"][:, 0])[:, 0]
    assert (away > 1).all()  # the best of thirty-two is further from the worst than two standard deviations
    value, metrics = method.phases["preference"].loss(params, batch, jax.random.key(0))
    np.testing.assert_allclose(value, np.log(2) if name == "dpo" else 0.5, rtol=1e-5)
    t = metrics["t"]
    expected = -share * beta * jnp.mean((1 - t * slope(t)) ** 2 * away)
    np.testing.assert_allclose(jax.grad(mean_loss(method, params, batch))(0.0), expected, rtol=1e-4)
    assert method.checks["reference"](params, batch, jax.random.key(1)).passed
    flat = {**batch, "outcome": jnp.zeros_like(batch["outcome"])}  # no pair is told apart: nothing to hold against it
    assert method.checks["reference"](params, flat, jax.random.key(1)).passed
    untold = {**flat, "mask": jnp.zeros_like(batch["mask"])}  # of a rollout whose samples are all worth the same
    assert method.checks["reference"](params, untold, jax.random.key(1)).passed
    away_from_it = {**params, "student": {"mean": params["student"]["mean"] + 0.3}}
    assert not method.checks["reference"](away_from_it, untold, jax.random.key(1)).passed
    assert not method.checks["reference"](away_from_it, batch, jax.random.key(1)).passed


def test_a_sum_over_elements_and_another_space_of_errors_are_factors():
    slopes = {}
    for options in (dict(), dict(error="sum"), dict(loss="noise"), dict(beta=50.0)):
        method, executor = made("dpo", **OWN, **options)
        batch, params, _ = first_batch(method, executor)
        slopes[str(options)] = jax.grad(mean_loss(method, params, batch))(0.0)
        t = method.phases["preference"].loss(params, batch, jax.random.key(0))[1]["t"]
    plain, summed, noise, half = slopes.values()
    np.testing.assert_allclose([summed, half], [plain, plain / 2], rtol=1e-5)  # one element: a sum is a mean
    away = (batch["data"] - batch["others"][:, 0])[:, 0]
    weights = [jnp.mean(factor * (1 - t * slope(t)) ** 2 * away) for factor in (1.0, t**2)]
    np.testing.assert_allclose(noise / plain, weights[1] / weights[0], rtol=1e-4)  # x0 = x - t v


def test_ties_teach_nothing_and_the_other_one_may_be_the_better():
    method, executor = made("dpo", **OWN)
    batch, params, _ = first_batch(method, executor)
    turned = {**batch, "data": batch["others"][:, 0], "others": batch["data"][:, None], "outcome": -batch["outcome"]}
    gradient = lambda batch: jax.grad(mean_loss(method, params, batch))(0.0)
    np.testing.assert_allclose(gradient(turned), gradient(batch), rtol=1e-4)
    assert gradient({**batch, "outcome": 0 * batch["outcome"]}) == 0


def test_the_reference_follows_when_it_is_told_to():
    method, executor = made("dpo", **OWN, reference_every=3, beta=5.0)
    means, state, *_ = train(method, executor, 5)
    assert state.params["reference"]["mean"] == means[2] != means[4]
    method, executor = made("dpo", **OWN)
    assert train(method, executor, 3)[1].params["reference"]["mean"] == MEAN


def test_extremes_by_hand():
    nan = np.nan
    worth = np.array([1.0, 3.0, 2.0, 5.0, 5.0, 5.0, nan, 2.0, 1.0, nan, nan, 4.0, nan, nan, nan])
    best, worst, told = extremes(worth, 3)
    np.testing.assert_array_equal(told, [1, 0, 1, 0, 0])
    np.testing.assert_array_equal(best[[0, 2]], [1, 7])
    np.testing.assert_array_equal(worst[[0, 2]], [0, 8])


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_negative_aware_tuning_moves_the_mean_by_a_share_of_the_spread(strength):
    """The minimum over the mean is std / (b limit) further: E[A (x1 - X_old)] is std times the gain of X in the mean."""
    limit = 8.0
    options = dict(OWN, group_size=512, strength=strength, adaptive=False, divergence_weight=0.0)
    method, executor = made("nft", size=4096, advantage_limit=limit, **options)
    batch, params, _ = first_batch(method, executor)
    gradient = jax.grad(mean_loss(method, params, batch))
    at = gradient(0.0), gradient(1.0)  # a quadratic
    # A minimum of 4096 draws: the samples are also noised, so its error is some spreads over the root of that.
    assert at[0] / (at[0] - at[1]) == pytest.approx(STD / (strength * limit), rel=0.15)


def test_the_old_policy_follows_after_each_period_and_more_slowly_as_time_goes_on():
    rate = lambda step: float(follow_rate(4, 0.1, 0.5, 2)(jnp.asarray(step)))
    assert [rate(step) for step in range(3)] == [0, 0, 0] and rate(3) == rate(7) == rate(11) == 1
    assert rate(15) == pytest.approx(0.9) and rate(19) == pytest.approx(0.8) and rate(399) == 0.5 and rate(398) == 0
    method, executor = made("nft", updates=4, slope=0.0, **OWN)
    means, state, metrics, _ = train(method, executor, 6)
    assert state.params["old"]["mean"] == means[3] and state.params["reference"]["mean"] == MEAN
    assert means[-1] > MEAN and metrics["divergence"][0] > 0


def test_before_the_first_update_all_networks_of_negative_aware_tuning_are_one():
    method, executor = made("nft", **OWN)
    batch, params, _ = first_batch(method, executor)
    assert method.checks["start"](params, batch, jax.random.key(0)).passed
    far = {**params, "old": {"mean": params["old"]["mean"] + 1}}
    assert not method.checks["start"](far, batch, jax.random.key(0)).passed


def expected_best(count):
    """E[max] of standard normals."""
    return quad(lambda x: x * count * norm.cdf(x) ** (count - 1) * norm.pdf(x), -10, 10)[0]


@pytest.mark.parametrize("count", [2, 8])
def test_best_of_n_of_the_reference_ends_at_the_mean_of_the_best(count):
    changes = dict(optimizer=dict(name="sgd", learning_rate=0.3, decay="constant", warmup_steps=0))
    options = dict(rewards=RIGHT, rollout=HEUN, group_size=count, policy="reference")
    means, state, *_ = train(*made("best_of", changes, **options), 60)
    # Averaged over forty rollouts of 64 or more winners, whose spread is below a half.
    assert np.mean(means[20:]) == pytest.approx(MEAN + STD * expected_best(count), abs=0.03)
    assert state.params["reference"]["mean"] == MEAN


def test_best_of_n_of_the_student_goes_on():
    means, *_ = train(*made("best_of", **OWN), 30)
    assert means[-1] > MEAN + 2 * STD * expected_best(GROUP)


def test_groups_without_a_best_are_left_out_and_more_than_one_may_be_kept():
    method, _ = made("best_of", rewards=RIGHT, rollout=HEUN, group_size=4, kept=2, size=16)
    worth = np.array([0.0, 1.0, 2.0, 3.0, 1.0, 1.0, 1.0, 1.0, np.nan, 5.0, np.nan, 4.0, np.nan, 5.0, np.nan, np.nan])
    arrays = {"data": np.arange(16.0)[:, None], "row": np.arange(16)}
    with pytest.raises(ValueError, match="no finite number for 5 of 16"):
        method.collect.batches({"batch": arrays, "rewards": {"right": worth}}, None, 0)
    method, _ = made("best_of", rewards=RIGHT, rollout=HEUN, group_size=4, kept=2, size=16, failures="skip")
    (batch,) = method.collect.batches({"batch": arrays, "rewards": {"right": worth}}, None, 0)
    kept = batch["data"][batch["mask"] == 1, 0]
    np.testing.assert_array_equal(np.sort(kept), [2, 3, 9, 11])
    assert len(batch["mask"]) == 8


@pytest.mark.parametrize("name", ["dpo", "kto", "nft", "best_of"])
def test_every_curve_has_a_reading_and_every_reading_a_curve(name):
    method, executor = made(name, **OWN)
    batch, params, feed = first_batch(method, executor)
    (phase,) = method.phases.values()
    collected = {f"collect/{figure}" for figure in feed.metrics if not figure.startswith("reward_")}
    shown = set(phase.loss(params, batch, jax.random.key(0))[1]) - {"t"}
    assert set(method.readings) - {"collect/failed"} == shown | collected


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpo", dict(rewards=RIGHT), "Give both, or none"),
        ("dpo", dict(OWN, beta=0.0), "expected above 0"),
        ("dpo", dict(OWN, draws=0), "at least 1"),
        ("dpo", dict(OWN, draws=3, unbiased=True), "even number"),
        ("dpo", dict(OWN, temperature=0.0), "a temperature above 0"),
        ("dpo", dict(OWN, outcomes="expected"), "Set a temperature"),
        ("kto", dict(OWN, temperature=1.0, group_size=1), "whole groups of two or more"),
        ("dpo", dict(error="men"), "Did you mean 'mean'"),
        ("kto", dict(OWN, objective=dict(name="unpaired", weight_good=0.0, weight_bad=0.0)), "not both zero"),
        ("dpo", dict(OWN, rollout=dict(HEUN, role="ema")), "the method itself says who draws"),
        ("dpo", dict(OWN, chunks=2), "nothing to overlap"),
        ("nft", dict(OWN, strength=0.0), "expected positive numbers"),
        ("nft", dict(OWN, highest=1.0), "would never follow"),
        ("best_of", dict(OWN, kept=GROUP), "at least one, and not all"),
        ("best_of", dict(OWN, policy="old"), "Known: reference, student"),
        ("best_of", dict(OWN, group_size=1), "whole groups of two or more"),
    ],
)
def test_what_cannot_be_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        made(name, **options)


@pytest.mark.parametrize(("group_size", "chunks"), [(4, 4), (8, 4), (16, 4), (32, 2), (64, 1)])
def test_rewards_on_the_host_judge_as_many_chunks_as_whole_groups_allow(group_size, chunks):
    hosted = dict(judge=dict(name="python", function="operator:add"))
    for name in ("nft", "dpo", "flow_grpo", "best_of"):
        rollout = dict(name="flow_grpo", steps=4) if name == "flow_grpo" else HEUN
        options = dict(rollout=rollout, group_size=group_size, size=64)
        assert made(name, rewards=hosted, **options)[0].collect.chunks == chunks
        assert made(name, rewards=hosted, **options, chunks=1)[0].collect.chunks == 1
        assert made(name, rewards=RIGHT, **options)[0].collect.chunks == 1


def test_what_is_held_against_the_whole_batch_is_not_cut():
    for changes in (dict(gradient_accumulation=2), dict(parallel="pmap")):
        with pytest.raises(ValueError, match="compares each example with the whole batch"):
            made("kto", changes, **OWN)
        made("dpo", changes, **OWN)


def test_samples_whose_worth_nobody_knows_are_never_learnt_from():
    method, _ = made("nft", **dict(OWN, failures="skip"), updates=4)
    arrays = {"data": np.zeros((SIZE, 1), np.float32), "row": np.arange(SIZE)}
    worth = np.ones(SIZE)
    worth[: SIZE // 4] = np.nan
    first, second, *_ = method.collect.batches({"batch": arrays, "rewards": {"right": worth}}, None, 0)
    assert not first["mask"].any() and second["mask"].all()


@pytest.mark.parametrize(
    ("name", "compared", "message"),
    [
        ("dpo", 0, "compared in twos, and these data compare nothing"),
        ("dpo", 1, "compared in twos, and these data judge each by itself"),
        ("dpo", 4, "these data rank 4 examples"),
        ("kto", 0, "compared in twos, or judged by themselves, and these data compare nothing"),
        ("kto", 3, "these data rank 3 examples"),
        ("best_of", 0, "compared, or judged by themselves, and these data compare nothing"),
    ],
)
def test_data_without_pairs_are_refused(name, compared, message):
    with pytest.raises(ValueError, match=message):
        made(name, data=DataSpec((1,), compared=compared))


def test_what_was_judged_by_itself_is_felt_from_where_one_stands():
    """A pair is the mean of its two at the same noise; each loss is 1 - sigmoid(y beta (-cost - gain))."""
    beta, key = 3.0, jax.random.key(0)
    pairs, executor = made("kto", beta=beta, **OWN)
    batch, params, _ = first_batch(pairs, executor)
    alone, _ = made("kto", beta=beta, data=DataSpec((1,), compared=1))
    one = {name: batch[name] for name in ("data", "outcome", "row", "mask")}
    other = {**one, "data": batch["others"][:, 0], "outcome": -batch["outcome"]}
    slopes = [
        jax.grad(mean_loss(method, params, some))(0.0)
        for method, some in ((pairs, batch), (alone, one), (alone, other))
    ]
    assert abs(slopes[1] - slopes[2]) > 0.1
    np.testing.assert_allclose(slopes[0], np.mean(slopes[1:]), rtol=1e-4)
    mixed = {**one, "outcome": jnp.asarray(np.resize([1, -1, 0, 1], len(one["outcome"])))}
    value, metrics = alone.phases["preference"].loss(moved(params, 0.3), mixed, key)
    cost, side = np.asarray(metrics["cost"]), np.asarray(mixed["outcome"])
    gain = max(-cost[side != 0].mean(), 0.0)
    np.testing.assert_allclose(metrics["gain"], gain, rtol=1e-5)
    expected = np.abs(side) / (1 + np.exp(side * beta * (-cost - gain)))
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-7)
    assert alone.checks["reference"](params, mixed, key).passed


def test_comparisons_of_the_data_are_learnt_from_as_the_models_own_are():
    method, executor = made("dpo", **OWN)
    batch, params, _ = first_batch(method, executor)
    of_data, _ = made("dpo", data=DataSpec((1,), compared=2))
    assert of_data.collect is None and set(of_data.roles) == set(method.roles)
    key = jax.random.key(0)
    one, other = (m.phases["preference"].loss(moved(params, 0.3), batch, key)[0] for m in (method, of_data))
    np.testing.assert_array_equal(one, other)


def test_the_best_of_a_comparison_of_the_data_are_learnt_from_as_data_are():
    """Its minimum over the mean is that of the better ones, found from a gradient that is linear in the mean."""
    count = 4096
    pairs = np.random.default_rng(0).normal(MEAN, STD, (count, 2, 1)).astype(np.float32)
    outcome = np.where(np.arange(count) % 8, np.sign(pairs[:, 0, 0] - pairs[:, 1, 0]), 0).astype(np.int32)
    rows = dict(row=np.arange(count, dtype=np.int32), mask=np.ones(count, np.float32))
    asked = lambda **arrays: {name: jnp.asarray(array) for name, array in dict(rows, **arrays).items()}
    batch = asked(data=pairs[:, 0], others=pairs[:, 1:], outcome=outcome)
    method, executor = made("best_of", size=count, data=DataSpec((1,), compared=2))
    assert method.collect is None and "reference" not in method.roles
    params = executor.start().params
    gradient = jax.grad(mean_loss(method, params, batch))
    minimum = lambda at: at[0] / (at[0] - at[1])
    found = minimum((gradient(0.0), gradient(1.0)))
    # The noise that examples are mixed with is alike at both, and its share of the minimum a few spreads over the root.
    assert found == pytest.approx(STD * expected_best(2), abs=0.05)
    key, loss = jax.random.key(0), lambda method, batch: method.phases["best"].loss(params, batch, key)[0]
    value = loss(method, batch)
    assert not value[outcome == 0].any() and value[outcome != 0].all()
    better = np.where(outcome[:, None] < 0, pairs[:, 1], pairs[:, 0])
    own, _ = made("best_of", size=count, **dict(OWN, group_size=4))
    told = outcome != 0
    np.testing.assert_array_equal(value[told], loss(own, asked(data=better))[told])
    ranking, _ = made("best_of", size=count, data=DataSpec((1,), compared=3))
    ranked = asked(data=pairs[:, 0], others=np.tile(pairs[:, 1:], (1, 2, 1)), outcome=np.ones(count, np.int32))
    np.testing.assert_array_equal(loss(ranking, ranked), loss(own, asked(data=pairs[:, 0])))
    alone, _ = made("best_of", size=count, data=DataSpec((1,), compared=1))
    judged = loss(alone, asked(data=pairs[:, 0], outcome=outcome))
    np.testing.assert_array_equal(judged, np.where(outcome > 0, value, 0.0))


OF_ROLLOUTS = (dict(policy="reference"), dict(updates=2), dict(group_size=4), dict(chunks=2), dict(failures="skip"))


@pytest.mark.parametrize(
    ("name", "option"),
    [
        *itertools.product(["dpo", "kto", "best_of"], OF_ROLLOUTS),
        ("dpo", dict(temperature=1.0)),
        ("kto", dict(temperature=1.0)),
        ("best_of", dict(kept=2)),
    ],
    ids=str,
)
def test_what_is_of_rollouts_is_refused_with_comparisons_of_the_data(name, option):
    ((what, value),) = option.items()
    with pytest.raises(ValueError, match=f"method.{what}={value!r} would do nothing: it is of rollouts"):
        made(name, data=DataSpec((1,), compared=2), **option)


@pytest.mark.parametrize("name", ["dpo", "kto", "nft", "best_of"])
def test_a_coupling_is_refused_by_those_that_draw_the_noise_themselves(name):
    with pytest.raises(ValueError, match=f"'coupling' is .*, but the method '{name}' does not read it"):
        made(name, dict(coupling=dict(name="sinkhorn")), **OWN)
    if name in ("dpo", "kto"):
        with pytest.raises(ValueError, match="does not read it"):
            made(name, dict(coupling=dict(name="stored")), data=DataSpec((1,), compared=2))


def test_drawn_comparisons_have_the_odds_of_bradley_and_terry():
    worth = np.tile([1.0, 0.0, 2.0, np.nan], 20_000)
    first, second, outcome = comparisons(worth, 0.5, np.random.default_rng(0))
    np.testing.assert_array_equal(second - first, 1)
    assert not outcome[1::2].any()
    # sigmoid(1 / 0.5), of twenty thousand
    assert (outcome[::2] == 1).mean() == pytest.approx(1 / (1 + np.exp(-2)), abs=4 * np.sqrt(0.105 / 20_000))
    assert set(outcome[::2]) == {-1, 1}


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_an_expected_outcome_is_the_mean_over_both(name):
    options = dict(OWN, group_size=2, temperature=0.5, failures="skip")
    method, executor = made(name, **options, outcomes="expected")
    batch, params, _ = first_batch(method, executor)
    first, second = batch["data"][:, 0], batch["others"][:, 0, 0]
    share = jax.nn.sigmoid((first - second) / 0.5)  # the reward is the sample itself
    np.testing.assert_allclose(batch["outcome"], 2 * share - 1, atol=1e-6)
    drawn, _ = made(name, **options)
    key, params = jax.random.key(0), moved(params, 0.3)
    won, lost = (
        drawn.phases["preference"].loss(params, {**batch, "outcome": jnp.full(len(first), side)}, key)[0]
        for side in (1, -1)
    )
    value, metrics = method.phases["preference"].loss(params, batch, key)
    np.testing.assert_allclose(value, share * won + (1 - share) * lost, rtol=1e-5)
    assert method.checks["reference"](executor.start().params, batch, key).passed
    worth = np.arange(float(SIZE))
    worth[2] = np.nan
    arrays = {"data": worth[:, None], "row": np.arange(SIZE)}
    (skipped,) = method.collect.batches({"batch": arrays, "rewards": {"right": worth}}, None, 0)
    np.testing.assert_array_equal(skipped["mask"], np.arange(SIZE // 2) != 1)
    assert np.isfinite(skipped["outcome"]).all()


def test_comparisons_of_the_reference_are_drawn_anew_and_the_same_after_a_resume():
    options = dict(OWN, group_size=2, policy="reference", temperature=0.5)
    method, executor = made("dpo", **options)
    batches = [first_batch(method, executor, step)[0] for step in (0, 0, 1)]
    assert batches[0]["data"].shape == (SIZE // 2, 1) and set(np.asarray(batches[0]["outcome"])) == {-1, 1}
    for name in batches[0]:
        np.testing.assert_array_equal(batches[0][name], batches[1][name])
    assert (batches[0]["outcome"] != batches[2]["outcome"]).any()
    far = method.collect.rollout(moved(executor.start().params, 5.0), first_rows(), jax.random.key(0))
    assert float(far["batch"]["data"].mean()) == pytest.approx(MEAN, abs=0.1)


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_by_halves_the_loss_at_the_reference_is_what_it_was(name):
    method, executor = made(name, draws=4, unbiased=True, **OWN)
    batch, params, _ = first_batch(method, executor)
    assert method.checks["reference"](params, batch, jax.random.key(3)).passed


def first_rows():
    return {name: jnp.asarray(value[0]) for name, value in Rows().stack_batches(1).items()}


def test_many_draws_or_small_margins_or_the_jackknife_lead_to_the_tilted_gaussian_and_few_draws_do_not():
    """With summed errors and weight `evidence` DPO's optimum is the mean + 2 STD^2 / (beta temperature)."""
    expected = 2 * STD**2 / (4.0 * 0.5)
    common = dict(error="sum", policy="reference", **dict(OWN, group_size=2))
    changes = dict(weight=dict(name="evidence"), time=dict(name="uniform", high=0.98))
    found = {}
    as_drawn, small = dict(beta=4.0, temperature=0.5), dict(beta=0.25, temperature=8.0, outcomes="expected")
    half_sample = dict(as_drawn, unbiased=True)
    for case, draws, told in (
        ("one", 1, as_drawn),
        ("few", 4, as_drawn),
        ("half_sample", 4, half_sample),
        ("many", 48, as_drawn),
        ("small", 2, small),
    ):
        method, executor = made("dpo", changes, size=4096, draws=draws, **common, **told)
        batch, params, _ = first_batch(method, executor)
        gradient = jax.jit(jax.grad(mean_loss(method, params, batch)))
        low, high = 0.0, 0.5
        for _ in range(7):  # the loss is convex in the mean
            middle = 0.5 * (low + high)
            low, high = (low, middle) if float(gradient(middle)) > 0 else (middle, high)
        found[case] = middle
    # 2048 comparisons of which a tenth tells something each: a few hundredths.
    for case in ("many", "small", "half_sample"):
        assert found[case] == pytest.approx(expected, abs=0.06), case
    assert found["one"] < 0.7 * expected
    assert abs(found["half_sample"] - expected) < 0.6 * abs(found["few"] - expected)

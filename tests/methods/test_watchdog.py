"""The watchdog measures what is known in closed form, stops at its limits, and refuses what it cannot watch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_line import GROUP, MEAN, RIGHT, STD, exact, moved, slope
from toys import toy_config

from flowjax.config import ConfigDict
from flowjax.contract import DataSpec, Role
from flowjax.methods.watchdog import mean_log_ratio
from flowjax.models import NETWORKS
from flowjax.rewards import REWARDS, Reward
from flowjax.training.run import build_method

HELD = dict(near=dict(name="quadratic", centre=MEAN))

POLICY = dict(
    method=dict(name="flow_grpo", rewards=RIGHT, rollout=dict(name="flow_grpo", steps=4), group_size=GROUP, clip=0.2)
)
FEW_STEPS = dict(name="consistency", steps=2)
SKIPPING = dict(
    method=dict(name="nft", rewards=RIGHT, rollout=dict(name="heun", steps=4), group_size=GROUP, failures="skip")
)


class Source:
    """What `build_method` asks of data."""

    def __init__(self, shape=(1,)):
        self.spec = DataSpec(shape)


@pytest.fixture(autouse=True)
def network(monkeypatch):
    monkeypatch.setitem(NETWORKS, "exact", exact)


def watched(method=None, shape=(1,), **options):
    config = ConfigDict(toy_config().to_dict())
    config.network, config.batch_size = dict(name="exact"), 64
    config.samplers = dict(default=dict(name="euler", steps=2, role="ema"))
    rollout = dict(name="heun", steps=4)
    config.method = method or dict(name="nft", rewards=RIGHT, rollout=rollout, group_size=GROUP)
    config.watchdog = dict(name="reference", role="student", count=512, group_size=8, steps=64) | options
    return build_method(config, Source(shape))


def figures(method, by):
    measure = method.measures["watchdog"]
    start = {"mean": jnp.full(1, MEAN)}
    params = moved(dict.fromkeys(method.roles, start), by)
    keys = jax.random.split(jax.random.key(0), measure.count)
    made = jax.tree.map(np.asarray, measure.draw(params, {}, keys))
    return {f"watchdog_{name}": value for name, value in measure.figures(made, {}).items()}


@pytest.mark.parametrize(("divergence", "error"), [("path", 0.005), ("auto", 4 * 0.4 / STD / np.sqrt(512))])
def test_a_mean_that_moved_costs_and_gains_what_it_should(divergence, error):
    found = figures(watched(rewards=HELD, divergence=divergence), 0.4)
    # Along the path it is the same for each sample; of likelihoods the ratio of two densities is averaged.
    assert found["watchdog_divergence"] == pytest.approx(0.4**2 / 2 / STD**2, abs=error)
    assert found["watchdog_gain_right"] == pytest.approx(0.4, rel=1e-3)
    assert found["watchdog_reward_right"] == pytest.approx(MEAN + 0.4, abs=4 * STD / np.sqrt(512))
    # E -(x - m)^2 / 2 falls by d^2 / 2; of 512 samples, from the same noise, also by d times their mean deviation.
    assert found["watchdog_gain_near"] == pytest.approx(-(0.4**2) / 2, abs=4 * 0.4 * STD / np.sqrt(512))
    # Two independent draws are 2 / sqrt(pi) standard deviations apart.
    assert found["watchdog_spread"] == pytest.approx(2 / np.sqrt(np.pi) * STD, rel=0.1)
    assert found["watchdog_spread_kept"] == pytest.approx(1, rel=1e-3)
    assert set(watched(rewards=HELD).readings) >= {f"eval/{name}" for name in found}


def test_a_student_of_few_steps_is_watched_by_its_own_sampler():
    """From noise to the mean, half-way back, and x + (1 - t) v(x) from there: the mean of the data moves by as much."""
    found = figures(watched(rewards=HELD, sampler=dict(name="consistency", steps=2)), 0.4)
    assert found["watchdog_gain_right"] == pytest.approx(0.4, rel=1e-3)
    std = 0.5 * (1 + 0.5 * slope(0.5))
    assert found["watchdog_spread"] == pytest.approx(2 / np.sqrt(np.pi) * std, rel=0.1)
    assert found["watchdog_spread_kept"] == pytest.approx(1, rel=1e-3)
    assert "watchdog_divergence" not in found
    readings = watched(sampler=dict(name="consistency", steps=2)).readings
    assert "eval/watchdog_spread" in readings and "eval/watchdog_divergence" not in readings


def test_the_best_draws_of_a_student_are_watched_with_the_roles_that_choose_them(monkeypatch):
    """The better of two draws: their shift goes on to it, and their order is that of the noise."""
    role = Role(init=lambda key: {"side": jnp.full(1, MEAN)})
    learnt = lambda: Reward(lambda params, x, cond: params["liking"]["side"] * x[:, 0], roles={"liking": role})
    monkeypatch.setitem(REWARDS, "learnt", learnt)
    best = dict(count=2, rewards=dict(liked=dict(name="learnt")))
    method = watched(sampler=dict(name="consistency", steps=2, best_of=best))
    assert method.roles["liking"] is role
    measure = method.measures["watchdog"]
    params = {name: {"mean": jnp.full(1, MEAN), "side": jnp.full(1, MEAN)} for name in method.roles}
    made = measure.draw(moved(params, 0.4), {}, jax.random.split(jax.random.key(0), measure.count))
    np.testing.assert_allclose(made["samples"] - made["before"], 0.4, rtol=1e-3)


@pytest.mark.parametrize("shift", [0.3, 0.9, 2.0])
def test_a_mean_of_log_ratios_with_less_noise_is_right(shift):
    draw = np.random.default_rng(0).normal(size=(400, 2_000))
    ratios = shift * draw + shift**2 / 2  # of N(shift, 1) over N(0, 1), at samples of the first
    found = np.array([mean_log_ratio(ratio) for ratio in ratios])
    variance = shift**2 - shift**4 / np.expm1(shift**2)  # what the regression on exp(-l) leaves
    np.testing.assert_allclose(found.mean(), shift**2 / 2, atol=4 * shift / np.sqrt(400 * 2_000) + 2e-3 * shift**2)
    if shift < 1:  # beyond, exp(-l) has no variance that so few samples would show
        np.testing.assert_allclose(found.std(), np.sqrt(variance / 2_000), rtol=0.15)
    assert found.std() < ratios.mean(axis=1).std()
    assert mean_log_ratio(np.zeros(8)) == 0 and mean_log_ratio(np.full(8, -500.0)) < -400


@pytest.mark.parametrize("divergence", [5.0, 20.0, 100.0])
def test_far_apart_the_mean_of_few_log_ratios_still_is_one(divergence):
    draw = np.random.default_rng(1).normal(size=(200, 256))
    found = np.array([mean_log_ratio(np.sqrt(2 * divergence) * row + divergence) for row in draw])
    assert np.all(found > 0.8 * divergence - 1) and abs(found.mean() / divergence - 1) < 0.1


def test_the_divergence_of_a_data_prediction_is_finite():
    config = dict(name="nft", rewards=RIGHT, rollout=dict(name="heun", steps=4), group_size=GROUP, prediction="data")
    found = figures(watched(config), 0.1)
    assert np.isfinite(found["watchdog_divergence"])


def test_the_first_model_has_neither_cost_nor_gain():
    found = figures(watched(), 0.0)
    assert found["watchdog_divergence"] == 0 and found["watchdog_gain_right"] == 0


@pytest.mark.parametrize(
    ("options", "seen", "reason"),
    [
        (dict(largest_divergence=2.0), dict(divergence=2.5), "watchdog_divergence 2.5, above its limit 2"),
        (dict(largest_divergence=2.0), dict(divergence=np.nan), "watchdog_divergence nan"),
        (dict(largest_divergence=2.0), dict(divergence=1.9), None),
        (dict(largest_divergence="far"), dict(divergence=101.0), "watchdog_divergence 101, above its limit 100"),
        (dict(largest_divergence="far"), dict(divergence=99.0), None),
        (dict(least_spread=0.5), dict(spread_kept=0.4), "watchdog_spread_kept 0.4, below its limit 0.5"),
        (dict(least_gain=-0.1, rewards=HELD), dict(gain_near=-0.2, gain_right=-9), "watchdog_gain_near -0.2, below"),
        (dict(least_gain=-0.1, rewards=HELD), dict(gain_near=0.0, gain_right=-9), None),
        (dict(least_gain=-0.1, rewards=HELD), dict(gain_near=np.nan), None),
        (dict(), dict(divergence=1e9), None),
        (dict(largest_divergence=2.0), dict(), None),
        (dict(largest_flat=0.9), {"collect/flat": 0.95}, "collect/flat 0.95, above its limit 0.9"),
        (dict(least_spread=0.5), dict(spread_kept=np.nan), "watchdog_spread_kept nan"),
        (dict(), dict(spread=np.nan, spread_kept=np.nan), "no numbers"),
        (dict(sampler=FEW_STEPS), dict(spread=np.nan, spread_kept=np.nan), "no numbers"),
        (dict(SKIPPING, largest_failed=0.5), {"collect/failed": 0.6}, "collect/failed 0.6, above its limit 0.5"),
        (dict(SKIPPING, largest_failed=0.5), {"collect/failed": 0.5}, None),
        (dict(POLICY, largest_clipped=0.5), {"clipped": 0.6}, "clipped 0.6, above its limit 0.5"),
        (dict(POLICY, largest_clipped=0.5), {"policy/clipped": 0.6}, "policy/clipped 0.6, above its limit 0.5"),
        (dict(POLICY, largest_clipped=0.5), {"clipped": 0.4, "collect/flat": 1.0}, None),
    ],
)
def test_it_stops_at_its_limits(options, seen, reason):
    full = lambda name: name if name.endswith(("clipped", "flat", "failed")) else f"watchdog_{name}"
    found = watched(**options).watch(1, {full(name): value for name, value in seen.items()})
    assert found is None if reason is None else reason in found


def test_samples_that_are_no_numbers_are_seen_whatever_they_are_drawn_with():
    method = watched(sampler=FEW_STEPS, count=64)
    found = figures(method, np.nan)
    assert "no numbers" in method.watch(1, found)


def test_what_is_far_grows_with_the_elements_of_an_example():
    picture = watched(largest_divergence="far", shape=(16, 16, 3))
    assert picture.watch(1, dict(watchdog_divergence=760.0)) is None
    assert "above its limit 768" in picture.watch(1, dict(watchdog_divergence=770.0))


def test_a_method_without_rewards_is_watched_too():
    found = figures(watched(dict(name="flow_matching")), 0.4)
    assert set(found) == {"watchdog_divergence", "watchdog_spread", "watchdog_spread_kept"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(role="old_one"), "which the method has not"),
        (dict(count=12), "expected whole groups"),
        (dict(steps=0), "and steps"),
        (dict(divergence="likely"), "Did you mean 'likelihood'"),
        (dict(largest_divergence="fra"), "largest_divergence is 'fra'"),
        (dict(least_gain=0.0), "names none"),
        (dict(method=dict(name="flow_matching"), largest_flat=0.9), "measures nothing of the kind"),
        (dict(largest_failed=0.5), "the first reward that fails ends the run"),
        (dict(rewards=RIGHT), "which is a reward of the method"),
        (dict(guidance=dict(name="cfg", scale=2.0)), "no condition to drop"),
        (dict(sampler=dict(name="euler", steps=1), largest_divergence=2.0), "which have no divergence"),
        (dict(sampler=dict(name="euler", steps=1, role="ema")), "watchdog.sampler has role='ema'"),
        (dict(guidance=dict(name="autoguidance", scale=2.0, role="ema")), "remembers steps|reads another"),
    ],
)
def test_what_it_cannot_watch_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        watched(**options)

"""The watchdog measures what is known in closed form, stops at its limits, and refuses what it cannot watch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_line import GROUP, MEAN, RIGHT, STD, exact, moved
from toys import toy_config

from flowjax.config import ConfigDict
from flowjax.contract import DataSpec
from flowjax.models import NETWORKS
from flowjax.training.run import build_method

HELD = dict(near=dict(name="quadratic", centre=MEAN))


class Source:
    """What `build_method` asks of data."""

    spec = DataSpec((1,))


@pytest.fixture(autouse=True)
def network(monkeypatch):
    monkeypatch.setitem(NETWORKS, "exact", exact)


def watched(method=None, **options):
    config = ConfigDict(toy_config().to_dict())
    config.network, config.batch_size = dict(name="exact"), 64
    config.samplers = dict(default=dict(name="euler", steps=2, role="ema"))
    rollout = dict(name="heun", steps=4)
    config.method = method or dict(name="nft", rewards=RIGHT, rollout=rollout, group_size=GROUP)
    config.watchdog = dict(name="reference", role="student", count=512, group_size=8, steps=64) | options
    return build_method(config, Source)


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


def test_the_first_model_has_neither_cost_nor_gain():
    found = figures(watched(), 0.0)
    assert found["watchdog_divergence"] == 0 and found["watchdog_gain_right"] == 0


@pytest.mark.parametrize(
    ("options", "seen", "reason"),
    [
        (dict(largest_divergence=2.0), dict(divergence=2.5), "divergence is 2.5, above its limit 2"),
        (dict(largest_divergence=2.0), dict(divergence=np.nan), "divergence is nan"),
        (dict(largest_divergence=2.0), dict(divergence=1.9), None),
        (dict(least_spread=0.5), dict(spread_kept=0.4), "spread_kept is 0.4, below its limit 0.5"),
        (dict(least_gain=-0.1, rewards=HELD), dict(gain_near=-0.2, gain_right=-9), "gain_near is -0.2, below"),
        (dict(least_gain=-0.1, rewards=HELD), dict(gain_near=0.0, gain_right=-9), None),
        (dict(), dict(divergence=1e9), None),
        (dict(largest_divergence=2.0), dict(), None),
    ],
)
def test_it_stops_at_its_limits(options, seen, reason):
    found = watched(**options).watch(1, {f"watchdog_{name}": value for name, value in seen.items()})
    assert found is None if reason is None else reason in found


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
        (dict(least_gain=0.0), "names none"),
        (dict(rewards=RIGHT), "which is a reward of the method"),
        (dict(guidance=dict(name="cfg", scale=2.0)), "no condition to drop"),
        (dict(guidance=dict(name="autoguidance", scale=2.0, role="ema")), "must not remember|read another"),
    ],
)
def test_what_it_cannot_watch_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        watched(**options)

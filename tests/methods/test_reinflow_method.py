"""ReinFlow: densities of chains, the exact policy gradient of a linear policy, when the policy rests, and what is refused."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from toys import toy_config

from flowjax.choices import build
from flowjax.config import ConfigDict
from flowjax.contract import DataSpec
from flowjax.control import make_environment
from flowjax.control.lqr import linear_return
from flowjax.methods import METHODS, chain_policy
from flowjax.models import NETWORKS
from flowjax.models.network import Network, observation_condition
from flowjax.samplers.rollouts import step_transitions
from flowjax.training.executors import JitExecutor
from flowjax.training.feed import make_feed
from flowjax.training.update import with_step

WORLD = dict(name="lqr", horizon=8)
DATA = DataSpec((1,), observation_shape=(2,))
START = [[-0.4, -0.6]]
SIZE = 64


def linear(data, **_):
    """A velocity that takes any point to gain . observation in one step from t = 0: what is left to learn is the gain."""

    def apply(tree, x, t, cond, *, s=None, keys=None):
        return cond["observation"] @ tree["gain"].T - x

    init = lambda key: {"gain": jnp.asarray(START)}
    return Network(init, apply, lambda cond, dropped: cond, observation_condition(data.observation_shape))


@pytest.fixture(autouse=True)
def network(monkeypatch):
    monkeypatch.setitem(NETWORKS, "linear", linear)


def made(network="linear", changes=None, **options):
    config = ConfigDict(toy_config().to_dict())
    config.batch_size, config.steps, config.ema = SIZE, 64, dict()
    config.network = dict(name=network, **(dict(width=8, depth=1) if network == "mlp" else {}))
    config.optimizer = dict(name="sgd", learning_rate=1.0, decay="constant", momentum=0.9)
    config.samplers = dict(default=dict(name="episodes"))
    config.update(changes or {})
    options = dict(name="reinflow", environment=WORLD, steps=1, episodes=16, epochs=2, clip=0.2) | options
    config.method = dict(options)
    method = build("method", options, METHODS, config=config, data=DATA)
    return method, JitExecutor(method, config)


class Rows:
    """An iterator of batches that no one reads but for their rows."""

    def stack_batches(self, count):
        return {"row": np.tile(np.arange(SIZE, dtype=np.int32), (count, 1)), "mask": np.ones((count, SIZE), np.float32)}

    def get_state(self):
        return {}


def collected(method, executor, params=None):
    """What one collection makes, as the feed would have it, and the batches of its period."""
    batch = {"row": jnp.arange(SIZE, dtype=jnp.int32), "step": jnp.zeros(SIZE, jnp.int32)}
    params = executor.start().params if params is None else params
    made = jax.tree.map(np.asarray, jax.jit(method.collect.rollout)(params, batch, jax.random.key(5)))
    return made, method.collect.batches(made, None, 0), params


def usable(batch, step=0):
    return with_step({name: jnp.asarray(value) for name, value in batch.items()}, step)


def moved(params, by):
    return {**params, "student": jax.tree.map(lambda leaf: leaf + by, params["student"])}


def test_the_doctor_finds_a_loss_that_scores_a_chain_at_other_times(monkeypatch):
    method, executor = made("mlp", steps=4)
    _, batches, params = collected(method, executor)
    batch = usable(batches[0])
    found = method.checks["grid"](params, batch, jax.random.key(0))
    assert found.passed and found.detail.endswith("t = 0, 0.25, 0.5, 0.75")
    shifted = lambda stepper, field, grid, x: step_transitions(stepper, field, np.asarray(grid) ** 1.1, x)
    monkeypatch.setattr(chain_policy, "step_transitions", shifted)
    assert not method.checks["grid"](params, batch, jax.random.key(0)).passed


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("log_prob", ["mean", "sum"])
def test_before_the_first_update_the_ratio_is_one_and_later_it_is_not(steps, log_prob):
    method, executor = made("mlp", steps=steps, log_prob=log_prob)
    made_of, batches, params = collected(method, executor)
    assert len(batches) == method.collect.every == 2 * 16 * 8 // SIZE
    batch = usable(batches[0])
    assert method.checks["ratio"](params, batch, jax.random.key(0)).passed
    value, metrics = method.phases["policy"].loss(params, batch, jax.random.key(0))
    np.testing.assert_allclose(metrics["ratio"], 1, atol=1e-4)
    np.testing.assert_allclose(value, -batch["rollout_advantage"] - 0.03 * metrics["entropy"], atol=1e-4)
    away = moved(params, 0.1)
    assert not method.checks["ratio"](away, batch, jax.random.key(0)).passed
    # By hand: chains of the other parameters at the times 0, h, ..., 1 - h, with the noise in the middle of its bounds.
    std, h = math.sqrt(0.1 * 0.24), 1 / steps
    density = lambda tree: sum(
        stats.norm(batch["rollout_x"][:, k] + h * velocity(tree, batch, k, h), std)
        .logpdf(batch["rollout_x_next"][:, k])
        .sum(axis=1)
        for k in range(steps)
    )
    divisor = (steps + 1) * 1 if log_prob == "mean" else 1
    np.testing.assert_allclose(batch["rollout_log_prob"], density(params["student"]) / divisor, rtol=1e-3, atol=1e-3)
    _, found = method.phases["policy"].loss(away, batch, jax.random.key(0))
    expected = np.exp((density(away["student"]) - density(params["student"])) / divisor)
    np.testing.assert_allclose(found["ratio"], expected, rtol=2e-3)
    entropy = steps * stats.norm(0, std).entropy() / divisor
    np.testing.assert_allclose(metrics["entropy"], np.full(SIZE, entropy), rtol=1e-4)
    np.testing.assert_array_equal(made_of["steps"]["data"], made_of["steps"]["rollout_x_next"][:, :, -1])


def velocity(tree, batch, k, h):
    network = build("network", dict(name="mlp", width=8, depth=1), NETWORKS, data=DATA, dtype="float32")
    t = jnp.full(SIZE, k * h)
    return np.asarray(network.apply(tree, batch["rollout_x"][:, k], t, {"observation": batch["observation"]}))


def test_the_gradient_is_that_of_what_a_linear_gain_returns():
    """The policy N(gain o, std^2) has an exact return in closed form; its gradient is what the loss estimates."""
    episodes, std = 32_768, 0.3
    world = dict(WORLD, dynamics=((1.0, 0.5), (0.0, 1.0)), control=((0.1,), (0.5,)))  # where a push does more
    free = dict(entropy_weight=0.0, discount=1.0, decay=1.0, epochs=1, noise=dict(low=std, high=std))
    method, executor = made(
        episodes=episodes, environment=world, changes=dict(batch_size=episodes * 8), log_prob="sum", **free
    )
    made_of, (batch,), params = collected(method, executor)
    problem = make_environment(world).oracle
    exact = lambda gain: linear_return(problem, -gain, 8, std**2)
    assert float(made_of["returns"].mean()) == pytest.approx(
        float(exact(jnp.asarray(START))), abs=4 * float(made_of["returns"].std()) / math.sqrt(episodes)
    )
    batch = usable(batch)
    loss = lambda tree: jnp.mean(method.phases["policy"].loss({**params, "student": tree}, batch, jax.random.key(0))[0])
    found = np.asarray(jax.grad(loss)(params["student"])["gain"])
    # Advantages are in units of their spread; the mean over steps is a sum over them by their number.
    spread = made_of["steps"]["rollout_advantage"].std()
    wanted = -np.asarray(jax.grad(exact)(jnp.asarray(START))) / 8 / spread
    cosine = (found * wanted).sum() / np.linalg.norm(found) / np.linalg.norm(wanted)
    assert cosine > 0.99
    np.testing.assert_allclose(np.linalg.norm(found), np.linalg.norm(wanted), rtol=0.1)


def test_targets_are_returns_where_nothing_is_expected_and_batches_are_all_steps_once_an_epoch():
    method, executor = made(discount=0.9, decay=1.0, reward_scale=0.5)
    made_of, batches, _ = collected(method, executor)
    steps = {name: array.reshape(16, 8, -1) for name, array in made_of["steps"].items()}
    # The critic begins at zero: the target of the first step is the discounted return, and all of it is unexpected.
    seen, actions = steps["observation"], steps["data"]
    problem = make_environment(WORLD).oracle
    cost = np.einsum("bti,ij,btj->bt", seen, problem.Q, seen) + np.einsum("bti,ij,btj->bt", actions, problem.R, actions)
    np.testing.assert_allclose(steps["rollout_target"][:, 0, 0], -0.5 * cost @ 0.9 ** np.arange(8), rtol=1e-4)
    assert method.collect.metrics(made_of, None)["explained"] == pytest.approx(0, abs=1e-6)
    assert method.collect.metrics(made_of, None)["return"] == pytest.approx(-cost.sum(axis=1).mean(), rel=1e-4)
    for epoch in (batches[:2], batches[2:]):
        together = np.concatenate([batch["rollout_target"] for batch in epoch])
        np.testing.assert_array_equal(np.sort(together), np.sort(made_of["steps"]["rollout_target"].ravel()))
        for batch in epoch:
            target, advantage = batch["rollout_target"], batch["rollout_advantage"]  # nothing was expected
            np.testing.assert_allclose(advantage, (target - target.mean()) / target.std(), atol=1e-4)
    assert not np.array_equal(batches[0]["rollout_target"], batches[2]["rollout_target"])
    again = method.collect.batches(made_of, None, 0)
    jax.tree.map(np.testing.assert_array_equal, batches, again)
    assert not np.array_equal(batches[0]["data"], method.collect.batches(made_of, None, 4)[0]["data"])


def test_steps_after_the_end_do_not_count():
    method, executor = made()
    made_of, _, params = collected(method, executor)
    alive = np.ones((16, 8), np.float32)
    alive[::2, 3:] = 0
    steps = {
        **made_of["steps"],
        "mask": alive,
        "rollout_advantage": np.where(alive > 0, made_of["steps"]["data"][..., 0], 1e6),
    }
    steps["rollout_advantage"] = steps["rollout_advantage"].astype(np.float32)
    batches = method.collect.batches({**made_of, "steps": steps}, None, 0)
    assert sum(batch["mask"].sum() for batch in batches) == 2 * alive.sum()
    for batch in batches:
        counts = batch["mask"] > 0
        found, actions = batch["rollout_advantage"][counts], batch["data"][counts, 0]
        np.testing.assert_allclose(found, (actions - actions.mean()) / actions.std(), atol=1e-4)
        assert not batch["rollout_advantage"][~counts].any()
    assert method.collect.metrics({**made_of, "steps": steps}, None)["length"] == (3 + 8) / 2


def test_the_policy_rests_when_it_has_gone_far_enough_and_its_momentum_too():
    """Two updates of the same batches: far beyond the target nothing of the policy moves, while the critic goes on."""
    method, executor = made(target_divergence=0.01, clip=10.0)
    _, batches, _ = collected(method, executor)
    far = moved(executor.start().params, 2.0)
    value, metrics = method.phases["policy"].loss(far, usable(batches[0]), jax.random.key(0))
    assert float(metrics["resting"]) == 1 and float(metrics["moved"].mean()) > 0.01
    stack = lambda chosen: {name: np.stack([batch[name] for batch in chosen]) for name in chosen[0]}
    state = executor.start()
    state, first = executor.run(state, stack(batches[:1]), ("policy", "value"), 1)
    after = jax.tree.map(np.asarray, state.params)
    assert float(first["policy/resting"][0]) == 0
    state = state.replace(params=jax.tree.map(jnp.asarray, moved(after, 2.0)))
    state, second = executor.run(state, stack(batches[1:2]), ("policy", "value"), 1)
    assert float(second["policy/resting"][0]) == 1
    still = jax.tree.map(np.asarray, state.params)
    for role, moves in (("student", False), ("noise", False), ("critic", True)):
        before = moved(after, 2.0)[role] if role == "student" else after[role]
        changed = max(float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(still[role])))
        assert (changed > 0) == moves, role


def test_the_reference_is_where_it_began_and_holds_the_flow_by_its_actions():
    method, executor = made(reference_weight=2.0, mean_limit=0.5)
    plain, _ = made(mean_limit=0.5)
    _, batches, params = collected(method, executor)
    batch, key = usable(batches[0]), jax.random.key(0)
    assert np.abs(np.asarray(params["reference"]["gain"]) - np.float32(START)).max() == 0
    assert float(np.abs(method.phases["policy"].loss(params, batch, key)[1]["reference"]).max()) == 0
    away = moved(params, 0.3)
    with_it, without = (each.phases["policy"].loss(away, batch, key)[0] for each in (method, plain))
    seen = np.asarray(batch["observation"])
    limited = lambda gain: np.clip(seen @ np.asarray(gain).T, -0.5, 0.5)
    distance = ((limited(away["student"]["gain"]) - limited(START)) ** 2).mean(axis=1)
    np.testing.assert_allclose(with_it - without, 2 * distance, atol=1e-4)


def test_the_upper_bound_of_the_noise_falls_from_period_to_period_and_not_within():
    method, executor = made(noise=dict(low=0.1, high=0.4, hold=0.0, left=0.0))
    _, batches, params = collected(method, executor)
    found = [
        float(method.phases["policy"].loss(params, usable(batches[0], step), jax.random.key(0))[1]["noise"])
        for step in (0, 3, 4, 32, 60)
    ]
    share = lambda step: 0.5 * (1 + math.cos(math.pi * step / 64))
    expected = [math.sqrt(0.1 * (0.1 + share(step) * 0.3)) for step in (0, 0, 4, 32, 60)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_policies_are_tried_without_noise_with_it_and_from_zero():
    plain = dict(name="episodes")
    samplers = dict(default=plain, zero=dict(plain, start="zero"), noisy=dict(plain, noisy=True))
    samplers |= dict(actions=dict(name="euler", steps=1, role="student"))
    std = 0.4
    method, executor = made(changes=dict(samplers=samplers), noise=dict(low=std, high=std))
    keys = jax.random.split(jax.random.key(0), 4096)
    params, problem = executor.start().params, make_environment(WORLD).oracle
    for name, spread in (("default", 0.0), ("zero", 0.0), ("noisy", std**2)):
        returns = np.asarray(method.samplers[name].draw(params, {}, keys))
        assert returns.shape == (4096, 1) and method.samplers[name].shape == (1,)
        expected = float(linear_return(problem, -jnp.asarray(START), 8, spread))
        assert returns.mean() == pytest.approx(expected, abs=4 * float(returns.std()) / 64)
    assert method.samplers["noisy"].also == ("noise",) and method.samplers["default"].description["nfe"] == 1
    seen = jnp.ones((3, 2))
    drawn = method.samplers["actions"].draw(params, {"observation": seen}, keys[:3])
    np.testing.assert_allclose(drawn, np.full((3, 1), -1.0), atol=1e-5)


def test_a_warmup_is_the_critics_alone():
    method, _ = made(warmup=2)
    assert method.collect.every == 4 and [method.due(step) for step in (0, 7, 8)] == [("value",)] * 2 + [
        ("policy", "value")
    ]


def test_every_curve_has_a_reading_and_every_reading_a_curve():
    method, executor = made(reference_weight=1.0, target_divergence=1.0)
    made_of, batches, params = collected(method, executor)
    seen = {f"collect/{name}" for name in method.collect.metrics(made_of, None)}
    for name, phase in method.phases.items():
        metrics = phase.loss(params, usable(batches[0]), jax.random.key(0))[1]
        seen |= {f"{name}/loss", *(f"{name}/{metric}" for metric in metrics)}
    assert set(method.readings) == seen


def test_the_feed_takes_what_is_collected():
    method, executor = made()
    feed = make_feed(Rows(), method, executor)
    batches = feed.take(executor.start(), 0, 3)
    assert batches["observation"].shape == (3, SIZE, 2) and set(feed.metrics) == {"return", "explained", "length"}


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(steps=0), "method.steps=0"),
        (dict(mean_limit=-1.0), "mean_limit=-1.0"),
        (dict(episodes=3), "batch_size divides the number of steps, 24"),
        (dict(episodes=0), "batch_size divides the number of steps, 0"),
        (dict(environment=dict(name="lqr", horizon=0)), "horizon=0"),
        (dict(environment=dict(name="lqrs")), "Did you mean 'lqr'"),
        (
            dict(environment=dict(WORLD, control=((0.0, 1.0), (1.0, 0.0)), action_cost=((1.0, 0.0), (0.0, 1.0)))),
            "takes actions of shape \\(2,\\)",
        ),
        (dict(clip=0.0), "expected positive numbers"),
        (dict(discount=1.5), "method.discount is 1.5"),
        (dict(log_prob="men"), "Did you mean 'mean'"),
        (dict(warmup=16), "the policy would never learn"),
        (dict(target_divergence=0.0), "positive number, or None"),
        (dict(target_divergence=1.0, changes=dict(gradient_accumulation=2)), "Use gradient_accumulation=1"),
        (dict(noise=dict(hig=1.0)), "Did you mean 'high'"),
        (dict(changes=dict(samplers=dict(default=dict(name="episodes", start="one")))), "Unknown start of a chain"),
        (dict(changes=dict(weight=dict(name="sigmoid"))), "config entry 'weight'"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_networks_that_do_not_read_observations_are_refused():
    data = dataclasses.replace(DATA, shape=(8, 8, 1))
    config = ConfigDict(toy_config().to_dict())
    config.network = dict(name="dit", width=16, depth=1, heads=2, patch=4)
    with pytest.raises(ValueError, match="answer to observations, which the network 'dit' does not read"):
        build("method", dict(name="flow_matching"), METHODS, config=config, data=data)

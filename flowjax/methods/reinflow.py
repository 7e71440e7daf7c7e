r"""ReinFlow: a flow policy that is tuned by the rewards of what it does (Zhang et al. 2025), with PPO (Schulman et al. 2017).

A flow that has learned demonstrations answers what is seen with an action. Its K steps are made a chain of Gaussians with noise
of a learned size (methods/chain_policy.py), whose density is known, and actions that turned out well are made likelier.

Every period `episodes` episodes are played with the noise; a critic says what was to be expected; what came out above it is
the advantage of an action (losses/advantages.py). Then `epochs` passes are made over all steps in batches of `batch_size`, in
an order that is a function of (seed, step), with advantages of mean zero and deviation one in each:

    phase    trains            loss
    policy   student, noise    max(-A rho, -A clip(rho)) - entropy_weight H + reference_weight |action - reference's|^2
    value    critic            (V - A - V_old)^2 / 2

rho is the density of the whole chain over its density when it was played, 1 in the first update of a period. The last term
holds the flow to what it was at the start: both go without noise from the x_0 of the chain to their actions.

With `target_divergence` the policy rests in a batch in which it has moved further than that from the one that played, and its
optimizer with it: the early stop of PPO, for each batch anew, so that nothing has to be remembered between updates.

The published code also cuts draws off at three standard deviations, which makes their density another than the one it scores;
clamps log-densities to [-1, 1], beyond which they have no gradient; and cuts off the last action before it scores it. Here
draws are Gaussian, and the environment cuts off what lies beyond its bounds.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from flowjax.arrays import example_keys, mean_per_example
from flowjax.choices import Spec, build
from flowjax.contract import Batch, CheckResult, Collect, DataSpec, Method, Metrics, Params, Phase, Role
from flowjax.control import make_environment, roll_out
from flowjax.losses.advantages import generalised_advantages, value_loss
from flowjax.losses.policy import clipped_loss
from flowjax.methods.chain_policy import NOISE, episodes_sampler, make_chain_policy
from flowjax.methods.optimizers import make_optimizer, resting
from flowjax.methods.parts import average_roles, check_shares, joined, make_samplers, make_setting, refuse_unread
from flowjax.methods.policy_checks import check_ratio, check_times, times_asked
from flowjax.models.actor_critic import critic as make_critic
from flowjax.models.actor_critic import noise_network

STUDENT, CRITIC, REFERENCE = "student", "critic", "reference"
READINGS = {
    "policy/loss": "Near zero in the first update of a period, whatever the policy is worth: look at collect/return.",
    "policy/ratio": "How likely actions are against when they were played: 1 in a period's first update, near it in others.",
    "policy/clipped": "The share of actions that have gone far enough. Near one nothing is learnt: fewer epochs, a wider clip.",
    "policy/moved": "The divergence from the policy that played: zero in the first update of a period, small in others.",
    "policy/entropy": "Of a chain, as log_prob scales it. It falls as noise is taken away; entropy_weight slows that.",
    "policy/noise": "The mean standard deviation of steps, between the bounds of the noise network.",
    "policy/reference": "The squared distance of actions from the reference's: how far the flow has gone from where it began.",
    "policy/resting": "The share of batches in which the policy rests, because it has moved beyond target_divergence.",
    "value/loss": "Half the squared error of the critic. It falls, and rises again where the policy finds what is new to it.",
    "collect/return": "The mean sum of rewards of an episode, played with noise. This is what is to rise.",
    "collect/explained": "The share of the variance of what came out that the critic had foreseen: towards one.",
    "collect/length": "The mean number of steps before the end of an episode.",
}


def reinflow(
    config: ConfigDict,
    data: DataSpec,
    environment: Spec,
    prediction: str = "velocity",
    steps: int = 4,
    episodes: int = 64,
    epochs: int = 5,
    clip: float = 0.01,
    log_prob: str = "mean",
    discount: float = 0.99,
    decay: float = 0.95,
    reward_scale: float = 1.0,
    entropy_weight: float = 0.03,
    reference_weight: float = 0.0,
    target_divergence: float | None = None,
    warmup: int = 0,
    mean_limit: float | None = None,
    noise: Spec | None = None,
    critic: Spec | None = None,
    critic_optimizer: Spec | None = None,
) -> Method:
    """Tunes a flow policy in an environment.

    Args:
      config: path, noise, network, preconditioning, optimizer (of student and noise), ema, restore. config.samplers may name
        'episodes', with the options of chain_policy.episodes_sampler, beside samplers of actions.
      data: shapes of actions and observations.
      environment: spec of flowjax.control.ENVIRONMENTS.
      prediction: what the network outputs.
      steps: of the chain, K.
      episodes: of a period.
      epochs: passes over them; batch_size divides the number of their steps.
      clip: how far the density of a chain may move from when it was played.
      log_prob: 'mean' divides log-densities by K + 1 and by the size of an action, as published; 'sum' does not. clip,
        entropy_weight and target_divergence are stated for one of them.
      discount: of a reward a step later.
      decay: of errors of the critic in an advantage (lambda).
      reward_scale: of rewards as the critic learns them, about the reciprocal of a return.
      entropy_weight: of the entropy of a chain.
      reference_weight: of the distance from the flow's actions at the start.
      target_divergence: beyond which the policy rests; None for never.
      warmup: periods in which the critic alone learns.
      mean_limit: means of steps are kept between minus this and this (published: 1).
      noise: options of models.actor_critic.noise_network, as dict(low=0.1, high=0.24).
      critic: options of models.actor_critic.critic.
      critic_optimizer: None for one like config.optimizer.
    """
    refuse_unread(config, ["time", "weight", "coupling"], config.method.name)
    check_shares(discount=discount, decay=decay)
    world, size = make_environment(environment), config.batch_size
    found = (world.action_shape, world.observation_shape)
    if found != (tuple(data.shape), tuple(data.observation_shape)):
        raise ValueError(
            f"The environment '{environment['name']}' takes actions of shape {found[0]} and shows {found[1]}; the data have "
            f"{tuple(data.shape)} and {tuple(data.observation_shape)}. Use demonstrations of this environment."
        )
    played = episodes * world.horizon
    updates = epochs * played // size
    if min(episodes, epochs) < 1 or played % size:
        raise ValueError(
            f"method.episodes={episodes} of {world.horizon} steps in method.epochs={epochs} passes of batches of {size}: "
            f"batch_size divides the number of steps, {played}. Use another number of episodes, or another batch_size."
        )
    if clip <= 0 or reward_scale <= 0 or min(entropy_weight, reference_weight, warmup) < 0:
        raise ValueError(
            f"method.clip={clip}, reward_scale={reward_scale}, entropy_weight={entropy_weight}, "
            f"reference_weight={reference_weight}, warmup={warmup}: expected positive numbers; the last three may be 0."
        )
    learning = config.steps - warmup * updates
    if learning < 1:
        raise ValueError(
            f"method.warmup={warmup} periods of {updates} updates are all of the run's {config.steps}: the policy would never "
            "learn. Use more steps, or a shorter warm-up."
        )
    whole = config.gradient_accumulation == 1 and config.parallel == "jit"
    if target_divergence is not None and (target_divergence <= 0 or not whole):
        raise ValueError(
            f"method.target_divergence={target_divergence} is a positive number, or None, and is held against a whole batch. "
            "Use gradient_accumulation=1 and parallel='jit' with it."
        )
    setting = make_setting(config, data, prediction)
    stray = build("noise network", {**(noise or {}), "name": "own"}, {"own": noise_network}, data=data)
    judge = build("critic", {**(critic or {}), "name": "own"}, {"own": make_critic}, data=data)
    policy = make_chain_policy(setting, stray, steps, mean_limit, log_prob)
    rule = make_optimizer(config.optimizer, learning)
    tx = rule.tx if target_divergence is None else resting(rule.tx)
    value_rule = make_optimizer(critic_optimizer or config.optimizer, config.steps)

    def share(step: Int[Array, ""]) -> Float[Array, ""]:
        """Of the noise's range: one number for all updates of a period, so that they score what was played."""
        return stray.share(step // updates * updates / config.steps)

    def play(params: Params, batch: Batch, key: Key[Array, ""]) -> dict[str, Any]:
        now = share(batch["step"][0])

        def act(seen, keys):
            made = policy.draw(params, STUDENT, seen, keys, now)
            return made.samples, (made.x, made.x_next, policy.scaled(made.log_prob))

        found = roll_out(world, act, example_keys(key, jnp.arange(episodes)))
        x, x_next, log_probs = found.more
        values = jax.vmap(judge.apply, in_axes=(None, 0))(params[CRITIC], found.observations)
        last = judge.apply(params[CRITIC], found.last)
        advantages = generalised_advantages(reward_scale * found.rewards, values, last, found.going, discount, decay)
        kept = dict(rollout_x=x, rollout_x_next=x_next, rollout_log_prob=log_probs, rollout_target=advantages + values)
        shown = dict(data=found.actions, observation=found.observations, mask=found.alive, rollout_advantage=advantages)
        return {"steps": {**shown, **kept}, "returns": found.returns}

    def batches(made: Mapping[str, Any], scores: Any, step: int) -> list[dict[str, np.ndarray]]:
        arrays = {name: array.reshape(-1, *array.shape[2:]) for name, array in made["steps"].items()}
        row, cut = np.arange(size, dtype=np.int32), []
        for epoch in range(epochs):
            order = np.random.default_rng([config.seed, step, epoch]).permutation(played)
            for rows in np.split(order, played // size):
                batch = {**{name: array[rows] for name, array in arrays.items()}, "row": row}
                cut.append({**batch, "rollout_advantage": _levelled(batch["rollout_advantage"], batch["mask"])})
        return cut

    def figures(made: Mapping[str, Any], scores: Any) -> dict[str, float]:
        steps = made["steps"]
        alive = steps["mask"] > 0
        target, advantage = steps["rollout_target"][alive], steps["rollout_advantage"][alive]
        explained = 1.0 - advantage.var() / max(target.var(), 1e-12)
        length = alive.sum(axis=1).mean()
        return {"return": float(made["returns"].mean()), "explained": float(explained), "length": float(length)}

    def log_ratio(params: Params, batch: Batch) -> tuple[Float[Array, " b"], Any]:
        chain = policy.transitions(params, STUDENT, batch["observation"], batch["rollout_x"], share(batch["step"][0]))
        return policy.log_probs(chain, batch["rollout_x_next"]) - batch["rollout_log_prob"], chain

    def policy_loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        moved, chain = log_ratio(params, batch)
        value, found = clipped_loss(moved, batch["rollout_advantage"], clip)
        entropy, metrics = policy.entropy(chain), {"ratio": found["ratio"], "clipped": found["clipped"]}
        metrics |= {"moved": found["divergence"], "entropy": entropy, "noise": jnp.mean(chain.std)}
        loss = value - entropy_weight * entropy
        if reference_weight:
            flow = functools.partial(policy.flow, seen=batch["observation"], x=batch["rollout_x"][:, 0])
            away = mean_per_example((flow(params[STUDENT]) - flow(params[REFERENCE])) ** 2)
            loss, metrics = loss + reference_weight * away, {**metrics, "reference": away}
        if target_divergence is not None:
            far = jnp.sum(batch["mask"] * found["divergence"]) / jnp.maximum(jnp.sum(batch["mask"]), 1.0)
            rests = far > target_divergence
            loss = jnp.where(rests, jax.lax.stop_gradient(loss), loss)
            metrics["resting"] = rests.astype(jnp.float32)
        return loss, metrics

    def critic_loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        return value_loss(judge.apply(params[CRITIC], batch["observation"]), batch["rollout_target"]), {}

    def ratio_check(params: Params, batch: Batch, key: Key[Array, ""]) -> CheckResult:
        return check_ratio("chain", log_ratio(params, batch)[0], clip)

    def grid_check(params: Params, batch: Batch, key: Key[Array, ""]) -> CheckResult:
        seen, x, now = batch["observation"][:1], batch["rollout_x"][:1], share(batch["step"][0])
        of = lambda own: dataclasses.replace(policy, setting=own)
        keys = example_keys(key, batch["row"][:1])
        drawn = times_asked(setting, lambda own: of(own).draw(params, STUDENT, seen, keys, now))
        scored = times_asked(setting, lambda own: of(own).transitions(params, STUDENT, seen, x, now))
        return check_times(scored, drawn)

    specs = config.samplers.to_dict()
    tried = {name: spec for name, spec in specs.items() if spec["name"] == "episodes"}
    actions = ConfigDict({**config.to_dict(), "samplers": {name: specs[name] for name in specs if name not in tried}})
    makers = {"episodes": functools.partial(episodes_sampler, policy, world)}
    roles = {
        STUDENT: Role(init=setting.network.init, tx=tx, learning_rate=rule.learning_rate),
        NOISE: Role(init=stray.init, tx=tx, learning_rate=rule.learning_rate),
        CRITIC: Role(init=judge.init, tx=value_rule.tx, learning_rate=value_rule.learning_rate),
        **({REFERENCE: Role(copy_of=STUDENT)} if reference_weight else {}),
    }
    return Method(
        roles=joined(roles, average_roles(config)),
        phases={
            "policy": Phase(policy_loss, trains=(STUDENT, NOISE), start=warmup * updates),
            "value": Phase(critic_loss, trains=(CRITIC,)),
        },
        samplers={
            **{name: build("sampler", spec, makers) for name, spec in tried.items()},
            **make_samplers(actions, setting),
        },
        collect=Collect(play, batches, updates, metrics=figures),
        checks={"ratio": ratio_check, "grid": grid_check},
        readings=READINGS,
    )


def _levelled(advantages: Float[np.ndarray, " b"], mask: Float[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    """With mean zero and deviation one over what counts."""
    count = max(mask.sum(), 1.0)
    centred = np.where(mask > 0, advantages - (mask * advantages).sum(dtype=np.float64) / count, 0.0)
    return (centred / (np.sqrt(np.square(centred).sum() / count) + 1e-8)).astype(np.float32)

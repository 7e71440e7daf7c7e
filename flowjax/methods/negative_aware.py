r"""DiffusionNFT (Zheng et al. 2025): samples are drawn by any sampler, judged, and learnt from as data are.

A period of `updates` steps begins with a rollout of the policy `old`; every update takes its share of the samples, noises them
anew and moves the student's clean prediction towards the good ones and away from the bad (losses/negative_aware.py), with

    + divergence_weight |v - v_reference|^2

to the reference, what the student was at the start. After each period the old policy follows,

    old <- eta old + (1 - eta) student,      eta = min(slope (period - start), highest),  0 before `start`:

on policy at first, and slower to follow as training goes on. Without a guidance of its own the student learns to do without:
rollouts are unguided unless `rollout` says otherwise.

Published: slope .001, highest .5, strength 1 for one reward and .1 for several, divergence_weight 1e-4.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from flowjax.arrays import batch_times, mean_per_example
from flowjax.choices import Spec, choose
from flowjax.contract import Batch, CheckResult, DataSpec, Method, Metrics, Params, Phase, Rate, Role, Track
from flowjax.losses.negative_aware import goodness, negative_aware_loss
from flowjax.losses.policy import SCOPES
from flowjax.methods import groups
from flowjax.methods.parts import average_roles, draw, joined, make_samplers, make_setting, refuse_unread, student_role
from flowjax.paths.predictions import convert
from flowjax.paths.weights import loss_weight

STUDENT, OLD, REFERENCE = "student", "old", "reference"
READINGS = {
    **groups.READINGS,
    "moved": "How far the clean prediction is from that of the policy that drew the samples: small, and it must not run away.",
    "divergence": "The squared distance of the velocity from the reference's. It grows with the reward.",
    "good": "The mean of how good samples are. One half where the advantages of groups add up to nothing.",
}


def negative_aware(
    config: ConfigDict,
    data: DataSpec,
    rewards: Spec,
    rollout: Spec,
    prediction: str = "velocity",
    group_size: int = 8,
    updates: int = 1,
    strength: float = 1.0,
    adaptive: bool = True,
    divergence_weight: float = 1e-4,
    slope: float = 0.001,
    highest: float = 0.5,
    start: int = 0,
    advantage_scope: str = "group",
    advantage_limit: float = 5.0,
    chunks: int = 0,
    failures: str = "stop",
) -> Method:
    """Tunes a flow by regression on its own samples, good and bad.

    Args:
      config: path, time, weight, noise, network, preconditioning, optimizer, ema, samplers, restore.
      data: shape and conditions; a batch lends its conditions to the rollout.
      rewards: name -> spec of flowjax.rewards with a weight.
      rollout: spec of any sampler (samplers/build.py), without a role.
      prediction: what the network outputs.
      group_size: samples that are compared with one another; divides batch_size.
      updates: of the parameters with one rollout; divides the number of groups.
      strength: b, how far the two mixtures reach.
      adaptive: whether errors are divided by their size.
      divergence_weight: of the squared distance of the velocity from the reference's.
      slope: how much slower the old policy follows with each period.
      highest: the largest share of itself that it keeps.
      start: the period at which it begins to be slower.
      advantage_scope: of the standard deviation in an advantage, 'group' or 'all'.
      advantage_limit: the advantage at which a sample is wholly good, or wholly bad.
      chunks: a rollout is cut into, so that rewards on the host judge one while the device draws the next; 0 for as many as
        that takes.
      failures: of a reward, 'stop' or 'skip'.
    """
    refuse_unread(config, ["coupling"], config.method.name)  # its own samples are noised anew
    choose("method.advantage_scope", advantage_scope, dict.fromkeys(SCOPES))
    if strength <= 0 or advantage_limit <= 0 or divergence_weight < 0:
        raise ValueError(
            f"method.strength={strength}, advantage_limit={advantage_limit}, divergence_weight={divergence_weight}: expected "
            "positive numbers, and a weight of at least 0."
        )
    if slope < 0 or not 0 <= highest < 1 or start < 0:
        raise ValueError(
            f"method.slope={slope}, highest={highest}, start={start}: expected a slope and a start of at least 0, and a share "
            "below 1: an old policy that keeps all of itself would never follow."
        )
    setting = make_setting(config, data, prediction)
    grouped = groups.make_groups(config, data, rewards, group_size, updates, chunks, failures)
    policy = groups.make_policy(setting, rollout, OLD)

    def loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        drawn = draw(setting, batch, key, label_dropout=0.0)
        x, t = setting.path.sample(drawn.noise, drawn.data, drawn.t), drawn.t
        predict = lambda role, **more: setting.network.apply(params[role], x, t, drawn.cond, **more)
        own, old = predict(STUDENT, keys=drawn.keys), predict(OLD)
        clean = lambda value: convert(setting.path, prediction, "data", value, x, batch_times(t, x))
        good = goodness(batch["rollout_advantage"], advantage_limit)
        value, metrics = negative_aware_loss(clean(own), clean(old), drawn.data, good, strength, adaptive)
        value = value * advantage_limit * loss_weight(setting.weight, setting.path, "data", t)
        velocity = lambda value: convert(setting.path, prediction, "velocity", value, x, batch_times(t, x))
        away = mean_per_example((velocity(own) - jax.lax.stop_gradient(velocity(predict(REFERENCE)))) ** 2)
        return value + divergence_weight * away, {**metrics, "divergence": away, "good": good, "t": t}

    def start_check(params: Params, batch: Batch, key: Key[Array, ""]) -> CheckResult:
        _, metrics = loss(params, batch, key)
        worst = float(jnp.max(jnp.maximum(metrics["moved"], metrics["divergence"])))
        return CheckResult(
            "student, old policy and reference before the first update",
            worst < 1e-8,
            f"their predictions differ by at most {worst:.1e} in the square",
            "All three start as one network: restore the student alone, and use a network without dropout.",
        )

    return Method(
        roles=joined(
            {
                STUDENT: student_role(config, setting.network),
                OLD: Role(copy_of=STUDENT, track=Track(STUDENT, follow_rate(updates, slope, highest, start))),
                REFERENCE: Role(copy_of=STUDENT),
            },
            grouped.judge.roles,
            average_roles(config),
        ),
        phases={"contrast": Phase(loss, trains=(STUDENT,))},
        samplers=make_samplers(config, setting),
        collect=grouped.collect(
            grouped.rollout(policy),
            grouped.with_advantages(updates, advantage_scope, advantage_limit),
            updates,
            policy.brings,
        ),
        checks={"start": start_check},
        readings=READINGS,
    )


def follow_rate(updates: int, slope: float, highest: float, start: int) -> Rate:
    """How far the old policy moves to the student after a step: by 1 - eta at the end of each period, and not within one."""

    def rate(step: Int[Array, ""]) -> Float[Array, ""]:
        period = step // updates
        kept = jnp.clip(slope * (period - start), 0.0, highest)
        return jnp.where((step + 1) % updates == 0, 1.0 - kept, 0.0)

    return rate

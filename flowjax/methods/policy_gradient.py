r"""Policy gradients for flows: samples are drawn, judged, and their steps made more or less likely (losses/policy.py).

A period of `updates` steps begins with a rollout: `batch_size` samples in groups of `group_size` that share their conditions,
drawn by a stochastic sampler with the student's parameters of that moment; rewards; advantages within groups. Each update then
takes its share of the samples with all their steps:

    loss = mean over steps [ max(-A rho, -A clip(rho)) + divergence_weight * KL(step, the reference's step) ]

The presets differ in what is compared; the sampler is that of `rollout` (Liu et al. 2025; Xue et al. 2025; Li et al. 2025):

| method     | published    | noise of a group | judged           | steps learnt from            | deviation of advantages |
| flow_grpo  | `flow_grpo`  | each its own     | samples          | all that are drawn           | of all samples          |
| dance_grpo | `dance_grpo` | shared           | clean prediction | a random share of 60%        | of the group            |
| mix_grpo   | `flow_grpo`  | shared           | samples          | a window that moves to data  | of the group            |

flow_grpo_fast is flow_grpo with a window of two steps, whose first is one of five, drawn for each rollout. Published, with
log-probabilities averaged over elements: Flow-GRPO 10 steps with a = .7, groups of 24, two updates a rollout, clip 1e-4,
divergence_weight .04 of the `published` divergence, guidance in rollout and loss, an adapter of rank 32 with AdamW at 3e-4;
DanceGRPO 16 steps with eta = .3, groups of 12, clip 1e-4, no divergence, all weights at 1e-5; MixGRPO 25 steps with a = .7,
groups of 12, a window of 4 that moves by 1 every 25 rollouts. Under guidance the published code of Flow-GRPO lets no gradient
through the prediction without conditions; here both have one, for the density of a step depends on both.

The student starts from `config.restore.student`, or is an adapter on it. The reference is what the student was at the start, a
frozen copy: where the student is an adapter, the frozen base of it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from flowjax.arrays import example_keys
from flowjax.choices import Spec, choose
from flowjax.contract import Batch, CheckResult, DataSpec, Method, Metrics, Params, Phase, Role
from flowjax.losses.policy import SCOPES, clipped_loss
from flowjax.methods import groups
from flowjax.methods.parts import (
    average_roles,
    check_shares,
    conditions_of,
    joined,
    make_samplers,
    make_setting,
    preset,
    refuse_idle,
    refuse_unread,
    student_role,
)
from flowjax.methods.policy_checks import check_ratio, check_times, times_asked, unconditional_field
from flowjax.methods.unrolled import make_unrolled
from flowjax.samplers.build import split_keys
from flowjax.samplers.rollouts import actions, check_drawn, roll_out, step_divergences, step_log_probs, step_transitions
from flowjax.samplers.transition import REDUCTIONS, Transition

STUDENT, REFERENCE = "student", "reference"
JUDGED = ("samples", "clean")
DIVERGENCES = ("exact", "published")
READINGS = {
    "ratio": "How likely the steps are against when they were drawn: 1 in the first update of a period, and near it in others.",
    "clipped": "The share of steps that have gone far enough. Near one nothing is learnt: fewer updates, or a wider clip.",
    "moved": "The divergence from the policy that drew the samples: zero in the first update of a period, small in others.",
    "divergence": "From the reference, per step. It grows with the reward; growing without it is drift.",
    **groups.READINGS,
}


def policy_gradient(
    config: ConfigDict,
    data: DataSpec,
    rewards: Spec,
    rollout: Spec,
    prediction: str = "velocity",
    group_size: int = 8,
    updates: int = 1,
    clip: float = 1e-4,
    log_prob: str = "mean",
    divergence_weight: float = 0.0,
    divergence: str = "exact",
    shared_noise: bool = False,
    judged: str = "samples",
    share: float = 1.0,
    window: int = 0,
    window_every: int = 25,
    window_stride: int = 1,
    window_drawn: int = 0,
    advantage_scope: str = "group",
    advantage_limit: float = 5.0,
    advantage_floor: float = 1e-4,
    advantage_unbiased: bool = False,
    chunks: int = 0,
    failures: str = "stop",
) -> Method:
    """Tunes a flow by the rewards of its own samples.

    Args:
      config: path, noise, network, preconditioning, optimizer, ema, samplers, restore.
      data: shape and conditions; a batch lends its conditions to the rollout.
      rewards: name -> spec of flowjax.rewards with a weight.
      rollout: spec of a stochastic sampler (samplers/build.py): steps, grid, guidance and its own options.
      prediction: what the network outputs.
      group_size: samples that are compared with one another; divides batch_size.
      updates: of the parameters with one rollout; divides the number of groups.
      clip: how far the probability of a step may move from the rollout's.
      log_prob: over the elements of a sample, 'mean' or 'sum': clip and divergence_weight are stated for one of them.
      divergence_weight: of the divergence from the reference.
      divergence: 'exact', or 'published': times the length of the step, as the released Flow-GRPO code has it.
      shared_noise: start all samples of a group from one noise.
      judged: 'samples', or 'clean' for the estimate of the data at the last evaluation.
      share: of the steps, drawn for each sample anew, that are learnt from.
      window: how many steps in turn are drawn and learnt from, the others being Euler's; 0 for all.
      window_every: after so many rollouts the window moves.
      window_stride: by so many steps towards the data; beyond the last place it goes on from the first, as in a ring.
      window_drawn: instead, it begins at one of so many first steps, drawn for each rollout.
      advantage_scope: of the standard deviation in an advantage, 'group' or 'all'.
      advantage_limit: between minus this and this advantages are kept.
      advantage_floor: added to the standard deviation.
      advantage_unbiased: whether the standard deviation divides by one less than there are samples.
      chunks: a rollout is cut into, so that rewards on the host judge one while the device draws the next; 0 for as many as
        that takes.
      failures: of a reward, 'stop' or 'skip'.
    """
    refuse_unread(config, ["time", "weight", "coupling"], config.method.name)
    for what, value, known in (
        ("log_prob", log_prob, REDUCTIONS),
        ("divergence", divergence, dict.fromkeys(DIVERGENCES)),
        ("judged", judged, dict.fromkeys(JUDGED)),
        ("advantage_scope", advantage_scope, dict.fromkeys(SCOPES)),
    ):
        choose(f"method.{what}", value, known)
    check_shares(share=share)
    grouped = groups.make_groups(config, data, rewards, group_size, updates, chunks, failures)
    if clip <= 0 or divergence_weight < 0 or min(advantage_limit, advantage_floor) <= 0 or not share:
        raise ValueError(
            f"method.clip={clip}, divergence_weight={divergence_weight}, advantage_limit={advantage_limit}, "
            f"advantage_floor={advantage_floor}, share={share}: "
            "expected positive numbers, and a weight of at least 0."
        )
    setting = make_setting(config, data, prediction)
    unrolled = make_unrolled(setting, rollout, STUDENT, "method.rollout")
    stepper, grid = unrolled.parts.stepper, unrolled.grid
    drawn = actions(stepper, grid)
    check_drawn(stepper, grid, setting.path, prediction)
    kept = window or drawn
    regular = dict(window_every=window_every, window_stride=window_stride)
    if not window:
        refuse_idle(policy_gradient, "method.window=0 is of all steps", **regular, window_drawn=window_drawn)
    elif kept == drawn:
        refuse_idle(policy_gradient, "the window is of all steps and cannot move", **regular, window_drawn=window_drawn)
    elif window_drawn:
        refuse_idle(
            policy_gradient, f"with method.window_drawn={window_drawn} each rollout draws its window", **regular
        )
    if not divergence_weight:
        refuse_idle(policy_gradient, "method.divergence_weight is 0, and curves are exact", divergence=divergence)
    if not 1 <= kept <= drawn or window_every < 1 or window_stride < 1:
        raise ValueError(
            f"method.window={window} of {drawn} drawn steps, window_every={window_every}, window_stride={window_stride}: "
            "expected a window within them, and positive numbers."
        )

    if not 0 <= window_drawn <= drawn - kept + 1:
        raise ValueError(
            f"method.window_drawn={window_drawn}: a window of {kept} of {drawn} drawn steps can begin at {drawn - kept + 1} "
            "places."
        )

    def first_step(step: Int[Array, ""]) -> Int[Array, ""]:
        """Where the window stands in the rollout that an update learns from."""
        if window_drawn:
            key = jax.random.fold_in(jax.random.key(config.seed), step // updates)
            return jax.random.randint(key, (), 0, window_drawn)
        moves = (step // updates) // window_every
        return (moves * window_stride) % (drawn - kept + 1)

    def window_at(step: Int[Array, ""]) -> tuple[Int[Array, ""], int] | None:
        return (first_step(step), kept) if window else None

    def make_samples(params: Params, batch: Batch, key: Key[Array, ""]) -> dict[str, Any]:
        row, cond, leader = batch["row"], grouped.conditions(batch), grouped.leaders(batch)
        noise_keys, _ = split_keys(example_keys(key, row[leader] if shared_noise else row))
        _, step_keys = split_keys(example_keys(key, row))
        field, x = unrolled.field(params, params[STUDENT], cond), unrolled.noise(noise_keys)
        made = roll_out(stepper, field, grid, x, step_keys, window_at(batch["step"][0]), log_prob)
        arrays = dict(rollout_x=made.x, rollout_x_next=made.x_next, rollout_log_prob=made.log_prob)
        seen = made.samples if judged == "samples" else made.clean
        return grouped.judged(params, seen, cond, {"data": made.samples, "row": row, **arrays})

    def steps_of(params: Params, role: str, batch: Batch):
        field = unrolled.field(params, params[role], conditions_of(batch))
        first = first_step(batch["step"][0]) if window else 0
        return step_transitions(stepper, field, grid, batch["rollout_x"], first), first

    def moved(own: Transition, batch: Batch) -> Float[Array, "b k"]:
        """The logarithm of how likely each step is against when it was drawn."""
        return step_log_probs(own, batch["rollout_x_next"], log_prob) - batch["rollout_log_prob"]

    def loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        own, first = steps_of(params, STUDENT, batch)
        held, _ = steps_of(params, REFERENCE, batch)
        log_ratio = moved(own, batch)
        repeated = jnp.broadcast_to(batch["rollout_advantage"][:, None], log_ratio.shape)
        value, metrics = jax.vmap(functools.partial(clipped_loss, clip=clip))(log_ratio, repeated)
        away = step_divergences(own, held, log_prob)
        lengths = jax.lax.dynamic_slice_in_dim(jnp.asarray(np.diff(grid), away.dtype), first, kept)
        term = away * lengths if divergence == "published" else away
        chosen = _chosen(share, example_keys(key, batch["row"]), kept)
        mean = lambda array: jnp.sum(array * chosen, axis=1) / jnp.sum(chosen, axis=1)
        named = {
            "ratio": metrics["ratio"],
            "clipped": metrics["clipped"],
            "moved": metrics["divergence"],
            "divergence": away,
        }
        return mean(value + divergence_weight * term), {name: mean(array) for name, array in named.items()}

    def ratio_check(params: Params, batch: Batch, key: Key[Array, ""]) -> CheckResult:
        return check_ratio("step", moved(steps_of(params, STUDENT, batch)[0], batch), clip)

    def grid_check(params: Params, batch: Batch, key: Key[Array, ""]) -> CheckResult:
        moving, keys = window_at(batch["step"][0]), example_keys(key, batch["row"][:1])
        first = 0 if moving is None else int(moving[0])
        x, field = batch["rollout_x"][:1], unconditional_field
        rolled = times_asked(setting, lambda own: roll_out(stepper, field(own), grid, x[:, 0], keys, moving, log_prob))
        scored = times_asked(setting, lambda own: step_transitions(stepper, field(own), grid, x, first))
        return check_times(scored, rolled[first : first + kept])

    return Method(
        roles=joined(
            {STUDENT: student_role(config, setting.network), REFERENCE: Role(copy_of=STUDENT)},
            grouped.judge.roles,
            average_roles(config),
        ),
        phases={"policy": Phase(loss, trains=(STUDENT,))},
        samplers=make_samplers(config, setting),
        collect=grouped.collect(
            make_samples,
            grouped.with_advantages(updates, advantage_scope, advantage_limit, advantage_floor, advantage_unbiased),
            updates,
        ),
        checks={"ratio": ratio_check, "grid": grid_check},
        readings=READINGS,
    )


def _chosen(share: float, keys: Key[Array, " b"], steps: int) -> Float[Array, "b k"]:
    """1 for the steps of each sample that are learnt from: a share of them, drawn without repetition."""
    if share == 1:
        return jnp.ones((len(keys), steps), jnp.float32)
    order = jax.vmap(lambda key: jax.random.permutation(key, steps))(keys)
    return (order < max(1, round(share * steps))).astype(jnp.float32)


PRESETS = {
    "flow_grpo": preset(policy_gradient, advantage_scope="all"),
    "flow_grpo_fast": preset(policy_gradient, advantage_scope="all", window=2, window_drawn=5),
    "dance_grpo": preset(
        policy_gradient, shared_noise=True, judged="clean", share=0.6, advantage_floor=1e-8, advantage_unbiased=True
    ),
    "mix_grpo": preset(policy_gradient, shared_noise=True, window=4, advantage_floor=1e-8),
}

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

The student starts from `config.restore.student`, or is an adapter on it. The reference is what the student was at the start, a
frozen copy: where the student is an adapter, of the adapter alone.
"""

import functools
from collections.abc import Callable, Mapping
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
    null_conditions,
    refuse_unread,
    student_role,
)
from flowjax.samplers.build import make_branches, make_field, make_parts, split_keys
from flowjax.samplers.rollouts import actions, roll_out, step_divergences, step_log_probs, step_transitions
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
    advantage_scope: str = "group",
    advantage_limit: float = 5.0,
    chunks: int = 1,
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
      window_stride: by so many steps towards the data, and from the last place back to the first.
      advantage_scope: of the standard deviation in an advantage, 'group' or 'all'.
      advantage_limit: between minus this and this advantages are kept.
      chunks: a rollout is cut into, so that rewards on the host judge one while the device draws the next.
      failures: of a reward, 'stop' or 'skip'.
    """
    refuse_unread(config, ["time", "weight"], config.method.name)
    for what, value, known in (
        ("log_prob", log_prob, REDUCTIONS),
        ("divergence", divergence, dict.fromkeys(DIVERGENCES)),
        ("judged", judged, dict.fromkeys(JUDGED)),
        ("advantage_scope", advantage_scope, dict.fromkeys(SCOPES)),
    ):
        choose(f"method.{what}", value, known)
    check_shares(share=share)
    grouped = groups.make_groups(config, data, rewards, group_size, updates, chunks, failures)
    if clip <= 0 or divergence_weight < 0 or advantage_limit <= 0 or not share:
        raise ValueError(
            f"method.clip={clip}, divergence_weight={divergence_weight}, advantage_limit={advantage_limit}, share={share}: "
            "expected positive numbers, and a weight of at least 0."
        )
    setting = make_setting(config, data, prediction)
    plain = ConfigDict(dict(rollout)).to_dict()
    parts = make_parts({**plain, "role": STUDENT}, prediction, setting.path, setting.shape, setting.seen_shape)
    stepper, grid = parts.stepper, parts.grid
    drawn = actions(stepper, grid)
    kept = window or drawn
    if not 1 <= kept <= drawn or window_every < 1 or window_stride < 1:
        raise ValueError(
            f"method.window={window} of {drawn} drawn steps, window_every={window_every}, window_stride={window_stride}: "
            "expected a window within them, and positive numbers."
        )
    network, null = setting.network, null_conditions(setting.network)
    if parts.guidance.needs is not None and null is None:
        raise ValueError("method.rollout is guided, and the network has no condition to drop. Leave its guidance out.")

    def field_of(params: Params, role: str, cond: Mapping[str, Array]):
        params = {**params, STUDENT: params[role]}
        branches = make_branches(parts, null, network.prepare, params, cond)
        return make_field(parts, network.apply, prediction, setting.path, params, branches)

    def first_step(step: Int[Array, ""]) -> Int[Array, ""]:
        """Where the window stands in the rollout that an update learns from."""
        moves = (step // updates) // window_every
        return (moves * window_stride) % (drawn - kept + 1)

    def make_samples(params: Params, batch: Batch, key: Key[Array, ""]) -> dict[str, Any]:
        row, cond, leader = batch["row"], grouped.conditions(batch), grouped.leaders(batch)
        noise_keys, _ = split_keys(example_keys(key, row[leader] if shared_noise else row))
        _, step_keys = split_keys(example_keys(key, row))
        x = setting.path.sigma(jnp.asarray(grid[0], jnp.float32)) * setting.noise.sample(noise_keys, setting.shape)
        moving = (first_step(batch["step"][0]), kept) if window else None
        made = roll_out(stepper, field_of(params, STUDENT, cond), grid, x, step_keys, moving, log_prob)
        arrays = dict(rollout_x=made.x, rollout_x_next=made.x_next, rollout_log_prob=made.log_prob)
        seen = made.samples if judged == "samples" else made.clean
        return grouped.judged(params, seen, cond, {"data": made.samples, "row": row, **arrays})

    def batches(
        arrays: Mapping[str, np.ndarray], worth: Float[np.ndarray, " n"], step: int
    ) -> list[dict[str, np.ndarray]]:
        advantage = groups.advantages(grouped, worth, advantage_scope, advantage_limit).values
        parts = groups.split_rows({**arrays, "rollout_advantage": advantage}, np.split(np.arange(len(worth)), updates))
        return [{**part, "mask": groups.learnable(part["rollout_advantage"])} for part in parts]

    def steps_of(params: Params, role: str, batch: Batch):
        field = field_of(params, role, conditions_of(batch))
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
        worst = float(jnp.max(jnp.abs(jnp.expm1(moved(steps_of(params, STUDENT, batch)[0], batch)))))
        return CheckResult(
            "ratio before the first update",
            worst < clip,
            f"the probability of a step differs from its rollout's by at most {worst:.1e}; it is clipped at {clip:.1e}",
            "The rollout and the loss do not compute the same: use precision='float32', log_prob='mean', or a wider clip.",
        )

    return Method(
        roles=joined(
            {STUDENT: student_role(config, network), REFERENCE: Role(copy_of=STUDENT)},
            grouped.judge.roles,
            average_roles(config),
        ),
        phases={"policy": Phase(loss, trains=(STUDENT,))},
        samplers=make_samplers(config, setting),
        collect=grouped.collect(make_samples, batches, updates),
        checks={"ratio": ratio_check},
        readings=READINGS,
    )


def _chosen(share: float, keys: Key[Array, " b"], steps: int) -> Float[Array, "b k"]:
    """1 for the steps of each sample that are learnt from: a share of them, drawn without repetition."""
    if share == 1:
        return jnp.ones((len(keys), steps), jnp.float32)
    order = jax.vmap(lambda key: jax.random.permutation(key, steps))(keys)
    return (order < max(1, round(share * steps))).astype(jnp.float32)


def preset(**defaults: Any) -> Callable[..., Method]:
    """The method with other defaults, by a name of its own."""

    @functools.wraps(policy_gradient)
    def method(config: ConfigDict, data: DataSpec, **options: Any) -> Method:
        return policy_gradient(config, data, **{**defaults, **options})

    return method


PRESETS = {
    "flow_grpo": preset(advantage_scope="all"),
    "dance_grpo": preset(shared_noise=True, judged="clean", share=0.6),
    "mix_grpo": preset(shared_noise=True, window=4),
}

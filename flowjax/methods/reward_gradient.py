r"""Rewards that have a gradient: a flow is tuned by the derivative of what its samples are worth, back through sampling.

| method | gradient flows through                        | judged               | reference                              |
| refl   | one evaluation, at a late step drawn anew     | the clean prediction | Xu et al. 2023, ImageReward            |
| draft  | the last K steps, K fixed or drawn for each   | the sample           | Clark et al. 2023, DRaFT-K; Prabhudesai |
|        | sample                                        |                      | et al. 2023, AlignProp                 |

All that happens before is sampled without gradient. With r what a sample is worth, the loss is

    reward_weight relu(ceiling - r),    or  -reward_weight r  without a ceiling,

and pretraining_weight times the flow-matching loss of the batch's own data, which is what holds the model: a reward alone is
worth any drift. With `renoised` = n a sample also goes back to the last time of the grid with n fresh noises, and the last step
is taken again from there: n + 1 gradients of one trajectory, with less variance (DRaFT-LV).

Published: refl 40 steps of DDIM, the step drawn from the last quarter, ceiling 2, reward_weight 1e-3; draft K = 1, or AlignProp
with steps (1, 50) of 50.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from flowjax.arrays import example_keys, expand_to, uniform_rows
from flowjax.choices import Spec
from flowjax.contract import Batch, CheckResult, DataSpec, Method, Metrics, Params, Phase
from flowjax.methods.flow_matching import denoising_loss
from flowjax.methods.parts import (
    Setting,
    average_roles,
    conditions_of,
    joined,
    make_samplers,
    make_setting,
    refuse_idle,
    refuse_unread,
    student_role,
)
from flowjax.methods.unrolled import make_unrolled
from flowjax.rewards import REWARDS, make_rewards

STUDENT = "student"
READINGS = {
    "reward": "What the judged samples are worth. It rises; towards the ceiling more slowly.",
    "pretraining": "The flow-matching loss of the data. It stays; if it rises, the model forgets what it was trained on.",
}
# What samples are drawn with: (the tree that has no gradient, the tree that has one, batch, key) -> judged samples.
Draw = Callable[[Params, PyTree, PyTree, Batch, Key[Array, ""]], Float[Array, "b ..."]]


def refl(
    config: ConfigDict,
    data: DataSpec,
    rewards: Spec,
    rollout: Spec,
    prediction: str = "velocity",
    stop: tuple = (30, 39),
    ceiling: float | None = 2.0,
    reward_weight: float = 1e-3,
    pretraining_weight: float = 1.0,
    label_dropout: float = 0.1,
) -> Method:
    """Tunes a flow by the reward of a late clean prediction.

    Args:
      config: path, time, weight, noise, network, preconditioning, optimizer, ema, samplers, restore.
      data: shape and conditions.
      rewards: name -> spec of flowjax.rewards with a gradient, and a weight.
      rollout: spec of a sampler of one-step methods (samplers/build.py), without a role.
      prediction: what the network outputs.
      stop: the first and the last step of the grid whose clean prediction may be judged, counted from 0; drawn evenly for each
        sample.
      ceiling: what a sample has to be worth, beyond which there is no gradient; None for no end.
      reward_weight: of the reward.
      pretraining_weight: of the flow-matching loss of the data.
      label_dropout: how often that loss sees no conditions.
    """
    unrolled = make_unrolled(make_setting(config, data, prediction), rollout, STUDENT, "method.rollout")
    count = unrolled.count
    if len(stop) != 2 or not all(isinstance(n, int) for n in stop) or not 0 <= stop[0] <= stop[1] < count:
        raise ValueError(
            f"method.stop is {tuple(stop)} of a rollout of {count} steps; expected (first, last) with 0 <= first <= last <= "
            f"{count - 1}."
        )
    first, last = stop

    def judged(params: Params, still: PyTree, tree: PyTree, batch: Batch, key: Key[Array, ""]) -> Float[Array, "b ..."]:
        key_draw, key_stop = jax.random.split(key)
        x, step_keys, cond = unrolled.begin(batch, key_draw)
        drawn = _evenly(first, last, example_keys(key_stop, batch["row"]))
        field = unrolled.field(params, still, cond)

        def advance(carry, index):
            x, kept = carry
            kept = jnp.where(expand_to(index == drawn, x), x, kept)
            return (unrolled.step(field, x, index, step_keys), kept), None

        (x, kept), _ = jax.lax.scan(advance, (x, x), jnp.arange(last))
        kept = jax.lax.stop_gradient(jnp.where(expand_to(drawn == last, x), x, kept))
        times = jnp.asarray(unrolled.grid, x.dtype)[drawn]
        return unrolled.field(params, tree, cond).data(kept, times)

    weights = (ceiling, reward_weight, pretraining_weight, label_dropout)
    return _method("refl", config, data, unrolled.setting, rewards, judged, *weights)


def draft(
    config: ConfigDict,
    data: DataSpec,
    rewards: Spec,
    rollout: Spec,
    prediction: str = "velocity",
    steps: int | tuple = 1,
    renoised: int = 0,
    ceiling: float | None = None,
    reward_weight: float = 1.0,
    pretraining_weight: float = 0.0,
    label_dropout: float = 0.1,
) -> Method:
    """Tunes a flow by the reward of its samples, through the last steps.

    Args:
      config: path, time, weight, noise, network, preconditioning, optimizer, ema, samplers, restore.
      data: shape and conditions.
      rewards: name -> spec of flowjax.rewards with a gradient, and a weight.
      rollout: spec of a sampler of one-step methods (samplers/build.py), without a role.
      prediction: what the network outputs.
      steps: K, through how many of the last steps the gradient flows; (fewest, most) to draw it evenly for each sample.
      renoised: further last steps from samples that are noised anew; with steps=1 alone.
      ceiling: what a sample has to be worth, beyond which there is no gradient; None for no end.
      reward_weight: of the reward.
      pretraining_weight: of the flow-matching loss of the data.
      label_dropout: how often that loss sees no conditions.
    """
    unrolled = make_unrolled(make_setting(config, data, prediction), rollout, STUDENT, "method.rollout")
    count = unrolled.count
    bounds = (steps, steps) if isinstance(steps, int) else tuple(steps)
    if len(bounds) != 2 or not all(isinstance(n, int) for n in bounds) or not 1 <= bounds[0] <= bounds[1] <= count:
        raise ValueError(
            f"method.steps is {steps} of a rollout of {count} steps; expected a number from 1 to {count}, or two in order."
        )
    if renoised < 0 or (renoised and bounds != (1, 1)):
        raise ValueError(
            f"method.renoised is {renoised} with steps={steps}; expected at least 0, and 0 unless steps=1."
        )
    fewest, most = bounds
    head = count - most

    def judged(params: Params, still: PyTree, tree: PyTree, batch: Batch, key: Key[Array, ""]) -> Float[Array, "b ..."]:
        key_draw, key_steps, key_noise = jax.random.split(key, 3)
        rows = batch["row"]
        x, step_keys, cond = unrolled.begin(batch, key_draw)
        begin = count - _evenly(fewest, most, example_keys(key_steps, rows))
        frozen = unrolled.field(params, still, cond)
        if head:
            x, _ = jax.lax.scan(
                lambda x, index: (unrolled.step(frozen, x, index, step_keys), None), x, jnp.arange(head)
            )
        x = jax.lax.stop_gradient(x)

        def step_at(x, index):
            x = jnp.where(expand_to(index <= begin, x), jax.lax.stop_gradient(x), x)
            return unrolled.step(unrolled.field(params, tree, cond), x, index, step_keys)

        # The tail keeps its points alone, and evaluates the network again on the way back. A checkpoint makes a traced value of
        # every argument, and the last step, which may be another formula, is told by a Python number: it is no argument here.
        interior, last = jax.checkpoint(step_at), jax.checkpoint(lambda x: step_at(x, count - 1))
        if most > 1:
            x, _ = jax.lax.scan(lambda x, index: (interior(x, index), None), x, jnp.arange(head, count - 1))
        x = last(x)
        if not renoised:
            return x
        setting = unrolled.setting
        t = jnp.full(len(x), unrolled.grid[count - 1], x.dtype)
        clean, samples = jax.lax.stop_gradient(x), [x]
        for index in range(renoised):
            noise = setting.noise.sample(example_keys(jax.random.fold_in(key_noise, index), rows), x.shape[1:])
            samples.append(last(setting.path.sample(noise, clean, t)))
        return jnp.stack(samples)

    weights = (ceiling, reward_weight, pretraining_weight, label_dropout)
    return _method("draft", config, data, unrolled.setting, rewards, judged, *weights)


def _evenly(least: int, most: int, keys: Key[Array, " b"]) -> Int[Array, " b"]:
    """A whole number for each example, from `least` to `most`."""
    return least + jnp.floor(uniform_rows(keys) * (most - least + 1)).astype(jnp.int32)


def _method(
    name: str,
    config: ConfigDict,
    data: DataSpec,
    setting: Setting,
    rewards: Spec,
    judged: Draw,
    ceiling: float | None,
    reward_weight: float,
    pretraining_weight: float,
    label_dropout: float,
) -> Method:
    if reward_weight <= 0 or pretraining_weight < 0 or not 0 <= label_dropout < 1:
        raise ValueError(
            f"method.reward_weight={reward_weight}, pretraining_weight={pretraining_weight}, label_dropout={label_dropout}: "
            "expected above 0, at least 0, and a probability below 1."
        )
    if not pretraining_weight:
        # These are of the data's own loss alone.
        refuse_unread(config, ["coupling", "time", "weight"], name)
        refuse_idle(refl, "it is of the data's own loss, whose weight is 0", label_dropout=label_dropout)
    judge = make_rewards(rewards, REWARDS, data=data)
    judge.refuse_without_gradient(f"The method '{name}'")

    def worth(
        params: Params, still: PyTree, tree: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """The reward's term of the loss, and what the samples are worth."""
        samples, cond = judged(params, still, tree, batch, key), conditions_of(batch)
        value = lambda samples: judge.weighted(judge.values(params, samples, cond))
        several = samples.ndim > batch["data"].ndim
        found = jnp.mean(jax.lax.map(value, samples), axis=0) if several else value(samples)
        term = -found if ceiling is None else jax.nn.relu(ceiling - found)
        return reward_weight * term, found

    def loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        key_reward, key_flow = jax.random.split(key)
        tree = params[STUDENT]
        value, found = worth(params, jax.lax.stop_gradient(tree), tree, batch, key_reward)
        metrics = {"reward": found}
        if pretraining_weight:
            flow, _ = denoising_loss(setting, tree, batch, key_flow, label_dropout=label_dropout)
            value, metrics = value + pretraining_weight * flow, {**metrics, "pretraining": flow}
        return value, metrics

    def gradient_check(params: Params, batch: Batch, key: Key[Array, ""]) -> CheckResult:
        """The reward's gradient by the steps that have none and by those that have one."""
        total = lambda still, tree: jnp.sum(worth(params, still, tree, batch, key)[0])
        early, late = jax.jit(jax.grad(total, argnums=(0, 1)))(params[STUDENT], params[STUDENT])
        size = lambda tree: float(np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(tree))))
        return CheckResult(
            "the reward's gradient",
            size(early) == 0 and 0 < size(late) < np.inf,
            f"{size(early):.3g} by the steps before, {size(late):.3g} by those that are learnt through",
            "A gradient of zero or none: are all samples above the ceiling, or clipped where the reward reads them?",
        )

    return Method(
        roles=joined({STUDENT: student_role(config, setting.network)}, judge.roles, average_roles(config)),
        phases={"reward": Phase(loss, trains=(STUDENT,))},
        samplers=make_samplers(config, setting),
        checks={"gradient": gradient_check},
        readings={name: READINGS[name] for name in ("reward", *(["pretraining"] if pretraining_weight else []))},
    )

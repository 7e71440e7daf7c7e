r"""Preferences without a policy's likelihood: Diffusion-DPO and Flow-DPO, and Diffusion-KTO (losses/preference.py).

    cost = (error of the student - error of the reference)    at a point of the path through an example,

the two examples of a comparison at equal noise and equal time. Two places to have comparisons from:

* a data source of comparisons (data/comparisons.py): `data` and `others` [b, 1, ...] with `outcome` 1 where the first is
  better, -1 where the other is, 0 for a tie, which teaches nothing; KTO, which asks of each example alone whether it is good,
  also learns from such as were judged by themselves: `data` with `outcome` 1 or -1;
* the model itself, where `rewards` and `rollout` are given: of each group of samples the best and the worst are compared or,
  with a `temperature`, all of them in twos, the outcome being drawn as Bradley and Terry have it or, with
  outcomes='expected', the loss being averaged over both.

| method | published                                                                                                      |
| dpo    | error 'mean', of the noise, beta 5000 (Wallace et al. 2023); of the velocity, beta 100, online with the        |
|        | reference following every 40 updates (Liu et al. 2025)                                                         |
| kto    | error 'mean', of the noise, beta 1000 (Li et al. 2024)                                                         |

beta is in units of the error: of one that is summed over D elements, beta is D times smaller for the same effect.

Where it leads. Summed errors with the weight `evidence`, averaged over times and noises, are minus the log-ratio of student
and reference up to the slack of a bound, and with preferences of Bradley and Terry between samples of the reference the optimum
is then the reference times exp(2 r / (beta temperature)). The published loss has one time and one noise to a pair. To first
order in the reward its minimum at a time is

    v - v_reference ~ (1 - t) grad r,

a translation that is blind to what the data are: the spread of the single error within the sigmoid holds the student, not its
distance from the reference. `draws` averages several within the sigmoid, and `unbiased` takes off what their spread still
adds: with L the loss of all draws, L1 and L2 of either half (Quenouille's jackknife),

    2 L - (L1 + L2) / 2,

which is right to second order in the spread, and exact where the sigmoid is a line. A higher temperature with a lower beta has
the same optimum in smaller margins, where it is nearly one, and what is averaged outside of it counts as well; drawn outcomes
would then say next to nothing, expected ones lose nothing. Tests hold all three to the optimum of a Gaussian.

A difference of costs is blind to what both examples lose, and its evidence is a bound, so that many fields have the same
margins: the exact optimum, whose bound is tight, and others that do too little early and too much late, which costs a
divergence that no preference asked for. Where `cost_better` rises above zero, that is it. The spread of few draws is largest
late and holds that back, at the price of what it adds to the loss: which errs less is to be tried (experiments/preference).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from flowjax.arrays import example_keys, mean_per_example, sum_per_example, uniform_rows
from flowjax.choices import Spec, build, choose
from flowjax.contract import Batch, CheckResult, DataSpec, Method, Metrics, Params, Phase, Role, Track
from flowjax.losses.preference import average_gain, paired_preference_loss, unpaired_preference_loss
from flowjax.methods import groups
from flowjax.methods.own_pairs import own_pairs
from flowjax.methods.parts import (
    average_roles,
    conditions_of,
    fresh_noise,
    joined,
    make_samplers,
    make_setting,
    preset,
    refuse_unread,
    student_role,
)
from flowjax.paths.predictions import PREDICTIONS, error_ratio, target
from flowjax.paths.times import sample_times
from flowjax.paths.weights import loss_weight

STUDENT, REFERENCE = "student", "reference"
DRAWN, EXPECTED = "drawn", "expected"
ERRORS: dict[str, Callable[[Array], Array]] = {"mean": mean_per_example, "sum": sum_per_example}
PAIRED_READINGS = {
    "cost_better": "What tuning has cost on the better examples. At or below zero; above it the model leaves them too.",
    "cost_worse": "On the worse ones. It grows, and should not grow alone.",
    "margin": "How firmly pairs are told apart. It grows from zero.",
    "accuracy": "The share of pairs told apart rightly: from one half to that of the comparisons themselves.",
}
UNPAIRED_READINGS = {
    "cost": "What tuning has cost on all examples, good and bad: it stays near zero.",
    "gain": "What tuning has gained on average, from where gains and losses are felt. Never below zero.",
    "accuracy": "The share of examples on their side of it: from one half up.",
}


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is made of what tuning has cost on the examples of each comparison.

    Attributes:
      value: (costs [examples of a comparison, b], outcome, mask) -> loss and metrics of each comparison.
      at_reference: the loss where student and reference are one.
      readings: of its metrics.
      examples: of how many a comparison may be.
      whole: whether a comparison is held against the rest of its batch, which then must not be cut.
    """

    value: Callable[[Float[Array, "k b"], Array, Array], tuple[Float[Array, " b"], Metrics]]
    at_reference: float
    readings: Mapping[str, str]
    examples: tuple[int, ...] = (2,)
    whole: bool = False


def paired(beta: float) -> Objective:
    """Direct preference optimisation on pairs.

    Args:
      beta: of the method.
    """

    def value(costs: Float[Array, "2 b"], outcome: Array, mask: Array) -> tuple[Float[Array, " b"], Metrics]:
        first, second = costs
        better, worse = jnp.where(outcome > 0, first, second), jnp.where(outcome > 0, second, first)
        return paired_preference_loss(better, worse, beta)

    return Objective(value, math.log(2.0), PAIRED_READINGS)


def unpaired(beta: float, weight_good: float = 1.0, weight_bad: float = 1.0) -> Objective:
    """Utilities of examples that are good or bad, felt from where one stands: those of a comparison each for itself.

    Args:
      beta: of the method.
      weight_good: of good examples.
      weight_bad: of bad ones.
    """
    if weight_good < 0 or weight_bad < 0 or not weight_good + weight_bad:
        raise ValueError(
            f"objective.weight_good={weight_good} and weight_bad={weight_bad}: expected weights, not both zero."
        )

    def value(costs: Float[Array, "k b"], outcome: Array, mask: Array) -> tuple[Float[Array, " b"], Metrics]:
        count = len(costs)
        cost, side = costs.T.ravel(), jnp.stack([outcome, -outcome][:count], axis=1).ravel()
        gain = average_gain(cost, jnp.repeat(mask * jnp.abs(outcome), count))
        found, metrics = unpaired_preference_loss(cost, side, gain, beta, weight_good, weight_bad)
        of_all = lambda array: jnp.mean(array.reshape(-1, count), axis=1)
        named = {name: of_all(array) for name, array in metrics.items()}
        return of_all(found), {**named, "gain": jnp.broadcast_to(gain, outcome.shape)}

    return Objective(value, 0.25 * (weight_good + weight_bad), UNPAIRED_READINGS, examples=(1, 2), whole=True)


OBJECTIVES: dict[str, Callable[..., Objective]] = {"paired": paired, "unpaired": unpaired}


def preference(
    config: ConfigDict,
    data: DataSpec,
    objective: Spec,
    prediction: str = "velocity",
    loss: str | None = None,
    error: str = "mean",
    beta: float = 100.0,
    rewards: Spec | None = None,
    rollout: Spec | None = None,
    group_size: int = 8,
    updates: int = 1,
    draws: int = 1,
    unbiased: bool = False,
    policy: str = STUDENT,
    temperature: float | None = None,
    outcomes: str = DRAWN,
    reference_every: int = 0,
    chunks: int = 0,
    failures: str = "stop",
) -> Method:
    """Tunes a flow by comparisons.

    Args:
      config: path, time, weight, noise, network, preconditioning, optimizer, ema, samplers, restore.
      data: shape and conditions.
      objective: spec of OBJECTIVES.
      prediction: what the network outputs.
      loss: the prediction in whose space errors are measured; the network's own unless told.
      error: over the elements of an example, 'mean' or 'sum'.
      beta: how firmly the reference holds, for that error.
      rewards: name -> spec of flowjax.rewards with a weight, to compare the model's own samples; None for comparisons that
        the data bring.
      rollout: spec of any sampler (samplers/build.py), without a role, where there are rewards.
      group_size: samples of which the best and the worst are compared.
      updates: of the parameters with one rollout.
      draws: times and noises over which the error of a pair is averaged.
      unbiased: takes off what the spread of that average adds to the loss, by halves of the draws.
      policy: whose samples are compared, 'student' or 'reference'.
      temperature: of Bradley-Terry comparisons in units of the reward, samples in twos; None for the best and the worst.
      outcomes: of these comparisons, 'drawn' or 'expected': the mean of the loss over both.
      reference_every: after so many updates the reference becomes what the student is; 0 for never.
      chunks: a rollout is cut into, so that rewards on the host judge one while the device draws the next; 0 for as many as
        that takes.
      failures: of a reward, 'stop' or 'skip'.
    """
    name = config.method.name
    refuse_unread(config, ["coupling"], name)  # the two of a comparison share their noise
    loss = loss or prediction
    for kind in (prediction, loss):
        choose("prediction", kind, dict.fromkeys(PREDICTIONS))
    total = choose("method.error", error, ERRORS)
    choose("method.policy", policy, dict.fromkeys((STUDENT, REFERENCE)))
    expected = choose("method.outcomes", outcomes, {DRAWN: False, EXPECTED: True})
    if beta <= 0 or reference_every < 0 or draws < 1:
        raise ValueError(
            f"method.beta={beta}, reference_every={reference_every}, draws={draws}: expected above 0, at least 0, at least 1."
        )
    if unbiased and draws % 2:
        raise ValueError(
            f"method.unbiased compares the loss of all draws with that of either half: draws={draws} should be an even number."
        )
    grouping = dict(group_size=group_size, updates=updates, chunks=chunks, failures=failures)
    of_data = groups.of_data(name, preference, rewards, rollout, **grouping, policy=policy, temperature=temperature)
    if expected and temperature is None:
        raise ValueError(
            "method.outcomes='expected' is the mean over comparisons by chance, and without method.temperature the best of a "
            "group is compared with its worst. Set a temperature, or leave outcomes out."
        )
    judged = build("objective", objective, OBJECTIVES, beta=beta)
    if judged.whole and (config.gradient_accumulation > 1 or config.parallel == "pmap"):
        raise ValueError(
            f"The method '{name}' compares each example with the whole batch. Use gradient_accumulation=1 and parallel='jit', "
            "whose batch may be spread over devices all the same."
        )
    setting = make_setting(config, data, prediction)
    halves = 2 if unbiased else 1
    of_half = draws // halves
    count = data.compared if of_data else 2  # examples of a comparison
    grouped, collect = None, None
    if not of_data:
        grouped = groups.make_groups(config, data, rewards, **grouping)
        sampler = groups.make_policy(setting, rollout, policy)
        collect = own_pairs(grouped, sampler, updates, temperature, expected, config.seed)
    elif data.compared not in judged.examples:
        found = {0: "compare nothing", 1: "judge each by itself"}.get(data.compared, f"rank {data.compared} examples")
        wanted = "compared in twos" + (", or judged by themselves" if 1 in judged.examples else "")
        raise ValueError(
            f"The method '{name}' learns from examples {wanted}, and these data {found}. Use a data source of such "
            "comparisons, or set method.rewards and method.rollout to compare the model's own samples."
        )

    def times_of(rows: Array, key: Array, key_strata: Array, index: int) -> Float[Array, " b"]:
        """One of the times of each example: spread over the batch where there is one, else over those of its half."""
        if of_half == 1:
            return sample_times(setting.times, example_keys(key, rows), rows, setting.batch_size, key_strata)
        return setting.times.quantile((index % of_half + uniform_rows(example_keys(key, rows))) / of_half)

    def costs(
        params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, "halves k b"], Float[Array, " n"]]:
        """What tuning has cost on the examples of each comparison by either half, and the times at which that was measured."""
        rows, cond = batch["row"], conditions_of(batch)
        keys = [jax.random.fold_in(key, index) for index in range(draws)]
        key_dropout = jax.random.fold_in(key, draws)
        drawn = [jax.random.split(one, 3) for one in keys]
        t = jnp.concatenate([times_of(rows, *one[:2], index) for index, one in enumerate(drawn)])
        noise = jnp.concatenate([fresh_noise(setting, batch, one[2]) for one in drawn])
        # All of a comparison one after the other, each as often as it is noised.
        of_each = lambda array: jnp.concatenate([array] * count)
        often = lambda array: jnp.concatenate([array] * draws)
        compared = [batch["data"], *(batch["others"][:, place] for place in range(count - 1))]
        examples = jnp.concatenate([often(array) for array in compared])
        noises, times = of_each(noise), of_each(t)
        conds = {name: of_each(often(array)) for name, array in cond.items()}
        x = setting.path.sample(noises, examples, times)
        wanted = target(setting.path, prediction, noises, examples, times)
        scale = error_ratio(setting.path, prediction, loss, times) ** 2
        scale *= loss_weight(setting.weight, setting.path, loss, times)

        def missed(tree, **more) -> Float[Array, " n"]:
            return scale * total((setting.network.apply(tree, x, times, conds, **more) - wanted) ** 2)

        dropout = of_each(often(example_keys(key_dropout, rows)))  # alike for all of a comparison
        cost = missed(params[STUDENT], keys=dropout) - jax.lax.stop_gradient(missed(params[REFERENCE]))
        return jnp.mean(cost.reshape(count, halves, of_half, len(rows)), axis=2).swapaxes(0, 1), t

    def value_of(costs_of_all: Float[Array, "k b"], batch: Batch) -> tuple[Float[Array, " b"], Metrics]:
        """The loss of each comparison, and what it reports."""
        outcome = batch["outcome"].astype(jnp.float32)
        if not expected:
            value, metrics = judged.value(costs_of_all, outcome, batch["mask"])
            return value * jnp.abs(outcome), metrics
        won, lost = (judged.value(costs_of_all, jnp.full_like(outcome, side), batch["mask"]) for side in (1.0, -1.0))
        return jax.tree.map(lambda one, other: 0.5 * ((1.0 + outcome) * one + (1.0 - outcome) * other), won, lost)

    def phase_loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        found, t = costs(params, batch, key)
        value, metrics = value_of(jnp.mean(found, axis=0), batch)
        if unbiased:
            # A half's mean spreads twice as much as that of all, and so does what that adds to the loss.
            value = 2.0 * value - 0.5 * sum(value_of(half, batch)[0] for half in found)
        return value, {**metrics, **({"t": t} if draws == 1 else {})}

    def reference_check(params: Params, batch: Batch, key: Key[Array, ""]) -> CheckResult:
        # Whichever is better, the loss is that; and it is that of comparisons too of which a mask leaves out all.
        level = {name: jnp.ones_like(batch[name]) for name in ("outcome", "mask")}
        value, _ = phase_loss(params, {**batch, **level}, key)
        found = float(jnp.mean(value))
        return CheckResult(
            "loss at the reference",
            abs(found - judged.at_reference) < 1e-3 * judged.at_reference,
            f"measured {found:.6f}, closed form {judged.at_reference:.6f}",
            "Student and reference differ before the first update: use precision='float32' and a network without dropout.",
        )

    follow = None
    if reference_every:
        follow = Track(STUDENT, lambda step: jnp.where((step + 1) % reference_every == 0, 1.0, 0.0))
    return Method(
        roles=joined(
            {STUDENT: student_role(config, setting.network), REFERENCE: Role(copy_of=STUDENT, track=follow)},
            grouped.judge.roles if grouped is not None else {},
            average_roles(config),
        ),
        phases={"preference": Phase(phase_loss, trains=(STUDENT,))},
        samplers=make_samplers(config, setting),
        collect=collect,
        checks={"reference": reference_check},
        readings={**judged.readings, **(groups.READINGS if grouped is not None else {})},
    )


dpo = preset(preference, objective=dict(name="paired"))
kto = preset(preference, objective=dict(name="unpaired"))

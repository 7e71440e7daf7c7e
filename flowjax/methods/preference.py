r"""Preferences without a policy's likelihood: Diffusion-DPO and Flow-DPO, and Diffusion-KTO (losses/preference.py).

    cost = (error of the student - error of the reference)    at a point of the path through an example,

the two examples of a comparison at equal noise and equal time. Two places to have comparisons from:

* a data source of comparisons (data/comparisons.py): `data` and `others` [b, 1, ...] with `outcome` 1 where the first is
  better, -1 where the other is, 0 for a tie, which teaches nothing;
* the student itself, where `rewards` and `rollout` are given: of each group of samples the best and the worst are compared.

| method | published                                                                                                      |
| dpo    | error 'mean', of the noise, beta 5000 (Wallace et al. 2023); of the velocity, beta 100, online with the        |
|        | reference following every 40 updates (Liu et al. 2025)                                                         |
| kto    | error 'mean', of the noise, beta 1000 (Li et al. 2024)                                                         |

beta is in units of the error: of one that is summed over D elements, beta is D times smaller for the same effect.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from flowjax.arrays import example_keys, mean_per_example, sum_per_example
from flowjax.choices import Spec, choose
from flowjax.contract import Batch, CheckResult, Collect, DataSpec, Method, Metrics, Params, Phase, Role, Track
from flowjax.losses.preference import average_gain, paired_preference_loss, unpaired_preference_loss
from flowjax.methods import groups
from flowjax.methods.parts import (
    average_roles,
    conditions_of,
    fresh_noise,
    joined,
    make_samplers,
    make_setting,
    student_role,
)
from flowjax.paths.predictions import PREDICTIONS, error_ratio, target
from flowjax.paths.times import sample_times
from flowjax.paths.weights import loss_weight

STUDENT, REFERENCE = "student", "reference"
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


def dpo(
    config: ConfigDict,
    data: DataSpec,
    prediction: str = "velocity",
    loss: str | None = None,
    error: str = "mean",
    beta: float = 100.0,
    rewards: Spec | None = None,
    rollout: Spec | None = None,
    group_size: int = 8,
    updates: int = 1,
    reference_every: int = 0,
    chunks: int = 1,
    failures: str = "stop",
) -> Method:
    """Direct preference optimisation on pairs.

    Args:
      config: path, time, weight, noise, network, preconditioning, optimizer, ema, samplers, restore.
      data: shape and conditions.
      prediction: what the network outputs.
      loss: the prediction in whose space errors are measured; the network's own unless told.
      error: over the elements of an example, 'mean' or 'sum'.
      beta: how firmly the reference holds, for that error.
      rewards: name -> spec of flowjax.rewards with a weight, to compare the student's own samples; None for comparisons that
        the data bring.
      rollout: spec of any sampler (samplers/build.py), without a role, where there are rewards.
      group_size: samples of which the best and the worst are compared.
      updates: of the parameters with one rollout.
      reference_every: after so many updates the reference becomes what the student is; 0 for never.
      chunks: a rollout is cut into, so that rewards on the host judge one while the device draws the next.
      failures: of a reward, 'stop' or 'skip'.
    """

    def objective(
        costs: tuple[Array, Array], outcome: Float[Array, " b"], batch: Batch
    ) -> tuple[Float[Array, " b"], Metrics]:
        first, second = costs
        better, worse = jnp.where(outcome > 0, first, second), jnp.where(outcome > 0, second, first)
        value, metrics = paired_preference_loss(better, worse, beta)
        return value, metrics

    made = dict(prediction=prediction, loss=loss, error=error, beta=beta, reference_every=reference_every)
    rolled = dict(
        rewards=rewards, rollout=rollout, group_size=group_size, updates=updates, chunks=chunks, failures=failures
    )
    return _preference("dpo", config, data, objective, float(np.log(2.0)), PAIRED_READINGS, **made, **rolled)


def kto(
    config: ConfigDict,
    data: DataSpec,
    prediction: str = "velocity",
    loss: str | None = None,
    error: str = "mean",
    beta: float = 100.0,
    weight_good: float = 1.0,
    weight_bad: float = 1.0,
    rewards: Spec | None = None,
    rollout: Spec | None = None,
    group_size: int = 8,
    updates: int = 1,
    reference_every: int = 0,
    chunks: int = 1,
    failures: str = "stop",
) -> Method:
    """Utilities of examples that are good or bad, felt from where one stands.

    Args:
      config: as `dpo`.
      data: as `dpo`. The two examples of a comparison count as a good one and a bad one, each for itself.
      prediction: as `dpo`.
      loss: as `dpo`.
      error: as `dpo`.
      beta: as `dpo`.
      weight_good: of good examples.
      weight_bad: of bad ones.
      rewards: as `dpo`.
      rollout: as `dpo`.
      group_size: as `dpo`.
      updates: as `dpo`.
      reference_every: as `dpo`.
      chunks: as `dpo`.
      failures: as `dpo`.
    """
    if weight_good < 0 or weight_bad < 0 or not weight_good + weight_bad:
        raise ValueError(
            f"method.weight_good={weight_good} and weight_bad={weight_bad}: expected weights, not both zero."
        )

    def objective(
        costs: tuple[Array, Array], outcome: Float[Array, " b"], batch: Batch
    ) -> tuple[Float[Array, " b"], Metrics]:
        cost, side = jnp.stack(costs, axis=1), jnp.stack([outcome, -outcome], axis=1)
        known = batch["mask"] * jnp.abs(outcome)
        gain = average_gain(cost.reshape(-1), jnp.repeat(known, 2))
        value, metrics = unpaired_preference_loss(
            cost.reshape(-1), side.reshape(-1), gain, beta, weight_good, weight_bad
        )
        of_pair = lambda array: jnp.mean(array.reshape(-1, 2), axis=1)
        named = {name: of_pair(array) for name, array in metrics.items()}
        return of_pair(value), {**named, "gain": jnp.broadcast_to(gain, outcome.shape)}

    made = dict(prediction=prediction, loss=loss, error=error, beta=beta, reference_every=reference_every)
    rolled = dict(
        rewards=rewards, rollout=rollout, group_size=group_size, updates=updates, chunks=chunks, failures=failures
    )
    expected = 0.25 * (weight_good + weight_bad)
    return _preference("kto", config, data, objective, expected, UNPAIRED_READINGS, **made, **rolled)


def _preference(
    name: str,
    config: ConfigDict,
    data: DataSpec,
    objective: Callable[..., tuple[Float[Array, " b"], Metrics]],
    at_reference: float,
    readings: Mapping[str, str],
    prediction: str,
    loss: str | None,
    error: str,
    beta: float,
    reference_every: int,
    rewards: Spec | None,
    rollout: Spec | None,
    **rolled: Any,
) -> Method:
    loss = loss or prediction
    for kind in (prediction, loss):
        choose("prediction", kind, dict.fromkeys(PREDICTIONS))
    total = choose("method.error", error, ERRORS)
    if beta <= 0 or reference_every < 0:
        raise ValueError(f"method.beta={beta} and reference_every={reference_every}: expected above 0, and at least 0.")
    if (rewards is None) != (rollout is None):
        raise ValueError(
            f"The method '{name}' compares its own samples with method.rewards and method.rollout, or the examples that the "
            "data compare with neither. Give both, or none."
        )
    setting = make_setting(config, data, prediction)
    grouped, collect = None, None
    if rewards is not None:
        grouped = groups.make_groups(
            config, data, rewards, rolled["group_size"], rolled["updates"], rolled["chunks"], rolled["failures"]
        )
        collect = _own_pairs(grouped, groups.make_policy(setting, rollout, STUDENT), rolled["updates"])

    def costs(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[tuple[Array, Array], Float[Array, " b"]]:
        """What tuning has cost on both examples of each comparison, and the times at which that was measured."""
        key_time, key_strata, key_noise, key_dropout = jax.random.split(key, 4)
        rows = batch["row"]
        t = sample_times(setting.times, example_keys(key_time, rows), rows, setting.batch_size, key_strata)
        noise, cond = fresh_noise(setting, batch, key_noise), conditions_of(batch)
        twice = lambda array: jnp.concatenate([array, array])
        examples = jnp.concatenate([batch["data"], batch["others"][:, 0]])
        noises, times, conds = twice(noise), twice(t), {name: twice(array) for name, array in cond.items()}
        x = setting.path.sample(noises, examples, times)
        wanted = target(setting.path, prediction, noises, examples, times)
        scale = error_ratio(setting.path, prediction, loss, times) ** 2 * loss_weight(
            setting.weight, setting.path, loss, times
        )

        def missed(tree, **more) -> Float[Array, " b2"]:
            return scale * total((setting.network.apply(tree, x, times, conds, **more) - wanted) ** 2)

        keys = twice(example_keys(key_dropout, rows))  # of the network's dropout: alike for both of a comparison
        cost = missed(params[STUDENT], keys=keys) - jax.lax.stop_gradient(missed(params[REFERENCE]))
        return tuple(jnp.split(cost, 2)), t

    def phase_loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        _check_batch(name, batch)
        outcome = batch["outcome"].astype(jnp.float32)
        both, t = costs(params, batch, key)
        value, metrics = objective(both, outcome, batch)
        return value * jnp.abs(outcome), {**metrics, "t": t}

    def reference_check(params: Params, batch: Batch, key: Key[Array, ""]) -> CheckResult:
        value, _ = phase_loss(params, batch, key)
        told = batch["mask"] * jnp.abs(batch["outcome"])
        found = float(jnp.sum(value * told) / jnp.maximum(jnp.sum(told), 1.0))
        return CheckResult(
            "loss at the reference",
            abs(found - at_reference) < 1e-3 * at_reference,
            f"measured {found:.6f}, closed form {at_reference:.6f}",
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
        readings={**readings, **(groups.READINGS if grouped is not None else {})},
    )


def _check_batch(name: str, batch: Batch) -> None:
    if missing := [entry for entry in ("others", "outcome") if entry not in batch]:
        raise ValueError(
            f"The method '{name}' learns from comparisons, and the data bring no '{missing[0]}'. Use a data source of "
            "comparisons, or set method.rewards and method.rollout to compare the model's own samples."
        )
    if batch["others"].shape[1] != 1:
        raise ValueError(
            f"The method '{name}' compares two examples, and these data rank {batch['others'].shape[1] + 1}. Cut them to pairs."
        )


def _own_pairs(grouped: groups.Groups, policy: Any, updates: int) -> Collect:
    """Comparisons of the student's own samples: of each group the best with the worst."""

    def make_samples(params: Params, batch: Batch, key: Key[Array, ""]) -> dict:
        samples, cond = groups.draw_groups(grouped, policy, params, batch, key)
        return grouped.judged(params, samples, cond, {"data": samples, "row": batch["row"]})

    def batches(arrays: Mapping[str, np.ndarray], worth: Float[np.ndarray, " n"]) -> list[dict[str, np.ndarray]]:
        best, worst, told = extremes(worth, grouped.group_size)
        compared = {name: array[best] for name, array in arrays.items()}
        compared |= {"others": arrays["data"][worst][:, None], "outcome": told, "mask": told.astype(np.float32)}
        return groups.split_rows(compared, np.split(np.arange(len(best)), updates))

    return grouped.collect(make_samples, batches, updates)


def extremes(
    worth: Float[np.ndarray, " n"], group_size: int
) -> tuple[Int[np.ndarray, " g"], Int[np.ndarray, " g"], Int[np.ndarray, " g"]]:
    """The best and the worst sample of each group, and 1 where they differ, 0 where nothing is told.

    Args:
      worth: of samples, group by group; NaN where it is not known.
      group_size: of each group.
    """
    rows = worth.reshape(-1, group_size)
    first = np.arange(len(rows)) * group_size
    high, low = np.where(np.isnan(rows), -np.inf, rows), np.where(np.isnan(rows), np.inf, rows)
    told = (high.max(axis=1) > low.min(axis=1)).astype(np.int32)
    return first + high.argmax(axis=1), first + low.argmin(axis=1), told

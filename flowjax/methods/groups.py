"""Samples in groups that share their conditions, and what they are worth: where every method begins that learns from rewards.

A rollout draws `batch_size` samples in groups of `group_size`; those of a group are compared with one another. Rewards in JAX
are evaluated with the rollout, those on the host while the device draws the next chunk (contract.Collect). A sample whose worth
is not known, because a reward failed and failures are skipped, takes no part in what follows.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from flowjax.arrays import example_keys
from flowjax.choices import Spec
from flowjax.contract import Batch, Collect, DataSpec, Method, Params, Role, Sampler
from flowjax.losses.policy import group_advantages
from flowjax.methods.parts import Setting, conditions_of, refuse_idle, sampler_of
from flowjax.models.network import Conditions
from flowjax.rewards import REWARDS, Rewards, make_rewards

READINGS = {
    "collect/flat": "The share of groups whose samples are all worth the same: they teach nothing.",
    "collect/spread": "The mean distance of samples of a group. It falls with the divergence; to zero, and they are all alike.",
    "collect/failed": "The share of samples whose worth is not known: of a reward that failed, with failures='skip'.",
}
OVERLAPPED = 4  # chunks, unless told: the last is judged while the device waits, and small ones draw less well
# What returns `Groups.judged`.
Rollout = Callable[[Params, Batch, Key[Array, ""]], dict[str, Any]]
Values = Mapping[str, Array | np.ndarray]  # reward -> what it gave each sample
# (arrays of the rollout, what the rewards gave, step) -> the batches of a period.
Batches = Callable[[Mapping[str, np.ndarray], Values, int], Sequence[dict[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Groups:
    """How samples are grouped and judged.

    Attributes:
      judge: what they are worth.
      batch_size: of a rollout.
      group_size: samples that are compared with one another.
      chunks: into how many parts a rollout is cut.
    """

    judge: Rewards
    batch_size: int
    group_size: int
    chunks: int

    @property
    def index(self) -> Int[np.ndarray, " n"]:
        """To which group each sample belongs."""
        return np.arange(self.batch_size) // self.group_size

    def leaders(self, batch: Batch) -> Int[Array, " b"]:
        """The first of the group of each example of a batch, or of a chunk of it."""
        return jnp.arange(len(batch["row"])) // self.group_size * self.group_size

    def conditions(self, batch: Batch) -> Conditions:
        """The conditions of a batch, those of the first of each group for all of it."""
        leader = self.leaders(batch)
        return {name: array[leader] for name, array in conditions_of(batch).items()}

    def rollout(self, policy: Sampler) -> Rollout:
        """What draws samples of a batch's rows under the conditions of their groups, and has them judged.

        A sample depends on the key of the rollout, its row and its conditions alone.
        """

        def rollout(params: Params, batch: Batch, key: Key[Array, ""]) -> dict[str, Any]:
            cond = self.conditions(batch)
            samples = jax.lax.stop_gradient(policy.draw(params, cond, example_keys(key, batch["row"])))
            return self.judged(params, samples, cond, {"data": samples, "row": batch["row"]})

        return rollout

    def with_advantages(
        self, updates: int, scope: str, limit: float, floor: float = 1e-4, unbiased: bool = False
    ) -> Batches:
        """Batches of samples with their advantages, of which a mask leaves out what teaches nothing: one that is not known, and
        one of zero unless there is nothing else.

        Args:
          updates: how many batches.
          scope, limit, floor, unbiased: of losses.policy.group_advantages.
        """

        def batches(arrays: Mapping[str, np.ndarray], values: Values, step: int) -> list[dict[str, np.ndarray]]:
            found = self.judge.advantages(values, self.index, scope, limit, floor, unbiased)
            whole = {**arrays, "rollout_advantage": np.nan_to_num(found)}
            parts = split_rows(whole, np.split(np.arange(len(found)), updates))
            known = np.split(~np.isnan(found), updates)
            teaches = lambda told: np.where(told.any(), told != 0, True)
            return [
                {**part, "mask": (teaches(part["rollout_advantage"]) & some).astype(np.float32)}
                for part, some in zip(parts, known)
            ]

        return batches

    def judged(
        self, params: Params, samples: Float[Array, "b ..."], cond: Conditions, arrays: Mapping[str, Array]
    ) -> dict[str, Any]:
        """What a rollout returns: arrays for the loss, and what samples are worth as far as it is known on the device."""
        made = {"batch": {**arrays, **cond}, "rewards": self.judge.values(params, samples, cond)}
        return {**made, "judged": samples} if self.judge.hosted else made

    def collect(
        self,
        rollout: Rollout,
        batches: Batches,
        every: int,
        brings: Mapping[str, Role] | None = None,
    ) -> Collect:
        """A collection in groups.

        Args:
          rollout: what returns `judged`.
          batches: (arrays of the rollout, what the rewards gave, step) -> the batches of a period, `every` of them.
          every: how many updates learn from one rollout.
          brings: roles that what draws the rollout reads.
        """
        score = (
            (lambda made: self.judge.score(made["judged"], conditions_of(made["batch"]))) if self.judge.hosted else None
        )
        return Collect(
            rollout,
            lambda made, scores, step: batches(made["batch"], {**made["rewards"], **(scores or {})}, step),
            every,
            score=score,
            chunks=self.chunks,
            metrics=self._figures,
            drawn=self.batch_size,
            brings=brings or {},
        )

    def worth(self, values: Values) -> Float[np.ndarray, " n"]:
        """What each sample is worth; NaN where it is not known."""
        return self.judge.total(values, self.index)

    def _figures(self, made: Mapping[str, Any], scores: Mapping[str, np.ndarray] | None) -> dict[str, float]:
        drawn = made["batch"]["data"]
        samples = np.reshape(drawn, (-1, self.group_size, np.prod(drawn.shape[1:])))
        values = {**made["rewards"], **(scores or {})}
        means = {f"reward_{name}": mean_of_known(value) for name, value in values.items()}
        flat = group_advantages(self.worth(values), self.index).flat
        failed = {"failed": self.judge.failed(values)} if self.judge.failures == "skip" else {}
        return {**means, "flat": flat, "spread": spread(samples), **failed}


def make_groups(
    config: ConfigDict,
    data: DataSpec,
    rewards: Spec,
    group_size: int,
    updates: int = 1,
    chunks: int = 0,
    failures: str = "stop",
) -> Groups:
    """Groups of a config; sizes that do not divide are refused.

    Args:
      config: batch_size.
      data: what is drawn.
      rewards: name -> spec of flowjax.rewards with a weight.
      group_size: samples that are compared with one another.
      updates: of the parameters with one rollout: each takes whole groups.
      chunks: in which rewards on the host judge a rollout; 0 for up to four of whole groups, and one where none is on the host.
      failures: of a reward, 'stop' or 'skip'.
    """
    size, least = config.batch_size, max(chunks, 1)
    if min(group_size - 1, updates, chunks + 1) < 1 or size % (group_size * updates) or size % (group_size * least):
        parts = int(np.lcm(max(updates, 1), least))
        raise ValueError(
            f"batch_size={size} samples in groups of method.group_size={group_size} for method.updates={updates} updates, "
            f"judged in method.chunks={least}: each takes whole groups of two or more. Use a multiple of "
            f"{max(group_size, 2) * parts}."
        )
    judge = make_rewards(rewards, REWARDS, failures=failures, data=data)
    if chunks > 1 and not judge.hosted:
        raise ValueError(
            f"method.chunks is {chunks}, but all rewards are judged on the device with the rollout: there is nothing to "
            "overlap. Leave it out."
        )
    if not chunks:
        chunks = max(parts for parts in range(1, OVERLAPPED + 1) if size % (group_size * parts) == 0)
        chunks = chunks if judge.hosted else 1
    return Groups(judge, size, group_size, chunks)


def of_data(
    name: str, method: Callable[..., Method], rewards: Spec | None, rollout: Spec | None, **of_rollouts: Any
) -> bool:
    """Whether a method learns from comparisons that the data bring, having neither rewards nor a rollout.

    Args:
      name: of the method.
      method: whose defaults its options have.
      rewards, rollout: of the method; one without the other is refused.
      **of_rollouts: options that do nothing without a rollout, and are refused then.
    """
    if (rewards is None) != (rollout is None):
        raise ValueError(
            f"The method '{name}' compares its own samples with method.rewards and method.rollout, or the examples that the "
            "data compare with neither. Give both, or none."
        )
    if rewards is None:
        refuse_idle(method, "it is of rollouts, and method.rollout is not given", **of_rollouts)
    return rewards is None


def make_policy(setting: Setting, spec: Spec, role: str, who: str = "method.rollout") -> Sampler:
    """The sampler of a rollout, of any kind.

    Args:
      setting: of the network.
      spec: of samplers/build.py, without a role.
      role: whose parameters draw.
      who: has the spec, for messages.
    """
    spec = ConfigDict(dict(spec)).to_dict()
    if "role" in spec:
        raise ValueError(f"{who} has role='{spec['role']}', but the method itself says who draws. Drop it.")
    return sampler_of({**spec, "role": role}, setting)


def split_rows(arrays: Mapping[str, np.ndarray], rows: Sequence[Int[np.ndarray, " m"]]) -> list[dict[str, np.ndarray]]:
    """The arrays of some rows, for each of several batches."""
    return [{name: array[some] for name, array in arrays.items()} for some in rows]


def bounds(
    worth: Float[np.ndarray, " n"], group_size: int
) -> tuple[Float[np.ndarray, "g k"], Float[np.ndarray, "g k"], Bool[np.ndarray, " g"]]:
    """What samples are worth, group by group, for finding the best and the worst: with what is not known below all others,
    and above them. And in which groups anything is told: where two differ.

    Args:
      worth: NaN where it is not known.
      group_size: samples of a group.
    """
    rows = worth.reshape(-1, group_size)
    high, low = np.where(np.isnan(rows), -np.inf, rows), np.where(np.isnan(rows), np.inf, rows)
    return high, low, high.max(axis=1) > low.min(axis=1)


def spread(samples: Float[np.ndarray, "g n d"]) -> float:
    """The mean distance of two samples of a group, per root of an element."""
    count, size = samples.shape[1:]
    centred = np.asarray(samples, np.float64) - np.mean(samples, axis=1, keepdims=True)  # so that little cancels
    products = centred @ centred.swapaxes(1, 2)
    lengths = np.diagonal(products, axis1=1, axis2=2)
    away = np.sqrt(np.maximum(lengths[:, :, None] + lengths[:, None] - 2 * products, 0.0) / size)
    return float(away.sum(axis=(1, 2)).mean() / (count * (count - 1)))


def mean_of_known(values: Float[np.ndarray, " n"]) -> float:
    """The mean of what is known; NaN where nothing is."""
    known = np.asarray(values)[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")

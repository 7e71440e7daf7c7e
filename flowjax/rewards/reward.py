"""The protocol of rewards, and several of them together.

A reward reads samples and the conditions they were drawn under, and gives one number for each sample, more being better. It is

    in JAX         `value`, evaluated where the samples are; a network that it reads is a role, so it is a function of the
                   parameters. A method may follow its gradient, where it says that it has one
    on the host    `score`, of NumPy arrays: Python, other processes, a server. All of them are asked at once, and calls of
                   several threads, for two chunks of a rollout say, do not disturb each other

    method.rewards = dict(
        far=dict(name="linear", direction=(1.0, 0.0)),
        near=dict(name="quadratic", weight=0.5),
        liked=dict(name="jax", function="my_rewards:liked"),
        right=dict(name="python", function="my_rewards:Right", processes=4),
    )

Rewards have units of their own. Where there are several, each is divided by its spread within groups before they are weighted
(losses/policy.py); one alone is taken as it is. Advantages are normalised once: that of several rewards is the weighted mean of
theirs.

A reward that raises, hangs or gives a number that is not finite stops the run (failures='stop'), or leaves its samples out
(failures='skip'): their total is NaN, and the others are compared as if those samples were not there. Nothing is ever trained
on such numbers. A wrong number of scores is a mistake in a program, and always an error.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from flowjax.choices import Spec, build, choose
from flowjax.contract import DataSpec, Params, Role
from flowjax.losses.policy import combined_rewards, group_advantages
from flowjax.rewards.calls import RewardMistake, Score, checked, concurrently, told

Values = Float[Array, " b"]
FAILURES = ("stop", "skip")


@dataclasses.dataclass(frozen=True)
class Reward:
    """What samples are worth: exactly one of `value` and `score`.

    Attributes:
      value: (params, samples [b, ...], conditions) -> one number for each, in JAX.
      score: (samples [b, ...], conditions) -> one number for each, NumPy arrays on the host. Several threads may call it.
      roles: what `value` reads of the parameters.
      differentiable: whether the gradient of `value` by the samples means something; that of a function in JAX does, unless
        this is False.
    """

    value: Callable[[Params, Float[Array, "b ..."], Mapping[str, Array]], Values] | None = None
    score: Score | None = None
    roles: Mapping[str, Role] = dataclasses.field(default_factory=dict)
    differentiable: bool | None = None

    def __post_init__(self):
        if (self.value is None) == (self.score is None):
            raise ValueError(
                f"A reward has {'neither' if self.value is None else 'both'} of value and score; expected one: value in JAX, "
                "or score on the host."
            )
        if self.differentiable is None:
            object.__setattr__(self, "differentiable", self.score is None)
        if self.score is not None and (self.differentiable or self.roles):
            raise ValueError(
                "A reward on the host has no gradient and reads no roles. Leave `differentiable` and `roles` out, or write it "
                "in JAX, as `value`."
            )


@dataclasses.dataclass(frozen=True)
class Rewards:
    """Several rewards.

    Attributes:
      each: name -> reward.
      weights: name -> weight.
      failures: what becomes of samples without a finite reward, 'stop' or 'skip'.
    """

    each: Mapping[str, Reward]
    weights: Mapping[str, float]
    failures: str = "stop"

    def __post_init__(self):
        choose("way with failures of rewards", self.failures, dict.fromkeys(FAILURES))
        owners: dict[str, str] = {}
        for name, reward in self.each.items():
            for role, wanted in reward.roles.items():
                first = owners.setdefault(role, name)
                if self.each[first].roles[role] is not wanted:
                    raise ValueError(
                        f"The rewards '{first}' and '{name}' both have a role '{role}', and not the same one. Give one of "
                        "their roles another name."
                    )

    @property
    def roles(self) -> dict[str, Role]:
        """What all of them read."""
        return {name: role for reward in self.each.values() for name, role in reward.roles.items()}

    @property
    def hosted(self) -> dict[str, Reward]:
        """Those that are scored on the host."""
        return {name: reward for name, reward in self.each.items() if reward.score is not None}

    def values(self, params: Params, samples: Float[Array, "b ..."], cond: Mapping[str, Array]) -> dict[str, Values]:
        """name -> one number for each sample, of the rewards in JAX."""
        return {
            name: reward.value(params, samples, cond) for name, reward in self.each.items() if reward.value is not None
        }

    def score(
        self, samples: Shaped[np.ndarray, "b ..."], cond: Mapping[str, np.ndarray]
    ) -> dict[str, Float[np.ndarray, " b"]]:
        """name -> one number for each sample, of the rewards on the host, which are all asked at once.

        With failures='skip', one that raises gives NaN for all of the samples, and says so in a line on stderr.

        Args:
          samples: of one chunk, say.
          cond: their conditions.
        """
        samples, cond = _lent(samples), {name: _lent(array) for name, array in cond.items()}
        ask = lambda name, reward: lambda: self._asked(name, reward.score, samples, cond)
        found = concurrently([ask(name, reward) for name, reward in self.hosted.items()])
        return dict(zip(self.hosted, found))

    def _asked(self, name: str, score: Score, samples: np.ndarray, cond: Mapping[str, np.ndarray]) -> np.ndarray:
        try:
            return checked(score(samples, cond), len(samples), "It")
        except RewardMistake as error:
            raise RewardMistake(f"The reward '{name}' is wrong: {error}") from error
        except Exception as error:
            if self.failures == "stop":
                kind = TimeoutError if isinstance(error, TimeoutError) else RuntimeError
                raise kind(
                    f"The reward '{name}' failed: {told(error)} Mend it, or set failures='skip' to leave such samples out."
                ) from error
            print(
                f"The reward '{name}' failed, and {len(samples)} samples are left out: {told(error)}",
                file=sys.stderr,
                flush=True,
            )
            return np.full(len(samples), np.nan)

    def total(
        self, values: Mapping[str, Array | np.ndarray], groups: Int[np.ndarray, " n"], **spread: Any
    ) -> Float[np.ndarray, " n"]:
        """One number for each sample: the only reward times its weight, or the weighted mean of several by their spread.

        NaN for a sample that is left out; the others' total does not depend on it.

        Args:
          values: what `values` and `score` gave, together.
          groups: which samples are compared with one another.
          **spread: of several, options of losses.policy.combined_rewards.
        """
        values = self._complete(values)
        finite = np.logical_and.reduce([np.isfinite(value) for value in values.values()])
        if self.failures == "stop" and not finite.all():
            name, wrong = next(
                (name, ~np.isfinite(value)) for name, value in values.items() if not np.isfinite(value).all()
            )
            raise ValueError(
                f"The reward '{name}' is no finite number for {wrong.sum()} of {len(wrong)} samples, of which the first is "
                f"sample {wrong.argmax()}. Nothing is trained on that: mend the reward, or set failures='skip' to leave such "
                "samples out."
            )
        total = np.full(len(finite), np.nan)
        kept = {name: value[finite] for name, value in values.items()}
        if len(kept) == 1:
            ((name, value),) = kept.items()
            total[finite] = self.weights[name] * value
        elif finite.any():
            total[finite] = combined_rewards(kept, dict(self.weights), np.asarray(groups)[finite], **spread)
        return total

    def advantages(
        self,
        values: Mapping[str, Array | np.ndarray],
        groups: Int[np.ndarray, " n"],
        scope: str,
        limit: float,
        floor: float,
        unbiased: bool,
    ) -> Float[np.ndarray, " n"]:
        """How much more each sample is worth than those it is compared with: equation (3) of losses/policy.py of the only
        reward, (4) of several. NaN for a sample that is left out.

        Args:
          values, groups: as for `total`.
          scope, limit, floor, unbiased: of losses.policy.group_advantages.
        """
        if len(self.each) > 1:
            found = self.total(values, groups, scope=scope, floor=floor, unbiased=unbiased)
            return np.clip(found, -limit, limit).astype(np.float32)
        worth = self.total(values, groups)
        found = group_advantages(worth, np.asarray(groups), scope, limit, floor, unbiased).values
        return np.where(np.isnan(worth), np.float32(np.nan), found)

    def failed(self, values: Mapping[str, Array | np.ndarray]) -> float:
        """The share of samples that are left out: those with a reward that is no finite number.

        Args:
          values: as for `total`.
        """
        values = self._complete(values)
        return float(np.mean(~np.logical_and.reduce([np.isfinite(value) for value in values.values()])))

    def _complete(self, values: Mapping[str, Array | np.ndarray]) -> dict[str, np.ndarray]:
        if values.keys() != self.each.keys():
            raise ValueError(
                f"There are values of the rewards {sorted(values)}; expected {sorted(self.each)}: those of `values`, in JAX, "
                "together with those of `score`, on the host."
            )
        return {name: np.asarray(value, np.float64) for name, value in values.items()}

    def refuse_without_gradient(self, method: str) -> None:
        """Refuses rewards whose gradient cannot be followed.

        Args:
          method: what would follow it, for the message.
        """
        without = [name for name, reward in self.each.items() if not reward.differentiable]
        if without:
            where = "is scored on the host" if without[0] in self.hosted else "says that its gradient means nothing"
            raise ValueError(
                f"{method} follows the gradient of its rewards, and the reward '{without[0]}' {where}. Use rewards in JAX that "
                "have one, or a method that needs none, such as flow_grpo."
            )

    def weighted(self, values: Mapping[str, Values]) -> Values:
        """The sum of rewards times their weights, in JAX, to be differentiated.

        Args:
          values: what `values` gave.
        """
        self.refuse_without_gradient("A weighted sum")
        return sum(weight * values[name] for name, weight in self.weights.items())


def _lent(array: Any) -> np.ndarray:
    """An array that several functions may read and none may change; bfloat16, which NumPy has not, as float32."""
    view = np.asarray(array).view()
    view = view.astype(np.float32) if view.dtype.kind == "V" else view
    view.flags.writeable = False
    return view


def make_rewards(
    specs: Spec, table: Mapping[str, Callable[..., Reward]], failures: str = "stop", data: DataSpec | None = None
) -> Rewards:
    """Rewards of a config.

    Args:
      specs: name -> spec of `table`, with a weight (1 unless told).
      table: the kinds of rewards.
      failures: what becomes of samples without a finite reward: 'stop' the run, or 'skip' them.
      data: what samples and conditions look like, for rewards that refuse what they cannot read.
    """
    if not specs:
        raise ValueError(
            "No reward is named, so nothing would be preferred. Name one, as rewards=dict(bright=dict(name='brightness'))."
        )
    each, weights = {}, {}
    for name, spec in specs.items():
        spec = dict(spec)
        weights[name] = float(spec.pop("weight", 1.0))
        if not np.isfinite(weights[name]) or not weights[name]:
            raise ValueError(
                f"The reward '{name}' has weight={weights[name]}; expected a finite number other than zero."
            )
        each[name] = build(f"reward '{name}'", spec, table, data=data)
    return Rewards(each, weights, failures)

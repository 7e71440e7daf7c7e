"""The protocol of rewards, and several of them together.

A reward reads samples and the conditions they were drawn under, and gives one number for each sample, more being better. It is
a function in JAX, evaluated where the samples are; a network that it reads is a role, so it is a function of the parameters.

    method.rewards = dict(
        right=dict(name="linear", direction=(1.0, 0.0)),
        near=dict(name="quadratic", weight=0.5),
    )

Rewards have units of their own. Where there are several, each is divided by its spread within groups before they are weighted
(losses/policy.py); one alone is taken as it is.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Array, Float, Int

from flowjax.choices import Spec, build
from flowjax.contract import Params, Role
from flowjax.losses.policy import combined_rewards

Values = Float[Array, " b"]


@dataclasses.dataclass(frozen=True)
class Reward:
    """What samples are worth.

    Attributes:
      value: (params, samples [b, ...], conditions) -> one number for each.
      roles: what it reads of the parameters.
    """

    value: Callable[[Params, Float[Array, "b ..."], Mapping[str, Array]], Values]
    roles: Mapping[str, Role] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Rewards:
    """Several rewards.

    Attributes:
      each: name -> reward.
      weights: name -> weight.
    """

    each: Mapping[str, Reward]
    weights: Mapping[str, float]

    @property
    def roles(self) -> dict[str, Role]:
        """What all of them read."""
        return {name: role for reward in self.each.values() for name, role in reward.roles.items()}

    def values(self, params: Params, samples: Float[Array, "b ..."], cond: Mapping[str, Array]) -> dict[str, Values]:
        """name -> one number for each sample."""
        return {name: reward.value(params, samples, cond) for name, reward in self.each.items()}

    def total(self, values: Mapping[str, np.ndarray], groups: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """One number for each sample: the only reward times its weight, or the weighted mean of several by their spread.

        Args:
          values: what `values` gave.
          groups: which samples are compared with one another.
        """
        values = {name: np.asarray(value, np.float64) for name, value in values.items()}
        if len(values) == 1:
            ((name, value),) = values.items()
            return self.weights[name] * value
        return combined_rewards(values, dict(self.weights), groups)


def make_rewards(specs: Spec, table: Mapping[str, Callable[..., Reward]]) -> Rewards:
    """Rewards of a config.

    Args:
      specs: name -> spec of `table`, with a weight (1 unless told).
      table: the kinds of rewards.
    """
    if not specs:
        raise ValueError(
            "method.rewards is empty, so nothing would be preferred. Name one, as rewards=dict(bright=dict(name='brightness'))."
        )
    each, weights = {}, {}
    for name, spec in specs.items():
        spec = dict(spec)
        weights[name] = float(spec.pop("weight", 1.0))
        if not np.isfinite(weights[name]) or not weights[name]:
            raise ValueError(
                f"The reward '{name}' has weight={weights[name]}; expected a finite number other than zero."
            )
        each[name] = build(f"reward '{name}'", spec, table)
    return Rewards(each, weights)

r"""The Gaussian step p(x' | x) = N(mean, std^2 I) that stochastic samplers draw from and policy losses score.

    log p(x') = sum_i [ -(x'_i - mean_i)^2 / (2 std^2) - log std - log(2 pi) / 2 ],
    KL(p, q)  = sum_i [ log(std_q / std_p) + (std_p^2 + (mean_p - mean_q)^2) / (2 std_q^2) - 1/2 ],
    H(p)      = sum_i [ log std + log(2 pi e) / 2 ].

One object does both, so that the density that is scored is the density that was drawn from.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flowjax.arrays import expand_to, mean_per_example, normal_rows, sum_per_example

REDUCTIONS = {"sum": sum_per_example, "mean": mean_per_example}


@dataclasses.dataclass(frozen=True)
class Transition:
    """N(mean, std^2 I). A std of 0 is a deterministic step: it samples its mean and has no density.

    Attributes:
      mean: the mean of each example.
      std: one standard deviation for all, one for each example, or one for each element.
    """

    mean: Float[Array, "b ..."]
    std: Float[Array, "..."]

    def _std(self) -> Float[Array, "..."]:
        std = jnp.asarray(self.std, self.mean.dtype)
        return std if std.ndim == 0 else expand_to(std, self.mean)

    def sample(self, keys: Key[Array, " b"]) -> Float[Array, "b ..."]:
        """mean + std z, with z drawn from one key for each example."""
        return self.mean + self._std() * normal_rows(keys, self.mean.shape[1:], self.mean.dtype)

    def log_prob(self, x: Float[Array, "b ..."], reduction: str = "sum") -> Float[Array, " b"]:
        """log p(x) of each example, over its elements: 'sum' is the log-density, 'mean' its average per element.

        Policy losses of Flow-GRPO use the mean, which changes the scale of their clipping range.
        """
        std = self._std()
        terms = -0.5 * ((x - self.mean) / std) ** 2 - jnp.log(std) - 0.5 * math.log(2 * math.pi)
        return REDUCTIONS[reduction](terms)

    def kl(self, other: "Transition", reduction: str = "sum") -> Float[Array, " b"]:
        """KL(self, other) of each example, summed (or averaged) over its elements."""
        std, other_std = self._std(), other._std()
        ratio = std / other_std
        terms = 0.5 * (ratio**2 - 1.0 + ((self.mean - other.mean) / other_std) ** 2) - jnp.log(ratio)
        return REDUCTIONS[reduction](terms)

    def entropy(self, reduction: str = "sum") -> Float[Array, " b"]:
        """H of each example, summed (or averaged) over its elements."""
        terms = jnp.log(self._std()) + 0.5 * math.log(2 * math.pi * math.e)
        return REDUCTIONS[reduction](jnp.broadcast_to(terms, self.mean.shape))

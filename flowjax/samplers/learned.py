r"""Euler's steps with noise of a learned size (Zhang et al. 2025, ReinFlow): a deterministic flow made a chain of Gaussians,

    x' ~ N(x + h v(x, t), std(t)^2).                                                                               (1)

Unlike the steps of an SDE (stochastic.py) these do not keep the marginals of the flow: noise is added to be learnt from, and
taken away when that is over. With std = 0 the chain is Euler's method.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.samplers.field import Field
from flowjax.samplers.stochastic import GaussianStepper
from flowjax.samplers.transition import Transition


@dataclasses.dataclass(frozen=True)
class LearnedNoise(GaussianStepper):
    """Equation (1).

    Attributes:
      std: t -> standard deviations, like x.
      limit: means are kept between minus this and this; None leaves them alone.
    """

    std: Callable[[Any], Array] | None = None
    limit: float | None = None

    def transition(self, field: Field, x: Float[Array, "b ..."], t: Any, t_next: Any) -> Transition:
        """The Gaussian of one step."""
        mean = x + (t_next - t) * field.velocity(x, t)
        return Transition(mean if self.limit is None else jnp.clip(mean, -self.limit, self.limit), self.std(t))

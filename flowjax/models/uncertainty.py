"""u(t): the logarithm of the error that is to be expected at a time, learnt beside a network to weigh its loss.

exp(-u) error + u has its minimum over u at e^u = E[error] (Kendall et al. 2018; Karras et al. 2024), so every time counts
alike whatever the size of its error. Zero at the start.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.models.embeddings import octave_features


class LogVariance(nn.Module):
    """A linear function of waves of the time.

    Attributes:
      octaves: pairs of waves; they resolve steps of 2^-octaves.
    """

    octaves: int = 6

    @nn.compact
    def __call__(self, t: Float[Array, " b"]) -> Float[Array, " b"]:
        features = octave_features(t, self.octaves)
        return nn.Dense(1, kernel_init=nn.initializers.zeros, dtype=jnp.float32, name="output")(features)[:, 0]

r"""Adaptive layer norm: the embedding of time and condition shifts, scales and gates what a block does (adaLN-zero).

A block needs six vectors (shift, scale and gate, for attention and for the feed-forward part), for which DiT keeps a
6 h x h matrix in every block: a third of all its parameters. adaLN-LoRA (Wang et al. 2024, FiTv2) shares one such
matrix and lets a block add a correction of low rank r,

    vectors = W silu(e) + U_i D_i silu(e),     W [6 h, h] shared, D_i [r, h], U_i [6 h, r],

with W and U_i starting at zero, so that the blocks start as the identity as before.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flowjax.models.dense import Dense

MODULATIONS = {
    "full": "a matrix in every block",
    "lora": "one matrix for all blocks, and a correction of low rank in every block",
}


def modulate(x: Float[Array, "b n c"], shift: Float[Array, "b c"], scale: Float[Array, "b c"]) -> Float[Array, "b n c"]:
    """x (1 + scale) + shift, the same for every token of an example."""
    return x * (1 + scale[:, None]) + shift[:, None]


class Modulation(nn.Module):
    """`count` vectors, each a linear function of silu(embedding) that starts at zero.

    Attributes:
      count, features: how many vectors of which size.
      rank: of the linear function; None for a full matrix.
      dtype: the type it computes in.
    """

    count: int
    features: int
    rank: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, embedding: Float[Array, "b c"], shared: Float[Array, "b m"] | None = None
    ) -> list[Float[Array, "b f"]]:
        active, name = nn.silu(embedding), "linear"
        if self.rank is not None:
            init = nn.initializers.xavier_uniform()
            active, name = Dense(self.rank, kernel_init=init, dtype=self.dtype, name="down")(active), "up"
        size = self.count * self.features
        vectors = Dense(size, kernel_init=nn.initializers.zeros, dtype=self.dtype, name=name)(active)
        if shared is not None:
            vectors = vectors + shared
        return jnp.split(vectors, self.count, axis=-1)

"""The part of a transformer block that treats every token by itself.

    gelu     W_out gelu(W_in x)
    swiglu   W_out (silu(W_gate x) * W_in x)                                             (Shazeer 2020)

A gated layer has three matrices instead of two; with 2/3 of the hidden units both have as many parameters.
"""

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from flowjax.models.dense import Dense
from flowjax.models.embeddings import Dropout

FEED_FORWARDS = {"gelu": 1.0, "swiglu": 2.0 / 3.0}  # name -> hidden units over mlp_ratio * width


def feed_forward(
    x: Float[Array, "b n c"],
    kind: str,
    mlp_ratio: float,
    dropout: float,
    keys: Key[Array, " b"] | None,
    dtype: DTypeLike,
    prefix: str = "mlp",
) -> Float[Array, "b n c"]:
    """Tokens through one hidden layer; called in a module's compact method, to which its parameters belong.

    Args:
      x: tokens.
      kind: 'gelu' or 'swiglu'.
      mlp_ratio: hidden units over channels, times 2/3 for swiglu (rounded down).
      dropout: share of hidden units to drop when there are keys.
      keys: per-example dropout keys.
      dtype: the type it computes in.
      prefix: of the names of the layers.
    """
    size = x.shape[-1]
    hidden_size = int(size * mlp_ratio * FEED_FORWARDS[kind] + 1e-6)  # 1152 * 4 * 2/3 is 3072, also in binary
    init = nn.initializers.xavier_uniform()
    dense = lambda features, name: Dense(features, kernel_init=init, dtype=dtype, name=f"{prefix}_{name}")
    if kind == "swiglu":
        hidden = nn.silu(dense(hidden_size, "gate")(x)) * dense(hidden_size, "in")(x)
    else:
        hidden = nn.gelu(dense(hidden_size, "in")(x))
    hidden = Dropout(dropout, name=f"{prefix}_dropout")(hidden, keys)
    return dense(size, "out")(hidden)

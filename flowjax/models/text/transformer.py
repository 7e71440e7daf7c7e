r"""Two small text encoders to be trained along: a table of words, and a bidirectional transformer on top of one.

    h_0 = words[tokens] + positions
    h  <- h + Attention(norm(h)),   h <- h + MLP(norm(h))        `depth` times, padding hidden from attention
    text = norm(h), zero where there is padding

The last norm gives the network vectors of unit size from the first step on, however small the tables start.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from flowjax.contract import DataSpec
from flowjax.models.attention import Attention
from flowjax.models.dense import Dense
from flowjax.models.text.encoder import TextEncoder


class TextTransformer(nn.Module):
    """Token ids to vectors; with depth 0 the tables alone."""

    vocabulary: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, tokens: Int[Array, "b l"]) -> tuple[Float[Array, "b l c"], Bool[Array, "b l"]]:
        norm = lambda name: nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=name)
        mask = tokens != 0
        start = nn.initializers.normal(0.02)
        words = nn.Embed(self.vocabulary, self.width, embedding_init=start, dtype=self.dtype, name="words")
        positions = self.param("positions", start, (tokens.shape[1], self.width))
        hidden = words(tokens) + positions.astype(self.dtype)
        for index in range(self.depth):
            attention = Attention(self.heads, dtype=self.dtype, name=f"attention_{index}")
            hidden = hidden + attention(norm(f"attention_norm_{index}")(hidden), mask=mask)
            hidden = hidden + self._mlp(norm(f"mlp_norm_{index}")(hidden), index)
        text = norm("norm")(hidden).astype(jnp.float32)
        return jnp.where(mask[..., None], text, 0.0), mask

    def _mlp(self, hidden: Float[Array, "b l c"], index: int) -> Float[Array, "b l c"]:
        init = nn.initializers.xavier_uniform()
        dense = lambda features, name: Dense(features, kernel_init=init, dtype=self.dtype, name=name)
        inner = nn.gelu(dense(int(self.width * self.mlp_ratio), f"mlp_in_{index}")(hidden))
        return dense(self.width, f"mlp_out_{index}")(inner)


def transformer(
    data: DataSpec,
    dtype: str = "float32",
    width: int = 128,
    depth: int = 2,
    heads: int = 4,
    mlp_ratio: float = 4.0,
) -> TextEncoder:
    """A bidirectional transformer on the tokens of a caption.

    Args:
      data: its vocabulary and the length of its captions.
      dtype: the type it computes in, 'float32' or 'bfloat16'; parameters and vectors are float32.
      width: the size of a vector, a multiple of heads.
      depth: blocks.
      heads: attention heads.
      mlp_ratio: hidden units of a block's MLP over width.
    """
    if depth < 1:
        raise ValueError(
            f"The text encoder 'transformer' has depth={depth}; use 1 or more, or the encoder 'embedding'."
        )
    if width % heads:
        raise ValueError(f"The text encoder's width {width} must be a multiple of its number of heads, {heads}.")
    return _encoder(data, TextTransformer(data.vocabulary, width, depth, heads, mlp_ratio, jnp.dtype(dtype)))


def embedding(data: DataSpec, dtype: str = "float32", width: int = 128) -> TextEncoder:
    """One vector for each word plus one for each place, normalised: what a word means does not depend on its neighbours.

    Args:
      data: its vocabulary and the length of its captions.
      dtype: the type it computes in, 'float32' or 'bfloat16'; parameters and vectors are float32.
      width: the size of a vector.
    """
    return _encoder(data, TextTransformer(data.vocabulary, width, 0, 1, 4.0, jnp.dtype(dtype)))


def _encoder(data: DataSpec, module: TextTransformer) -> TextEncoder:
    def init(key: Key[Array, ""]) -> PyTree:
        return module.init(key, jnp.zeros((1, data.text_length), jnp.int32))["params"]

    return TextEncoder(init, lambda tree, tokens: module.apply({"params": tree}, tokens), module.width)

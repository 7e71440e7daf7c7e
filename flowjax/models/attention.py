r"""Multi-head attention, softmax(q k^T / sqrt(d)) v, to oneself or to the tokens of a condition.

The logits and the softmax are computed in float32 whatever the type of the rest (the sum over keys is where bfloat16
loses digits). The formulation is two dot products and a softmax in plain operations: jax.jvp goes through it exactly,
forward and reverse, in every type, which fused kernels do not offer. On a CPU it loses
nothing by that: experiments/bench has its time beside that of jax.nn.dot_product_attention. The logits take memory with the
square of the tokens; where that is too much, `chunk` computes the same in pieces (chunked_attention.py).

Cross-attention reads tokens [b, l, c] under a mask [b, l]. One learned token, always visible, stands beside them: an
example whose mask is False everywhere (its text was dropped) attends to that token alone, so the null text is learned
and no softmax is ever taken over nothing.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from flowjax.models.chunked_attention import attend_in_chunks
from flowjax.models.dense import Dense
from flowjax.models.positions import Rotation, rotate


def attend(
    queries: Float[Array, "b n h d"],
    keys: Float[Array, "b m h d"],
    values: Float[Array, "b m h d"],
    mask: Bool[Array, "b m"] | None = None,
    chunk: int = 0,
) -> Float[Array, "b n h d"]:
    """softmax(q k^T / sqrt(d)) v for each head; keys whose mask is False have weight zero (Vaswani et al. 2017).

    With a `chunk`, more keys than that are met so many at a time.
    """
    if 0 < chunk < keys.shape[1]:
        return attend_in_chunks(queries, keys, values, mask, chunk)
    queries = queries * (queries.shape[-1] ** -0.5)
    logits = jnp.einsum("bnhd,bmhd->bhnm", queries, keys, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(values.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, values)


def check_chunk(chunk: int) -> None:
    """Refuses a network's option attention_chunk that is no number of tokens."""
    if chunk < 0:
        raise ValueError(
            f"attention_chunk is {chunk}; expected how many tokens meet at a time, such as 512, or 0 for all at once."
        )


class RMSNorm(nn.Module):
    """x / rms(x) times a learned scale, over the last axis, in float32."""

    @nn.compact
    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        return (wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + 1e-6) * scale).astype(x.dtype)


QK_NORMS = {
    "none": "as they are",
    "rms": "over their root mean square, times a learned scale (Dehghani et al. 2023; SD3.5)",
    "layer": "layer norm without parameters (FiTv2)",
}


def normalise(x: Float[Array, "b n h d"], kind: str, name: str) -> Float[Array, "b n h d"]:
    """Queries or keys normalised head by head, which bounds the logits; called in a module's compact method."""
    if kind == "rms":
        return RMSNorm(name=name)(x)
    if kind == "layer":
        return nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=x.dtype)(x)
    return x


def heads_of(x: Float[Array, "b n c"], heads: int) -> Float[Array, "b n h d"]:
    """Channels split into heads."""
    if x.shape[-1] % heads:
        raise ValueError(f"{heads} attention heads do not divide {x.shape[-1]} channels. Choose a divisor.")
    return x.reshape(*x.shape[:2], heads, x.shape[-1] // heads)


class Attention(nn.Module):
    """Attention of tokens [b, n, c] to themselves, or to `context` [b, l, e].

    `mask` says which tokens (of the context, where there is one) may be attended to. `rotation` turns queries and keys
    of attention to oneself, see positions.py.

    Attributes:
      heads: number of heads; it divides c.
      qk_norm: how queries and keys are normalised: 'none', 'rms' or 'layer'.
      zero_output: start the output layer at zero, so that a residual block starts as the identity.
      chunk: how many keys are met at a time, where there are more; 0 for all.
      dtype: the type it computes in.
    """

    heads: int
    qk_norm: str = "none"
    zero_output: bool = False
    chunk: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "b n c"],
        context: Float[Array, "b l e"] | None = None,
        mask: Bool[Array, "b m"] | None = None,
        rotation: Rotation | None = None,
    ) -> Float[Array, "b n c"]:
        size = tokens.shape[-1]
        init = nn.initializers.xavier_uniform()
        dense = lambda features, name: Dense(features, kernel_init=init, dtype=self.dtype, name=name)
        if context is None:
            queries, keys, values = jnp.split(dense(3 * size, "qkv")(tokens), 3, axis=-1)
        else:
            null = self.param("null", nn.initializers.normal(0.02), (1, 1, context.shape[-1]))
            null = jnp.broadcast_to(null, (context.shape[0], 1, context.shape[-1])).astype(context.dtype)
            context = jnp.concatenate([null, context], axis=1)
            mask = jnp.concatenate([jnp.ones_like(mask[:, :1]), mask], axis=1)
            queries = dense(size, "query")(tokens)
            keys, values = jnp.split(dense(2 * size, "key_value")(context), 2, axis=-1)
        queries, keys, values = (heads_of(a, self.heads) for a in (queries, keys, values))
        queries, keys = normalise(queries, self.qk_norm, "query_norm"), normalise(keys, self.qk_norm, "key_norm")
        if rotation is not None:
            queries, keys = rotate(queries, rotation), rotate(keys, rotation)
        mixed = attend(queries, keys, values, mask, self.chunk).reshape(tokens.shape)
        output_init = nn.initializers.zeros if self.zero_output else init
        return Dense(size, kernel_init=output_init, dtype=self.dtype, name="output")(mixed)

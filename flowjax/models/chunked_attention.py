r"""Attention in pieces of queries and keys, for so many tokens that all their logits at once do not fit in memory.

A piece of c queries meets the keys c at a time. With s_j the logits of a query, v_j the values and m the largest logit so far
(Milakov & Gimelshein 2018; Rabe & Staats 2021),

    m' = max(m, max_j s_j),   l' = l e^(m - m') + sum_j e^(s_j - m'),   o' = o e^(m - m') + sum_j e^(s_j - m') v_j,      (1)

and o / l after the last piece is the softmax average. It does not depend on m, so no derivative needs to flow through m: of
plain operations, (1) has an exact derivative forwards,

    do = sum_j p_j (dv_j + ds_j v_j) - o sum_j p_j ds_j,       p_j = e^(s_j - m) / l,                                   (2)

carried along in the same loops, in every type, and backwards, and backwards through forwards, as mean flows and continuous
consistency models are trained. Pieces are computed again in the backward pass (jax.checkpoint), so value, (2) and gradient all
take memory in proportion to tokens times c, where the plain formula takes the square of the tokens.

When to use it: `attention_chunk` of a transformer, when the square of its tokens does not fit, or from about a thousand tokens
on, where pieces of some hundred were faster on a CPU as well (all logits at once leave its cache). With few tokens the plain
formula is the faster one: pieces take turns, and the backward pass computes each again.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped


def attend_in_chunks(
    queries: Float[Array, "b n h d"],
    keys: Float[Array, "b m h d"],
    values: Float[Array, "b m h d"],
    mask: Bool[Array, "b m"] | None,
    chunk: int,
) -> Float[Array, "b n h d"]:
    """What `attention.attend` computes of the same arguments, `chunk` queries and `chunk` keys at a time, by (1).

    Logits and sums are float32, and the products have the type of the arguments, as there.
    """
    count, dtype = queries.shape[1], values.dtype
    lowest = jnp.finfo(jnp.float32).min
    mask = jnp.ones(keys.shape[:2], bool) if mask is None else mask
    # Keys that fill up the last piece weigh nothing, even where an example hides all of its own.
    hidden = jnp.full((1, keys.shape[1]), lowest)
    pieces = (_cut(keys, chunk), _cut(values, chunk), _cut(mask, chunk), _cut(hidden, chunk, -jnp.inf))

    def average(queries: Float[Array, "b c h d"]) -> Float[Array, "b h c d"]:
        def meet(sums, piece):
            top, total, mixed = sums
            keys, values, shown, hidden = piece
            logits = jnp.einsum("bnhd,bmhd->bhnm", queries, keys, preferred_element_type=jnp.float32)
            logits = jnp.where(shown[:, None, None], logits, hidden[:, None, None])
            higher = jax.lax.stop_gradient(jnp.maximum(top, logits.max(axis=-1)))
            weights, shrunk = jnp.exp(logits - higher[..., None]), jnp.exp(top - higher)
            found = jnp.einsum("bhnm,bmhd->bhnd", weights.astype(dtype), values, preferred_element_type=jnp.float32)
            return (higher, shrunk * total + weights.sum(axis=-1), shrunk[..., None] * mixed + found), None

        rows = (queries.shape[0], queries.shape[2], queries.shape[1])
        nothing = (jnp.full(rows, lowest), jnp.zeros(rows), jnp.zeros((*rows, values.shape[-1])))
        (_, total, mixed), _ = jax.lax.scan(jax.checkpoint(meet, prevent_cse=False), nothing, pieces)
        return (mixed / total[..., None]).astype(dtype)

    queries = _cut(queries * (queries.shape[-1] ** -0.5), min(chunk, count))
    mixed = jax.lax.map(jax.checkpoint(average, prevent_cse=False), queries)
    mixed = jnp.moveaxis(mixed, (0, 3), (1, 2))  # [b, pieces, c, h, d]
    return mixed.reshape(len(mixed), -1, *mixed.shape[3:])[:, :count]


def _cut(array: Shaped[Array, "b n ..."], chunk: int, fill: float = 0) -> Shaped[Array, "pieces b chunk ..."]:
    """An array in pieces of its second axis, the last of them filled up."""
    pieces = -(-array.shape[1] // chunk)
    width = [(0, 0), (0, pieces * chunk - array.shape[1]), *[(0, 0)] * (array.ndim - 2)]
    array = jnp.pad(array, width, constant_values=fill)
    return jnp.moveaxis(array.reshape(len(array), pieces, chunk, *array.shape[2:]), 1, 0)

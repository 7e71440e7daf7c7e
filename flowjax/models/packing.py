"""Images of many shapes at one cost: the visible tokens of each example, moved to the front of a fixed number of slots.

A canvas that holds both wide and tall images is mostly empty for each of them. Attention over all its tokens would pay
for the empty ones, so the visible ones are gathered, in order, into as many slots as an image may have (FiT pads its
sequences to 256), and put back in their places at the end.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def visible_first(visible: Bool[Array, "b n"], slots: int) -> Int[Array, "b {slots}"]:
    """The indices of the first `slots` tokens when the visible ones are put before the hidden ones, each in order."""
    return jnp.argsort(~visible, axis=1, stable=True)[:, :slots]


def pack(tokens: Float[Array, "_ n c"] | Bool[Array, "_ n c"], order: Int[Array, "b m"]) -> Array:
    """The tokens at the indices `order` of each example; a table that all examples share has one row."""
    tokens = jnp.broadcast_to(tokens, (len(order), *tokens.shape[1:]))
    return jnp.take_along_axis(tokens, order[..., None], axis=1)


def unpack(
    tokens: Float[Array, "b m c"], order: Int[Array, "b m"], visible: Bool[Array, "b n"]
) -> Float[Array, "b n c"]:
    """The tokens back in their places, zeros elsewhere; NaN for an example with more visible tokens than slots.

    A tensor cannot raise an error, and leaving out part of an image without a word would be worse than NaN.
    """
    empty = jnp.zeros((visible.shape[1], tokens.shape[-1]), tokens.dtype)
    placed = jax.vmap(lambda order, tokens: empty.at[order].set(tokens))(order, tokens)
    fits = visible.sum(axis=1) <= tokens.shape[1]
    return jnp.where(fits[:, None, None], placed, jnp.nan)

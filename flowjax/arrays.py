"""Small array helpers shared by every room: broadcasting over the batch, per-example sums, per-example random draws.

Why per-example keys: every draw of a loss depends on the step's key and on the example's row in the *global* batch, and
on nothing else. The same numbers then come out on one device or eight, under jit or pmap, with or without gradient
accumulation.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from flowjax import threefry


def expand_to(t: Shaped[Array, "..."], x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Appends unit axes to t until it has as many axes as x, so that t[b] broadcasts against x[b, ...]."""
    t = jnp.asarray(t)
    if t.ndim > x.ndim:
        raise ValueError(f"expand_to: t has shape {t.shape}, which has more axes than x with shape {x.shape}.")
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def batch_times(t: Float[Array, "..."] | float, x: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """One time for each example: a scalar t is repeated over the batch of x, a vector t[b] is returned as it is."""
    # float32 for float32 and bfloat16 points; float64 points (measured orders, likelihoods) keep float64 times.
    return jnp.broadcast_to(jnp.asarray(t, jnp.promote_types(jnp.float32, x.dtype)), x.shape[:1])


def sum_per_example(x: Shaped[Array, "b ..."]) -> Float[Array, " b"]:
    """Sums over every axis but the first, in float32."""
    return jnp.sum(x.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=tuple(range(1, x.ndim)))


def mean_per_example(x: Float[Array, "b ..."], visible: Bool[Array, "b ..."] | None = None) -> Float[Array, " b"]:
    """Averages over every axis but the first, in float32.

    With `visible`, whose axes are the first ones of x (pixels, say, without channels), over those elements alone; 0
    where there is none.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if visible is None:
        return jnp.mean(x, axis=tuple(range(1, x.ndim)))
    visible = jnp.broadcast_to(expand_to(visible, x), x.shape)
    return sum_per_example(jnp.where(visible, x, 0.0)) / jnp.maximum(sum_per_example(visible), 1)


def keep_visible(x: Shaped[Array, "b ..."], visible: Bool[Array, "b ..."] | None) -> Shaped[Array, "b ..."]:
    """x where `visible`, whose axes are the first ones of x, and zero elsewhere; all of x where that is None."""
    return x if visible is None else jnp.where(expand_to(visible, x), x, jnp.zeros((), x.dtype))


def dot_per_example(x: Float[Array, "b ..."], y: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Inner product of two batches, example by example."""
    return sum_per_example(x * y)


def example_keys(key: Key[Array, ""], rows: Int[Array, " b"]) -> Key[Array, " b"]:
    """One key for each example: fold_in(key, row), where row is the example's index in the global batch."""
    return threefry.fold_rows(key, rows)


def normal_rows(keys: Key[Array, " b"], shape: tuple[int, ...], dtype: Any = jnp.float32) -> Float[Array, "b ..."]:
    """Standard normal draws [b, *shape], one key for each example."""
    if jnp.dtype(dtype) != jnp.float32:
        return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)
    return threefry.normal(threefry.bits_rows(keys, math.prod(shape))).reshape(keys.shape + shape)


def uniform_rows(
    keys: Key[Array, " b"], shape: tuple[int, ...] = (), dtype: Any = jnp.float32
) -> Float[Array, "b ..."]:
    """Uniform draws in [0, 1) of shape [b, *shape], one key for each example."""
    if jnp.dtype(dtype) != jnp.float32:
        return jax.vmap(lambda key: jax.random.uniform(key, shape, dtype))(keys)
    return threefry.unit_interval(threefry.bits_rows(keys, math.prod(shape))).reshape(keys.shape + shape)

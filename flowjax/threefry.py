r"""The hash behind every draw, written out so that small draws are one loop of arithmetic.

A JAX key of the usual kind is two words (k0, k1). With the block function T of Salmon et al. 2011 (threefry 2x32, 20 rounds)

    fold_in(key, n)  =  T(key, (0, n)),            bits(key)[i]  =  a ^ b   with  (a, b) = T(key, (0, i)).             (1)

`jax.random` gives the same numbers, but on a CPU its hash is a loop in the program, with an overhead that does not depend
on the size; an update of a small network folds a batch of rows twice and draws from them twice. Here the rounds are
written out, and the compiler joins them with what comes before and after. Large draws, where the overhead does not show,
and keys of other kinds are left to `jax.random`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA
LARGE = 1 << 14  # words in one draw from which jax.random is as fast

Words = tuple[UInt32[Array, "..."], UInt32[Array, "..."]]


def block(key: Words, counter: Words) -> Words:
    """T(key, counter) of (1), elementwise over arrays that broadcast."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(PARITY))
    a, b = counter[0] + schedule[0], counter[1] + schedule[1]
    for turn in range(5):
        for distance in ROTATIONS[turn % 2]:
            a = a + b
            b = a ^ ((b << jnp.uint32(distance)) | (b >> jnp.uint32(32 - distance)))
        a, b = a + schedule[(turn + 1) % 3], b + schedule[(turn + 2) % 3] + jnp.uint32(turn + 1)
    return a, b


def is_ours(key: Key[Array, "..."]) -> bool:
    """Whether (1) is what jax.random computes for a key under the present settings."""
    return str(jax.random.key_impl(key)) == "threefry2x32" and jax.config.jax_threefry_partitionable


def words(key: Key[Array, "..."]) -> Words:
    """The two words of each key."""
    data = jax.random.key_data(key)
    return data[..., 0], data[..., 1]


def fold_rows(key: Key[Array, ""], rows: Int[Array, " b"]) -> Key[Array, " b"]:
    """fold_in(key, row) for every row."""
    if not is_ours(key):
        return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
    counter = rows.astype(jnp.uint32)
    return jax.random.wrap_key_data(jnp.stack(block(words(key), (jnp.zeros_like(counter), counter)), axis=-1))


def drawn_once(draw: Callable[..., UInt32[Array, "..."]], *operands: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """draw(*operands), computed once and kept.

    A CPU compiler that meets a hash in a loop of arithmetic repeats it for every element that reads its result: seventeen
    time features, seventeen hashes. A conditional is not joined with its readers; its other branch is never taken.
    Other compilers keep it by themselves, and on a mesh the condition would be a message between devices.
    """
    if jax.default_backend() != "cpu":
        return draw(*operands)
    shape = jax.eval_shape(draw, *operands)
    taken = operands[0].reshape(-1)[0] <= jnp.uint32(0xFFFFFFFF)
    return jax.lax.cond(taken, draw, lambda *_: jnp.zeros(shape.shape, shape.dtype), *operands)


def bits_rows(keys: Key[Array, " b"], size: int) -> UInt32[Array, "b size"]:
    """`size` random words from each key."""
    if not is_ours(keys) or keys.size * size >= LARGE:
        return jax.vmap(lambda key: jax.random.bits(key, (size,)))(keys)
    counter = jnp.arange(size, dtype=jnp.uint32)[None]
    first, second = (word[:, None] for word in words(keys))

    def draw(first, second):
        a, b = block((first, second), (jnp.zeros_like(counter), counter))
        return a ^ b

    return drawn_once(draw, first, second)


def unit_interval(bits: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """The upper 23 bits as a number in [0, 1)."""
    pattern = (bits >> jnp.uint32(9)) | jnp.uint32(0x3F800000)  # the sign and exponent of 1.0
    return jax.lax.bitcast_convert_type(pattern, jnp.float32) - 1.0


def normal(bits: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """Standard normal numbers, sqrt(2) erf^-1(u) with u in (-1, 1)."""
    low = jnp.nextafter(jnp.float32(-1.0), jnp.float32(0.0))
    u = jnp.maximum(low, unit_interval(bits) * (1.0 - low) + low)
    return jnp.sqrt(jnp.float32(2.0)) * jax.lax.erf_inv(u)

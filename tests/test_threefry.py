"""The hash written out gives the numbers of jax.random, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import threefry
from flowjax.arrays import example_keys, normal_rows, uniform_rows

ROWS = jnp.array([0, 1, 7, 2**31 - 1])


def reference_keys(key):
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(ROWS)


@pytest.mark.parametrize("seed", [0, 12345])
def test_keys_of_rows_are_those_of_fold_in(seed):
    key = jax.random.key(seed)
    ours, theirs = example_keys(key, ROWS), reference_keys(key)
    np.testing.assert_array_equal(jax.random.key_data(ours), jax.random.key_data(theirs))


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (threefry.LARGE // 4,)])  # the last is left to jax.random
@pytest.mark.parametrize("ours,theirs", [(normal_rows, jax.random.normal), (uniform_rows, jax.random.uniform)])
def test_draws_are_those_of_jax_random(shape, ours, theirs):
    keys = reference_keys(jax.random.key(3))
    np.testing.assert_array_equal(ours(keys, shape), jax.vmap(lambda key: theirs(key, shape))(keys))


def test_the_published_vectors_of_threefry():
    """Known answers of Random123 for threefry2x32 with 20 rounds."""
    word = lambda value: jnp.uint32(value)
    for key, counter, expected in [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ]:
        result = threefry.block(tuple(map(word, key)), tuple(map(word, counter)))
        assert tuple(map(int, result)) == expected


def test_other_kinds_of_keys_still_work():
    key = jax.random.key(0, impl="rbg")
    keys = example_keys(key, ROWS)
    assert jax.random.key_impl(keys) == jax.random.key_impl(key)
    assert len(np.unique(np.asarray(normal_rows(keys, (3,))))) == 12

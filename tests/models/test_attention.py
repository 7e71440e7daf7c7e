"""Attention against the sum written out in NumPy."""

import jax.numpy as jnp
import numpy as np

from flowjax.models.attention import attend


def test_attend_is_a_softmax_average_of_the_visible_values():
    draw = np.random.default_rng(0)
    queries, keys, values = (draw.normal(size=(2, n, 3, 4)) for n in (5, 6, 6))
    mask = np.array([[True] * 6, [True, False, True, False, False, True]])
    expected = np.zeros((2, 5, 3, 4))
    for b in range(2):
        for n in range(5):
            for h in range(3):
                weights = np.array([np.exp(queries[b, n, h] @ keys[b, m, h] / 2) * mask[b, m] for m in range(6)])
                expected[b, n, h] = weights / weights.sum() @ values[b, :, h]
    arrays = [jnp.asarray(a, jnp.float32) for a in (queries, keys, values)]
    np.testing.assert_allclose(attend(*arrays, jnp.asarray(mask)), expected, atol=1e-5)
    half = attend(*(a.astype(jnp.bfloat16) for a in arrays), jnp.asarray(mask))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, atol=0.05)

"""Attention against the sum written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.models.attention import Attention, attend


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


def cross(tokens, context, mask):
    """Cross-attention with parameters that do not depend on the length of the text."""
    draw = np.random.default_rng(3)
    module = Attention(heads=2)
    shapes = jax.eval_shape(module.init, jax.random.key(0), tokens, context, mask)
    tree = jax.tree.map(lambda leaf: jnp.asarray(0.5 * draw.normal(size=leaf.shape), jnp.float32), shapes)
    return module.apply(tree, tokens, context, mask), tree["params"]


def test_cross_attention_reads_visible_tokens_alone_and_a_learned_token_without_any():
    draw = np.random.default_rng(0)
    tokens, text = (jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in ((2, 5, 4), (2, 3, 6)))
    mask = jnp.array([[True, True, False], [False, False, False]])
    base, tree = cross(tokens, text, mask)
    longer = jnp.concatenate([text.at[:, 2].set(1e3), jnp.full((2, 4, 6), -50.0)], axis=1)
    hidden, _ = cross(tokens, longer, jnp.pad(mask, ((0, 0), (0, 4))))
    np.testing.assert_allclose(hidden, base, atol=1e-6)
    changed, _ = cross(tokens, text.at[:, 0].add(1.0), mask)
    assert float(jnp.abs(changed - base)[0].max()) > 1e-2
    np.testing.assert_array_equal(changed[1], base[1])
    # With nothing to see, every token receives the value of the learned one.
    value = (tree["null"][0, 0] @ tree["key_value"]["kernel"] + tree["key_value"]["bias"])[4:]
    expected = value @ tree["output"]["kernel"] + tree["output"]["bias"]
    np.testing.assert_allclose(base[1], np.broadcast_to(expected, (5, 4)), atol=1e-5)

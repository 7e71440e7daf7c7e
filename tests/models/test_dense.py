"""The dense layer against flax's, with gradients, on inputs of two to four axes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.models.dense import Dense


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3), (2, 3, 4, 3)])
def test_same_parameters_results_and_gradients_as_flax(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    ours, theirs = Dense(7), nn.Dense(7)
    tree = ours.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, tree, theirs.init(jax.random.key(1), x))
    tree["params"]["bias"] = jax.random.normal(jax.random.key(2), (7,))
    value = lambda module: lambda tree, x: jnp.sum(jnp.sin(module.apply(tree, x)))
    np.testing.assert_allclose(ours.apply(tree, x), theirs.apply(tree, x), rtol=1e-5, atol=1e-6)
    found, expected = (jax.grad(value(module), argnums=(0, 1))(tree, x) for module in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)

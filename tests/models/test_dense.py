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


@pytest.mark.parametrize("features", [1, 2, 4])
def test_thin_outputs_have_the_derivatives_of_the_product(features):
    x, y = jax.random.normal(jax.random.key(0), (2, 6, 3))
    ours, theirs = Dense(features), nn.Dense(features)
    tree, direction = (ours.init(jax.random.key(index), x) for index in (1, 2))
    value = lambda module: lambda tree, x: jnp.sum(jnp.sin(module.apply(tree, x)))
    gradient = lambda module: jax.grad(value(module), argnums=(0, 1))

    def derivatives(module):
        """Results, gradients, tangents, and tangents of gradients, as MeanFlow takes them."""
        tangents = jax.jvp(module.apply, (tree, x), (direction, y))
        return tangents, gradient(module)(tree, x), jax.jvp(gradient(module), (tree, x), (direction, y))

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, derivatives(ours), derivatives(theirs))
    batched = jax.vmap(lambda row: jax.grad(value(ours))(tree, row[None]))(x)
    jax.tree.map(close, jax.tree.map(lambda leaf: leaf.sum(0), batched), gradient(ours)(tree, x)[0])

"""Group norm against its definition in NumPy, and its derivatives against flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.models.norms import GroupNorm

DRAW = np.random.default_rng(0)
X = 3.0 + 2.0 * DRAW.normal(size=(2, 4, 3, 6)).astype(np.float32)
PARAMETERS = {"scale": DRAW.normal(size=6).astype(np.float32), "bias": DRAW.normal(size=6).astype(np.float32)}


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_is_its_definition(groups):
    grouped = X.astype(np.float64).reshape(2, 12, groups, -1)
    mean, variance = grouped.mean(axis=(1, 3), keepdims=True), grouped.var(axis=(1, 3), keepdims=True)
    expected = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(X.shape) * PARAMETERS["scale"] + PARAMETERS["bias"]
    result = GroupNorm(groups).apply({"params": PARAMETERS}, jnp.asarray(X))
    np.testing.assert_allclose(result, expected, atol=2e-5)


def test_group_norm_has_the_derivatives_of_flax():
    def derivatives(module):
        function = lambda p, x: jnp.sin(module.apply({"params": p}, x))
        push = jax.jvp(lambda x: function(PARAMETERS, x), (jnp.asarray(X),), (jnp.cos(X),))[1]
        return push, jax.grad(lambda p, x: jnp.sum(function(p, x) * X), argnums=(0, 1))(PARAMETERS, jnp.asarray(X))

    ours, theirs = derivatives(GroupNorm(2)), derivatives(nn.GroupNorm(2, epsilon=1e-5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), ours, theirs)


def test_a_constant_example_becomes_the_bias():
    result = GroupNorm(2).apply({"params": PARAMETERS}, jnp.full((1, 5, 6), 7.0))
    np.testing.assert_allclose(result, np.broadcast_to(PARAMETERS["bias"], (1, 5, 6)), atol=1e-3)


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="4 groups do not divide 6 channels"):
        GroupNorm(4).init(jax.random.key(0), jnp.asarray(X))

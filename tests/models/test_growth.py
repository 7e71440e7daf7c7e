"""A network of two times that starts from one of one time says what that one says, wherever it is told to go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.contract import DataSpec
from flowjax.models import NETWORKS
from flowjax.models.growth import grown

CASES = {
    "mlp": (DataSpec((2,), 3), dict(width=16, depth=2)),
    "dit": (DataSpec((4, 4, 1), 3), dict(width=16, depth=1, heads=2, patch=2)),
    "unet": (DataSpec((8, 8, 1), 3), dict(channels=8, multipliers=(1, 1), attention=())),
}


@pytest.mark.parametrize("name", CASES)
def test_a_second_time_does_nothing_yet(name):
    data, options = CASES[name]
    small = NETWORKS[name](data=data, **options)
    large = NETWORKS[name](data=data, two_times=True, **options)
    noisy = lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    tree = jax.tree.map(noisy, small.init(jax.random.key(0)))
    taken = grown(large.init(jax.random.key(1)), tree)
    x = jax.random.normal(jax.random.key(2), (5, *data.shape))
    t, s = jnp.linspace(0, 0.9, 5), jnp.linspace(1, 0.2, 5)
    cond = {"label": jnp.arange(5) % 4}
    expected = small.apply(tree, x, t, cond)
    assert float(jnp.abs(expected).max()) > 0.01
    np.testing.assert_allclose(large.apply(taken, x, t, cond, s=s), expected, rtol=1e-5, atol=1e-6)
    # and it can learn to: the gradient reaches what reads the second time
    slope = jax.grad(lambda tree: jnp.sum(large.apply(tree, x, t, cond, s=s) ** 2))(taken)
    fresh = jax.tree.map(lambda a, b: a.shape != b.shape, taken, slope)
    assert not any(jax.tree.leaves(fresh))
    moved = jax.tree.map(lambda leaf, step: leaf - 0.1 * step, taken, slope)
    assert not np.allclose(large.apply(moved, x, t, cond, s=s), large.apply(moved, x, t, cond, s=t), atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_scale_of_guidance_does_nothing_yet(name):
    data, options = CASES[name]
    small = NETWORKS[name](data=data, **options)
    large = NETWORKS[name](data=data, two_times=True, guidance_conditional=True, **options)
    noisy = lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    tree = jax.tree.map(noisy, small.init(jax.random.key(0)))
    taken = grown(large.init(jax.random.key(1)), tree)
    x, t = jax.random.normal(jax.random.key(2), (5, *data.shape)), jnp.linspace(0, 0.9, 5)
    cond = {"label": jnp.arange(5) % 4, "guidance": jnp.linspace(1.0, 8.0, 5)}
    expected = small.apply(tree, x, t, cond)
    found = jax.jit(lambda tree, scale: large.apply(tree, x, t, {**cond, "guidance": scale}))
    np.testing.assert_allclose(found(taken, cond["guidance"]), expected, rtol=1e-5, atol=1e-6)
    slope = jax.jit(jax.grad(lambda tree: jnp.sum(found(tree, cond["guidance"]) ** 2)))(taken)
    moved = jax.tree.map(lambda leaf, step: leaf - 0.1 * step, taken, slope)
    assert not np.allclose(found(moved, cond["guidance"]), found(moved, jnp.ones(5)), atol=1e-6)
    assert not large.drop(cond, jnp.ones(5, bool))["guidance"].min() < 1  # a null label leaves the scale alone


def test_what_does_not_fit_is_listed():
    small, large = {"a": np.zeros((2, 3)), "b": np.zeros(4)}, {"a": np.zeros((3, 4)), "c": np.zeros(1)}
    with pytest.raises(ValueError, match=r"b: there is no such parameter(.|\n)*a: \(2, 3\) does not fit into \(3, 4\)"):
        grown(large, small)

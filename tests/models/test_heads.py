"""Discriminators of distillation: heads on features, dense layers for points, and the tokens that heads read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.contract import DataSpec
from flowjax.models.discriminator import points
from flowjax.models.dit import dit
from flowjax.models.heads import heads


def test_heads_give_a_logit_for_each_place_of_each_map_and_judge_examples_alone():
    top = heads((8, 12), width=4)
    keys = jax.random.split(jax.random.key(0), 3)
    tree = top.init(keys[0])
    maps = [jax.random.normal(keys[1], (5, 4, 4, 8)), jax.random.normal(keys[2], (5, 2, 3, 12))]
    logits = top.apply(tree, maps)
    assert logits.shape == (5, 16 + 6) and logits.dtype == jnp.float32
    np.testing.assert_allclose(top.apply(tree, [one[2:3] for one in maps]), logits[2:3], rtol=1e-4, atol=1e-5)
    alone = top.apply(tree, [maps[0], 0 * maps[1]])
    np.testing.assert_allclose(alone[:, :16], logits[:, :16], rtol=1e-6)
    with pytest.raises(ValueError, match="one map or more; got 4 and 0 maps"):
        heads((), width=4)


def test_dense_layers_read_time_and_label_where_they_are_told():
    x, t = jax.random.normal(jax.random.key(1), (6, 2)), jnp.linspace(0.1, 0.9, 6)
    label = {"label": jnp.arange(6) % 3}
    changed = lambda judge, tree, *a: not np.allclose(judge.apply(tree, x, t, label), judge.apply(tree, *a))
    judge = points(DataSpec((2,), 3), width=8, noised=True)
    tree = judge.init(jax.random.key(0))
    assert judge.apply(tree, x, t, label).shape == (6, 1)
    assert changed(judge, tree, x, 0.5 * t, label)
    assert changed(judge, tree, x, t, {"label": jnp.zeros(6, jnp.int32)})
    blind = points(DataSpec((2,), 3), width=8, class_conditional=False)
    tree = blind.init(jax.random.key(0))
    np.testing.assert_array_equal(blind.apply(tree, x, t, label), blind.apply(tree, x))
    with pytest.raises(ValueError, match="depth >= 1"):
        points(DataSpec((2,)), depth=0)


def test_a_network_gives_the_tokens_of_several_blocks_in_one_pass():
    network = dit(DataSpec((4, 4, 1)), width=8, depth=3, heads=2)
    tree = network.init(jax.random.key(0))
    tree = jax.tree.map(lambda leaf: leaf + 0.1, tree)
    x, t = jax.random.normal(jax.random.key(1), (2, 4, 4, 1)), jnp.array([0.2, 0.7])
    output, (third, first) = network.hidden(tree, x, t, {}, layer=(3, 1))
    for layer, tokens in ((1, first), (3, third)):
        alone, expected = network.hidden(tree, x, t, {}, layer=layer)
        np.testing.assert_allclose(tokens, expected, rtol=1e-6)
        np.testing.assert_allclose(output, alone, rtol=1e-6)
    with pytest.raises(ValueError, match="there is no block 4"):
        network.hidden(tree, x, t, {}, layer=(1, 4))

"""Low-rank adapters on parameter trees: what they start as, what they can become, how they add up and what they weigh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.contract import DataSpec
from flowjax.models.lora import Adapter, adapted_paths, is_adapter, lora_init, merged
from flowjax.models.mlp import mlp
from flowjax.models.network import count_parameters
from flowjax.models.unet import unet

NETWORK = mlp(DataSpec((2,)), width=16, depth=2)
TREE = NETWORK.init(jax.random.key(0))
X, T = jax.random.normal(jax.random.key(1), (5, 2)), jnp.linspace(0.1, 0.9, 5)


def shaken(adapter, seed=2):
    keys = iter(jax.random.split(jax.random.key(seed), len(jax.tree.leaves(adapter))))
    return jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), adapter)


def deviation(one, other):
    """The largest difference of two trees of the same structure."""
    return max(float(np.abs(gap).max()) for gap in jax.tree.leaves(jax.tree.map(np.subtract, one, other)))


def test_a_new_adapter_changes_nothing_and_has_the_stated_scale():
    adapter = lora_init(TREE, jax.random.key(3), rank=8)
    assert deviation(merged(TREE, Adapter(adapter, alpha=32.0)), TREE) == 0
    assert is_adapter(adapter) and not is_adapter(TREE)
    wide = lora_init({"kernel": jnp.zeros((400, 300))}, jax.random.key(3), rank=64)["kernel"]
    assert wide["down"].shape == (400, 64) and wide["up"].shape == (64, 300)
    np.testing.assert_allclose(np.std(wide["down"]), 1 / 20, rtol=0.05)


def test_the_merged_network_is_the_network_with_a_path_beside_each_kernel():
    """A dense layer with an adapter computes x W + alpha / r (x down) up + bias; no merged kernel is formed here."""
    adapter = shaken(lora_init(TREE, jax.random.key(3), rank=3))
    scale = 6.0 / 3

    def layer(name, x):
        low = adapter[name]["kernel"]
        return x @ TREE[name]["kernel"] + scale * ((x @ low["down"]) @ low["up"]) + TREE[name]["bias"]

    from flowjax.models.embeddings import octave_features

    hidden = jnp.concatenate([X, octave_features(T, 8)], axis=1)
    for name in ("layer_0", "layer_1"):
        hidden = jax.nn.silu(layer(name, hidden))
    # the output layer has two columns: its adapter is of rank 2 at most, and scales by its own rank
    low = adapter["output"]["kernel"]
    assert low["up"].shape == (2, 2)
    expected = hidden @ (TREE["output"]["kernel"] + 6.0 / 2 * low["down"] @ low["up"]) + TREE["output"]["bias"]
    found = NETWORK.apply(merged(TREE, Adapter(adapter, alpha=6.0)), X, T, {})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_convolution_is_adapted_by_two_convolutions():
    kernel, image = (
        jax.random.normal(jax.random.key(0), (3, 3, 4, 6)),
        jax.random.normal(jax.random.key(1), (2, 5, 5, 4)),
    )
    adapter = shaken(lora_init({"kernel": kernel}, jax.random.key(2), rank=2))
    convolve = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    low = adapter["kernel"]
    expected = convolve(image, kernel) + convolve(convolve(image, low["down"]), low["up"][None, None])
    np.testing.assert_allclose(
        convolve(image, merged({"kernel": kernel}, Adapter(adapter))["kernel"]), expected, rtol=1e-4, atol=1e-4
    )


def test_full_rank_can_be_any_update():
    other = NETWORK.init(jax.random.key(9))
    adapter = lora_init(TREE, jax.random.key(3), rank=64)

    def fit(path, factors):
        """down is what it is, of full rank; up solves down up = the difference where down has a right inverse."""
        gap = np.asarray(other[path]["kernel"] - TREE[path]["kernel"], np.float64)
        u, s, v = np.linalg.svd(gap, full_matrices=False)
        assert factors["down"].shape[-1] == len(s) == min(gap.shape)
        return {"kernel": {"down": jnp.asarray(u * s, jnp.float32), "up": jnp.asarray(v, jnp.float32)}}

    adapter = {path: fit(path, node["kernel"]) for path, node in adapter.items()}
    kernels = lambda tree: {name: node["kernel"] for name, node in tree.items()}
    assert deviation(kernels(merged(TREE, Adapter(adapter))), kernels(other)) < 1e-5


def test_several_adapters_add_up_with_their_strengths():
    one = shaken(lora_init(TREE, jax.random.key(3), 2), 4)
    two = shaken(lora_init(TREE, jax.random.key(5), 4, pattern="layer_1"), 6)
    both = merged(TREE, Adapter(one, 4.0, strength=0.5), Adapter(two, strength=-1.0))
    alone = merged(merged(TREE, Adapter(one, 2.0)), Adapter(two, strength=-1.0))
    assert deviation(both, alone) < 1e-5
    assert deviation(merged(TREE, Adapter(one, strength=0.0)), TREE) == 0


def test_patterns_choose_kernels_and_counts_are_those_of_the_factors():
    network = unet(DataSpec((8, 8, 1)), channels=8, multipliers=(1, 2), blocks=1)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    paths = adapted_paths(shapes, "kernel$")
    assert len(paths) == len(set(paths)) > 10 and all(path.endswith("kernel") for path in paths)
    adapter = jax.eval_shape(lambda key: lora_init(shapes, key, 2), jax.random.key(0))
    leaves = {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in
              jax.tree_util.tree_flatten_with_path(shapes)[0]}  # fmt: skip
    expected = 0
    for path in paths:
        inputs, outputs = int(np.prod(leaves[path].shape[:-1])), leaves[path].shape[-1]
        expected += min(2, inputs, outputs) * (inputs + outputs)
    assert count_parameters(adapter)[""] == expected
    attention = adapted_paths(shapes, "attention.*kernel$")
    assert attention and set(attention) < set(paths)


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="No kernel of the network has a path in which 'atention' is found.*layer_0"):
        adapted_paths(TREE, "atention")
    with pytest.raises(ValueError, match="rank of an adapter is 0"):
        lora_init(TREE, jax.random.key(0), 0)
    other = mlp(DataSpec((2,)), width=16, depth=3).init(jax.random.key(0))
    with pytest.raises(ValueError, match="adapter is of another network, which has layer_2/kernel"):
        merged(TREE, Adapter(lora_init(other, jax.random.key(0), 2)))

"""Feed-forward parts and modulations written out in NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.models.attention import normalise
from flowjax.models.feed_forward import feed_forward
from flowjax.models.modulation import Modulation

DRAW = np.random.default_rng(0)


def random_tree(module, *inputs):
    tree = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: jnp.asarray(DRAW.normal(size=leaf.shape), jnp.float32), tree)


class Layer(nn.Module):
    kind: str
    mlp_ratio: float = 4.0

    @nn.compact
    def __call__(self, x):
        return feed_forward(x, self.kind, self.mlp_ratio, 0.0, None, jnp.float32)


@pytest.mark.parametrize("kind,hidden", [("gelu", 24), ("swiglu", 16)])
def test_layers_are_their_formulas(kind, hidden):
    x = jnp.asarray(DRAW.normal(size=(2, 3, 6)), jnp.float32)
    tree = random_tree(Layer(kind), x)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), tree["params"])
    dense = lambda name, a: a @ p[name]["kernel"] + p[name]["bias"]
    inner = dense("mlp_in", np.asarray(x))
    assert inner.shape[-1] == hidden
    if kind == "gelu":
        activated = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
    else:
        gate = dense("mlp_gate", np.asarray(x))
        activated = gate / (1 + np.exp(-gate)) * inner
    np.testing.assert_allclose(Layer(kind).apply(tree, x), dense("mlp_out", activated), rtol=1e-4, atol=1e-4)


def test_the_published_gated_layer_has_3072_hidden_units():
    shapes = jax.eval_shape(Layer("swiglu").init, jax.random.key(0), jnp.zeros((1, 1, 1152)))
    assert shapes["params"]["mlp_in"]["kernel"].shape == (1152, 3072)


def test_low_rank_modulation_corrects_the_shared_vectors_and_starts_at_zero():
    e, shared = (jnp.asarray(DRAW.normal(size=shape), jnp.float32) for shape in ((2, 6), (2, 12)))
    module = Modulation(3, 4, 2)
    start = module.init(jax.random.key(0), e, shared)
    np.testing.assert_array_equal(jnp.concatenate(module.apply(start, e, shared), axis=-1), shared)
    tree = random_tree(module, e, shared)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), tree["params"])
    assert p["down"]["kernel"].shape == (6, 2)
    active = np.asarray(e) / (1 + np.exp(-np.asarray(e)))
    down = active @ p["down"]["kernel"] + p["down"]["bias"]
    expected = np.asarray(shared) + down @ p["up"]["kernel"] + p["up"]["bias"]
    np.testing.assert_allclose(jnp.concatenate(module.apply(tree, e, shared), axis=-1), expected, rtol=1e-4, atol=1e-5)


def test_layer_normalised_queries_have_mean_zero_and_length_root_d():
    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x):
            return normalise(x, "layer", "query_norm")

    x = jnp.asarray(3 + 5 * DRAW.normal(size=(2, 3, 4, 8)), jnp.float32)
    normed, tree = Norm().init_with_output(jax.random.key(0), x)
    assert not tree
    np.testing.assert_allclose(normed.mean(axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(normed, axis=-1), np.sqrt(8), rtol=1e-5)

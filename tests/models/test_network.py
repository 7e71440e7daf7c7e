"""The wrapper around a module, apart from any particular network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flowjax.contract import DataSpec
from flowjax.models.network import from_module, label_condition, text_conditions


class Echo(nn.Module):
    """Returns a sum of everything it was given, so that a test can see what arrived."""

    @nn.compact
    def __call__(self, x, t, s, cond, keys):
        weight = self.param("weight", nn.initializers.ones, ())
        assert set(cond) == {"label"} and keys is None
        return (weight * x + (t + 10 * s + 100 * cond["label"])[:, None]).astype(jnp.bfloat16)


def test_module_receives_times_and_its_conditions_only():
    network = from_module(Echo(), DataSpec((2,), 5), {"label": label_condition(5)}, two_times=True)
    tree = network.init(jax.random.key(0))
    x = jnp.zeros((3, 2))
    cond = {"label": jnp.array([0, 1, 2]), "row": jnp.arange(3)}
    output = network.apply(tree, x, jnp.full(3, 0.5), cond, s=jnp.full(3, 1.0))
    assert output.dtype == jnp.float32
    np.testing.assert_allclose(output[:, 0], [10.5, 110.5, 210.5], rtol=1e-2)
    np.testing.assert_allclose(network.apply(tree, x, jnp.full(3, 0.5), cond)[0], 5.5)  # s = t


def test_drop_touches_the_conditions_of_dropped_examples_only():
    network = from_module(Echo(), DataSpec((2,), 5), {"label": label_condition(5), **text_conditions(2, 3)})
    cond = {
        "label": jnp.array([0, 1]),
        "text": jnp.ones((2, 2, 3)),
        "text_mask": jnp.ones((2, 2), bool),
        "row": jnp.array([7, 8]),
    }
    null = network.drop(cond, jnp.array([False, True]))
    np.testing.assert_array_equal(null["label"], [0, 5])
    np.testing.assert_array_equal(null["text_mask"], [[True, True], [False, False]])
    np.testing.assert_array_equal(null["text"], cond["text"])
    np.testing.assert_array_equal(null["row"], cond["row"])
    assert null["label"].dtype == cond["label"].dtype

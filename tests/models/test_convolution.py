"""Both convolutions against the sum written out in NumPy, and their derivatives against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.models.convolution import CONVOLUTIONS, convolve_matmul, convolve_xla


def arrays(height=6, width=4):
    draw = np.random.default_rng(0)
    return draw.normal(size=(2, height, width, 3)), 0.3 * draw.normal(size=(3, 3, 3, 5))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 4), (5, 7)])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_is_its_definition(name, size, stride):
    x, kernel = arrays(*size)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = range(0, size[0], stride), range(0, size[1], stride)
    expected = np.array(
        [
            [[np.einsum("ijc,ijcf->f", padded[b, r : r + 3, c : c + 3], kernel) for c in columns] for r in rows]
            for b in (0, 1)
        ]
    )
    result = CONVOLUTIONS[name](jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), stride)
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_implementations_have_the_same_derivatives(stride):
    x, kernel = (jnp.asarray(a, jnp.float32) for a in arrays())

    def derivatives(convolve):
        function = lambda x, kernel: convolve(x, kernel, stride)
        value, push = jax.jvp(function, (x, kernel), (jnp.cos(x), jnp.sin(kernel)))
        gradients = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(function(x, kernel))), argnums=(0, 1))(x, kernel)
        return value, push, *gradients

    for ours, theirs in zip(derivatives(convolve_matmul), derivatives(convolve_xla)):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)

"""Both convolutions against the sum written out in NumPy, and their derivatives against each other."""

import re

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


def test_gradients_in_a_loop_have_the_layout_that_is_fast_on_a_cpu():
    """XLA rewrites other layouts only outside loops; within one they run a hundred times slower."""
    x, kernel = (jnp.asarray(a, jnp.float32) for a in arrays())

    def descend(x, kernel, count):
        loss = lambda x, kernel: jnp.sum(convolve_xla(x, kernel) ** 2)
        step = lambda _, carry: tuple(a - 1e-3 * d for a, d in zip(carry, jax.grad(loss, argnums=(0, 1))(*carry)))
        return jax.lax.fori_loop(0, count, step, (x, kernel))

    program = jax.jit(descend).lower(x, kernel, 3).compile().as_text()
    layouts = re.findall(r"convolution\(.*dim_labels=(\S+?)[,\s]", program)
    assert len(layouts) == 3 and set(layouts) == {"b01f_01io->b01f"}


def test_second_derivatives_go_through_the_rule_for_the_cpu():
    x, kernel = (jnp.asarray(a, jnp.float32) for a in arrays())

    def curvature(convolve):
        change = lambda kernel: jax.jvp(lambda x: jnp.sin(convolve(x, kernel)), (x,), (jnp.cos(x),))[1]
        return jax.grad(lambda kernel: jnp.sum(change(kernel) ** 2))(kernel)

    np.testing.assert_allclose(curvature(convolve_xla), curvature(convolve_matmul), rtol=1e-4, atol=1e-4)

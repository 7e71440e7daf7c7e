"""A dense layer that sees all tokens or cells as rows of one matrix.

flax's Dense multiplies an array [b, n, c] as it is. The forward pass does not mind, but the gradient of its kernel then
sums over two axes, which XLA's CPU compiler does not hand to its fast matrix product. On an accelerator both are the same
product.

The gradient of a kernel with two or three columns, the output for points, is a thin matrix product, which the same
compiler's library is slow at; taken column by column it is not. experiments/bench has the times of both.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

THIN = 4  # columns


@jax.custom_jvp
def _thin_product(rows: Float[Array, "n c"], kernel: Float[Array, "c f"]) -> Float[Array, "n f"]:
    """rows @ kernel, whose derivative by the kernel is taken column by column."""
    return rows @ kernel


@_thin_product.defjvp
def _thin_product_jvp(primals, tangents):
    (rows, kernel), (rows_dot, kernel_dot) = primals, tangents
    by_kernel = jnp.stack([rows @ kernel_dot[:, column] for column in range(kernel.shape[1])], axis=-1)
    return _thin_product(rows, kernel), _thin_product(rows_dot, kernel) + by_kernel


class Dense(nn.Module):
    """flax's Dense, with the same parameters and results, for inputs with any number of axes before the last.

    Attributes:
      features: size of the last axis of the result.
      kernel_init: how the kernel starts; the bias starts at zero.
      dtype: the type it computes in; parameters are float32.
    """

    features: int
    kernel_init: Callable = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "*n c"]) -> Float[Array, "*n f"]:
        kernel = self.param("kernel", self.kernel_init, (inputs.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        rows = inputs.reshape(-1, inputs.shape[-1]).astype(self.dtype)
        multiply = _thin_product if self.features <= THIN else jnp.matmul
        product = multiply(rows, kernel.astype(self.dtype)) + bias.astype(self.dtype)
        return product.reshape(*inputs.shape[:-1], self.features)

"""3 x 3 convolution in two formulations that give the same numbers: the compiler's own, and nine matrix products.

`xla` is the default. On a CPU the nine products win at some shapes and lose at others, by more; experiments/bench has the
times of both, and of PyTorch's convolution.

Layouts on a CPU. XLA has a fast convolution there for the layout NHWC x HWIO -> NHWC alone. It rewrites other layouts
to that one in the main body of a program, but not within loops (several updates in one dispatch, gradient accumulation),
and the gradients that autodiff derives from `conv_general_dilated` are of other layouts: within a loop they are
slower by orders of magnitude. So on a CPU the rule for tangents is written in layouts whose transposes, which reverse mode
runs, are the fast one. With y = x * k, dy = dx * k + x * dk:

    dx * k: kernel as HWOI. Its transpose is the convolution of dy with the flipped kernel, NHWC x HWIO -> NHWC.
    x * dk: x as CHWN, dk as IHWO, dy as HWNC. Its transpose, the gradient of k, is the convolution of the image x,
            with channels for examples and examples for channels, with the kernel dy: NHWC x HWIO -> NHWC again.

Both are ordinary convolutions, so derivatives of any order go through them, forward and reverse.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flowjax.choices import choose


def convolve_xla(
    x: Float[Array, "b height width c"], kernel: Float[Array, "3 3 c f"], stride: int = 1
) -> Float[Array, "b rows columns f"]:
    """The compiler's convolution with one cell of zeros around the image."""
    return (_convolve_on_cpu if jax.default_backend() == "cpu" else _convolve)(x, kernel, stride)


def _convolve(x, kernel, stride, layouts=("NHWC", "HWIO", "NHWC")):
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=layouts)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _convolve_on_cpu(x, kernel, stride):
    """The same numbers and derivatives; see the module header for the layouts of the derivatives."""
    return _convolve(x, kernel, stride)


@_convolve_on_cpu.defjvp
def _convolve_on_cpu_jvp(stride, primals, tangents):
    (x, kernel), (x_dot, kernel_dot) = primals, tangents
    by_x = _convolve(x_dot, kernel.swapaxes(2, 3), stride, ("NHWC", "HWOI", "NHWC"))
    by_kernel = _convolve(
        x.transpose(3, 1, 2, 0), kernel_dot.transpose(2, 0, 1, 3), stride, ("CHWN", "IHWO", "HWNC")
    ).transpose(2, 0, 1, 3)
    return _convolve_on_cpu(x, kernel, stride), by_x + by_kernel


def convolve_matmul(
    x: Float[Array, "b height width c"], kernel: Float[Array, "3 3 c f"], stride: int = 1
) -> Float[Array, "b rows columns f"]:
    """The same as a sum of nine matrix products, one for each tap, on shifted views of the padded image."""
    batch, height, width, channels = x.shape
    rows, columns = -(-height // stride), -(-width // stride)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    total = 0
    for i in range(3):
        for j in range(3):
            tap = padded[:, i : i + height : stride, j : j + width : stride].reshape(-1, channels)
            total = total + tap @ kernel[i, j]
    return total.reshape(batch, rows, columns, kernel.shape[-1])


CONVOLUTIONS = {"xla": convolve_xla, "matmul": convolve_matmul}


class Convolution(nn.Module):
    """3 x 3 convolution with bias and one cell of zeros around the image.

    Attributes:
      features: channels of the result.
      stride: 1, or 2 to halve the image.
      zero: start at zero.
      implementation: 'xla' or 'matmul'.
      dtype: the type it computes in.
    """

    features: int
    stride: int = 1
    zero: bool = False
    implementation: str = "xla"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b height width c"]) -> Float[Array, "b rows columns f"]:
        init = nn.initializers.zeros if self.zero else nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        kernel = self.param("kernel", init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        convolve = choose("convolution", self.implementation, CONVOLUTIONS)
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride) + bias.astype(self.dtype)

"""3 x 3 convolution in two formulations that give the same numbers, and the choice between them."""

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
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


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


def convolve_auto(
    x: Float[Array, "b height width c"], kernel: Float[Array, "3 3 c f"], stride: int = 1
) -> Float[Array, "b rows columns f"]:
    """The faster of the two by the measurements in the header: matrix products for small images on a CPU."""
    small = x.shape[1] * x.shape[2] <= SMALL
    convolve = convolve_matmul if jax.default_backend() == "cpu" and small else convolve_xla
    return convolve(x, kernel, stride)


SMALL = 64
CONVOLUTIONS = {"auto": convolve_auto, "xla": convolve_xla, "matmul": convolve_matmul}


class Convolution(nn.Module):
    """3 x 3 convolution with bias and one cell of zeros around the image.

    Attributes:
      features: channels of the result.
      stride: 1, or 2 to halve the image.
      zero: start at zero.
      implementation: 'auto', 'xla' or 'matmul'.
      dtype: the type it computes in.
    """

    features: int
    stride: int = 1
    zero: bool = False
    implementation: str = "auto"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b height width c"]) -> Float[Array, "b rows columns f"]:
        init = nn.initializers.zeros if self.zero else nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        kernel = self.param("kernel", init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        convolve = choose("convolution", self.implementation, CONVOLUTIONS)
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride) + bias.astype(self.dtype)

r"""Discriminators: images to the logits of being real, one for each patch (PatchGAN, Isola et al. 2017).

A convolution of stride 2 and a leaky rectifier, `layers` times with twice the channels each time (up to eight times the
first), then one more of stride 1 and a last one to a single channel. A logit sees a patch of the image, not all of it: it
judges texture, and leaves what is where to the reconstruction. Group norm stands where the original has batch norm, which
would make the logit of one example depend on the others.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree

from flowjax.contract import DataSpec
from flowjax.models.convolution import Convolution
from flowjax.models.residual import group_norm

SLOPE = 0.2
MOST = 8  # times the first layer's channels


@dataclasses.dataclass(frozen=True)
class Discriminator:
    """A discriminator as functions of its parameter tree.

    Attributes:
      init: key -> tree.
      apply: (tree, images) -> logits [b, rows, columns], float32.
    """

    init: Callable[[Key[Array, ""]], PyTree]
    apply: Callable[[PyTree, Array], Array]


class PatchGAN(nn.Module):
    """See the module header."""

    channels: int
    layers: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: Float[Array, "b height width c"]) -> Float[Array, "b rows columns"]:
        x = images
        for layer in range(self.layers + 1):
            width = self.channels * min(2**layer, MOST)
            stride = 2 if layer < self.layers else 1
            x = Convolution(width, stride, dtype=self.dtype, name=f"convolution_{layer}")(x)
            if layer > 0:
                x = group_norm(self.dtype, width, f"norm_{layer}")(x)
            x = nn.leaky_relu(x, SLOPE)
        return Convolution(1, name="output")(x.astype(jnp.float32))[..., 0]


def patch(data: DataSpec, dtype: str = "float32", channels: int = 64, layers: int = 3) -> Discriminator:
    """PatchGAN.

    Args:
      data: shape (height, width, channels).
      dtype: the type it computes in; parameters and logits are float32.
      channels: channels of the first layer.
      layers: how often it halves the image.
    """
    smallest = min(data.shape[:2])
    if layers < 1 or smallest < 2**layers:
        raise ValueError(
            f"A patch discriminator of {layers} layers halves the image as often, and {tuple(data.shape[:2])} allows 1 to "
            f"{smallest.bit_length() - 1}. Change discriminator.layers."
        )
    module = PatchGAN(channels, layers, jnp.dtype(dtype))

    def init(key: Key[Array, ""]) -> PyTree:
        return module.init(key, jnp.zeros((1, *data.shape)))["params"]

    def apply(tree: PyTree, images: Float[Array, "b height width c"]) -> Float[Array, "b rows columns"]:
        return module.apply({"params": tree}, images)

    return Discriminator(init, apply)


DISCRIMINATORS = {"patch": patch}

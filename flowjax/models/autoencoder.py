r"""Convolutional KL autoencoder (Kingma & Welling 2013; Rombach et al. 2022; Esser et al. 2024).

    encoder: x -> (mean, logvar),   latent z ~ N(mean, exp(logvar)),   decoder: z -> image

The encoder halves the image k times, so a latent cell stands for f x f pixels, f = 2^k, and has c channels:

    input convolution, then at each level `blocks` residual blocks (and a convolution of stride 2 but at the last),
    middle: block, attention, block,     norm, silu, convolution to 2c channels: mean and logvar.

The decoder is its mirror image with one block more a level, as in those works; it doubles by repeating cells and
convolving. The log-variance is clipped to [-30, 20], so no exponential of it overflows and no KL is infinite.

The parameter tree has three parts: `encoder`, `decoder`, and `output`, the decoder's last convolution. It stands apart
because the balance between reconstruction and adversary is measured by gradients with respect to it
(losses/autoencoding.py), which then need not go through the decoder.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree

from flowjax.choices import choose
from flowjax.contract import DataSpec
from flowjax.models.convolution import CONVOLUTIONS, Convolution
from flowjax.models.residual import AttentionBlock, ResidualBlock, double, group_norm

LOGVAR_RANGE = (-30.0, 20.0)
Images = Float[Array, "b height width c"]
Latents = Float[Array, "b rows columns z"]


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """An autoencoder as functions of its parameter tree.

    Attributes:
      init: key -> tree with the parts `encoder`, `decoder` and `output`.
      encode: (tree, images) -> (mean, logvar) of the posterior, float32.
      hidden: (tree, latents) -> what the output convolution reads.
      output: (tree, hidden) -> images; reads tree["output"] alone.
      factor: pixels along the side of a latent cell.
      latent_shape: the shape of one latent of the data it was made for.
    """

    init: Callable[[Key[Array, ""]], PyTree]
    encode: Callable[[PyTree, Array], tuple[Array, Array]]
    hidden: Callable[[PyTree, Array], Array]
    output: Callable[[PyTree, Array], Array]
    factor: int
    latent_shape: tuple[int, ...]

    def decode(self, tree: PyTree, latents: Latents) -> Images:
        """Latents to images, float32."""
        return self.output(tree, self.hidden(tree, latents))


class _Trunk(nn.Module):
    """What encoder and decoder share: how their parts are made."""

    widths: tuple[int, ...]
    blocks: int
    attention: bool
    convolution: str
    dtype: DTypeLike

    def convolve(self, x, features, name, stride=1, dtype=None):
        dtype = dtype or self.dtype
        return Convolution(features, stride, implementation=self.convolution, dtype=dtype, name=name)(x)

    def residual(self, x, features, name):
        return ResidualBlock(features, convolution=self.convolution, dtype=self.dtype, name=name)(x)

    def middle(self, x):
        """Block, attention of a single head over all cells, block."""
        x = self.residual(x, self.widths[-1], "middle_0")
        if self.attention:
            x = AttentionBlock(self.widths[-1], self.dtype, name="middle_attention")(x, {})
        return self.residual(x, self.widths[-1], "middle_1")

    def last(self, x):
        return nn.silu(group_norm(self.dtype, x.shape[-1], "norm")(x)).astype(jnp.float32)


class Encoder(_Trunk):
    """Images to the mean and log-variance of their latents, side by side; see `convolutional` for the options."""

    latent_channels: int = 4

    @nn.compact
    def __call__(self, images: Images) -> Latents:
        x = self.convolve(images, self.widths[0], "input")
        for level, width in enumerate(self.widths):
            for index in range(self.blocks):
                x = self.residual(x, width, f"down_{level}_{index}")
            if level + 1 < len(self.widths):
                x = self.convolve(x, width, f"halve_{level}", stride=2)
        return self.convolve(self.last(self.middle(x)), 2 * self.latent_channels, "output", dtype=jnp.float32)


class Decoder(_Trunk):
    """Latents to what the output convolution reads."""

    @nn.compact
    def __call__(self, latents: Latents) -> Float[Array, "b height width w"]:
        x = self.middle(self.convolve(latents, self.widths[-1], "input"))
        for level, width in reversed(list(enumerate(self.widths))):
            for index in range(self.blocks + 1):
                x = self.residual(x, width, f"up_{level}_{index}")
            if level > 0:
                x = self.convolve(double(x), width, f"double_{level}")
        return self.last(x)


def convolutional(
    data: DataSpec,
    dtype: str = "float32",
    channels: int = 64,
    multipliers: tuple = (1, 2, 4),
    blocks: int = 2,
    latent_channels: int = 4,
    attention: bool = True,
    convolution: str = "xla",
) -> Autoencoder:
    """The autoencoder of latent diffusion. Stable Diffusion's: channels 128, multipliers (1, 2, 4, 4), 4 or 16 latent channels.

    Args:
      data: shape (height, width, channels).
      dtype: the type it computes in, 'float32' or 'bfloat16'; parameters, posterior and images are float32.
      channels: channels of the first level.
      multipliers: channels of each level over `channels`; one level fewer than these halves the image.
      blocks: residual blocks of a level of the encoder; the decoder has one more.
      latent_channels: channels of a latent cell.
      attention: attention in the middle, over all cells of the latent.
      convolution: 'xla' or 'matmul', see models/convolution.py.
    """
    choose("convolution", convolution, CONVOLUTIONS)
    if len(data.shape) != 3:
        raise ValueError(
            f"An autoencoder reads images (height, width, channels); the data have shape {tuple(data.shape)}."
        )
    factor = 2 ** (len(multipliers) - 1)
    height, width, image_channels = data.shape
    if height % factor or width % factor:
        raise ValueError(
            f"{len(multipliers)} levels halve the image {len(multipliers) - 1} times, but {(height, width)} is not "
            f"divisible by {factor}. Give fewer multipliers or pad the images."
        )
    widths = tuple(channels * multiplier for multiplier in multipliers)
    options = (widths, blocks, attention, convolution, jnp.dtype(dtype))
    encoder, decoder = Encoder(*options, latent_channels=latent_channels), Decoder(*options)
    # The last convolution is in float32: what it writes are the pixels themselves.
    output = Convolution(image_channels, implementation=convolution)
    latent_shape = (height // factor, width // factor, latent_channels)

    def init(key: Key[Array, ""]) -> PyTree:
        keys = jax.random.split(key, 3)
        inputs = ((1, *data.shape), (1, *latent_shape), (1, height, width, widths[0]))
        parts = zip(("encoder", "decoder", "output"), (encoder, decoder, output), keys, inputs)
        return {name: part.init(own, jnp.zeros(shape))["params"] for name, part, own, shape in parts}

    def encode(tree: PyTree, images: Images) -> tuple[Latents, Latents]:
        moments = encoder.apply({"params": tree["encoder"]}, images)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def hidden(tree: PyTree, latents: Latents) -> Float[Array, "b height width w"]:
        return decoder.apply({"params": tree["decoder"]}, latents)

    def paint(tree: PyTree, inner: Float[Array, "b height width w"]) -> Images:
        return output.apply({"params": tree["output"]}, inner)

    return Autoencoder(init, encode, hidden, paint, factor, latent_shape)


AUTOENCODERS = {"convolutional": convolutional}

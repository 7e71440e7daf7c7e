r"""What convolutional networks are built of: residual blocks, attention between cells, halving and doubling an image.

A residual block (Ho et al. 2020) is

    h = convolve(silu(norm(x)))
    h = convolve(dropout(silu(norm(h) (1 + scale) + shift))),      (scale, shift) a linear function of silu(embedding)
    x <- skip(x) + h,

with group norm, the second convolution starting at zero, and `skip` a linear map where the number of channels changes.
A network without a time (autoencoder) has no embedding: then scale and shift are zero.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from flowjax.models.attention import Attention
from flowjax.models.convolution import Convolution
from flowjax.models.dense import Dense
from flowjax.models.embeddings import Dropout
from flowjax.models.network import Conditions
from flowjax.models.norms import GroupNorm


def group_norm(dtype: DTypeLike, channels: int, name: str) -> GroupNorm:
    """Group norm with up to 32 groups of at least 4 channels; as many groups as divide the channels."""
    groups = next(n for n in range(max(1, min(32, channels // 4)), 0, -1) if channels % n == 0)
    return GroupNorm(groups, dtype=dtype, name=name)


def halve(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """The mean of each 2 x 2 cells."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def double(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Each cell repeated to 2 x 2."""
    batch, height, width, channels = x.shape
    shape = (batch, height, 2, width, 2, channels)
    return jnp.broadcast_to(x[:, :, None, :, None], shape).reshape(batch, 2 * height, 2 * width, channels)


class ResidualBlock(nn.Module):
    """Two convolutions, modulated by the embedding where there is one.

    Attributes:
      features: channels of the result.
      dropout: share of units to drop when it is given keys.
      convolution: 'xla' or 'matmul', see models/convolution.py.
      dtype: the type it computes in.
      resample: 'halve', 'double' or None; acts before the first convolution.
    """

    features: int
    dropout: float = 0.0
    convolution: str = "xla"
    dtype: DTypeLike = jnp.float32
    resample: str | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        embedding: Float[Array, "b e"] | None = None,
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b h2 w2 f"]:
        options = {"implementation": self.convolution, "dtype": self.dtype}
        hidden = nn.silu(group_norm(self.dtype, x.shape[-1], "norm_in")(x))
        if self.resample is not None:
            resample = {"halve": halve, "double": double}[self.resample]
            hidden, x = resample(hidden), resample(x)
        hidden = Convolution(self.features, name="conv_in", **options)(hidden)
        hidden = group_norm(self.dtype, self.features, "norm_out")(hidden)
        if embedding is not None:
            modulation = nn.Dense(2 * self.features, dtype=self.dtype, name="modulation")(nn.silu(embedding))
            scale, shift = jnp.split(modulation[:, None, None], 2, axis=-1)
            hidden = hidden * (1 + scale) + shift
        hidden = nn.silu(hidden)
        hidden = Dropout(self.dropout, name="dropout")(hidden, keys)
        hidden = Convolution(self.features, zero=True, name="conv_out", **options)(hidden)
        if x.shape[-1] != self.features:
            x = Dense(self.features, dtype=self.dtype, name="skip")(x)
        return x + hidden


class AttentionBlock(nn.Module):
    """Attention between the cells of the image, then to the text where there is text."""

    head_channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], cond: Conditions) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        heads = max(1, channels // self.head_channels)
        tokens = x.reshape(x.shape[0], -1, channels)
        attention = lambda name: Attention(heads, zero_output=True, dtype=self.dtype, name=name)
        tokens = tokens + attention("attention")(group_norm(self.dtype, channels, "norm")(tokens))
        if "text" in cond:
            normed = group_norm(self.dtype, channels, "cross_norm")(tokens)
            tokens = tokens + attention("cross_attention")(normed, cond["text"], cond["text_mask"])
        return tokens.reshape(x.shape)

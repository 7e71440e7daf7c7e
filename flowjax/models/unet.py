r"""U-Net in the style of DDPM++ and ADM (Ho et al. 2020; Song et al. 2021; Dhariwal & Nichol 2021).

The image goes down through levels of half the side and more channels, and up again; every block on the way up also
reads the output of its partner on the way down. Blocks (models/residual.py) are counted along that way, the middle as one.
Attention between the cells of the image stands after the blocks of some levels, and, with text, cross-attention after it: of
those whose height is in `attention` where the image has the data's base shape, and the same ones for every other shape. The
last convolution starts at zero, so the network starts as the zero function.

A network whose cells are squares of `patch` x `patch` pixels is the one of an image of so much smaller sides and so many more
channels (Luhman & Luhman 2022): it costs patch^2 times less, and only its two ends know.
"""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from flowjax.choices import choose
from flowjax.contract import DataSpec
from flowjax.models.convolution import CONVOLUTIONS, Convolution
from flowjax.models.embeddings import ConditionEmbedding
from flowjax.models.network import (
    Conditions,
    Network,
    from_module,
    guidance_condition,
    label_condition,
    record_tokens,
    text_conditions,
)
from flowjax.models.residual import AttentionBlock, ResidualBlock, double, group_norm

RESAMPLINGS = {
    "block": "a residual block that averages 2 x 2 cells or repeats each cell",
    "conv": "a convolution of stride 2, or one after repeating each cell",
}


class UNet(nn.Module):
    """Down, through the middle and up; see `unet` for the options. `attention` is of levels here."""

    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    head_channels: int
    resampling: str
    num_classes: int | None
    dropout: float
    time_scale: float
    convolution: str
    patch: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"],
        s: Float[Array, " b"] | None = None,
        cond: Conditions | None = None,
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b h w c"]:
        cond = cond or {}
        embed = ConditionEmbedding(
            4 * self.channels, self.num_classes, time_scale=self.time_scale, dtype=self.dtype, name="embedding"
        )
        embedding = embed(t, s, cond.get("label"), cond.get("guidance"))

        def convolve(h, features, name, stride=1):
            return Convolution(features, stride, False, self.convolution, self.dtype, name=name)(h)

        def residual(h, features, name, resample=None):
            block = ResidualBlock(features, self.dropout, self.convolution, self.dtype, resample, name=name)
            return block(h, embedding, keys)

        def attend(h, name):
            return AttentionBlock(self.head_channels, self.dtype, name=name)(h, cond)

        widths = [self.channels * multiplier for multiplier in self.multipliers]
        h = convolve(to_cells(x, self.patch), self.channels, "input")
        skips = [h]
        for level, width in enumerate(widths):
            for index in range(self.blocks):
                h = residual(h, width, f"down_{level}_{index}")
                if level in self.attention:
                    h = attend(h, f"down_{level}_{index}_attention")
                record_tokens(self, h)
                skips.append(h)
            if level + 1 < len(widths):
                if self.resampling == "block":
                    h = residual(h, width, f"halve_{level}", "halve")
                else:
                    h = convolve(h, width, f"halve_{level}", stride=2)
                skips.append(h)

        h = residual(h, widths[-1], "middle_0")
        if self.attention:
            h = attend(h, "middle_attention")
        h = residual(h, widths[-1], "middle_1")
        record_tokens(self, h)

        for level, width in reversed(list(enumerate(widths))):
            for index in range(self.blocks + 1):
                h = residual(jnp.concatenate([h, skips.pop()], axis=-1), width, f"up_{level}_{index}")
                if level in self.attention:
                    h = attend(h, f"up_{level}_{index}_attention")
                record_tokens(self, h)
            if level > 0:
                if self.resampling == "block":
                    h = residual(h, width, f"double_{level}", "double")
                else:
                    h = convolve(double(h), width, f"double_{level}")

        h = nn.silu(group_norm(self.dtype, h.shape[-1], "norm")(h)).astype(jnp.float32)
        # The last convolution is in float32: what it writes is the prediction itself.
        values = self.patch**2 * x.shape[-1]
        h = Convolution(values, zero=True, implementation=self.convolution, name="output")(h)
        return from_cells(h, self.patch)


def to_cells(x: Float[Array, "b height width c"], patch: int) -> Float[Array, "b h w k"]:
    """An image of squares of patch x patch pixels, each a cell of patch * patch * c channels."""
    return rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=patch, q=patch)


def from_cells(cells: Float[Array, "b h w k"], patch: int) -> Float[Array, "b height width c"]:
    """The image of which `to_cells` made these."""
    return rearrange(cells, "b h w (p q c) -> b (h p) (w q) c", p=patch, q=patch)


def unet(
    data: DataSpec,
    dtype: str = "float32",
    channels: int = 64,
    multipliers: tuple = (1, 2),
    blocks: int = 2,
    attention: tuple = (16, 8),
    head_channels: int = 32,
    resampling: str = "block",
    class_conditional: bool = True,
    guidance_conditional: bool = False,
    text_conditional: bool = True,
    dropout: float = 0.0,
    two_times: bool = False,
    time_scale: float = 1000.0,
    convolution: str = "xla",
    patch: int = 1,
) -> Network:
    """A U-Net.

    Args:
      data: shape (height, width, channels) and number of classes.
      dtype: the type it computes in, 'float32' or 'bfloat16'; parameters and output are float32.
      channels: channels of the first level.
      multipliers: channels of each level over `channels`; one level fewer than these halves the image.
      blocks: residual blocks of a level on the way down; one more on the way up.
      attention: the heights, in cells, at which images of the base shape have attention; () for none, also in the middle.
      head_channels: channels of an attention head.
      resampling: how an image is halved and doubled: 'block' or 'conv'.
      class_conditional: read cond['label'] where the data have classes.
      guidance_conditional: read cond['guidance'], the scale of guidance to answer with.
      text_conditional: read cond['text'] and cond['text_mask'] where the data have captions (encoded ones).
      dropout: share of units to drop in the residual blocks when the network is given keys.
      two_times: take a second time s.
      time_scale: highest frequency of the time embedding.
      convolution: 'xla' or 'matmul', see models/convolution.py.
      patch: the side in pixels of a cell of the first level.
    """
    choose("resampling", resampling, RESAMPLINGS)
    choose("convolution", convolution, CONVOLUTIONS)
    if len(data.shape) != 3:
        raise ValueError(f"A U-Net reads images (height, width, channels); the data have shape {data.shape}.")
    if patch < 1:
        raise ValueError(f"network.patch is {patch}; expected the side of a cell in pixels, 1 or more.")
    factor = patch * 2 ** (len(multipliers) - 1)
    for height, width, _ in data.shapes or (data.shape,):
        if height % factor or width % factor:
            raise ValueError(
                f"{len(multipliers)} levels of cells of {patch} x {patch} pixels halve the image {len(multipliers) - 1} times, "
                f"but {(height, width)} is not divisible by {factor}. Give fewer multipliers or a smaller patch, or pad the "
                "images."
            )
    heights = [data.shape[0] // patch // 2**level for level in range(len(multipliers))]
    text = text_conditional and data.text_channels > 0
    if text and not attention:
        raise ValueError("Text is read beside attention, and attention=() has none. Give heights such as (16, 8).")
    for multiplier in multipliers:
        width = channels * multiplier
        if attention and width % max(1, width // head_channels):
            raise ValueError(f"Heads of {head_channels} channels do not divide {width} channels. Change head_channels.")
    if attention and not set(attention) & set(heights):
        raise ValueError(
            f"attention={tuple(attention)} names none of the heights {heights} of this network. Use some, or ()."
        )
    classes = data.num_classes if class_conditional else None
    module = UNet(
        channels,
        tuple(multipliers),
        blocks,
        tuple(level for level, height in enumerate(heights) if height in attention),
        head_channels,
        resampling,
        classes,
        dropout,
        time_scale,
        convolution,
        patch,
        jnp.dtype(dtype),
    )
    conditions = {} if classes is None else {"label": label_condition(classes)}
    if guidance_conditional:
        conditions |= guidance_condition()
    if text:
        conditions |= text_conditions(data.text_length, data.text_channels)
    layers = len(multipliers) * (2 * blocks + 1) + 1
    return from_module(module, data, conditions, two_times, layers)

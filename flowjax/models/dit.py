r"""DiT: a transformer on patches of the image, modulated by time and label (Peebles & Xie 2023; Ma et al. 2024, SiT).

An image is cut into p x p patches; each becomes a token with a fixed position vector. A block is

    x <- x + gate_1 Attention(modulate(norm(x), shift_1, scale_1))
    x <- x + gate_2 MLP(modulate(norm(x), shift_2, scale_2)),         modulate(h, shift, scale) = h (1 + scale) + shift,

with the six vectors a linear function of silu(e), e the embedding of time and label, and norm a layer norm without
parameters. That function starts at zero (adaLN-zero), so every block starts as the identity; the last layer starts at
zero too, so the network starts as the zero function.

Options turn the blocks into those of FiTv2 (Wang et al. 2024): rotary positions that reach beyond the trained resolution
(positions.py), gated feed-forward layers (feed_forward.py), normalised queries and keys (attention.py), adaLN-LoRA
(modulation.py), and images of any shape up to the size of the array: `masked` reads cond['pixel_mask'], tokens without
a visible pixel are attended to by nobody, and outside the mask the output is zero. With `max_tokens` the visible tokens
are moved to the front and only so many are computed, so that wide and tall images share one fixed cost.

Differences from the published PyTorch model, which has an output for a variance that the flow loss throws away
(learn_sigma) and counts its fixed position vectors as parameters: here neither is present. With h the width,
P = H W / p^2 patches and k = p^2 C values in a patch, the published count is ours + (h + 1) k + P h; that is the test.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from flowjax.arrays import keep_visible
from flowjax.choices import choose
from flowjax.contract import DataSpec
from flowjax.models.attention import QK_NORMS, Attention, check_chunk
from flowjax.models.dense import Dense
from flowjax.models.embeddings import ConditionEmbedding, Dropout
from flowjax.models.feed_forward import FEED_FORWARDS, feed_forward
from flowjax.models.modulation import MODULATIONS, Modulation, modulate
from flowjax.models.network import (
    Conditions,
    Network,
    from_module,
    guidance_condition,
    label_condition,
    mask_condition,
    record_tokens,
    text_conditions,
)
from flowjax.models.packing import pack, unpack, visible_first
from flowjax.models.patches import check_grid, from_patches, layer_norm, predicted_patches, to_patches
from flowjax.models.positions import Positions, Rotation

# name -> (width, depth, heads), as published.
SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}


class Block(nn.Module):
    """Attention and feed-forward with adaLN-zero, and cross-attention to text between them when there is text."""

    heads: int
    mlp_ratio: float
    qk_norm: str
    attention_chunk: int
    feed_forward: str
    modulation_rank: int | None
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        embedding: Float[Array, "b c"],
        shared: Float[Array, "b m"] | None,
        rotation: Rotation | None,
        visible: Bool[Array, "b n"] | None,
        cond: Conditions,
        keys: Key[Array, " b"] | None,
    ) -> Float[Array, "b n c"]:
        size = x.shape[-1]
        norm = lambda h: layer_norm(h, self.dtype)
        modulation = Modulation(6, size, self.modulation_rank, self.dtype, name="modulation")
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation(embedding, shared)
        attention = Attention(self.heads, self.qk_norm, chunk=self.attention_chunk, dtype=self.dtype, name="attention")
        mixed = attention(modulate(norm(x), shift_1, scale_1), mask=visible, rotation=rotation)
        x = x + gate_1[:, None] * Dropout(self.dropout, name="attention_dropout")(mixed, keys)
        if "text" in cond:
            cross = Attention(
                self.heads, self.qk_norm, True, self.attention_chunk, dtype=self.dtype, name="cross_attention"
            )
            x = x + cross(norm(x), cond["text"], cond["text_mask"])
        normed = modulate(norm(x), shift_2, scale_2)
        hidden = feed_forward(normed, self.feed_forward, self.mlp_ratio, self.dropout, keys, self.dtype)
        return x + gate_2[:, None] * hidden


class DiT(nn.Module):
    """Patches -> blocks -> patches; see `dit` for the options."""

    width: int
    depth: int
    heads: int
    patch: int
    num_classes: int | None
    mlp_ratio: float
    qk_norm: str
    attention_chunk: int
    feed_forward: str
    modulation: str
    modulation_rank: int
    positions: Positions
    max_tokens: int
    remat: bool
    dropout: float
    time_scale: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b height width c"],
        t: Float[Array, " b"],
        s: Float[Array, " b"] | None = None,
        cond: Conditions | None = None,
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b height width c"]:
        cond = dict(cond or {})
        rows, columns = x.shape[1] // self.patch, x.shape[2] // self.patch
        pixels, visible = cond.pop("pixel_mask", None), None
        if pixels is not None:
            x = keep_visible(x, pixels)
            visible = to_patches(pixels[..., None], self.patch).any(axis=-1)
        patches = to_patches(x, self.patch)
        init = nn.initializers.xavier_uniform()
        tokens = Dense(self.width, kernel_init=init, dtype=self.dtype, name="patch_embedding")(patches)
        fixed = self.positions.features(rows, columns, self.width)
        if fixed is not None:
            tokens = tokens + jnp.asarray(fixed, self.dtype)
        rotation = self.positions.rotation(rows, columns, self.width // self.heads)

        attended, in_place = visible, lambda tokens: tokens
        if self.max_tokens and self.max_tokens < rows * columns:
            order = visible_first(visible, self.max_tokens)
            tokens, attended = pack(tokens, order), pack(visible[..., None], order)[..., 0]
            rotation = None if rotation is None else tuple(pack(table, order) for table in rotation)
            in_place = lambda tokens: unpack(tokens, order, visible)

        embed = ConditionEmbedding(
            self.width, self.num_classes, time_scale=self.time_scale, dtype=self.dtype, name="embedding"
        )
        embedding, shared, rank = embed(t, s, cond.get("label"), cond.get("guidance")), None, None
        if self.modulation == "lora":
            rank = self.modulation_rank
            shared = jnp.concatenate(Modulation(6, self.width, None, self.dtype, name="modulation")(embedding), axis=-1)
        block_class = nn.remat(Block) if self.remat else Block
        for index in range(self.depth):
            block = block_class(
                self.heads,
                self.mlp_ratio,
                self.qk_norm,
                self.attention_chunk,
                self.feed_forward,
                rank,
                self.dropout,
                self.dtype,
                name=f"block_{index}",
            )
            tokens = block(tokens, embedding, shared, rotation, attended, cond, keys)
            record_tokens(self, in_place(tokens).reshape(-1, rows, columns, self.width))
        patches = in_place(predicted_patches(tokens, embedding, patches.shape[-1], self.dtype))
        image = from_patches(patches, self.patch, rows)
        return keep_visible(image, pixels)


def dit(
    data: DataSpec,
    dtype: str = "float32",
    width: int = 384,
    depth: int = 12,
    heads: int = 6,
    patch: int = 2,
    mlp_ratio: float = 4.0,
    qk_norm: str = "none",
    attention_chunk: int = 0,
    feed_forward: str = "gelu",
    modulation: str = "full",
    modulation_rank: int = 0,
    position: str = "fixed",
    theta: float = 10000.0,
    trained_grid: tuple = (),
    extrapolation: str = "none",
    per_axis: bool = True,
    scale_logits: bool = False,
    masked: bool = False,
    max_tokens: int = 0,
    class_conditional: bool = True,
    guidance_conditional: bool = False,
    text_conditional: bool = True,
    dropout: float = 0.0,
    two_times: bool = False,
    time_scale: float = 1000.0,
    remat: bool = False,
) -> Network:
    """A diffusion transformer of any size.

    Args:
      data: shape (height, width, channels) and number of classes.
      dtype: the type it computes in, 'float32' or 'bfloat16'; parameters and output are float32.
      width: size of a token, a multiple of 4 and of heads.
      depth: blocks.
      heads: attention heads.
      patch: side of a patch; it divides height and width.
      mlp_ratio: hidden units of a block's feed-forward part over width (2/3 of that for 'swiglu').
      qk_norm: normalise queries and keys: 'none', 'rms' or 'layer'.
      attention_chunk: how many tokens meet how many at a time, where the square of all is too much for the memory; 0 for all
        at once. See chunked_attention.py.
      feed_forward: 'gelu' or 'swiglu'.
      modulation: 'full' or 'lora', see modulation.py.
      modulation_rank: rank of a block's correction with 'lora'; 0 for width / 4.
      position: 'fixed' or 'rope', see positions.py.
      theta: base of the rotary frequencies; 100 suits grids of a few tokens a side.
      trained_grid: (rows, columns) of the grid of tokens it was trained on; () for that of `data`.
      extrapolation: on larger grids: 'none', 'interpolation' and, with 'rope', 'ntk', 'ntk_by_parts' or 'yarn'.
      per_axis: extrapolate rows and columns each by its own factor, otherwise both by the larger.
      scale_logits: with 'rope', sharpen attention on grids of more tokens than trained_grid.
      masked: read cond['pixel_mask'], bool[b, height, width], True inside an example's image.
      max_tokens: with `masked`, how many tokens to compute for an example; one with more comes out as NaN. 0 for all.
      class_conditional: read cond['label'] where the data have classes.
      guidance_conditional: read cond['guidance'], the scale of guidance to answer with.
      text_conditional: read cond['text'] and cond['text_mask'] where the data have captions (encoded ones).
      dropout: share of units to drop, after attention and in the feed-forward part, when the network is given keys.
      two_times: take a second time s.
      time_scale: highest frequency of the time embedding.
      remat: compute blocks again in the backward pass instead of keeping what is inside them.
    """
    check_grid("A DiT", data, patch)
    if width % heads or width % 4:
        raise ValueError(f"The width {width} must be a multiple of 4 and of the number of heads, {heads}.")
    choose("qk_norm", qk_norm, QK_NORMS)
    check_chunk(attention_chunk)
    choose("feed_forward", feed_forward, FEED_FORWARDS)
    choose("modulation", modulation, MODULATIONS)
    if modulation_rank and modulation != "lora":
        raise ValueError(f"modulation_rank={modulation_rank} belongs to modulation='lora'; it is '{modulation}'.")
    if masked and data.masked and data.visible_multiple % patch:
        raise ValueError(
            f"The sides of the data's images are multiples of {data.visible_multiple}, which patches of side {patch} do not "
            "tile: some would hold a picture in part. Choose a patch that divides it, or another mask_multiple of the data."
        )
    if max_tokens and not masked:
        raise ValueError(f"max_tokens={max_tokens} leaves out tokens that a mask hides. Set masked=True.")
    usual = math.prod(data.visible_shape) // patch**2
    if data.masked and 0 < max_tokens < usual:
        raise ValueError(
            f"max_tokens={max_tokens} is fewer than the {usual} patches of an image of {tuple(data.visible_shape)} pixels, "
            f"which would come out as NaN. Use {usual}, or more where images are larger."
        )
    trained = tuple(trained_grid) or (data.shape[0] // patch, data.shape[1] // patch)
    positions = Positions(position, trained, float(theta), extrapolation, per_axis, scale_logits)
    positions.rotation(1, 1, width // heads)  # refuses heads that cannot be rotated
    classes = data.num_classes if class_conditional else None
    module = DiT(
        width,
        depth,
        heads,
        patch,
        classes,
        mlp_ratio,
        qk_norm,
        attention_chunk,
        feed_forward,
        modulation,
        modulation_rank or width // 4,
        positions,
        max_tokens,
        remat,
        dropout,
        time_scale,
        jnp.dtype(dtype),
    )
    conditions = {} if classes is None else {"label": label_condition(classes)}
    if guidance_conditional:
        conditions |= guidance_condition()
    if text_conditional and data.text_channels > 0:
        conditions |= text_conditions(data.text_length, data.text_channels)
    if masked:
        conditions |= {"pixel_mask": mask_condition(data.shape[:2])}
    return from_module(module, data, conditions, two_times, layers=depth)

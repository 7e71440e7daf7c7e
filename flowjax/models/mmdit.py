r"""MM-DiT: image and text as two streams of tokens that meet in attention (Esser et al. 2024, Stable Diffusion 3).

Each stream has its own norms, projections, feed-forward part and modulation; in every block the queries, keys and values
of both are put end to end and attend to each other:

    [m_x; m_c] = Attention([q_x; q_c], [k_x; k_c], [v_x; v_c])
    x <- x + gate O_x m_x,   x <- x + gate' MLP_x(modulate(norm(x))),       and the same for c with weights of its own,

with modulations linear in silu(e), starting at zero (adaLN-zero), and e the embedding of the time plus two dense layers
on one vector for the whole text: `text_pooled` where the data have it, otherwise the mean of the text's tokens. After the
last block nobody reads the text, so there the text only offers keys and values.

Padding is hidden from attention by the mask, and the two streams share nothing else, so it cannot change the image. A
text that is hidden whole (the null of guidance) leaves the image attending to itself and a vector of zeros to be pooled,
whose two layers have biases: the null is learned.

With depth d the width is w = 64 d, with d heads (the published rule). A block has 36 w^2 + 30 w parameters and the last
one 22 w^2 + 19 w. The published last block also has queries of the text that nobody reads: w^2 + w parameters more (and
the scale of their norm), which brings the total to about (36 d - 13) w^2.

SD3.5-M adds to its first blocks a second attention, of the image to itself, on the same norm with three more vectors:
`dual_blocks`. Positions are fixed waves; with `position_grid` G they are the middle of a G x G table that spans the
coordinates of the data's own grid, so that images of other sizes and shapes see a window of the same plane.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from flowjax.choices import choose
from flowjax.contract import DataSpec
from flowjax.models.attention import QK_NORMS, Attention, attend, check_chunk, heads_of, normalise
from flowjax.models.dense import Dense
from flowjax.models.embeddings import ConditionEmbedding, Dropout, coordinate_features, position_features
from flowjax.models.feed_forward import feed_forward
from flowjax.models.modulation import Modulation, modulate
from flowjax.models.network import (
    Conditions,
    Network,
    from_module,
    guidance_condition,
    label_condition,
    record_tokens,
    text_conditions,
)
from flowjax.models.patches import check_grid, from_patches, layer_norm, predicted_patches, to_patches

DEPTHS = (12, 18, 24, 38)  # of the presets; 24 and 38 are SD3-M and SD3.5-L


def window_features(
    rows: int, columns: int, size: int, table: int, trained: tuple[int, int]
) -> Float[np.ndarray, "cells size"]:
    """Features of the middle rows x columns of a table x table grid that spans `trained` units of coordinates."""
    if max(rows, columns) > table:
        raise ValueError(f"A grid of {rows} x {columns} tokens is larger than position_grid={table}. Make that larger.")
    axes = [
        (np.arange(length) + (table - length) // 2) * span / table for length, span in zip((rows, columns), trained)
    ]
    row, column = np.meshgrid(*axes, indexing="ij")
    return coordinate_features(row.reshape(-1), column.reshape(-1), size)


class JointBlock(nn.Module):
    """One block of both streams; the text comes out of the last one as None.

    Attributes:
      heads, mlp_ratio, qk_norm, attention_chunk, dropout, dtype: see `mmdit`.
      last: whether the text is read for the last time.
      dual: whether the image also attends to itself alone.
    """

    heads: int
    mlp_ratio: float
    qk_norm: str
    attention_chunk: int
    dropout: float
    last: bool
    dual: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b n c"],
        text: Float[Array, "b l c"],
        visible: Bool[Array, "b m"],
        embedding: Float[Array, "b c"],
        keys: Key[Array, " b"] | None,
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b l c"] | None]:
        size, cells = image.shape[-1], image.shape[1]
        init = nn.initializers.xavier_uniform()
        dense = lambda features, name: Dense(features, kernel_init=init, dtype=self.dtype, name=name)
        norm = lambda h: layer_norm(h, self.dtype)

        def modulation(count: int, stream: str) -> list[Float[Array, "b c"]]:
            return Modulation(count, size, None, self.dtype, name=f"{stream}_modulation")(embedding)

        def project(
            tokens: Float[Array, "b m c"], parts: tuple[str, ...], stream: str
        ) -> list[Float[Array, "b m h d"]]:
            """Queries (where asked for), keys and values of a stream."""
            projected = dense(len(parts) * size, f"{stream}_{'_'.join(parts)}")(tokens)
            split = dict(zip(parts, jnp.split(projected, len(parts), axis=-1)))
            split = {part: heads_of(array, self.heads) for part, array in split.items()}
            return [
                array if part == "value" else normalise(array, self.qk_norm, f"{stream}_{part}_norm")
                for part, array in split.items()
            ]

        def finish(tokens, mixed, gates: list, stream: str) -> Float[Array, "b m c"]:
            """The rest of a block for one stream: what attention found, then the feed-forward part."""
            gate, shift, scale, feed_gate = gates
            mixed = Dropout(self.dropout, name=f"{stream}_attention_dropout")(
                dense(size, f"{stream}_output")(mixed), keys
            )
            tokens = tokens + gate[:, None] * mixed
            normed = modulate(norm(tokens), shift, scale)
            hidden = feed_forward(normed, "gelu", self.mlp_ratio, self.dropout, keys, self.dtype, f"{stream}_mlp")
            return tokens + feed_gate[:, None] * hidden

        shift, scale, *image_gates = modulation(9 if self.dual else 6, "image")
        queries, image_keys, image_values = project(
            modulate(norm(image), shift, scale), ("query", "key", "value"), "image"
        )
        if self.dual:  # added after the joint projections have read the image, beside what the joint attention adds
            shift, scale, gate = image_gates[4:]
            attention = Attention(
                self.heads, self.qk_norm, chunk=self.attention_chunk, dtype=self.dtype, name="image_attention"
            )
            image = image + gate[:, None] * attention(modulate(norm(image), shift, scale))
        shift, scale, *text_gates = modulation(2 if self.last else 6, "text")
        parts = ("key", "value") if self.last else ("query", "key", "value")
        *text_queries, text_keys, text_values = project(modulate(norm(text), shift, scale), parts, "text")
        join = lambda *streams: jnp.concatenate(streams, axis=1)
        mixed = attend(
            join(queries, *text_queries),
            join(image_keys, text_keys),
            join(image_values, text_values),
            visible,
            self.attention_chunk,
        )
        mixed = mixed.reshape(*mixed.shape[:2], size)
        image = finish(image, mixed[:, :cells], image_gates[:4], "image")
        return image, None if self.last else finish(text, mixed[:, cells:], text_gates, "text")


class MMDiT(nn.Module):
    """Two streams of tokens; see `mmdit` for the options."""

    width: int
    depth: int
    heads: int
    patch: int
    trained: tuple[int, int]
    num_classes: int | None
    mlp_ratio: float
    qk_norm: str
    attention_chunk: int
    dual_blocks: int
    position_grid: int
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
        rows, columns = x.shape[1] // self.patch, x.shape[2] // self.patch
        patches = to_patches(x, self.patch)
        dense = lambda name: Dense(
            self.width, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name=name
        )
        if self.position_grid:
            features = window_features(rows, columns, self.width, self.position_grid, self.trained)
        else:
            features = position_features(rows, columns, self.width)
        image = dense("patch_embedding")(patches) + jnp.asarray(features, self.dtype)
        text, mask = dense("text_embedding")(cond["text"]), cond["text_mask"]
        visible = jnp.concatenate([jnp.ones((len(x), rows * columns), bool), mask], axis=1)

        pooled = cond.get("text_pooled")
        if pooled is None:
            count = jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
            pooled = jnp.sum(jnp.where(mask[..., None], cond["text"], 0.0), axis=1) / count
        embed = ConditionEmbedding(
            self.width, self.num_classes, time_scale=self.time_scale, dtype=self.dtype, name="embedding"
        )
        embedding = embed(t, s, cond.get("label"), cond.get("guidance"))
        embedding += dense("pooled_out")(nn.silu(dense("pooled_in")(pooled)))

        block_class = nn.remat(JointBlock) if self.remat else JointBlock
        for index in range(self.depth):
            block = block_class(
                self.heads,
                self.mlp_ratio,
                self.qk_norm,
                self.attention_chunk,
                self.dropout,
                index + 1 == self.depth,
                index < self.dual_blocks,
                self.dtype,
                name=f"block_{index}",
            )
            image, text = block(image, text, visible, embedding, keys)
            record_tokens(self, image.reshape(-1, rows, columns, self.width))
        patches = predicted_patches(image, embedding, patches.shape[-1], self.dtype)
        return from_patches(patches, self.patch, rows)


def mmdit(
    data: DataSpec,
    dtype: str = "float32",
    depth: int = 6,
    width: int = 0,
    heads: int = 0,
    patch: int = 2,
    mlp_ratio: float = 4.0,
    qk_norm: str = "rms",
    attention_chunk: int = 0,
    dual_blocks: int = 0,
    position_grid: int = 0,
    class_conditional: bool = True,
    guidance_conditional: bool = False,
    dropout: float = 0.0,
    two_times: bool = False,
    time_scale: float = 1000.0,
    remat: bool = False,
) -> Network:
    """An MM-DiT of any size. It reads cond['text'] and cond['text_mask'], and 'text_pooled' where the data have it.

    Args:
      data: shape (height, width, channels), number of classes, and the size of the encoded captions, which it needs.
      dtype: the type it computes in, 'float32' or 'bfloat16'; parameters and output are float32.
      depth: blocks.
      width: size of a token, a multiple of 4 and of heads; 0 for 64 * depth.
      heads: attention heads; 0 for depth.
      patch: side of a patch; it divides height and width.
      mlp_ratio: hidden units of a feed-forward part over width.
      qk_norm: normalise queries and keys: 'none' (SD3), 'rms' (SD3.5) or 'layer'.
      attention_chunk: how many tokens meet how many at a time, where the square of all is too much for the memory; 0 for all
        at once. See chunked_attention.py.
      dual_blocks: how many of the first blocks have a second attention, of the image to itself (SD3.5-M: 13).
      position_grid: side of the table of positions of which an image sees the middle (SD3: 192); 0 for positions
        that start at the corner.
      class_conditional: read cond['label'] where the data have classes.
      guidance_conditional: read cond['guidance'], the scale of guidance to answer with.
      dropout: share of units to drop, after attention and in the feed-forward part, when the network is given keys.
      two_times: take a second time s.
      time_scale: highest frequency of the time embedding.
      remat: compute blocks again in the backward pass instead of keeping what is inside them.
    """
    width, heads = width or 64 * depth, heads or depth
    check_grid("An MM-DiT", data, patch)
    if not data.text_channels:
        raise ValueError(
            "An MM-DiT needs encoded captions (text_channels > 0), and the data have none. Add a text encoder to a "
            "source with captions, or use 'dit'."
        )
    if width % heads or width % 4:
        raise ValueError(f"The width {width} must be a multiple of 4 and of the number of heads, {heads}.")
    if not 0 <= dual_blocks <= depth:
        raise ValueError(f"dual_blocks={dual_blocks} must lie between 0 and the depth, {depth}.")
    choose("qk_norm", qk_norm, QK_NORMS)
    check_chunk(attention_chunk)
    classes = data.num_classes if class_conditional else None
    module = MMDiT(
        width,
        depth,
        heads,
        patch,
        (data.shape[0] // patch, data.shape[1] // patch),
        classes,
        mlp_ratio,
        qk_norm,
        attention_chunk,
        dual_blocks,
        position_grid,
        remat,
        dropout,
        time_scale,
        jnp.dtype(dtype),
    )
    conditions = {} if classes is None else {"label": label_condition(classes)}
    if guidance_conditional:
        conditions |= guidance_condition()
    conditions |= text_conditions(data.text_length, data.text_channels, data.pooled_channels)
    return from_module(module, data, conditions, two_times, layers=depth)

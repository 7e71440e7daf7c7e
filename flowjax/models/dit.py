r"""DiT: a transformer on patches of the image, modulated by time and label (Peebles & Xie 2023; Ma et al. 2024, SiT).

An image is cut into p x p patches; each becomes a token with a fixed position vector. A block is

    x <- x + gate_1 Attention(modulate(norm(x), shift_1, scale_1))
    x <- x + gate_2 MLP(modulate(norm(x), shift_2, scale_2)),         modulate(h, shift, scale) = h (1 + scale) + shift,

with the six vectors a linear function of silu(e), e the embedding of time and label, and norm a layer norm without
parameters. That function starts at zero (adaLN-zero), so every block starts as the identity; the last layer starts at
zero too, so the network starts as the zero function.

Differences from the published PyTorch model, which has an output for a variance that the flow loss throws away
(learn_sigma) and counts its fixed position vectors as parameters: here neither is present. With h the width,
P = H W / p^2 patches and k = p^2 C values in a patch, the published count is ours + (h + 1) k + P h; that is the test.
"""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from flowjax.choices import choose
from flowjax.contract import DataSpec
from flowjax.models.attention import Attention
from flowjax.models.dense import Dense
from flowjax.models.embeddings import ConditionEmbedding, Dropout, position_features
from flowjax.models.network import Conditions, Network, from_module, label_condition, record_tokens, text_conditions

# name -> (width, depth, heads), as published.
SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}


def modulate(x: Float[Array, "b n c"], shift: Float[Array, "b c"], scale: Float[Array, "b c"]) -> Float[Array, "b n c"]:
    """x (1 + scale) + shift, the same for every token of an example."""
    return x * (1 + scale[:, None]) + shift[:, None]


class Modulation(nn.Module):
    """`count` vectors, each a linear function of silu(embedding) that starts at zero."""

    count: int
    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, embedding: Float[Array, "b c"]) -> list[Float[Array, "b f"]]:
        dense = Dense(self.count * self.features, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="linear")
        return jnp.split(dense(nn.silu(embedding)), self.count, axis=-1)


class Block(nn.Module):
    """Attention and MLP with adaLN-zero, and cross-attention to text between them when there is text."""

    heads: int
    mlp_ratio: float
    qk_norm: bool
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], embedding: Float[Array, "b c"], cond: Conditions, keys: Key[Array, "b"] | None
    ) -> Float[Array, "b n c"]:
        size = x.shape[-1]
        norm = lambda h: nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=self.dtype)(h)
        dense = lambda n, name: Dense(n, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name=name)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = Modulation(6, size, self.dtype, name="modulation")(
            embedding
        )
        attention = Attention(self.heads, self.qk_norm, dtype=self.dtype, name="attention")
        mixed = attention(modulate(norm(x), shift_1, scale_1))
        x = x + gate_1[:, None] * Dropout(self.dropout, name="attention_dropout")(mixed, keys)
        if "text" in cond:
            cross = Attention(self.heads, self.qk_norm, zero_output=True, dtype=self.dtype, name="cross_attention")
            x = x + cross(norm(x), cond["text"], cond["text_mask"])
        hidden = nn.gelu(dense(int(size * self.mlp_ratio), "mlp_in")(modulate(norm(x), shift_2, scale_2)))
        hidden = Dropout(self.dropout, name="mlp_dropout")(hidden, keys)
        return x + gate_2[:, None] * dense(size, "mlp_out")(hidden)


class DiT(nn.Module):
    """Patches -> blocks -> patches; see `dit` for the options."""

    width: int
    depth: int
    heads: int
    patch: int
    num_classes: int | None = None
    mlp_ratio: float = 4.0
    qk_norm: bool = False
    dropout: float = 0.0
    time_scale: float = 1000.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b height width c"],
        t: Float[Array, "b"],
        s: Float[Array, "b"] | None = None,
        cond: Conditions | None = None,
        keys: Key[Array, "b"] | None = None,
    ) -> Float[Array, "b height width c"]:
        cond = cond or {}
        rows, columns = x.shape[1] // self.patch, x.shape[2] // self.patch
        cells = {"p": self.patch, "q": self.patch, "h": rows, "w": columns}
        patches = rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", **cells)
        init = nn.initializers.xavier_uniform()
        tokens = Dense(self.width, kernel_init=init, dtype=self.dtype, name="patch_embedding")(patches)
        tokens = tokens + jnp.asarray(position_features(rows, columns, self.width), self.dtype)
        embed = ConditionEmbedding(
            self.width, self.num_classes, time_scale=self.time_scale, dtype=self.dtype, name="embedding"
        )
        embedding = embed(t, s, cond.get("label"))
        for index in range(self.depth):
            block = Block(self.heads, self.mlp_ratio, self.qk_norm, self.dropout, self.dtype, name=f"block_{index}")
            tokens = block(tokens, embedding, cond, keys)
            record_tokens(self, tokens.reshape(-1, rows, columns, self.width))
        shift, scale = Modulation(2, self.width, self.dtype, name="final_modulation")(embedding)
        norm = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=self.dtype)
        # The last layer is in float32: what it writes is the prediction itself.
        output = Dense(patches.shape[-1], kernel_init=nn.initializers.zeros, name="output")
        patches = output(modulate(norm(tokens), shift, scale).astype(jnp.float32))
        return rearrange(patches, "b (h w) (p q c) -> b (h p) (w q) c", **cells)


def dit(
    data: DataSpec,
    dtype: str = "float32",
    width: int = 384,
    depth: int = 12,
    heads: int = 6,
    patch: int = 2,
    mlp_ratio: float = 4.0,
    qk_norm: bool = False,
    class_conditional: bool = True,
    text_conditional: bool = True,
    dropout: float = 0.0,
    two_times: bool = False,
    time_scale: float = 1000.0,
) -> Network:
    """A diffusion transformer of any size.

    Args:
      data: shape (height, width, channels) and number of classes.
      dtype: the type it computes in, 'float32' or 'bfloat16'; parameters and output are float32.
      width: size of a token, a multiple of 4 and of heads.
      depth: blocks.
      heads: attention heads.
      patch: side of a patch; it divides height and width.
      mlp_ratio: hidden units of a block's MLP over width.
      qk_norm: normalise queries and keys.
      class_conditional: read cond['label'] where the data have classes.
      text_conditional: read cond['text'] and cond['text_mask'] where the data have captions (encoded ones).
      dropout: share of units to drop, after attention and in the MLP, when the network is given keys.
      two_times: take a second time s.
      time_scale: highest frequency of the time embedding.
    """
    if len(data.shape) != 3:
        raise ValueError(f"A DiT reads images (height, width, channels); the data have shape {data.shape}.")
    if data.shape[0] % patch or data.shape[1] % patch:
        raise ValueError(
            f"Patches of side {patch} do not tile an image of shape {data.shape}. Choose a common divisor."
        )
    if width % heads or width % 4:
        raise ValueError(f"The width {width} must be a multiple of 4 and of the number of heads, {heads}.")
    classes = data.num_classes if class_conditional else None
    text = text_conditional and data.text_channels > 0
    module = DiT(width, depth, heads, patch, classes, mlp_ratio, qk_norm, dropout, time_scale, jnp.dtype(dtype))
    conditions = {} if classes is None else {"label": label_condition(classes)}
    if text:
        conditions |= text_conditions(data.text_length, data.text_channels)
    return from_module(module, data, conditions, two_times, layers=depth)


def preset(size: str):
    """A factory like `dit` with a published size: s, b, l or xl."""
    width, depth, heads = choose("DiT size", size, SIZES)

    def factory(
        data: DataSpec,
        dtype: str = "float32",
        patch: int = 2,
        qk_norm: bool = False,
        class_conditional: bool = True,
        text_conditional: bool = True,
        dropout: float = 0.0,
        two_times: bool = False,
        time_scale: float = 1000.0,
    ) -> Network:
        return dit(
            data,
            dtype,
            width,
            depth,
            heads,
            patch,
            qk_norm=qk_norm,
            class_conditional=class_conditional,
            text_conditional=text_conditional,
            dropout=dropout,
            two_times=two_times,
            time_scale=time_scale,
        )

    factory.__doc__ = f"A DiT of width {width}, depth {depth} and {heads} heads; see `dit` for the options."
    return factory

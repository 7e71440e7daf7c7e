"""Images as tokens and back: what the transformers share at their two ends."""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from flowjax.contract import DataSpec
from flowjax.models.dense import Dense
from flowjax.models.modulation import Modulation, modulate


def check_grid(who: str, data: DataSpec, patch: int) -> None:
    """Refuses data that cannot be cut into patches."""
    if len(data.shape) != 3:
        raise ValueError(f"{who} reads images (height, width, channels); the data have shape {data.shape}.")
    if data.shape[0] % patch or data.shape[1] % patch:
        raise ValueError(
            f"Patches of side {patch} do not tile an image of shape {data.shape}. Choose a common divisor."
        )


def to_patches(x: Shaped[Array, "b height width c"], patch: int) -> Shaped[Array, "b n k"]:
    """Square patches row by row, each as one vector of patch * patch * c values."""
    return rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)


def from_patches(patches: Shaped[Array, "b n k"], patch: int, rows: int) -> Shaped[Array, "b height width c"]:
    """The image of which `to_patches` made these, with so many rows of patches."""
    return rearrange(patches, "b (h w) (p q c) -> b (h p) (w q) c", p=patch, q=patch, h=rows)


def layer_norm(x: Float[Array, "b n c"], dtype: DTypeLike) -> Float[Array, "b n c"]:
    """A layer norm without parameters: those of adaLN come from the modulation."""
    return nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=dtype)(x)


def predicted_patches(
    tokens: Float[Array, "b n c"], embedding: Float[Array, "b e"], size: int, dtype: DTypeLike
) -> Float[Array, "b n size"]:
    """The last layer of a transformer; called in a module's compact method, to which its parameters belong.

    Args:
      tokens: after the last block.
      embedding: of time and conditions.
      size: values of a patch.
      dtype: the type of the modulation. The layer itself is in float32: what it writes is the prediction.
    """
    shift, scale = Modulation(2, tokens.shape[-1], None, dtype, name="final_modulation")(embedding)
    output = Dense(size, kernel_init=nn.initializers.zeros, name="output")
    return output(modulate(layer_norm(tokens, dtype), shift, scale).astype(jnp.float32))

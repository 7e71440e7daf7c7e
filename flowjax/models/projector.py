"""From a network's tokens to the channels of an encoder's features: the trained bridge of representation alignment.

mlp           three dense layers with SiLU between them, token by token (Yu et al. 2024, REPA)
convolution   one 3 x 3 convolution over the grid of tokens (iREPA, 2025): its neighbours help to say what is where
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree

from flowjax.models.convolution import Convolution
from flowjax.models.dense import Dense


@dataclasses.dataclass(frozen=True)
class Projector:
    """A projector as functions of its parameter tree.

    Attributes:
      init: key -> tree.
      apply: (tree, tokens [b, h, w, c]) -> [b, h, w, features], float32.
    """

    init: Callable[[Key[Array, ""]], PyTree]
    apply: Callable[[PyTree, Float[Array, "b h w _c"]], Float[Array, "b h w _f"]]


class _Layers(nn.Module):
    widths: tuple[int, ...]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, tokens: Float[Array, "b h w _c"]) -> Float[Array, "b h w _f"]:
        for index, width in enumerate(self.widths):
            tokens = Dense(width, dtype=self.dtype, name=f"layer_{index}")(tokens if index == 0 else nn.silu(tokens))
        return tokens


class _Neighbours(nn.Module):
    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, tokens: Float[Array, "b h w _c"]) -> Float[Array, "b h w _f"]:
        return Convolution(self.features, dtype=self.dtype, name="layer")(tokens)


def mlp(channels: int, features: int, dtype: str = "float32", width: int = 2048) -> Projector:
    """Three dense layers.

    Args:
      channels: of the tokens.
      features: channels of the encoder.
      dtype: the type it computes in.
      width: hidden units; 2048 beside tokens of 1152 channels in the publication.
    """
    return _of_module(_Layers((width, width, features), jnp.dtype(dtype)), channels)


def convolution(channels: int, features: int, dtype: str = "float32") -> Projector:
    """One 3 x 3 convolution.

    Args:
      channels: of the tokens.
      features: channels of the encoder.
      dtype: the type it computes in.
    """
    return _of_module(_Neighbours(features, jnp.dtype(dtype)), channels)


def _of_module(module: nn.Module, channels: int) -> Projector:
    return Projector(
        init=lambda key: module.init(key, jnp.zeros((1, 1, 1, channels)))["params"],
        apply=lambda tree, tokens: module.apply({"params": tree}, tokens).astype(jnp.float32),
    )


PROJECTORS: dict[str, Callable[..., Projector]] = {"mlp": mlp, "convolution": convolution}

r"""Small trained heads on the features of a network that someone else trained: the discriminators of distillation.

A head reads one map of features [b, h, w, c] and gives a logit for each of its places:

    group norm -> 1 x 1 to `width` -> silu -> 3 x 3 -> group norm -> silu -> 1 x 1 to a logit.

Heads on several maps (blocks of a transformer, stages of an image network) give their logits side by side, and every place
counts alike. What the features are of, and whether they move, is the caller's business: a frozen teacher's tokens of noised
samples (LADD, Sauer et al. 2024), the fake denoiser's (DMD2, Yin et al. 2024), an image network's features of clean ones
(ADD, Sauer et al. 2023).
"""

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree

from flowjax.models.convolution import Convolution
from flowjax.models.dense import Dense
from flowjax.models.residual import group_norm

Map = Float[Array, "b _h _w _c"]


@dataclasses.dataclass(frozen=True)
class Heads:
    """Heads as functions of their parameter tree.

    Attributes:
      init: key -> tree.
      apply: (tree, maps) -> logits [b, places of all maps], float32.
    """

    init: Callable[[Key[Array, ""]], PyTree]
    apply: Callable[[PyTree, Sequence[Map]], Array]


class _Head(nn.Module):
    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, features: Map) -> Float[Array, "b cells"]:
        x = group_norm(self.dtype, features.shape[-1], "norm_in")(features)
        x = nn.silu(Dense(self.width, dtype=self.dtype, name="reduce")(x))
        x = Convolution(self.width, dtype=self.dtype, name="mix")(x)
        x = nn.silu(group_norm(self.dtype, self.width, "norm_mix")(x))
        logits = Dense(1, name="output")(x.astype(jnp.float32))
        return logits.reshape(len(features), -1)


class _Heads(nn.Module):
    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, maps: Sequence[Map]) -> Float[Array, "b places"]:
        logits = [_Head(self.width, self.dtype, name=f"head_{index}")(one) for index, one in enumerate(maps)]
        return jnp.concatenate(logits, axis=1)


def heads(channels: Sequence[int], width: int = 64, dtype: str = "float32") -> Heads:
    """One head for each map.

    Args:
      channels: of the maps.
      width: of a head.
      dtype: the type it computes in; logits and parameters are float32.
    """
    if width < 1 or not channels:
        raise ValueError(f"Heads need a width of at least 1 and one map or more; got {width} and {len(channels)} maps.")
    module = _Heads(width, jnp.dtype(dtype))

    def init(key: Key[Array, ""]) -> PyTree:
        return module.init(key, [jnp.zeros((1, 1, 1, count)) for count in channels])["params"]

    def apply(tree: PyTree, maps: Sequence[Map]) -> Float[Array, "b places"]:
        return module.apply({"params": tree}, list(maps))

    return Heads(init, apply)

"""Distances between what a frozen network sees in two images."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float


def feature_distance(
    features: Sequence[Float[Array, " b *_cells"]], others: Sequence[Float[Array, " b *_cells"]]
) -> Float[Array, " b"]:
    """The distance of two sets of feature maps, channels last: LPIPS without learnt weights (Zhang et al. 2018).

    At every cell the channels are scaled to unit length; squared differences are summed over channels, averaged over cells
    and over layers. It is therefore between 0 and 4.
    """
    if len(features) != len(others) or not features:
        raise ValueError(
            f"A feature distance needs the same layers of both images, at least one; got {len(features)} and {len(others)}."
        )

    def unit(layer):
        return layer / jnp.sqrt(jnp.sum(layer**2, axis=-1, keepdims=True) + 1e-10)

    def distance(one, other):
        squared = jnp.sum((unit(one) - unit(other)) ** 2, axis=-1)
        return squared.reshape(len(squared), -1).mean(axis=1)

    return sum(distance(*pair) for pair in zip(features, others)) / len(features)

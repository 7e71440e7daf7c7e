r"""Representation alignment: tokens inside a network drawn towards the features of a frozen encoder.

With p_n the projected token and y_n the encoder's feature at place n of one grid (Yu et al. 2024, REPA),

    loss = -mean_n cos(p_n, y_n),       d loss / d p_n = -(1 / N) (y_n / |y_n| - cos p_n / |p_n|) / |p_n|.        (1)

The gradient stands at right angles to p_n: only directions are drawn, lengths are left free. The loss is -1 where every
token points as its feature does and 0 where all are at right angles.

Encoder and network rarely cut a picture into the same grid. Both grids cover the same picture, so features are resampled
linearly from centre to centre; where the grid becomes coarser the linear kernel is widened to average (`on_grid`).

A feature map is largely one mean vector, the same at every place, which the cosine is then all about. iREPA (2025) takes
out a share a of it and divides by the deviation over places, channel by channel (`contrast`):

    y_n <- (y_n - a mean_m y_m) / (std_m y_m + 10^-6).                                                            (2)
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowjax.arrays import mean_per_example

SMALLEST = 1e-6  # a length below this counts as this: the cosine of a zero token is 0, with a finite gradient


def token_cosine(tokens: Float[Array, "*b c"], features: Float[Array, "*b c"]) -> Float[Array, "*b"]:
    """The cosine of each token with its feature, in float32; 0 where one of them is zero.

    Args:
      tokens: p.
      features: y, of the same channels.
    """
    tokens, features = _unit(tokens), _unit(features)
    return jnp.sum(tokens * features, axis=-1)


def alignment_loss(
    tokens: Float[Array, "b h w c"], features: Float[Array, "b h w c"], visible: Bool[Array, "b h w"] | None = None
) -> Float[Array, " b"]:
    """Equation (1) for each example: minus the mean cosine over its places.

    Args:
      tokens: the network's tokens after the projector.
      features: the encoder's, on the same grid.
      visible: the places that hold something of an image smaller than the array; all by default.
    """
    return -mean_per_example(token_cosine(tokens, features), visible)


def on_grid(features: Float[Array, "b _h _w c"], rows: int, columns: int) -> Float[Array, "b {rows} {columns} c"]:
    """Features on another grid over the same picture: linear between centres, averaged where it becomes coarser."""
    if features.shape[1:3] == (rows, columns):
        return features
    return jax.image.resize(features, (features.shape[0], rows, columns, features.shape[3]), "linear")


def contrast(features: Float[Array, "b h w c"], share: float) -> Float[Array, "b h w c"]:
    """Equation (2): what distinguishes the places of a picture.

    Args:
      features: of an encoder.
      share: a, how much of the mean over places is taken out; iREPA uses 0.6.
    """
    mean = jnp.mean(features, axis=(1, 2), keepdims=True)
    return (features - share * mean) / (jnp.std(features, axis=(1, 2), keepdims=True) + 1e-6)


def _unit(vectors: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    vectors = vectors.astype(jnp.float32)
    # The maximum stands inside the root: the gradient of a root at zero is infinite.
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.sum(vectors**2, axis=-1, keepdims=True), SMALLEST**2))

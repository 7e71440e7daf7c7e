r"""Embeddings of times, labels and positions, and dropout with one key for each example.

Time. A network cannot read a number in [0, 1] to three digits from one input unit, so a time becomes waves,

    features(t) = (cos(f_i t), sin(f_i t)),   f_i falling geometrically from `time_scale` to `time_scale` / 10^4,  (1)

which is the sinusoidal embedding of 1000 integer steps for t in [0, 1] when time_scale = 1000; with time_scale 1 the
features of neighbouring times would be nearly equal. (1) takes any real number, so the log noise level that a
preconditioned network is given (c_noise = log(sigma) / 4) is embedded like any other time. It is always computed in
float32: in bfloat16 the argument 1000 t has an error of several radians.

Two times. A flow-map network moves a point from t to s. Its embedding is

    e(t) + e'(s - t),                                                                                              (2)

where the last layer of e' starts at zero: a new two-time network is the one-time network with the same other
parameters, whatever s is, and s = t asks for the velocity (Geng et al. 2025 embed (t, t - r) in the same way).

A scale of guidance that the network is to answer with is embedded like a time, w / 20, and starts at zero too (Meng et al.
2023; Luo et al. 2023).

Labels. A table of num_classes + 1 rows; the last one is the null label of guidance (Ho & Salimans 2021).
"""

import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

MAX_PERIOD = 10000.0
LARGEST_GUIDANCE = 20.0  # usual scales are then times in [0, 1]
GUIDANCE_WAVES = 200.0  # highest frequency: steps of a tenth differ


def sinusoidal_features(t: Float[Array, " b"], size: int, time_scale: float = 1000.0) -> Float[Array, "b size"]:
    """The waves (1) of a time: size / 2 cosines, then as many sines (Vaswani et al. 2017; Ho et al. 2020)."""
    if size < 2 or size % 2:
        raise ValueError(f"The number of time features must be even and positive (cosines and sines); it is {size}.")
    half = size // 2
    frequencies = time_scale * np.exp(-np.log(MAX_PERIOD) * np.arange(half) / half)
    angles = t.astype(jnp.float32)[:, None] * jnp.asarray(frequencies, jnp.float32)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def octave_features(t: Float[Array, " b"], octaves: int) -> Float[Array, "b size"]:
    """t itself and cos, sin of pi t, 2 pi t, 4 pi t, ...: few features that still resolve steps of 2^-octaves in t."""
    frequencies = jnp.asarray(np.pi * 2.0 ** np.arange(octaves), jnp.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([t[:, None].astype(jnp.float32), jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nn.Module):
    """Waves of a time through two dense layers.

    Attributes:
      features: the size of the result.
      waves: the number of waves.
      time_scale: the highest frequency, see (1).
      zero: start the last layer at zero, so that the embedding starts as nothing.
      dtype: the type it computes in after the waves.
    """

    features: int
    waves: int = 256
    time_scale: float = 1000.0
    zero: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, t: Float[Array, " b"]) -> Float[Array, "b features"]:
        init = nn.initializers.normal(0.02)
        hidden = nn.Dense(self.features, kernel_init=init, dtype=self.dtype)(
            sinusoidal_features(t, self.waves, self.time_scale)
        )
        last = nn.initializers.zeros if self.zero else init
        return nn.Dense(self.features, kernel_init=last, dtype=self.dtype)(nn.silu(hidden))


class ConditionEmbedding(nn.Module):
    """The embedding (2) of one or two times, plus those of the label and of a scale of guidance: it modulates the blocks.

    Attributes:
      features: the size of the result.
      num_classes: the number of labels, or None for none.
      waves, time_scale, dtype: see TimeEmbedding.
    """

    features: int
    num_classes: int | None = None
    waves: int = 256
    time_scale: float = 1000.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        t: Float[Array, " b"],
        s: Float[Array, " b"] | None = None,
        label: Int[Array, " b"] | None = None,
        guidance: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b features"]:
        options = {"waves": self.waves, "time_scale": self.time_scale, "dtype": self.dtype}
        embedding = TimeEmbedding(self.features, name="time", **options)(t)
        if s is not None:
            embedding += TimeEmbedding(self.features, zero=True, name="gap", **options)(s - t)
        if guidance is not None:
            options |= {"time_scale": GUIDANCE_WAVES}
            embedding += TimeEmbedding(self.features, zero=True, name="guidance", **options)(
                guidance / LARGEST_GUIDANCE
            )
        if self.num_classes is not None:
            embedding += LabelEmbedding(self.num_classes, self.features, dtype=self.dtype, name="label")(label)
        return embedding


class LabelEmbedding(nn.Module):
    """A learned vector for each label 0 ... num_classes - 1 and for the null label num_classes."""

    num_classes: int
    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, label: Int[Array, " b"]) -> Float[Array, "b features"]:
        table = nn.Embed(
            self.num_classes + 1,
            self.features,
            embedding_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            name="table",
        )
        return table(label)


def coordinate_features(
    rows: Float[np.ndarray, " n"], columns: Float[np.ndarray, " n"], size: int
) -> Float[np.ndarray, "n size"]:
    """Fixed features of points of a plane: half of them waves of the column, half of the row.

    Each half is size / 4 sines and as many cosines with frequencies from 1 down to 10^-4 (He et al. 2022; DiT).
    """
    if size % 4:
        raise ValueError(
            f"Position features need a size that is a multiple of 4 (sin and cos of two axes); it is {size}."
        )
    frequencies = MAX_PERIOD ** (-np.arange(size // 4) / (size // 4))
    waves = [wave(axis[:, None] * frequencies) for axis in (columns, rows) for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=1).astype(np.float32)


def position_features(height: int, width: int, size: int) -> Float[np.ndarray, "cells size"]:
    """The features of the cells of a grid, row by row, at whole coordinates from 0."""
    rows, columns = np.meshgrid(np.arange(float(height)), np.arange(float(width)), indexing="ij")
    return coordinate_features(rows.reshape(-1), columns.reshape(-1), size)


class Dropout(nn.Module):
    """Zeroes a share `rate` of each example's units with the example's own key; scales the rest to keep the mean.

    Without keys it is the identity. The key is folded with the module's place in the network, so no two layers share a
    mask; an example's mask does not depend on the batch it is in.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], keys: Key[Array, " b"] | None) -> Float[Array, "b ..."]:
        if keys is None or self.rate == 0.0:
            return x
        layer = zlib.crc32("/".join(self.path).encode())
        keep = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, layer), 1.0 - self.rate, x.shape[1:]))(
            keys
        )
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros_like(x))

r"""Latents of a trained autoencoder in the place of images: what a latent flow learns (Rombach et al. 2022).

    latents(source=dict(name="digits"), autoencoder="runs/autoencoder")

An image becomes the moments (m, s) of its posterior, and a training example is

    data = (z - shift) / scale,    z = m + s noise    (or z = m with sampled=False),                                 (1)

with one shift and scale a channel: the mean and the standard deviation of z over training examples and cells, where
Var z = Var m + E s^2. So latents have the unit scale that paths and networks expect, whatever the autoencoder made of it.
They are measured once and stored beside the autoencoder, under a hash of everything that they depend on: a later start
reads the same numbers to the last bit.

Moments are computed where they are needed, in chunks of one compiled shape, or once, into a cache (data/caches.py).
The noise of (1) is a function of (seed, position of the example): the order of data does not depend on who encodes it.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from flowjax.choices import Spec, build
from flowjax.contract import DataSpec
from flowjax.data import draws
from flowjax.data.cached import with_cache
from flowjax.data.caches import build_cache, encoder_parts
from flowjax.data.fingerprints import plain_hash, source_fingerprint, tree_hash
from flowjax.models import stored
from flowjax.models.autoencoder import AUTOENCODERS, Autoencoder

Arrays = dict[str, np.ndarray]


def in_chunks(function: Callable[[np.ndarray], np.ndarray], values: np.ndarray, chunk: int) -> np.ndarray:
    """function(values) in pieces of `chunk` rows, the last one filled up: one shape, so one compiled program."""
    pieces = []
    for first in range(0, len(values), chunk):
        piece = values[first : first + chunk]
        rows = np.concatenate([piece, np.repeat(piece[-1:], chunk - len(piece), axis=0)])
        pieces.append(np.asarray(function(rows))[: len(piece)])
    return np.concatenate(pieces)


@dataclasses.dataclass(frozen=True)
class Codec:
    """A trained autoencoder on the host: arrays in, arrays out.

    Attributes:
      model: the autoencoder.
      tree: its parameters.
      chunk: rows of a call of the device.
    """

    model: Autoencoder
    tree: PyTree
    chunk: int

    @functools.cached_property
    def _encode(self) -> Callable:
        def moments(tree, images):
            mean, logvar = self.model.encode(tree, images)
            return jnp.concatenate([mean, jnp.exp(0.5 * logvar)], axis=-1)

        return jax.jit(moments)

    @functools.cached_property
    def _decode(self) -> Callable:
        return jax.jit(self.model.decode)

    def moments(self, images: np.ndarray) -> np.ndarray:
        """Mean and standard deviation of the posterior, side by side in the channels."""
        return in_chunks(lambda rows: self._encode(self.tree, rows), images, self.chunk)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Images of latents as the encoder made them, unscaled."""
        return in_chunks(lambda rows: self._decode(self.tree, rows), latents, self.chunk)


@dataclasses.dataclass(frozen=True)
class MomentSource:
    """A source of images whose `data` are moments, computed when they are asked for."""

    images: Any
    codec: Codec

    def _encoded(self, rows: Arrays) -> Arrays:
        return {**rows, "data": self.codec.moments(rows["data"])}

    def dataset(self, seed: int, batch_size: int, start: int, stop: int) -> grain.MapDataset:
        """Item k: the rows start..stop of step k, encoded."""
        return self.images.dataset(seed, batch_size, start, stop).map(self._encoded)

    def reference(self, split: str = "test", count: int | None = None, seed: int = 0) -> Arrays:
        """Real examples, encoded."""
        return self._encoded(self.images.reference(split, count, seed))


@dataclasses.dataclass(frozen=True)
class LatentSource:
    """Scaled latents, equation (1). Make one with `latents`.

    Attributes:
      decoded: the source of the images: samples are decoded and then compared with its examples.
      moments: a source whose `data` are moments, computed or cached.
      codec: the autoencoder.
      spec: of the latents.
      shift, scale: one for each channel.
      sampled: whether latents are drawn from the posterior or are its mean.
    """

    decoded: Any
    moments: Any
    codec: Codec
    spec: DataSpec
    shift: np.ndarray
    scale: np.ndarray
    sampled: bool
    levels: int | None = None
    oracle: Any = None

    @property
    def size(self) -> int | None:
        """The number of training examples."""
        return getattr(self.moments, "size", self.decoded.size)

    @property
    def tokenizer(self) -> Any:
        """Of the captions, where there are some."""
        return getattr(self.decoded, "tokenizer", None)

    @property
    def encode_text(self) -> Any:
        """Encodes captions, where they come encoded."""
        return getattr(self.decoded, "encode_text", None)

    def _latents(self, rows: Arrays, seed: int, stream: int, step: int, start: int) -> Arrays:
        mean, std = np.split(rows["data"], 2, axis=-1)
        latents = mean
        if self.sampled:
            columns = mean[0].size + mean[0].size % 2
            uniforms = draws.row_uniforms(seed, stream, step, start, start + len(mean), columns)
            noise = draws.normal_pairs(uniforms[:, 0::2].ravel(), uniforms[:, 1::2].ravel())
            latents = mean + std * noise.reshape(len(mean), columns)[:, : mean[0].size].reshape(mean.shape)
        return {**rows, "data": ((latents - self.shift) / self.scale).astype(np.float32)}

    def dataset(self, seed: int, batch_size: int, start: int, stop: int) -> grain.MapDataset:
        """Item k: the latents of the rows start..stop of step k."""

        def finish(step: int, rows: Arrays) -> Arrays:
            if self.size is None:
                return self._latents(rows, seed, draws.LATENT, step, start)
            return self._latents(rows, seed, draws.LATENT, 0, step * batch_size + start)

        return self.moments.dataset(seed, batch_size, start, stop).map_with_index(finish)

    def reference(self, split: str = "test", count: int | None = None, seed: int = 0) -> Arrays:
        """The latents of real examples."""
        return self._latents(self.moments.reference(split, count, seed), seed, draws.LATENT_REFERENCE, 0, 0)

    def decode(self, samples: np.ndarray) -> np.ndarray:
        """Scaled latents to images."""
        return self.codec.decode((samples * self.scale + self.shift).astype(np.float32))

    def fingerprint(self) -> str:
        """A hash of the images, the autoencoder and how its latents are scaled."""
        made = dict(images=source_fingerprint(self.decoded), tree=tree_hash(self.codec.tree), sampled=self.sampled)
        return plain_hash(**made, shift=self.shift, scale=self.scale)


def latents(
    source: Spec,
    autoencoder: str,
    sampled: bool = True,
    step: int | None = None,
    cache: str = "",
    measured_on: int = 4096,
    chunk: int = 64,
    seed: int = 0,
    total_steps: int | None = None,
) -> LatentSource:
    """The latents of a source under the autoencoder of a finished run.

    Args:
      source: the spec of the images, as in `config.data`.
      autoencoder: RUN_DIRECTORY or RUN_DIRECTORY:role; the average `ema` where the run has one, else the trained role.
      sampled: draw latents from the posterior, anew for every epoch; otherwise they are its mean.
      step: which checkpoint; by default the latest.
      cache: a folder for moments that are computed once, without augmentations; empty to compute them as they are needed.
      measured_on: the training examples that shift and scale are measured on.
      chunk: images of a call of the encoder or decoder.
      seed: of the run.
      total_steps: the length of the run, for sources that take it.
    """
    from flowjax.data import SOURCES  # this source is one of them

    images = build("data source", source, SOURCES, seed=seed, total_steps=total_steps)
    if images.spec.masked:
        raise ValueError(
            "Latents are those of whole images: an encoder reads no masks, and would mix padding into what lies beside it. "
            "Leave mask_multiple out of the source, or train on its pixels."
        )
    codec, origin = open_codec(autoencoder, images.spec, chunk, step)
    encoded = MomentSource(images, codec)
    if cache:
        encode = lambda rows: {**rows, "data": codec.moments(rows["data"])}
        built = build_cache(cache, images, encode, encoder_parts("autoencoder", codec.tree), batch_size=chunk)
        encoded = with_cache(images, built)
    count = measured_on if images.size is None else min(measured_on, images.size)
    made = dict(tree=tree_hash(codec.tree), images=source_fingerprint(images), count=count, sampled=sampled)
    file = origin / "latents" / f"{plain_hash(**made)}.json"
    shift, scale = stored_scales(file, lambda: measure(encoded.reference("train", count)["data"], sampled))
    shrunk = lambda shape: (shape[0] // codec.model.factor, shape[1] // codec.model.factor, len(shift))
    spec = dataclasses.replace(
        images.spec, shape=shrunk(images.spec.shape), std=1.0, shapes=tuple(map(shrunk, images.spec.shapes))
    )
    return LatentSource(images, encoded, codec, spec, shift, scale, sampled)


def open_codec(reference: str, spec: DataSpec, chunk: int, step: int | None = None) -> tuple[Codec, pathlib.Path]:
    """The autoencoder of a finished run and the run's folder.

    Args:
      reference: RUN_DIRECTORY or RUN_DIRECTORY:role.
      spec: of the images.
      chunk: rows of a call of the device.
      step: which checkpoint; by default the latest.
    """
    folder, role = stored.split_reference(reference, "A source of latents")
    step = stored.existing_step(folder, step)
    config = stored.read_config(folder, step)
    if config["method"]["name"] != "autoencoder":
        raise ValueError(
            f"Latents need the run of an autoencoder; '{reference}' is one of '{config['method']['name']}'."
        )
    role = role or stored.usual_role(folder, step, "autoencoder")
    network = {key: tuple(value) if isinstance(value, list) else value for key, value in config["network"].items()}
    model = build("autoencoder", network, AUTOENCODERS, data=spec, dtype=config["precision"])
    for shape in spec.shapes:
        if any(side % model.factor for side in shape[:2]):
            raise ValueError(f"Images of shape {shape} do not divide into cells of {model.factor} x {model.factor}.")
    tree = stored.read_network(folder, role, step)
    expected = jax.eval_shape(model.init, jax.random.key(0))
    shapes = lambda tree: jax.tree.map(lambda leaf: tuple(leaf.shape), dict(tree))
    if shapes(tree) != shapes(expected):
        raise ValueError(
            f"The autoencoder of '{reference}' was trained on images of other channels than these, of shape {spec.shape}. Use "
            "the kind of data it was trained on."
        )
    return Codec(model, tree, chunk), folder.parent


def measure(moments: np.ndarray, sampled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of latents with these moments."""
    mean, std = (part.reshape(-1, part.shape[-1]).astype(np.float64) for part in np.split(moments, 2, axis=-1))
    variance = mean.var(axis=0) + (np.square(std).mean(axis=0) if sampled else 0.0)
    # A channel that carries nothing (a collapsed posterior, means all equal) stays as it is.
    scale = np.sqrt(np.where(variance > 1e-12, variance, 1.0))
    return mean.mean(axis=0).astype(np.float32), scale.astype(np.float32)


def stored_scales(
    file: pathlib.Path, measured: Callable[[], tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Shift and scale from their file; measured and written where there is none (or kept to oneself where it may not be)."""
    if file.is_file():
        kept = json.loads(file.read_text())
        return np.asarray(kept["shift"], np.float32), np.asarray(kept["scale"], np.float32)
    shift, scale = measured()
    try:
        file.parent.mkdir(exist_ok=True)
        beside = file.with_suffix(f".{jax.process_index()}.part")
        beside.write_text(json.dumps(dict(shift=shift.tolist(), scale=scale.tolist())))
        beside.replace(file)
    except OSError:  # another's run, read-only: the next start measures again
        pass
    return shift, scale

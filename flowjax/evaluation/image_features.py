"""Published image networks as feature extractors of evaluations: weights found, images embedded in batches, kept on disk.

Real features are kept in the cache folder (features.cache_folder) under a hash of the images, the weights and the options:
an evaluation of the same data finds them, one of other data cannot. Generated ones are remembered for as long as the few
evaluators of one evaluation ask for them.
"""

import collections
import contextlib
import functools
import hashlib
import os
import pathlib
import tempfile
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from flowjax.choices import choose
from flowjax.data.fingerprints import add_array, plain_hash, tree_hash
from flowjax.data.pipeline import evaluation_batches
from flowjax.evaluation.features import Features, cache_folder
from flowjax.models.features import EXTRACTORS, FeatureExtractor, load_extractor
from flowjax.models.weights import find_weights

REMEMBERED = 4  # sets of features: generated, real, training, held-out


class Embedder:
    """Images -> vectors of one layer, jitted, in batches of one size.

    Attributes:
      described: plain values that say what the vectors are: network, layer, input size, hash of the weights.
    """

    def __init__(self, extractor: FeatureExtractor, tree: Any, layer: str, batch_size: int, **options: Any):
        choose(f"layer of {extractor.name}", layer, extractor.channels)
        self._tree, self._batch_size, self._channels = jax.device_put(tree), batch_size, extractor.channels[layer]
        self._program = jax.jit(lambda tree, images: extractor.vector(extractor.apply(tree, images), layer))
        self._memory: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()
        self.described: Mapping[str, Any] = {
            "name": extractor.name,
            "layer": layer,
            "input_size": extractor.size,
            **options,
            "weights": tree_hash(tree),
        }

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Vectors [n, c]; those of the last few sets of images come out of memory."""
        images = np.asarray(images, np.float32)
        key = self._key(images)
        if key not in self._memory:
            batches = evaluation_batches({"data": images}, min(self._batch_size, len(images)))
            vectors = [np.asarray(self._program(self._tree, batch["data"])) for batch in batches]
            self._memory[key] = np.concatenate(vectors)[: len(images)]
            while len(self._memory) > REMEMBERED:
                self._memory.popitem(last=False)
        self._memory.move_to_end(key)
        return self._memory[key]

    def real(self, images: np.ndarray) -> np.ndarray:
        """The same of real images, kept on disk."""
        images = np.asarray(images, np.float32)
        path = cache_folder() / "features" / f"{self.described['name']}_{self._key(images)}.npy"
        with contextlib.suppress(OSError, ValueError, EOFError):  # absent or damaged: made anew
            kept = np.load(path, allow_pickle=False)
            if kept.shape == (len(images), self._channels) and kept.dtype == np.float32:
                return kept
        vectors = self(images)
        _keep(path, vectors)
        return vectors

    def _key(self, images: np.ndarray) -> str:
        digest = hashlib.sha256(plain_hash(**self.described).encode())
        add_array(digest, "images", images)
        return digest.hexdigest()[:24]


def _keep(path: pathlib.Path, vectors: np.ndarray) -> None:
    """Writes beside the target and renames, so that a reader never sees half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
            np.save(part, vectors)
        os.replace(part.name, path)
    except OSError as error:
        warnings.warn(f"Features could not be kept in {path.parent} ({error}); set FLOWJAX_CACHE.", stacklevel=2)


def image_features(
    extractor: FeatureExtractor, tree: Any, layer: str = "", batch_size: int = 32, **options: Any
) -> Features:
    """Features of one layer of an extractor with given weights.

    Args:
      extractor: the network.
      tree: its weights.
      layer: which layer, maps averaged over their places; the extractor's own choice unless told.
      batch_size: images at once.
      **options: further plain values for receipts, that the extractor was made with.
    """
    embedder = Embedder(extractor, tree, layer or extractor.layer, batch_size, **options)
    return Features(extractor.name, embedder, embed_real=embedder.real, described=embedder.described)


@functools.cache
def _published(
    name: str, path: pathlib.Path, layer: str, input_size: int, antialias: bool, batch_size: int
) -> Features:
    extractor = EXTRACTORS[name](input_size=input_size, antialias=antialias)
    return image_features(extractor, load_extractor(extractor, path), layer, batch_size, antialias=antialias)


def efficientnet_lite0(
    layer: str = "b10", input_size: int = 224, antialias: bool = True, batch_size: int = 32
) -> Features:
    """EfficientNet-Lite0 with its published weights; a smaller input_size is faster and sees less."""
    path = find_weights("efficientnet_lite0")
    return _published("efficientnet_lite0", path, layer, input_size, antialias, batch_size)


def inception_v3(
    layer: str = "pooled", input_size: int = 299, antialias: bool = True, batch_size: int = 32
) -> Features:
    """FID's Inception-v3, with weights that the user has; antialias=False resizes larger images as pytorch-fid does."""
    return _published("inception_v3", find_weights("inception_v3"), layer, input_size, antialias, batch_size)

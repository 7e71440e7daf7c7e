r"""What distances are measured on: the points themselves, the penultimate layer of a small digits classifier, or a layer
of a published image network (image_features.py). FEATURES, the table of all, is in judging.py.

Digits have no public extractor that means anything at 8 x 8, so we train one: a convolutional classifier whose data,
order, network and optimizer are fixed by RECIPE. It is trained at first use, in a few seconds and always on the CPU,
and kept in the user's cache folder (FLOWJAX_CACHE, else XDG_CACHE_HOME/flowjax, else ~/.cache/flowjax) under the hash
of the recipe. Features are divided by their root mean square over the training digits, so that distances have a natural
unit. It refuses to serve below MINIMUM_ACCURACY on held-out digits. Another processor may round differently, so
figures from two machines compare to rounding of the training, unless the cached file travels with them.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from flowjax.data import evaluation_batches, make_iterator
from flowjax.data.digits import digits

RECIPE = {
    "version": 1,
    "seed": 0,
    "channels": [16, 32],
    "features": 64,
    "batch_size": 64,
    "steps": 400,
    "shift": 1,
    "learning_rate": 3e-3,
    "weight_decay": 1e-2,
}
MINIMUM_ACCURACY = 0.97
CHUNK = 512
Weights = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Features:
    """A feature extractor.

    Attributes:
      name: for receipts.
      embed: samples [n, ...] -> features [n, f].
      classify: samples -> labels [n], or None when it is no classifier.
      accuracy: of the classifier on held-out data.
      embed_real: the same as `embed` for real examples, which will be asked for again: may keep what it finds on disk.
      described: plain values for receipts, that tell these features from all others (layer, hash of the weights).
    """

    name: str
    embed: Callable[[np.ndarray], np.ndarray]
    classify: Callable[[np.ndarray], np.ndarray] | None = None
    accuracy: float | None = None
    embed_real: Callable[[np.ndarray], np.ndarray] | None = None
    described: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def real(self, samples: np.ndarray) -> np.ndarray:
        """Features of real examples."""
        return (self.embed_real or self.embed)(samples)

    @property
    def receipt(self) -> dict[str, Any]:
        """What a receipt says about these features."""
        return {"name": self.name, **self.described}


def identity() -> Features:
    """The samples themselves, flattened."""
    return Features("identity", lambda samples: np.asarray(samples, np.float32).reshape(len(samples), -1))


def _init(key) -> dict[str, Array]:
    first, second = RECIPE["channels"]
    shapes = {
        "conv1": (3, 3, 1, first),
        "conv2": (3, 3, first, second),
        "dense": (4 * 4 * second, RECIPE["features"]),
        "head": (RECIPE["features"], 10),
    }
    weights = {}
    for layer_key, (name, shape) in zip(jax.random.split(key, len(shapes)), shapes.items()):
        weights[name] = jax.random.normal(layer_key, shape) * np.sqrt(2 / np.prod(shape[:-1]))
        weights[name + "_bias"] = jnp.zeros(shape[-1])
    return weights


def _penultimate(weights: Weights, images: Float[Array, "b 8 8 1"]) -> Float[Array, "b f"]:
    def conv(x, name, stride):
        dimensions = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, weights[name], (stride, stride), "SAME", dimension_numbers=dimensions)
        return jax.nn.relu(x + weights[name + "_bias"])

    x = conv(conv(images, "conv1", 1), "conv2", 2)
    return jax.nn.relu(x.reshape(x.shape[0], -1) @ weights["dense"] + weights["dense_bias"])


def _logits(weights: Weights, images: Float[Array, "b 8 8 1"]) -> Float[Array, "b 10"]:
    return _penultimate(weights, images) @ weights["head"] + weights["head_bias"]


def _loss(weights: Weights, images: Float[Array, "b 8 8 1"], labels: Int[Array, " b"]) -> Float[Array, ""]:
    return optax.softmax_cross_entropy_with_integer_labels(_logits(weights, images), labels).mean()


def train_classifier() -> dict[str, np.ndarray]:
    """Trains by RECIPE on the CPU and returns the weights."""
    iterator = make_iterator(digits(shift=RECIPE["shift"]), RECIPE["batch_size"], seed=RECIPE["seed"])
    schedule = optax.cosine_decay_schedule(RECIPE["learning_rate"], RECIPE["steps"])
    optimizer = optax.adamw(schedule, weight_decay=RECIPE["weight_decay"])

    @jax.jit
    def update(weights, moments, images, labels):
        gradient = jax.grad(_loss)(weights, images, labels)
        change, moments = optimizer.update(gradient, moments, weights)
        return optax.apply_updates(weights, change), moments

    with _on_cpu():
        weights = _init(jax.random.key(RECIPE["seed"]))
        moments = optimizer.init(weights)
        for _ in range(RECIPE["steps"]):  # not a scan: XLA's CPU convolutions are some five times slower inside a loop
            batch = next(iterator)
            weights, moments = update(weights, moments, batch["data"], batch["label"])
    return {name: np.asarray(value) for name, value in weights.items()}


def _on_cpu():
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        return contextlib.nullcontext()


def cache_folder() -> pathlib.Path:
    """Where trained extractors are kept."""
    if "FLOWJAX_CACHE" in os.environ:
        return pathlib.Path(os.environ["FLOWJAX_CACHE"])
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "flowjax"


def _recipe_hash() -> str:
    images = hashlib.sha256(digits().reference("all")["data"].tobytes()).hexdigest()
    return hashlib.sha256(json.dumps([RECIPE, images], sort_keys=True).encode()).hexdigest()[:16]


def _load(path: pathlib.Path) -> dict[str, np.ndarray] | None:
    """The weights of a cached file; None when there is none, or it is damaged."""
    expected = jax.eval_shape(_init, jax.random.key(0))
    try:
        with np.load(path, allow_pickle=False) as stored:
            weights = {name: stored[name] for name in expected}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    fits = all(value.shape == expected[name].shape and value.dtype == np.float32 for name, value in weights.items())
    return weights if fits else None


def _save(path: pathlib.Path, weights: Mapping[str, np.ndarray]) -> None:
    """Writes beside the target and renames, so that a reader never sees half a file; several processes may race."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
            np.savez(part, **weights)
        os.replace(part.name, path)
    except OSError as error:
        warnings.warn(
            f"The digits classifier could not be kept in {path.parent} ({error}); set FLOWJAX_CACHE.", stacklevel=2
        )


@functools.cache
def digits_classifier() -> Features:
    """The classifier of RECIPE: penultimate features, labels, and its accuracy on held-out digits."""
    path = cache_folder() / f"digits_classifier_{_recipe_hash()}.npz"
    weights = _load(path)
    if weights is None:
        weights = train_classifier()
        _save(path, weights)
    embed, logits = jax.jit(_penultimate), jax.jit(_logits)

    def in_chunks(function: Callable, samples: np.ndarray) -> np.ndarray:
        samples = np.asarray(samples, np.float32)
        if samples.shape[1:] != (8, 8, 1):
            raise ValueError(f"The digits classifier reads images [n, 8, 8, 1]; got {samples.shape}.")
        with _on_cpu():
            chunks = [np.asarray(function(weights, b["data"])) for b in evaluation_batches({"data": samples}, CHUNK)]
        return np.concatenate(chunks)[: len(samples)]

    def classify(samples: np.ndarray) -> np.ndarray:
        return in_chunks(logits, samples).argmax(axis=1).astype(np.int32)

    train, test = (digits().reference(split) for split in ("train", "test"))
    unit = np.float32(np.sqrt(np.mean(in_chunks(embed, train["data"]).astype(np.float64) ** 2)))
    accuracy = float((classify(test["data"]) == test["label"]).mean())
    if accuracy < MINIMUM_ACCURACY:
        raise RuntimeError(
            f"The digits classifier gets {accuracy:.1%} of the held-out digits right; measuring with it needs "
            f"{MINIMUM_ACCURACY:.0%}. Delete {path} to train it again."
        )
    described = {"layer": "penultimate", "recipe": _recipe_hash()}
    read = lambda samples: in_chunks(embed, samples) / unit
    return Features("digits_classifier", read, classify, accuracy, described=described)

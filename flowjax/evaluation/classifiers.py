r"""Small classifiers of data for which no public network means anything: digits of 8 x 8 pixels, clothes in grey.

Each is a convolutional network whose data, order, layers and optimizer are fixed by its Recipe. It is trained at first use, in
seconds or a few minutes and always on the CPU, and kept in the user's cache folder (FLOWJAX_CACHE, else
XDG_CACHE_HOME/flowjax, else ~/.cache/flowjax) under the hash of recipe and data. Features are divided by their root mean
square over the training images, so that distances have a natural unit. A classifier refuses to serve below a minimum of
accuracy on held-out images. Another processor may round differently, so figures from two machines compare to rounding of the
training, unless the cached file travels with them.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from flowjax.data import SOURCES, evaluation_batches, make_iterator
from flowjax.data.fingerprints import plain_hash, source_fingerprint
from flowjax.evaluation.features import Features, cache_folder

CHUNK = 512
CLASSES = 10
Weights = Mapping[str, Array | np.ndarray]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All there is to a classifier.

    Attributes:
      source: its data, a name of SOURCES.
      augmentation: options of the source while it is trained.
      shape: of an image.
      channels, strides: of its two convolutions.
      features: of the penultimate layer.
      minimum_accuracy: on held-out images.
      batch_size, steps, learning_rate, weight_decay, seed: of its training.
    """

    source: str
    augmentation: Mapping[str, int | bool]
    shape: tuple[int, int, int]
    channels: tuple[int, int]
    strides: tuple[int, int]
    features: int
    minimum_accuracy: float
    steps: int
    batch_size: int
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    seed: int = 0

    def hash(self) -> str:
        """Of the recipe and its data."""
        return plain_hash(recipe=dataclasses.asdict(self), data=source_fingerprint(SOURCES[self.source]()))


RECIPES = {
    "digits": Recipe("digits", {"shift": 1}, (8, 8, 1), (16, 32), (1, 2), 64, 0.97, 400, 64),
    "fashion_mnist": Recipe("fashion_mnist", {"flip": True}, (28, 28, 1), (32, 64), (2, 2), 128, 0.89, 3_000, 128),
}


def init(recipe: Recipe, key: Key[Array, ""]) -> dict[str, Array]:
    """Weights before training."""
    first, second = recipe.channels
    side = recipe.shape[0]
    for stride in recipe.strides:
        side = -(-side // stride)
    shapes = {
        "conv1": (3, 3, recipe.shape[2], first),
        "conv2": (3, 3, first, second),
        "dense": (side * side * second, recipe.features),
        "head": (recipe.features, CLASSES),
    }
    weights = {}
    for layer_key, (name, shape) in zip(jax.random.split(key, len(shapes)), shapes.items()):
        weights[name] = jax.random.normal(layer_key, shape) * np.sqrt(2 / np.prod(shape[:-1]))
        weights[name + "_bias"] = jnp.zeros(shape[-1])
    return weights


def penultimate(recipe: Recipe, weights: Weights, images: Float[Array, "b h w c"]) -> Float[Array, "b f"]:
    """The features."""

    def conv(x, name, stride):
        dimensions = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, weights[name], (stride, stride), "SAME", dimension_numbers=dimensions)
        return jax.nn.relu(x + weights[name + "_bias"])

    first, second = recipe.strides
    x = conv(conv(images, "conv1", first), "conv2", second)
    return jax.nn.relu(x.reshape(x.shape[0], -1) @ weights["dense"] + weights["dense_bias"])


def logits_of(recipe: Recipe, weights: Weights, images: Float[Array, "b h w c"]) -> Float[Array, "b 10"]:
    """The logarithms of the classes' probabilities, up to a constant."""
    return penultimate(recipe, weights, images) @ weights["head"] + weights["head_bias"]


def train_classifier(recipe: Recipe) -> dict[str, np.ndarray]:
    """Trains by the recipe on the CPU and returns the weights, with what they are known by."""
    iterator = make_iterator(SOURCES[recipe.source](**recipe.augmentation), recipe.batch_size, seed=recipe.seed)
    schedule = optax.cosine_decay_schedule(recipe.learning_rate, recipe.steps)
    optimizer = optax.adamw(schedule, weight_decay=recipe.weight_decay)

    def loss(weights: Weights, images: Float[Array, "b h w c"], labels: Int[Array, " b"]) -> Float[Array, ""]:
        return optax.softmax_cross_entropy_with_integer_labels(logits_of(recipe, weights, images), labels).mean()

    @jax.jit
    def update(weights, moments, images, labels):
        change, moments = optimizer.update(jax.grad(loss)(weights, images, labels), moments, weights)
        return optax.apply_updates(weights, change), moments

    with _on_cpu():
        weights = init(recipe, jax.random.key(recipe.seed))
        moments = optimizer.init(weights)
        for _ in range(recipe.steps):  # not a scan: XLA's CPU convolutions are some five times slower inside a loop
            batch = next(iterator)
            weights, moments = update(weights, moments, batch["data"], batch["label"])
    iterator.close()
    weights = {name: np.asarray(value) for name, value in weights.items()}
    return {**weights, **_measured(recipe, weights)}


def _measured(recipe: Recipe, weights: Weights) -> dict[str, np.ndarray]:
    """What a classifier is known by: the root mean square of its features of training images, and its held-out accuracy."""
    train, test = (SOURCES[recipe.source]().reference(split) for split in ("train", "test"))
    embed, logits = (jax.jit(functools.partial(function, recipe)) for function in (penultimate, logits_of))
    unit = np.sqrt(np.mean(_in_chunks(embed, weights, train["data"]).astype(np.float64) ** 2))
    right = _in_chunks(logits, weights, test["data"]).argmax(axis=1) == test["label"]
    return {"unit": np.asarray(unit, np.float32), "accuracy": np.asarray(right.mean(), np.float32)}


def _in_chunks(function: Callable, weights: Weights, samples: np.ndarray) -> np.ndarray:
    with _on_cpu():
        chunks = [np.asarray(function(weights, b["data"])) for b in evaluation_batches({"data": samples}, CHUNK)]
    return np.concatenate(chunks)[: len(samples)]


def _on_cpu():
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        return contextlib.nullcontext()


def load(recipe: Recipe, path: pathlib.Path) -> dict[str, np.ndarray] | None:
    """The weights of a cached file, with what they are known by; None when there is none, or it is damaged."""
    number = jax.ShapeDtypeStruct((), np.float32)
    expected = jax.eval_shape(functools.partial(init, recipe), jax.random.key(0))
    expected |= {"unit": number, "accuracy": number}
    try:
        with np.load(path, allow_pickle=False) as stored:
            weights = {name: stored[name] for name in expected}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    fits = all(value.shape == expected[name].shape and value.dtype == np.float32 for name, value in weights.items())
    return weights if fits else None


def save(path: pathlib.Path, weights: Mapping[str, np.ndarray]) -> None:
    """Writes beside the target and renames, so that a reader never sees half a file; several processes may race."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
            np.savez(part, **weights)
        os.replace(part.name, path)
    except OSError as error:
        warnings.warn(f"The classifier could not be kept in {path.parent} ({error}); set FLOWJAX_CACHE.", stacklevel=2)


@functools.cache
def classifier(name: str) -> Features:
    """The classifier of RECIPES[name]: penultimate features, labels, and its accuracy on held-out images."""
    recipe, digest = RECIPES[name], RECIPES[name].hash()
    path = cache_folder() / f"{name}_classifier_{digest}.npz"
    weights = load(recipe, path)
    if weights is None:
        weights = train_classifier(recipe)
        save(path, weights)
    embed = jax.jit(functools.partial(penultimate, recipe))
    logits = jax.jit(functools.partial(logits_of, recipe))

    def images(samples: np.ndarray) -> np.ndarray:
        samples = np.asarray(samples, np.float32)
        if samples.shape[1:] != recipe.shape:
            sides = ", ".join(map(str, recipe.shape))
            raise ValueError(f"The classifier '{name}' reads images [n, {sides}]; got {samples.shape}.")
        return samples

    def classify(samples: np.ndarray) -> np.ndarray:
        return _in_chunks(logits, weights, images(samples)).argmax(axis=1).astype(np.int32)

    unit, accuracy = weights["unit"], float(weights["accuracy"])
    if accuracy < recipe.minimum_accuracy:
        raise RuntimeError(
            f"The classifier '{name}' gets {accuracy:.1%} of the held-out images right; measuring with it needs "
            f"{recipe.minimum_accuracy:.0%}. Delete {path} to train it again."
        )
    read = lambda samples: _in_chunks(embed, weights, images(samples)) / unit
    return Features(
        f"{name}_classifier", read, classify, accuracy, described={"layer": "penultimate", "recipe": digest}
    )

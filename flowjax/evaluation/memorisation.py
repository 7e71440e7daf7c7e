"""Does a model copy its training set? Distances to nearest neighbours, and a picture of the closest pairs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from flowjax.data.sources import Source
from flowjax.evaluation import coverage, pictures
from flowjax.evaluation.judging import Conditions, FeatureSpec, check_finite, features_of, quantised
from flowjax.evaluation.resampling import bootstrap_mean


class NearestNeighbour:
    """Distances from samples to their nearest training example, beside those of held-out examples.

    A model that generalises is about as far from the training set as held-out examples are. One that copies is nearer.
    """

    def __init__(self, source: Source, seed: int, features: FeatureSpec, quantile: float, pairs: int):
        if source.size is None:
            raise ValueError("The evaluator 'nearest_neighbour' needs a finite training set; this source is endless.")
        self._features, self._levels, self._seed, self._pairs = (
            features_of(features, source),
            source.levels,
            seed,
            pairs,
        )
        train, test = (source.reference(split) for split in ("train", "test"))
        self._images, self._masks = quantised(train["data"], self._levels), train.get("pixel_mask")
        self._train = self._features.real(self._images)
        self._held_out = coverage.nearest_distances(
            self._features.real(quantised(test["data"], self._levels)), self._train
        )
        self._threshold = np.quantile(self._held_out, quantile)
        self.description: Mapping[str, Any] = {"features": self._features.receipt}

    def _read(self, samples: np.ndarray) -> np.ndarray:
        check_finite(samples)
        return self._features.embed(quantised(samples, self._levels))

    def __call__(self, samples: np.ndarray, conditions: Conditions) -> dict[str, float]:
        """`nearest_train`, `_real`, `_ratio`, and `copies` with its interval."""
        nearest = coverage.nearest_distances(self._read(samples), self._train)
        copied = nearest < self._threshold
        low, high = bootstrap_mean(copied, self._seed)
        return {
            "nearest_train": float(np.median(nearest)),
            "nearest_train_real": float(np.median(self._held_out)),
            "nearest_train_ratio": float(np.median(nearest) / np.median(self._held_out)),
            "copies": float(copied.mean()),
            "copies_low": low,
            "copies_high": high,
        }

    def closest(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(samples, training examples, distances) of the closest pairs, closest first."""
        order, places, distances = self._closest(samples)
        return np.asarray(samples)[order], self._images[places], distances

    def _closest(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The places of the closest pairs among samples and training examples, and their distances."""
        distances, places = coverage.nearest(self._read(samples), self._train)
        order = np.argsort(distances, kind="stable")[: self._pairs]
        return order, places[order], distances[order]

    def picture(self, samples: np.ndarray, conditions: Conditions) -> UInt8[np.ndarray, "height width 3"] | None:
        """The closest pairs of images side by side, sample left and training example right; None for points."""
        if np.ndim(samples) != 4:
            return None
        order, places, _ = self._closest(samples)
        side_by_side = lambda *arrays: np.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])
        both = side_by_side(quantised(np.asarray(samples)[order], self._levels), self._images[places])
        if self._masks is not None:
            both = pictures.on_white(both, side_by_side(conditions["pixel_mask"][order], self._masks[places]))
        return pictures.grid(both, columns=2 * max(1, round(len(order) ** 0.5)))


def nearest_neighbour(
    source: Source, seed: int = 0, features: FeatureSpec = "identity", quantile: float = 0.01, pairs: int = 16
) -> NearestNeighbour:
    """Does the model copy?

    `nearest_train` and `nearest_train_real` are medians, for generated and held-out examples; `copies` is the share of
    samples nearer to the training set than the nearest `quantile` of the held-out ones are: `quantile` for a model that
    generalises, one for a model that copies. Pixels find exact copies; features of a network find shifted and recoloured
    ones too. A picture of the `pairs` closest pairs is kept beside the samples.
    """
    return NearestNeighbour(source, seed, features, quantile, pairs)

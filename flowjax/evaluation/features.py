"""What distances are measured on: the points themselves, the penultimate layer of a small classifier (classifiers.py), or a
layer of a published image network (image_features.py). FEATURES, the table of all, is in judging.py.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


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


def cache_folder() -> pathlib.Path:
    """Where trained extractors are kept."""
    if "FLOWJAX_CACHE" in os.environ:
        return pathlib.Path(os.environ["FLOWJAX_CACHE"])
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "flowjax"

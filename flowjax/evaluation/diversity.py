r"""Are the samples of one class as different from each other as real examples are?

    spread(X) = mean over classes c of the mean of |f(x_i) - f(x_j)| over all pairs i < j of class c,
    diversity = spread(generated) / spread(real),

f the features. One is the diversity of the data; a model that gives one picture for each class has zero, whatever its
precision, and one whose samples stray has more than one. Without labels all examples are one class.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from flowjax.data.sources import Source
from flowjax.evaluation.judging import (
    Conditions,
    Evaluator,
    FeatureSpec,
    check_finite,
    features_of,
    quantised,
    real_examples,
)
from flowjax.paths.transport import squared_distances


def spread(features: Float[np.ndarray, "n f"], labels: Shaped[np.ndarray, " n"]) -> float:
    """The mean distance of pairs within a class, each class counting alike; classes of one example say nothing."""
    means = []
    for label in np.unique(labels):
        rows = jnp.asarray(features[labels == label])
        if len(rows) > 1:
            distances = np.sqrt(np.asarray(squared_distances(rows, rows), np.float64))
            np.fill_diagonal(distances, 0.0)  # an example is not paired with itself
            means.append(distances.sum() / (len(rows) * (len(rows) - 1)))
    if not means:
        raise ValueError(f"diversity: {len(labels)} examples and none two of one class. Draw more samples.")
    return float(np.mean(means))


class _Diversity:
    """The evaluator: keeps what it has found out about the real examples."""

    def __init__(self, source: Source, seed: int, features: FeatureSpec, split: str, pairs: int):
        self._source, self._seed, self._split, self._pairs = source, seed, split, pairs
        self._features = features_of(features, source)
        self._kept: dict[tuple[int, bool], tuple[float, list[float]]] = {}

    @property
    def description(self) -> Mapping[str, Any]:
        """What receipts say about how this was measured."""
        return {"features": self._features.receipt, "split": self._split, "floor_pairs": self._pairs}

    def __call__(self, samples: np.ndarray, conditions: Conditions) -> dict[str, float]:
        check_finite(samples)
        labelled = "label" in conditions
        labels = np.asarray(conditions["label"]) if labelled else np.zeros(len(samples))
        if len(labels) != len(samples):
            raise ValueError(f"diversity got {len(samples)} samples and {len(labels)} labels; give one for each.")
        whole, halves = self._real(len(samples), labelled)
        generated = self._features.embed(quantised(samples, self._source.levels))
        floors = {"diversity_floor": float(np.mean(halves)), "diversity_floor_std": float(np.std(halves, ddof=1))}
        return {"diversity": spread(generated, labels) / whole, **floors}

    def _real(self, count: int, labelled: bool) -> tuple[float, list[float]]:
        """The spread of 2n real examples, and the diversities of random halves of them, which have as many as generated."""
        if (count, labelled) not in self._kept:
            pool = real_examples(self._source, self._split, count, self._seed)
            features = self._features.real(quantised(pool["data"], self._source.levels))
            labels = np.asarray(pool["label"]) if labelled else np.zeros(len(features))
            whole, generator = spread(features, labels), np.random.default_rng(self._seed)
            orders = [generator.permutation(len(features))[: len(features) // 2] for _ in range(self._pairs)]
            self._kept = {(count, labelled): (whole, [spread(features[i], labels[i]) / whole for i in orders])}
        return self._kept[count, labelled]


def diversity(
    source: Source, seed: int = 0, features: FeatureSpec = "auto", split: str = "all", pairs: int = 8
) -> Evaluator:
    """The mean distance of samples of a class over that of real examples; its floor is that of as many real ones, about 1.

    Args:
      source: of the real examples; of a finite one at most half of the split is compared with the generated samples.
      seed: which real examples.
      features: what distances are taken of.
      split: which real examples.
      pairs: how many random halves of the real examples the floor is the mean of, 2 or more.
    """
    if pairs < 2:
        raise ValueError(f"pairs={pairs}: the floor of 'diversity' is the mean of 2 halves or more.")
    return _Diversity(source, seed, features, split, pairs)

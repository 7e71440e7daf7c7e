r"""Evaluators: what a run is judged by. Each compares generated samples with real ones, and real ones with themselves.

A distance between finite sets is not zero for a perfect model: sampling noise, and the bias of Frechet distances, leave
a floor that falls with the number of samples n. So every distance here is taken at one and the same n of

    value = D(generated, real A),
    floor = mean over `pairs` random splits of 2n real examples of D(half, other half), floor_std their deviation,
    ratio = value / floor,

with A one half of those 2n. A perfect sampler has a ratio of about one, and a value within some two floor_std of the
floor. `*_low` and `*_high` say how far the value itself may be off (resampling.py). Of an endless source the real examples
are fresh draws and n is the number of samples; of a finite one n is at most half of the split, and surplus generated
samples are dropped. `count` in the result is the n that was used.

Images are clipped and rounded to the grey levels of the data before anything is measured, generated and real alike.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flowjax.data.sources import Source
from flowjax.evaluation import coverage, distances, resampling
from flowjax.evaluation.agreement import caption_agreement
from flowjax.evaluation.captions import caption_accuracy
from flowjax.evaluation.classifiers import RECIPES
from flowjax.evaluation.comparisons import comparisons
from flowjax.evaluation.diversity import diversity
from flowjax.evaluation.features import Features
from flowjax.evaluation.judging import (
    HIGHER_IS_BETTER,
    Conditions,
    Evaluator,
    FeatureSpec,
    check_finite,
    disjoint_real_sets,
    features_of,
    quantised,
    real_pool,
)
from flowjax.evaluation.memorisation import nearest_neighbour
from flowjax.evaluation.returns import episode_return

__all__ = ["EVALUATORS", "HIGHER_IS_BETTER", "Conditions", "Evaluator", "disjoint_real_sets", "quantised"]
Reach = Callable[[np.ndarray, np.ndarray], dict[str, float]]
BOUNDS = {"kid": (-np.inf, np.inf), "precision": (0, 1), "recall": (0, 1), "coverage": (0, 1)}  # others are positive


@dataclasses.dataclass(frozen=True)
class Compared:
    """An evaluator made of measures m(one set, other set) -> {name: value}, with floors and, for distances, a ratio.

    Attributes:
      measure: (generated or real, real) -> values.
      source: where real examples come from.
      features: what both are passed through.
      split: which real examples.
      seed: which of them, and the directions or subsets of the measure.
      most: at most so many examples of each set.
      ratios: names of the values for which value / floor is reported.
      pairs: how many splits of the real examples the floor is the mean of.
      reach: (generated, real) -> how far the intervals of some of the values reach to either side; None for none.
    """

    measure: Callable[[np.ndarray, np.ndarray], dict[str, float]]
    source: Source
    features: Features
    split: str
    seed: int
    most: int | None = None
    ratios: tuple[str, ...] = ()
    pairs: int = 1
    reach: Reach | None = None
    _kept: dict = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        if self.pairs < 1:
            raise ValueError(f"pairs={self.pairs}: a floor needs at least one split of the real examples.")

    @property
    def description(self) -> Mapping[str, Any]:
        """What receipts say about how this was measured."""
        return {"features": self.features.receipt, "split": self.split, "floor_pairs": self.pairs}

    def __call__(self, samples: np.ndarray, conditions: Conditions) -> dict[str, float]:
        """Values, `*_floor`, `*_floor_std`, `*_low`, `*_high`, `*_ratio` and `count`."""
        check_finite(samples)
        real, floors, stds = self._real(len(samples) if self.most is None else min(len(samples), self.most))
        generated = self.features.embed(quantised(np.asarray(samples)[: len(real)], self.source.levels))
        values = self.measure(generated, real)
        results = {**values, **{name + "_floor": floor for name, floor in floors.items()}}
        results |= {name + "_floor_std": std for name, std in stds.items()}
        for name, reach in (self.reach(generated, real) if self.reach else {}).items():
            ends = np.clip([values[name] - reach, values[name] + reach], *BOUNDS.get(name, (0, np.inf)))
            results |= {name + "_low": float(ends[0]), name + "_high": float(ends[1])}
        for name in self.ratios:
            results[name + "_ratio"] = values[name] / max(floors[name], float(np.finfo(np.float32).tiny))
        return {**results, "count": float(len(real))}

    def _real(self, wanted: int) -> tuple[np.ndarray, dict[str, float], dict[str, float]]:
        """Features of real A, and the floors with their deviations; kept for the next call with as many samples."""
        if wanted not in self._kept:
            pool = real_pool(self.source, self.split, wanted, self.seed)
            embedded = self.features.real(quantised(pool, self.source.levels))
            self._kept.clear()
            floors = resampling.real_floor(self.measure, embedded, self.pairs, self.seed)
            self._kept[wanted] = embedded[: len(pool) // 2], *floors
        return self._kept[wanted]


def _leaving_out(measure: Callable, groups: int, seed: int) -> Reach | None:
    """The interval by leaving groups out; none with groups=0, nor for fewer than two samples a group."""
    if groups == 0:
        return None
    if groups < 2:
        raise ValueError(
            f"groups={groups}: an interval needs at least 2 groups to leave out; 0 switches intervals off."
        )

    return lambda one, other: measure(one, other, groups, seed) if len(one) >= 2 * groups else {}


def _jackknifed(measure: Callable) -> Callable:
    return lambda one, other, groups, seed: resampling.jackknife(measure, one, other, groups, seed)


def _distance(name: str, function: Callable, source, features, split, seed, most=None, pairs=1) -> Compared:
    measure = lambda one, other: {name: function(one, other)}
    return Compared(measure, source, features_of(features, source), split, seed, most, (name,), pairs)


def sliced_w2(
    source: Source,
    seed: int = 0,
    directions: int = 512,
    features: FeatureSpec = "identity",
    split: str = "all",
    pairs: int = 8,
    groups: int = 20,
) -> Evaluator:
    """Sliced W2 of the samples themselves, or of features. `pairs` make the floor, `groups` the interval (0 for none)."""
    measure = lambda one, other: {"sliced_w2": distances.sliced_w2(one, other, directions, seed)}
    # An eighth of the directions is enough for the reach of an interval, which is taken twenty times.
    coarse = lambda one, other: {"sliced_w2": distances.sliced_w2(one, other, max(directions // 8, 1), seed)}
    reach = _leaving_out(_jackknifed(coarse), groups, seed)
    return Compared(measure, source, features_of(features, source), split, seed, None, ("sliced_w2",), pairs, reach)


def exact_w2(
    source: Source, seed: int = 0, most: int = 2000, features: FeatureSpec = "identity", split: str = "all"
) -> Evaluator:
    """W2 by assignment, of at most `most` examples: the cost grows with their cube."""
    return _distance("exact_w2", distances.exact_w2, source, features, split, seed, most)


def sinkhorn_w2(
    source: Source,
    seed: int = 0,
    relative_epsilon: float = 0.05,
    most: int = 1000,
    features: FeatureSpec = "identity",
    split: str = "all",
) -> Evaluator:
    """Debiased Sinkhorn W2, of at most `most` examples: some seconds for a thousand, growing with the square."""
    function = lambda one, other: distances.sinkhorn_w2(one, other, relative_epsilon)
    return _distance("sinkhorn_w2", function, source, features, split, seed, most)


def mmd(
    source: Source, seed: int = 0, most: int = 4096, features: FeatureSpec = "auto", split: str = "all"
) -> Evaluator:
    """MMD^2, Gaussian kernel of median bandwidth. Its floor is zero in the mean, so no ratio is reported."""
    measure = lambda one, other: {"mmd": distances.mmd(one, other)}
    return Compared(measure, source, features_of(features, source), split, seed, most)


def kid(
    source: Source,
    seed: int = 0,
    subsets: int = 100,
    subset_size: int = 1000,
    features: FeatureSpec = "auto",
    split: str = "all",
    pairs: int = 8,
    groups: int = 20,
) -> Evaluator:
    """Kernel distance: mean over subsets and their standard deviation. Its floor is zero in the mean: no ratio."""

    def measure(one, other):
        value = distances.kid(one, other, subsets, subset_size, seed)
        return {"kid": value.mean, "kid_std": value.std}

    reach = _leaving_out(resampling.jackknife_kid, groups, seed)
    return Compared(measure, source, features_of(features, source), split, seed, None, (), pairs, reach)


def frechet(
    source: Source,
    seed: int = 0,
    features: FeatureSpec = "auto",
    split: str = "all",
    pairs: int = 8,
    groups: int = 20,
) -> Evaluator:
    """Frechet distance of features. Biased by O(1/n), equally in value and floor: compare at one `count` only."""
    measure = lambda one, other: {"frechet": distances.frechet(one, other)}
    reach = _leaving_out(resampling.jackknife_frechet, groups, seed)
    return Compared(measure, source, features_of(features, source), split, seed, None, ("frechet",), pairs, reach)


def precision_recall(
    source: Source,
    seed: int = 0,
    k: int = 3,
    features: FeatureSpec = "auto",
    split: str = "all",
    pairs: int = 8,
    groups: int = 20,
) -> Evaluator:
    """Precision, recall, density and coverage; the floors are what real samples get (higher is better)."""
    measure = lambda one, other: coverage.precision_recall(one, other, k)
    reach = _leaving_out(_jackknifed(measure), groups, seed)
    return Compared(measure, source, features_of(features, source), split, seed, None, (), pairs, reach)


def mode_weights(source: Source, seed: int = 0) -> Evaluator:
    """Error of the mode weights, stray samples and missing modes, for sources that know their mixture."""
    oracle = getattr(source, "oracle", None)
    if oracle is None:
        raise ValueError("The evaluator 'mode_weights' needs a source with an oracle. Use data 'mixture', or drop it.")

    def evaluate(samples: np.ndarray, conditions: Conditions) -> dict[str, float]:
        check_finite(samples)
        real = source.reference("test", len(samples), seed)["data"]
        floors = coverage.mode_weights(real, oracle)
        floors = {name + "_floor": value for name, value in floors.items() if name != "missing_modes"}
        return {**coverage.mode_weights(np.asarray(samples), oracle), **floors}

    return evaluate


def class_accuracy(source: Source, seed: int = 0, features: FeatureSpec = "auto") -> Evaluator:
    """The share of generated samples that the classifier takes for the label that was asked for."""
    extractor = features_of(features, source)
    if extractor.classify is None:
        raise ValueError(
            f"The evaluator 'class_accuracy' needs a classifier, and '{extractor.name}' is none. "
            f"Set features to one of {', '.join(RECIPES)}."
        )

    def evaluate(samples: np.ndarray, conditions: Conditions) -> dict[str, float]:
        check_finite(samples)
        labels = conditions.get("label")
        if labels is None:
            raise ValueError("The evaluator 'class_accuracy' needs the labels that were asked for. Use labelled data.")
        if len(labels) != len(samples):
            raise ValueError(f"class_accuracy got {len(samples)} samples and {len(labels)} labels; give one for each.")
        right = extractor.classify(quantised(samples, source.levels)) == np.asarray(labels)
        low, high = resampling.bootstrap_mean(right, seed)
        return {
            "class_accuracy": float(right.mean()),
            "class_accuracy_low": low,
            "class_accuracy_high": high,
            "class_accuracy_real": float(extractor.accuracy),
        }

    return evaluate


def psnr(source: Source, seed: int = 0) -> Evaluator:
    """Peak signal-to-noise ratio of reconstructions in dB: the mean over images of 10 log10(2^2 / mean squared error)."""

    def evaluate(samples: np.ndarray, conditions: Conditions) -> dict[str, float]:
        check_finite(samples)
        if "data" not in conditions:
            raise ValueError(
                "The evaluator 'psnr' compares reconstructions with their originals, but this sampler read none. Use it "
                "where the measured sampler reconstructs ('reconstruct' of an autoencoder), or drop it."
            )
        error = np.clip(samples, -1, 1).astype(np.float64) - conditions["data"]
        squared = np.maximum((error**2).reshape(len(error), -1).mean(axis=1), 1e-12)
        return {"psnr": float(np.mean(10 * np.log10(4 / squared)))}

    return evaluate


EVALUATORS = {
    "episode_return": episode_return,
    "sliced_w2": sliced_w2,
    "exact_w2": exact_w2,
    "sinkhorn_w2": sinkhorn_w2,
    "mmd": mmd,
    "kid": kid,
    "frechet": frechet,
    "precision_recall": precision_recall,
    "diversity": diversity,
    "mode_weights": mode_weights,
    "class_accuracy": class_accuracy,
    "nearest_neighbour": nearest_neighbour,
    "caption_agreement": caption_agreement,
    "caption_accuracy": caption_accuracy,
    "psnr": psnr,
    "comparisons": comparisons,
}

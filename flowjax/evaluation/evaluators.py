r"""Evaluators: what a run is judged by. Each compares generated samples with real ones, and real ones with themselves.

A distance between finite sets is not zero for a perfect model: sampling noise, and the bias of Frechet distances, leave
a floor that falls with the number of samples n. So every distance here is taken three times at one and the same n:

    value = D(generated, real A),    floor = D(real B, real A),    ratio = value / floor,

with A and B disjoint sets of real examples of size n each. A perfect sampler has a ratio of about one. Of an endless
source A and B are fresh draws and n is the number of samples; of a finite one they are disjoint parts of the split, so
n is at most half of it, and surplus generated samples are dropped. `count` in the result is the n that was used.

Images are clipped and rounded to the grey levels of the data before anything is measured, generated and real alike.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from flowjax.choices import choose
from flowjax.data.sources import Source
from flowjax.evaluation import coverage, distances
from flowjax.evaluation.features import FEATURES, Features

Conditions = Mapping[str, np.ndarray]  # what the samples were drawn under: label, tokens, ...; {} for nothing
Evaluator = Callable[[np.ndarray, Conditions], dict[str, float]]
HIGHER_IS_BETTER = frozenset(("precision", "recall", "density", "coverage", "class_accuracy", "psnr"))


def quantised(samples: np.ndarray, levels: int | None) -> np.ndarray:
    """Clips to [-1, 1] and rounds to `levels` equally spaced values; None leaves the samples as they are."""
    samples = np.asarray(samples, np.float32)
    if levels is None:
        return samples
    steps = levels - 1
    return (np.round((np.clip(samples, -1, 1) + 1) * steps / 2) * 2 / steps - 1).astype(np.float32)


def disjoint_real_sets(source: Source, split: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint sets of min(count, half of the split) real examples each."""
    if source.size is None:
        both = source.reference(split, 2 * count, seed)["data"]
        return both[:count], both[count:]
    available = len(source.reference(split)["data"])
    count = min(count, available // 2)
    both = source.reference(split, 2 * count, seed)["data"]
    return both[:count], both[count:]


def _check_finite(samples: np.ndarray) -> None:
    bad = int((~np.isfinite(samples)).reshape(len(samples), -1).any(axis=1).sum())
    if bad:
        raise ValueError(f"{bad} of {len(samples)} samples hold NaN or infinity: the model or the sampler diverged.")


@dataclasses.dataclass(frozen=True)
class Compared:
    """An evaluator made of measures m(one set, other set) -> {name: value}, with floors and, for distances, a ratio.

    Attributes:
      measure: (generated or real B, real A) -> values.
      source: where real examples come from.
      features: what both are passed through.
      split: which real examples.
      seed: which of them, and the directions or subsets of the measure.
      most: at most so many examples of each set.
      ratios: names of the values for which value / floor is reported.
    """

    measure: Callable[[np.ndarray, np.ndarray], dict[str, float]]
    source: Source
    features: Features
    split: str
    seed: int
    most: int | None = None
    ratios: tuple[str, ...] = ()
    _kept: dict = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, samples: np.ndarray, conditions: Conditions) -> dict[str, float]:
        """Values, `*_floor`, `*_ratio` and `count`."""
        _check_finite(samples)
        real, floors = self._real(len(samples) if self.most is None else min(len(samples), self.most))
        generated = self.features.embed(quantised(np.asarray(samples)[: len(real)], self.source.levels))
        values = self.measure(generated, real)
        results = {**values, **{name + "_floor": floor for name, floor in floors.items()}}
        for name in self.ratios:
            results[name + "_ratio"] = values[name] / max(floors[name], float(np.finfo(np.float32).tiny))
        return {**results, "count": float(len(real))}

    def _real(self, wanted: int) -> tuple[np.ndarray, dict[str, float]]:
        """Features of real A, and the floors; kept for the next call with as many samples."""
        if wanted not in self._kept:
            sets = disjoint_real_sets(self.source, self.split, wanted, self.seed)
            real_a, real_b = (self.features.embed(quantised(x, self.source.levels)) for x in sets)
            self._kept.clear()
            self._kept[wanted] = real_a, self.measure(real_b, real_a)
        return self._kept[wanted]


def _features(name: str, source: Source) -> Features:
    if name == "auto":
        name = "digits" if tuple(source.spec.shape) == (8, 8, 1) else "identity"
    return choose("feature extractor", name, FEATURES)()


def _distance(name: str, function: Callable[[np.ndarray, np.ndarray], float], source, features, split, seed, most=None):
    measure = lambda one, other: {name: function(one, other)}
    return Compared(measure, source, _features(features, source), split, seed, most, ratios=(name,))


def sliced_w2(
    source: Source, seed: int = 0, directions: int = 512, features: str = "identity", split: str = "all"
) -> Evaluator:
    """Sliced W2 of the samples themselves, or of features."""
    function = lambda one, other: distances.sliced_w2(one, other, directions, seed)
    return _distance("sliced_w2", function, source, features, split, seed)


def exact_w2(
    source: Source, seed: int = 0, most: int = 2000, features: str = "identity", split: str = "all"
) -> Evaluator:
    """W2 by assignment, of at most `most` examples: the cost grows with their cube."""
    return _distance("exact_w2", distances.exact_w2, source, features, split, seed, most)


def sinkhorn_w2(
    source: Source,
    seed: int = 0,
    relative_epsilon: float = 0.05,
    most: int = 1000,
    features: str = "identity",
    split: str = "all",
) -> Evaluator:
    """Debiased Sinkhorn W2, of at most `most` examples: some seconds for a thousand, growing with the square."""
    function = lambda one, other: distances.sinkhorn_w2(one, other, relative_epsilon)
    return _distance("sinkhorn_w2", function, source, features, split, seed, most)


def mmd(source: Source, seed: int = 0, most: int = 4096, features: str = "auto", split: str = "all") -> Evaluator:
    """MMD^2, Gaussian kernel of median bandwidth. Its floor is zero in the mean, so no ratio is reported."""
    measure = lambda one, other: {"mmd": distances.mmd(one, other)}
    return Compared(measure, source, _features(features, source), split, seed, most)


def kid(
    source: Source,
    seed: int = 0,
    subsets: int = 100,
    subset_size: int = 1000,
    features: str = "auto",
    split: str = "all",
) -> Evaluator:
    """Kernel distance: mean over subsets and their standard deviation. Its floor is zero in the mean: no ratio."""

    def measure(one, other):
        value = distances.kid(one, other, subsets, subset_size, seed)
        return {"kid": value.mean, "kid_std": value.std}

    return Compared(measure, source, _features(features, source), split, seed)


def frechet(source: Source, seed: int = 0, features: str = "auto", split: str = "all") -> Evaluator:
    """Frechet distance of features. Biased by O(1/n), equally in value and floor: compare at one `count` only."""
    return _distance("frechet", distances.frechet, source, features, split, seed)


def precision_recall(
    source: Source, seed: int = 0, k: int = 3, features: str = "auto", split: str = "all"
) -> Evaluator:
    """Precision, recall, density and coverage; the floors are what real samples get (higher is better)."""
    measure = lambda one, other: coverage.precision_recall(one, other, k)
    return Compared(measure, source, _features(features, source), split, seed)


def mode_weights(source: Source, seed: int = 0) -> Evaluator:
    """Error of the mode weights, stray samples and missing modes, for sources that know their mixture."""
    oracle = getattr(source, "oracle", None)
    if oracle is None:
        raise ValueError("The evaluator 'mode_weights' needs a source with an oracle. Use data 'mixture', or drop it.")

    def evaluate(samples: np.ndarray, conditions: Conditions) -> dict[str, float]:
        _check_finite(samples)
        real = source.reference("test", len(samples), seed)["data"]
        floors = coverage.mode_weights(real, oracle)
        floors = {name + "_floor": value for name, value in floors.items() if name != "missing_modes"}
        return {**coverage.mode_weights(np.asarray(samples), oracle), **floors}

    return evaluate


def class_accuracy(source: Source, seed: int = 0, features: str = "auto") -> Evaluator:
    """The share of generated samples that the classifier takes for the label that was asked for."""
    extractor = _features(features, source)
    if extractor.classify is None:
        raise ValueError(
            f"The evaluator 'class_accuracy' needs a classifier, and '{extractor.name}' is none. Use it with digits."
        )

    def evaluate(samples: np.ndarray, conditions: Conditions) -> dict[str, float]:
        _check_finite(samples)
        labels = conditions.get("label")
        if labels is None:
            raise ValueError("The evaluator 'class_accuracy' needs the labels that were asked for. Use labelled data.")
        if len(labels) != len(samples):
            raise ValueError(f"class_accuracy got {len(samples)} samples and {len(labels)} labels; give one for each.")
        right = extractor.classify(quantised(samples, source.levels)) == np.asarray(labels)
        return {"class_accuracy": float(right.mean()), "class_accuracy_real": float(extractor.accuracy)}

    return evaluate


def nearest_neighbour(source: Source, seed: int = 0, features: str = "identity", quantile: float = 0.01) -> Evaluator:
    """Does the model copy? Distances from samples to their nearest training example, beside those of held-out examples.

    `nearest_train` and `nearest_train_real` are medians, for generated and held-out examples; `copies` is the share of
    samples nearer to the training set than the nearest `quantile` of the held-out ones are: `quantile` for a model that
    generalises, one for a model that copies.
    """
    if source.size is None:
        raise ValueError("The evaluator 'nearest_neighbour' needs a finite training set; this source is endless.")
    extractor = _features(features, source)
    read = lambda samples: extractor.embed(quantised(samples, source.levels))
    train, test = (read(source.reference(split)["data"]) for split in ("train", "test"))
    held_out = coverage.nearest_distances(test, train)
    threshold = np.quantile(held_out, quantile)

    def evaluate(samples: np.ndarray, conditions: Conditions) -> dict[str, float]:
        _check_finite(samples)
        nearest = coverage.nearest_distances(read(samples), train)
        return {
            "nearest_train": float(np.median(nearest)),
            "nearest_train_real": float(np.median(held_out)),
            "nearest_train_ratio": float(np.median(nearest) / np.median(held_out)),
            "copies": float((nearest < threshold).mean()),
        }

    return evaluate


def psnr(source: Source, seed: int = 0) -> Evaluator:
    """Peak signal-to-noise ratio of reconstructions in dB: the mean over images of 10 log10(2^2 / mean squared error)."""

    def evaluate(samples: np.ndarray, conditions: Conditions) -> dict[str, float]:
        _check_finite(samples)
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
    "sliced_w2": sliced_w2,
    "exact_w2": exact_w2,
    "sinkhorn_w2": sinkhorn_w2,
    "mmd": mmd,
    "kid": kid,
    "frechet": frechet,
    "precision_recall": precision_recall,
    "mode_weights": mode_weights,
    "class_accuracy": class_accuracy,
    "nearest_neighbour": nearest_neighbour,
    "psnr": psnr,
}

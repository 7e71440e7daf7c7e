"""What every evaluator shares: its type, the features it sees through, images as the data have them, real sets."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from flowjax.choices import build
from flowjax.data.sources import Source
from flowjax.evaluation import image_features
from flowjax.evaluation.classifiers import RECIPES, classifier
from flowjax.evaluation.features import Features, identity
from flowjax.shapes.requirements import VERDICTS
from flowjax.shapes.vocabulary import MOST_OBJECTS

FEATURES = {
    "identity": identity,
    **{name: functools.partial(classifier, name) for name in RECIPES},
    "efficientnet_lite0": image_features.efficientnet_lite0,
    "inception_v3": image_features.inception_v3,
}
HIGHER_IS_BETTER = frozenset(
    (
        *("precision", "recall", "density", "coverage", "diversity", "class_accuracy", "caption_agreement", "psnr"),
        *("return", "return_best", "return_expert"),
        *("comparison_accuracy", "comparison_accuracy_best"),
        *("caption_accuracy", "caption_accuracy_held_out"),
        *(f"caption_accuracy_{number}" for number in range(1, MOST_OBJECTS + 1)),
        *(f"caption_{verdict}" for verdict in VERDICTS if verdict != "all"),
    )
)
BESIDE = ("_low", "_high", "_floor_std")  # endings of values that have no receipt of their own

Conditions = Mapping[str, np.ndarray]  # what the samples were drawn under: label, tokens, ...; {} for nothing
# An evaluator may also have `description`, plain values for the receipts, and `picture(samples, conditions)`.
Evaluator = Callable[[np.ndarray, Conditions], dict[str, float]]
FeatureSpec = str | Mapping[str, Any] | ConfigDict  # a name, or a name with options: dict(name=..., layer=...)


def quantised(samples: np.ndarray, levels: int | None) -> np.ndarray:
    """Clips to [-1, 1] and rounds to `levels` equally spaced values; None leaves the samples as they are."""
    samples = np.asarray(samples, np.float32)
    if levels is None:
        return samples
    steps = levels - 1
    return (np.round((np.clip(samples, -1, 1) + 1) * steps / 2) * 2 / steps - 1).astype(np.float32)


def features_of(spec: FeatureSpec, source: Source) -> Features:
    """The features of a spec; 'auto' is the digits classifier for digits and the samples themselves for other data."""
    if spec == "auto":
        spec = "digits" if tuple(source.spec.shape) == (8, 8, 1) else "identity"
    return build("feature extractor", {"name": spec} if isinstance(spec, str) else spec, FEATURES)


def real_examples(source: Source, split: str, count: int, seed: int) -> Mapping[str, np.ndarray]:
    """2n real examples with their conditions, to be halved: n is `count`, but at most half of a finite split."""
    if source.size is not None:
        count = min(count, len(source.reference(split)["data"]) // 2)
    return source.reference(split, 2 * count, seed)


def real_pool(source: Source, split: str, count: int, seed: int) -> np.ndarray:
    """The same without conditions."""
    return real_examples(source, split, count, seed)["data"]


def disjoint_real_sets(source: Source, split: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint sets of min(count, half of the split) real examples each."""
    pool = real_pool(source, split, count, seed)
    return pool[: len(pool) // 2], pool[len(pool) // 2 :]


def check_finite(samples: np.ndarray) -> None:
    """Refuses samples that are not numbers."""
    bad = int((~np.isfinite(samples)).reshape(len(samples), -1).any(axis=1).sum())
    if bad:
        raise ValueError(f"{bad} of {len(samples)} samples hold NaN or infinity: the model or the sampler diverged.")


def receipt_fields(evaluator: Evaluator, measured: Mapping[str, float], metric: str) -> dict[str, Any]:
    """What a receipt says beside a value: better, interval, floor, floor_std, and how it was measured (features)."""
    fields = dict(getattr(evaluator, "description", {}))
    if metric in HIGHER_IS_BETTER:
        fields["better"] = "higher"
    if metric + "_low" in measured:
        fields["interval"] = [measured[metric + "_low"], measured[metric + "_high"]]
    for ending in ("floor", "floor_std"):
        if f"{metric}_{ending}" in measured:
            fields[ending] = measured[f"{metric}_{ending}"]
    return fields

r"""How well learnt scores order held-out comparisons, and whether they take a short cut.

    accuracy   the share of pairs of a comparison in which the better one has the higher score, averaged over comparisons
               that were no ties; a pair of equal scores counts half. `best` is what nobody could exceed on these very
               comparisons, where their noise is known (data/judgements.py)
    short cut  the correlation of differences in score with differences in something that has nothing to do with taste, over
               the pairs of a comparison: brightness, contrast, and the size of the picture as a compressed file. For the
               length of the caption, which all of a comparison share, it is that of mean scores. Beside each is the share of
               pairs that it would order rightly by itself (`..._alone`, of its better direction): a short cut that
               comparisons hold out is one that scores will take

The mean and the standard deviation of all scores, of the same held-out comparisons each time, are kept with the checkpoint:
rewards are standardised by them (rewards/learned.py).
"""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from flowjax.data.sources import Source
from flowjax.evaluation import resampling
from flowjax.evaluation.judging import Conditions, Evaluator, check_finite, quantised


def picture_facts(images: Float[np.ndarray, "n h w c"]) -> dict[str, Float[np.ndarray, " n"]]:
    """What may be a short cut of pictures: name -> one number for each."""
    pixels = np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
    # Differences of neighbours, as PNG files have them.
    rows = np.diff(pixels, axis=2, prepend=0)
    return {
        "brightness": images.mean(axis=(1, 2, 3)),
        "contrast": images.std(axis=(1, 2, 3)),
        "file_size": np.array([len(zlib.compress(row.tobytes(), 6)) for row in rows], np.float64),
    }


def caption_lengths(conditions: Conditions) -> Float[np.ndarray, " n"] | None:
    """How many tokens captions have; None where there are none."""
    if "tokens" in conditions:
        return (np.asarray(conditions["tokens"]) != 0).sum(axis=1).astype(np.float64)
    return np.asarray(conditions["text_mask"]).sum(axis=1).astype(np.float64) if "text_mask" in conditions else None


def correlation(one: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]) -> float:
    """Pearson's; 0 where one of them does not vary."""
    one, other = one - one.mean(), other - other.mean()
    scale = np.sqrt((one**2).sum() * (other**2).sum())
    return float((one * other).sum() / scale) if scale > 0 else 0.0


class _Comparisons:
    """See the module header."""

    def __init__(self, source: Source, seed: int, split: str):
        self.source, self.seed, self.split = source, seed, split
        self.description: Mapping[str, Any] = {"split": split}

    def __call__(self, samples: np.ndarray, conditions: Conditions) -> dict[str, float]:
        """comparison_accuracy with `_low` and `_high`, its best, score_mean, score_std, shortcut_* and count."""
        check_finite(samples)
        if "outcome" not in conditions:
            raise ValueError(
                "The evaluator 'comparisons' needs the scores of compared examples. Use it with method 'reward_model' and its "
                "sampler 'scores'."
            )
        scores, outcome = np.asarray(samples, np.float64), np.asarray(conditions["outcome"])
        present = np.ones(scores.shape, bool)
        if "present" in conditions:
            present[:, 1:] = conditions["present"]
        one, other = np.triu_indices(scores.shape[1], 1)
        counted = present[:, one] & present[:, other] & (outcome != 0)[:, None]
        sign = np.where(outcome < 0, -1, 1)[:, None]
        # Whole comparisons are drawn again for the interval: pairs of one ranking are not independent.
        right = _right((scores[:, one] - scores[:, other]) * sign, counted)
        low, high = resampling.bootstrap_mean(right, self.seed) if len(right) > 1 else (np.nan, np.nan)
        results = {
            "comparison_accuracy": float(right.mean()),
            "comparison_accuracy_low": low,
            "comparison_accuracy_high": high,
        }
        if hasattr(self.source, "best_accuracy"):
            results["comparison_accuracy_best"] = self.source.best_accuracy(self.split, len(scores), self.seed)
        results |= {"score_mean": float(scores[present].mean()), "score_std": float(scores[present].std())}
        return {**results, **self._shortcuts(scores, conditions, present, counted, sign), "count": float(len(scores))}

    def _shortcuts(self, scores, conditions, present, counted, sign) -> dict[str, float]:
        results = {}
        one, other = np.triu_indices(scores.shape[1], 1)
        lengths = caption_lengths(conditions)
        if lengths is not None:
            means = (scores * present).sum(axis=1) / present.sum(axis=1)
            results["shortcut_caption_length"] = correlation(means, lengths)
        pictures = np.concatenate([conditions["data"][:, None], conditions["others"]], axis=1)
        if pictures.ndim != 5:
            return results
        flat = quantised(pictures.reshape(-1, *pictures.shape[2:]), self.source.levels)
        pair = present[:, one] & present[:, other]
        for name, fact in picture_facts(flat).items():
            fact = fact.reshape(scores.shape)
            gap = fact[:, one] - fact[:, other]
            results[f"shortcut_{name}"] = correlation((scores[:, one] - scores[:, other])[pair], gap[pair])
            alone = float(_right(gap * sign, counted).mean())
            results[f"shortcut_{name}_alone"] = max(alone, 1 - alone)
        return results


def _right(ahead: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Of each comparison that was no tie the share of its pairs that are in order."""
    pairs = counted.sum(axis=1)
    if not pairs.any():
        raise ValueError("All of these comparisons were ties: there is nothing to be right about.")
    shares = (((ahead > 0) + 0.5 * (ahead == 0)) * counted).sum(axis=1)
    return (shares / np.maximum(pairs, 1))[pairs > 0]


def comparisons(source: Source, seed: int = 0) -> Evaluator:
    """Accuracy of scores on held-out comparisons, their mean and deviation, and short cuts.

    Args:
      source: of comparisons.
      seed: of the run, by which the held-out comparisons were chosen.
    """
    if not source.spec.compared:
        raise ValueError("The evaluator 'comparisons' needs data of comparisons. Use it with method 'reward_model'.")
    return _Comparisons(source, seed, "test")

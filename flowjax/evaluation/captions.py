r"""Does a picture show what its caption says? Pictures of scenes are read back from pixels and held against the words.

`caption_accuracy` is the share of samples that are wholly right: as many objects as asked for, each with every attribute
that the caption names, the relation, the background and the word. Beside it:

    caption_count, caption_kind, ...   the share that has this right, among the captions that speak of it
    caption_accuracy_1, _2, ...        among the captions with so many objects
    caption_accuracy_held_out          among the captions with a combination that training never shows
    caption_accuracy_real              of real pictures under their own captions: what a perfect model would get
    caption_accuracy_floor             of real pictures under each other's captions: what drawing well and reading
                                       nothing would get

The parser never sees the caption. `caption_accuracy_low` and `_high` are a bootstrap interval over the samples.
"""

import numpy as np

from flowjax.data.sources import Source
from flowjax.evaluation.judging import Conditions, Evaluator, check_finite
from flowjax.evaluation.resampling import bootstrap_mean
from flowjax.shapes.parse import parse
from flowjax.shapes.requirements import VERDICTS, Requirement, judge, understand
from flowjax.shapes.scenes import HELD_OUT_COLOURS, HELD_OUT_TEXTURES
from flowjax.shapes.vocabulary import MOST_OBJECTS


def asks_for_held_out(requirement: Requirement) -> np.ndarray:
    """Which captions name a combination that training scenes never hold, bool [n]."""
    kind, colour, texture = requirement.kind, requirement.colour, requirement.texture
    pairs = HELD_OUT_COLOURS[kind, colour] & (kind >= 0) & (colour >= 0)
    return (pairs | (HELD_OUT_TEXTURES[kind, texture] & (kind >= 0) & (texture >= 0))).any(axis=1)


def shares(samples: np.ndarray, requirement: Requirement, seed: int = 0) -> dict[str, float]:
    """The share of samples [n, h, w, 3] that meet their captions, in all and by attribute and number of objects."""
    verdicts = judge(parse(samples), requirement)
    right = verdicts["all"] == 1
    groups = {str(number): requirement.count == number for number in range(1, MOST_OBJECTS + 1)}
    groups["held_out"] = asks_for_held_out(requirement)
    low, high = bootstrap_mean(right, seed)
    results = {"caption_accuracy": float(right.mean()), "caption_accuracy_low": low, "caption_accuracy_high": high}
    for name in VERDICTS:
        said = ~np.isnan(verdicts[name])
        if name != "all" and said.any():
            results[f"caption_{name}"] = float(verdicts[name][said].mean())
    results |= {f"caption_accuracy_{name}": float(right[rows].mean()) for name, rows in groups.items() if rows.any()}
    return results


def caption_accuracy(source: Source, seed: int = 0, split: str = "test", real: int = 1000) -> Evaluator:
    """The share of samples that show what their captions say.

    Args:
      source: where captions are decoded, and real pictures come from.
      seed: which real pictures.
      split: of which split.
      real: how many of them `caption_accuracy_real` and `caption_accuracy_floor` are taken from, 2 or more.
    """
    if real < 2:
        raise ValueError(f"real={real}: the evaluator 'caption_accuracy' needs 2 real pictures or more.")
    tokenizer = getattr(source, "tokenizer", None)
    if tokenizer is None:
        raise ValueError("The evaluator 'caption_accuracy' needs captions of scenes. Use data 'shapes', or drop it.")
    required = lambda tokens: understand(tokenizer.decode(np.asarray(tokens)))
    known = source.reference(split, real, seed)
    try:
        needed = required(known["tokens"])
    except ValueError as error:
        raise ValueError(f"The evaluator 'caption_accuracy' reads captions of scenes. {error}") from error
    turned = required(np.roll(known["tokens"], 1, axis=0))
    ceiling, floor = (shares(known["data"], words)["caption_accuracy"] for words in (needed, turned))

    def evaluate(samples: np.ndarray, conditions: Conditions) -> dict[str, float]:
        check_finite(samples)
        tokens = conditions.get("tokens")
        if tokens is None:
            raise ValueError(
                "The evaluator 'caption_accuracy' needs the captions that were asked for: conditions with 'tokens'. "
                f"Got {', '.join(conditions) or 'none'}."
            )
        if len(tokens) != len(samples):
            raise ValueError(
                f"caption_accuracy got {len(samples)} samples and {len(tokens)} captions; give one for each."
            )
        measured = shares(np.asarray(samples), required(tokens), seed)
        return {**measured, "caption_accuracy_real": ceiling, "caption_accuracy_floor": floor}

    return evaluate

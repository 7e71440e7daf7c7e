"""What samples are drawn under: every class in turn, held-out captions or observations, prompts, or real examples.

Where examples are images smaller than their arrays, samples have the sizes of held-out ones (`pixel_mask`), and of prompts
the data's `visible_shape`. A sampler with a shape of its own draws images that fill it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from flowjax.config import ConfigError
from flowjax.contract import DataSpec
from flowjax.data.tokenizers import strictly
from flowjax.training.run import Run

CAPTION = ("tokens", "text", "text_mask", "text_pooled")  # what a batch may hold of a caption
DESCRIBING = ("label", *CAPTION, "pixel_mask", "observation")  # what samples take from real examples
Conditions = dict[str, np.ndarray]


def drawn_under(run: Run, sampler: str, count: int, split: str = "test") -> Conditions:
    """The conditions of `count` measured samples.

    A sampler that reads real examples gets those of the split. Captions are of its examples too, the same ones each time
    for a seed, and repeated from the first where there are fewer; so are sizes and observations. Labels come with them, or
    else in turn, each as often as it is common in the data.
    """
    reads = run.method.samplers[sampler].reads
    if reads:
        return _real(run, sampler, reads, count, split)
    spec = run.source.spec
    if spec.text_length or spec.masked or spec.observation_shape:
        return _filling(run, sampler, _described(run, count, split))
    return {} if spec.num_classes is None else {"label": labels_in_turn(count, spec)}


def labels_in_turn(count: int, spec: DataSpec) -> Int[np.ndarray, " n"]:
    """0, 1, ... again and again; where some are more common than others, each comes as often as that, evenly spread."""
    weights = np.asarray(spec.class_weights or [1 / spec.num_classes] * spec.num_classes)
    quotas = np.floor(count * weights + 1e-9).astype(int)
    left = count - quotas.sum()
    # What is left goes to those who lack most; of equals to the first.
    quotas[np.argsort(quotas - count * weights, kind="stable")[:left]] += 1
    turns = [(turn / (count * weight), label) for label, weight in enumerate(weights) for turn in range(quotas[label])]
    return np.array([label for _, label in sorted(turns)], np.int32)


def pictured_under(run: Run, sampler: str, count: int) -> Conditions:
    """The conditions of `count` samples for a picture: the prompts of the config where it has some."""
    prompts = run.config.sample.prompts
    if not prompts or run.method.samplers[sampler].reads:
        return drawn_under(run, sampler, count)
    return _filling(run, sampler, prompted(run.source, prompts, count))


def prompted(source: Any, prompts: Sequence[str], count: int) -> Conditions:
    """`count` samples of prompts, as many of each as can be, side by side; a label, if there is one, is left open.

    Images smaller than their arrays are of the data's `visible_shape`.
    """
    if count < len(prompts):
        raise ConfigError(f"There are {len(prompts)} prompts (sample.prompts), but only {count} samples. Draw more.")
    tokenizer = getattr(source, "tokenizer", None)
    if tokenizer is None:
        raise ConfigError("sample.prompts are set, but these data have no captions. Leave sample.prompts at ().")
    try:
        tokens = strictly(tokenizer).encode(list(prompts))
    except ValueError as error:
        raise ConfigError(f"sample.prompts: {error}") from error
    conditions, spec = {"tokens": tokens}, source.spec
    if spec.text_channels:
        encode = getattr(source, "encode_text", None)
        if encode is None:
            raise ConfigError(
                "sample.prompts are set, but the captions of these data were encoded beforehand, and nothing here encodes "
                "others. Use data source 'encoded', or leave sample.prompts at ()."
            )
        conditions |= encode(tokens)
    if spec.num_classes is not None:
        conditions["label"] = np.full(len(tokens), spec.num_classes, np.int32)  # the null label
    if spec.masked:
        conditions["pixel_mask"] = np.zeros((len(tokens), *spec.shape[:2]), bool)
        conditions["pixel_mask"][:, : spec.visible_shape[0], : spec.visible_shape[1]] = True
    return {name: value[np.arange(count) * len(prompts) // count] for name, value in conditions.items()}


def captions_of(source: Any, conditions: Mapping[str, np.ndarray]) -> list[str] | None:
    """The captions among the conditions as text, None where there are none."""
    tokenizer = getattr(source, "tokenizer", None)
    if tokenizer is None or "tokens" not in conditions:
        return None
    return tokenizer.decode(np.asarray(conditions["tokens"]))


def _real(run: Run, sampler: str, reads: Sequence[str], count: int, split: str) -> Conditions:
    try:
        real = run.source.reference(split, count, run.config.seed)
    except ValueError as error:
        raise ConfigError(f"Sampler '{sampler}' reads real examples. {error}") from error
    lacking = [name for name in reads if name not in real]
    if lacking:
        raise ConfigError(
            f"Sampler '{sampler}' reads '{lacking[0]}' of real examples, which have {', '.join(sorted(real))}."
        )
    return {name: real[name] for name in (*reads, *DESCRIBING) if name in real}


def _described(run: Run, count: int, split: str) -> Conditions:
    try:
        real = run.source.reference(split, count, run.config.seed)
    except ValueError:  # fewer of them: all, and again from the first
        try:
            real = run.source.reference(split, None, run.config.seed)
        except ValueError as error:
            raise ConfigError(
                f"Samples are drawn under captions, sizes and observations of examples of the split '{split}'. {error}"
            ) from error
    rows = np.arange(count) % len(real["data"])
    return {name: real[name][rows] for name in DESCRIBING if name in real}


def _filling(run: Run, sampler: str, conditions: Conditions) -> Conditions:
    """The conditions with masks of the sampler's own shape, where it has one."""
    if "pixel_mask" not in conditions or run.method.samplers[sampler].shape is None:
        return conditions
    shape = (len(conditions["pixel_mask"]), *run.method.samplers[sampler].shape[:2])
    return {**conditions, "pixel_mask": np.ones(shape, bool)}

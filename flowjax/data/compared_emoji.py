"""Comparisons of one emoji in several styles, by a known taste for styles; the caption is the emoji's name."""

import numpy as np

from flowjax.choices import Spec
from flowjax.contract import DataSpec
from flowjax.data.emoji import STYLES, prepared_folder
from flowjax.data.judgements import JudgedSource, Judgement
from flowjax.data.pictures import LEVELS, make_caption_tokenizer, standard_deviation
from flowjax.data.records import Prepared
from flowjax.data.shapes import to_unit
from flowjax.data.tokenizers import text_facts


def compared_emoji(
    taste: tuple = (0.0, 1.0, 2.0),
    size: int = 64,
    examples: int = 2,
    temperature: float = 1.0,
    theta: float = 1.0,
    tokenizer: Spec | None = None,
    text_length: int = 0,
    path: str = "",
) -> JudgedSource:
    """Two or three drawings of one emoji, RGB on white in [-1, 1]; those of 10% of the families are held out.

    Args:
      taste: the score of 'google' (Noto), 'twitter' (Twemoji) and 'fluent' (Fluent 3D).
      size: pixels of a side; sizes that divide the prepared one are box means of it.
      examples: of a comparison; 3 for rankings of all styles.
      temperature: what scores are divided by when comparisons come out.
      theta: above 1 for pairs that may end in a tie (losses/comparisons.py).
      tokenizer: spec of the tokenizer, for example dict(name='words'); None for batches without captions.
      text_length: ids of a caption, 0 for the longest.
      path: the prepared folder; by default the one in the data home.
    """
    if len(taste) != len(STYLES):
        raise ValueError(f"taste={tuple(taste)}; expected one number for each of {', '.join(STYLES)}.")
    if examples > len(STYLES):
        raise ValueError(f"examples={examples}: an emoji has {len(STYLES)} styles.")
    prepared = Prepared.open(prepared_folder(size, path))
    pixels, groups, names = {}, {}, {}
    for split in ("train", "test"):
        pixels[split], fields = prepared.pixels(split, (size, size, 3), "pad")
        rows: dict[str, dict[str, int]] = {}
        for row, field in enumerate(fields):
            rows.setdefault(field["code"], {})[field["style"]] = row
        whole = [code for code in sorted(rows) if len(rows[code]) == len(STYLES)]
        if not whole:
            raise ValueError(
                f"No emoji of the split '{split}' in {prepared.folder} is drawn in all of {', '.join(STYLES)}. Prepare them "
                "all."
            )
        groups[split] = np.int64([[rows[code][style] for style in STYLES] for code in whole])
        names[split] = [fields[rows[code][STYLES[0]]]["caption"] for code in whole]
    encoder = make_caption_tokenizer(tokenizer, text_length, names["train"])
    tokens = {split: encoder.encode(texts) for split, texts in names.items()} if encoder is not None else {}
    worth = np.asarray(taste, np.float64)

    def draw(uniforms, split):
        split = "train" if split == "train" else "test"
        chosen = (uniforms[:, 0] * len(groups[split])).astype(int)
        styles = np.argsort(uniforms[:, 1:], axis=1)[:, :examples]
        shown = pixels[split][np.take_along_axis(groups[split][chosen], styles, axis=1)]
        return to_unit(shown), worth[styles], {name: part[split][chosen] for name, part in conditions.items()}

    conditions = {"tokens": tokens} if encoder is not None else {}
    std = standard_deviation(pixels["train"])
    spec = DataSpec((size, size, 3), std=std, **text_facts(encoder), compared=examples)
    return JudgedSource(draw, 1 + len(STYLES), Judgement(temperature, theta), spec, encoder, LEVELS)

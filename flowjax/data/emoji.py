"""Emoji in three styles with captions, as `python -m flowjax.data.prepare emoji` leaves them, split by families."""

import pathlib
from typing import Any

import numpy as np

from flowjax.choices import Spec
from flowjax.data.pictures import MemoryPictures, PictureSource, picture_source, standard_deviation
from flowjax.data.records import NotPrepared, Prepared, data_home, find_prepared

STYLES = ("google", "twitter", "fluent")
TAGS = 3  # further words in the caption that is made of them


def emoji(
    styles: tuple = STYLES,
    size: int = 64,
    tokenizer: Spec | None = None,
    text_length: int = 0,
    labels: bool = True,
    variants: bool = False,
    path: str = "",
) -> PictureSource:
    """10,946 drawings (10% of the families held out), RGB on white in [-1, 1]; the caption is 'STYLE style: NAME'.

    They may not be mirrored: arrows, letters and flags would become other ones.

    Args:
      styles: which of 'google' (Noto), 'twitter' (Twemoji) and 'fluent' (Fluent 3D).
      size: pixels of a side; sizes that divide the prepared one are box means of it.
      tokenizer: spec of the tokenizer, for example dict(name='words'); None for batches without captions.
      text_length: ids of a caption, 0 for the longest.
      labels: whether batches carry `label`, the place of the style in `styles`.
      variants: train on other wordings too: 'NAME, STYLE style', and the style with words about the emoji.
      path: the prepared folder; by default the one in the data home.
    """
    styles = tuple(styles)
    if not styles or len(set(styles)) != len(styles) or set(styles) - set(STYLES):
        raise ValueError(f"styles={styles}; expected one or more of {', '.join(STYLES)}, each once.")
    prepared = Prepared.open(prepared_folder(size, path))
    shape, rows, splits = (size, size, 3), {}, {}
    for split in ("train", "test"):
        pixels, fields = prepared.pixels(split, shape, "pad")
        rows[split] = np.flatnonzero([field["style"] in styles for field in fields])
        chosen = [fields[row] for row in rows[split]]
        style = np.int32([styles.index(field["style"]) for field in chosen])
        captions = [wordings(field, variants) for field in chosen]
        splits[split] = MemoryPictures(pixels[rows[split]], style, captions)
    std = standard_deviation(splits["train"].data)
    classes = len(styles) if labels else None
    return picture_source(
        splits["train"], splits["test"], shape, std, classes, tokenizer, text_length, labels=styles, card=prepared.card
    )


def wordings(field: dict[str, Any], variants: bool) -> tuple[str, ...]:
    """The captions of a record: the plain one first, others when they are wanted."""
    style, name = field["style"], field["caption"]
    plain = f"{style} style: {name}"
    if not variants:
        return (plain,)
    about = [f"{style} style: {', '.join(field['tags'][:TAGS])}"] if field["tags"] else []
    return (plain, f"{name}, {style} style", *about)


def prepared_folder(size: int, path: str = "") -> pathlib.Path:
    """The prepared emoji that a size can be made of.

    Args:
      size: pixels of a side.
      path: the folder; by default the first in the data home whose size this one divides.
    """
    if size < 1:
        raise ValueError(f"size={size}; give a positive number of pixels.")
    if path:
        return find_prepared("", path, "python -m flowjax.data.prepare emoji")
    made = sorted(int(card.parent.name.removeprefix("emoji_")) for card in data_home().glob("emoji_*/card.json"))
    whole = [other for other in made if other % size == 0]
    if whole:
        return data_home() / f"emoji_{whole[0]}"
    wanted = size if 64 % size else 64
    try:
        return find_prepared(f"emoji_{wanted}", "", f"python -m flowjax.data.prepare emoji --size {wanted}")
    except NotPrepared as error:
        others = f" Prepared are the sizes {', '.join(map(str, made))}, which {size} does not divide." if made else ""
        raise NotPrepared(f"{error}{others}") from None

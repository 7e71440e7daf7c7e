"""A folder of pictures that were compared or judged, one JSON object a line of comparisons.jsonl.

    {"prompt": "a red circle", "images": ["a.png", "b.png"], "outcome": "first"}          or "second", or "tie"
    {"prompt": "two dogs", "images": ["best.png", ..., "worst.png"], "outcome": "ranking"}
    {"prompt": "a blue ring", "images": ["a.png"], "outcome": "good"}                     or "bad"

A line may also have `margin`, a number that says by how much the better one is better, `label`, the place of a class, and
`group`: all comparisons of one group, or of one prompt where there is none, are of one split. What cannot be used (a line that
is no comparison, a picture that is not there, a prompt with words that a strict tokenizer refuses) is left out and counted.
Of comparisons of more than two, shorter ones are filled up with `present` False, and ties of two are left out. Pictures that
were judged by themselves are what a folder is of where it has nothing else, or with examples=1, when the better of two is
good and the other bad; among comparisons they are left out.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from flowjax.choices import Spec
from flowjax.contract import DataSpec
from flowjax.data.folders import METADATA
from flowjax.data.listing import check_test_share, held_out
from flowjax.data.pictures import FilePictures, PictureSource, estimated_deviation, make_caption_tokenizer
from flowjax.data.record_format import BadPicture, decode_picture
from flowjax.data.resizing import Fitted
from flowjax.data.skipped import Skipped
from flowjax.data.tokenizers import text_facts

FILE = "comparisons.jsonl"
OUTCOMES = {"first": 1, "tie": 0, "second": -1}  # of two
ALONE = {"good": 1, "bad": -1}
RANKING = "ranking"
BROKEN = "line that is no comparison"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A line: pictures by name, the first ones better where `outcome` is 1; of two it may be 0 or -1, and of one -1."""

    prompt: str
    images: tuple[str, ...]
    outcome: int
    margin: float | None = None
    label: int | None = None
    group: str = ""


def read_line(text: str) -> Comparison | None:
    """A line of comparisons.jsonl; None where it is no comparison."""
    try:
        entry = json.loads(text)
        prompt, images, outcome = entry.get("prompt", ""), entry["images"], entry["outcome"]
        margin, label, group = entry.get("margin"), entry.get("label"), entry.get("group", "")
        number = lambda value, kind: value is None or (isinstance(value, kind) and not isinstance(value, bool))
        fits = (
            isinstance(prompt, str)
            and isinstance(group, (str, int))
            and isinstance(images, list)
            and all(isinstance(name, str) and name for name in images)
            and len(set(images)) == len(images)
            and outcome in _outcomes(len(images))
            and number(margin, (int, float))
            and (margin is None or np.isfinite(margin))
            and number(label, int)
            and (label is None or label >= 0)
        )
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None
    if not fits:
        return None
    return Comparison(prompt, tuple(images), _outcomes(len(images))[outcome], margin, label, str(group))


def _outcomes(count: int) -> dict[str, int]:
    """Word -> outcome, for a line of so many pictures."""
    if count < 2:
        return ALONE if count else {}
    return {RANKING: 1, **(OUTCOMES if count == 2 else {})}


def list_comparisons(root: pathlib.Path, examples: int) -> tuple[list[Comparison], int, Skipped]:
    """The comparisons of a folder whose pictures are there, of how many examples the longest is, and what was left out.

    Args:
      root: the folder.
      examples: of a comparison at most, 1 for pictures judged by themselves; 0 for those of the longest.
    """
    if not (root / FILE).is_file():
        other = f" It has {METADATA}: for pictures with captions use data source 'folder'."
        raise ValueError(
            f"There is no file {root / FILE}. Give the folder of comparisons.{other if (root / METADATA).is_file() else ''}"
        )
    skipped, found = Skipped(), []
    for number, text in enumerate((root / FILE).read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not text.strip():
            continue
        one = read_line(text)
        if one is None:
            skipped.add(BROKEN, f"line {number}")
        elif missing := [name for name in one.images if not (root / name).is_file()]:
            skipped.add("picture that is not there", missing[0])
        elif examples == 1:
            found += _apart(one, skipped, f"line {number}")
        elif examples and len(one.images) > examples:
            skipped.add(f"ranking of more than {examples}", f"line {number}")
        else:
            found.append(one)
    longest = examples or max((len(one.images) for one in found), default=2)
    if longest > 1:
        for one in found:
            if len(one.images) == 1:
                skipped.add("picture judged by itself among comparisons", one.images[0])
        found = [one for one in found if len(one.images) > 1]
    if longest > 2:  # the second of two is then put first; a tie has no place in a ranking
        ties = [one for one in found if one.outcome == 0]
        for one in ties:
            skipped.add("tie among rankings", one.prompt)
        turn = lambda one: dataclasses.replace(one, images=one.images[::-1], outcome=1) if one.outcome < 0 else one
        found = [turn(one) for one in found if one.outcome != 0]
    return found, longest, skipped


def _apart(one: Comparison, skipped: Skipped, where: str) -> list[Comparison]:
    """A line as pictures that were judged by themselves; ties and rankings say nothing of the kind, and are counted."""
    if len(one.images) > 2 or one.outcome == 0:
        skipped.add("tie, or ranking, where each picture is good or bad", where)
        return []
    if len(one.images) == 1:
        return [one]
    sides = (one.outcome, -one.outcome)
    return [dataclasses.replace(one, images=(name,), outcome=side) for name, side in zip(one.images, sides)]


class ComparedPictures(PictureSource):
    """Pictures of one comparison are read together: `data` the first, `others` the rest, where there are more."""

    def _rows(self, split: Any, indices: np.ndarray, choice: np.ndarray | None) -> dict[str, np.ndarray]:
        rows = super()._rows(split, indices, choice)
        pictures = rows.pop("data")
        others = {"others": pictures[:, 1:]} if self.spec.compared > 1 else {}
        return {"data": np.ascontiguousarray(pictures[:, 0]), **others, **rows}


def comparisons(
    path: str,
    size: int = 64,
    fit: str = "crop",
    tokenizer: Spec | None = None,
    text_length: int = 0,
    labels: bool = True,
    examples: int = 0,
    test_share: float = 0.1,
) -> ComparedPictures:
    """Pictures that were compared or judged, decoded as they are needed.

    Args:
      path: the folder, with comparisons.jsonl.
      size: pixels of a side.
      fit: 'crop' cuts out the middle, 'pad' puts the whole picture on white.
      tokenizer: spec of the tokenizer, for example dict(name='words'); None for batches without captions.
      text_length: ids of a caption, 0 for the longest.
      labels: whether batches carry `label`, where every comparison has one.
      examples: of a comparison at most; longer rankings are left out. 1 for pictures that were judged by themselves, to which
        pairs then come apart. 0 for those of the longest.
      test_share: the share of prompts, or of groups, that is held out.
    """
    check_test_share(test_share)
    if size < 1 or examples < 0:
        raise ValueError(f"size={size}, examples={examples}; expected a positive size, and 1 or more examples, or 0.")
    root, frame = pathlib.Path(path).expanduser(), Fitted((size, size, 3), fit)
    found, longest, skipped = list_comparisons(root, examples)
    parts: dict[str, list[Comparison]] = {"train": [], "test": []}
    for one in found:
        parts["test" if held_out(one.group or one.prompt, test_share) else "train"].append(one)
    prompts = [one.prompt for one in parts["train"]]
    encoder = make_caption_tokenizer(tokenizer, text_length, prompts) if prompts else None
    if encoder is not None:
        parts = {split: [one for one in part if _readable(encoder, one, skipped)] for split, part in parts.items()}
    if not parts["train"]:
        raise ValueError(f"The folder {root} has no comparison that can be used for training ({skipped.message()}).")
    if skipped.count:
        print(f"{path}: {skipped.message()}")
    every = [one for part in parts.values() for one in part]
    labelled = labels and all(one.label is not None for one in every)
    weighed = longest > 1 and any(one.margin is not None for one in every)
    facts = [_stamps(root, every), size, fit, longest, labelled, weighed]

    def pictures(part: list[Comparison]) -> FilePictures:
        def load(index: int) -> dict[str, Any]:
            one = part[index]
            fields: dict[str, Any] = {"data": np.zeros((longest, *frame.shape), np.uint8)}
            for place, name in enumerate(one.images):
                try:
                    content = (root / name).read_bytes()
                except OSError as error:
                    raise BadPicture(f"the file cannot be read: {error}") from error
                fields["data"][place] = frame(decode_picture(content))["data"]
            fields["outcome"] = np.int32(one.outcome)
            if longest > 2:
                fields["present"] = np.arange(1, longest) < len(one.images)
            if weighed:
                fields["margin"] = np.float32(one.margin or 0.0)
            if labelled:
                fields["label"] = one.label
            if encoder is not None:
                fields["captions"] = (one.prompt,)
            return fields

        plain = [dataclasses.astuple(one) for one in part]
        words = lambda: [one.prompt for one in part]
        return FilePictures(load, len(part), words, [facts, plain], lambda index: ", ".join(part[index].images))

    train, test = pictures(parts["train"]), pictures(parts["test"])
    spec = DataSpec(
        frame.shape,
        1 + max(one.label for one in every) if labelled else None,
        estimated_deviation(train),
        **text_facts(encoder),
        compared=longest,
    )
    card = {"skipped": {"count": skipped.count, "reasons": skipped.reasons}}
    return ComparedPictures(train, test, spec, encoder, card=card)


def _readable(encoder: Any, one: Comparison, skipped: Skipped) -> bool:
    """Whether the tokenizer takes a prompt; a strict one refuses words that it does not know."""
    try:
        encoder.encode([one.prompt])
    except ValueError:
        skipped.add("prompt that the tokenizer refuses", one.prompt)
        return False
    return True


def _stamps(root: pathlib.Path, every: list[Comparison]) -> list[list[Any]]:
    """Name, size and time of change of every picture: they stand for its content, which it would take long to read."""
    found = [(name, (root / name).stat()) for name in sorted({name for one in every for name in one.images})]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in found]

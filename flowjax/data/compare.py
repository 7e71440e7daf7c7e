"""Writes comparisons of a data source as a plain folder: pictures and comparisons.jsonl (data/comparisons.py).

    python -m flowjax.data.compare FOLDER compared_shapes kind=style resolution=32 --count 1000 --split train

Words of the form option=value are options of the source.
"""

import argparse
import ast
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowjax import disk
from flowjax.choices import build
from flowjax.data.comparisons import FILE, OUTCOMES, RANKING
from flowjax.data.sources import Source


def write_comparisons(
    source: Source, folder: str | pathlib.Path, count: int, split: str = "train", seed: int = 0
) -> pathlib.Path:
    """Writes comparisons of a source; returns the folder.

    Args:
      source: of compared pictures.
      folder: made if it is not there; one that has comparisons already is refused.
      count: how many.
      split: 'train' for the first batch of training, or 'test' for held-out ones.
      seed: which.
    """
    from PIL import Image

    root = pathlib.Path(folder).expanduser()
    if source.spec.compared < 2 or len(source.spec.shape) != 3:
        raise ValueError(
            f"Only comparisons of pictures can be written; this source has examples of shape {tuple(source.spec.shape)}, "
            f"compared={source.spec.compared}."
        )
    if (root / FILE).exists():
        raise ValueError(f"{root / FILE} is there already. Give another folder.")
    if split not in ("train", "test"):
        raise ValueError(f"split='{split}'; expected 'train' or 'test'.")
    rows = source.dataset(seed, count, 0, count)[0] if split == "train" else source.reference(split, count, seed)
    prompts = source.tokenizer.decode(rows["tokens"]) if "tokens" in rows else [""] * count
    words = {value: name for name, value in OUTCOMES.items()}
    root.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in range(count):
        pictures = [rows["data"][row], *rows["others"][row]]
        if "present" in rows:
            pictures = pictures[: 1 + int(rows["present"][row].sum())]
        names = [f"{row:06d}_{place}.png" for place in range(len(pictures))]
        for name, picture in zip(names, pictures):
            pixels = np.clip(np.rint((picture + 1) * 127.5), 0, 255).astype(np.uint8)
            Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(root / name)
        ranked = source.spec.compared > 2
        entry: dict[str, Any] = {"prompt": prompts[row], "images": names}
        entry["outcome"] = RANKING if ranked else words[int(rows["outcome"][row])]
        if "label" in rows:
            entry["label"] = int(rows["label"][row])
        if "margin" in rows:
            entry["margin"] = float(rows["margin"][row])
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    (root / FILE).write_text("".join(lines), encoding="utf-8")
    return root


def value_of(text: str) -> Any:
    """A value of the command line: a Python literal, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; a mistake is one line and exit status 2."""
    from flowjax.data import SOURCES

    parser = argparse.ArgumentParser(prog="python -m flowjax.data.compare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=pathlib.Path, help="where to write")
    parser.add_argument("source", help="compared_shapes, compared_emoji, comparisons")
    parser.add_argument("options", nargs="*", help="option=value of the source")
    parser.add_argument("--count", type=int, default=1000, help="how many comparisons (default: 1000)")
    parser.add_argument("--split", default="train", help="train or test (default: train)")
    parser.add_argument("--seed", type=int, default=0, help="which (default: 0)")
    given = parser.parse_args(arguments)
    try:
        pairs = [option.partition("=") for option in given.options]
        wrong = [name for name, equals, _ in pairs if not equals]
        if wrong or given.count < 1:
            raise ValueError(f"'{wrong[0]}' is no option=value." if wrong else f"--count is {given.count}.")
        spec = {"name": given.source, **{name: value_of(text) for name, _, text in pairs}}
        source = build("data source", spec, SOURCES, seed=given.seed, total_steps=1)
        with disk.told(given.folder):
            written = write_comparisons(source, given.folder, given.count, given.split, given.seed)
    except (ValueError, TypeError, disk.DiskFull) as error:
        print(f"flowjax: {error}", file=sys.stderr)
        return 2
    print(f"{given.count} comparisons: {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

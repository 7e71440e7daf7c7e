"""Emoji from words in three styles: trains configs/emoji.py, measures it, and draws held-out names in every style.

    python experiments/emoji/run.py [--tiny] [--parts main accelerator card] [--work DIR] [--out DIR]

    main         configs/emoji.py, 32 x 32, overnight on two CPU cores; a run that was cut off goes on where it stopped
    accelerator  configs/emoji.py:accelerator, 64 x 64
    card         where the pictures come from, how many there are, what was left out and why; and a sheet of them

The last two run only when they are asked for. Training needs the data and weights that the config's header names, the card
the data alone. `--tiny` does a little of it in minutes, without weights, and writes to the work folder.
"""

import argparse
import sys

import numpy as np

from flowjax.config import ConfigDict, load
from flowjax.data.emoji import STYLES, prepared_folder
from flowjax.data.records import NotPrepared, Prepared
from flowjax.evaluation import run_files
from flowjax.evaluation.experiment import run_parts, train
from flowjax.evaluation.pictures import captioned_grid, save_png
from flowjax.evaluation.receipts import read_receipts, replace_receipts, sampler_free
from flowjax.training.conditions import prompted
from flowjax.training.run import Run
from flowjax.training.sampling import Drawer

CONFIG = "configs/emoji.py"
NAMES, SEED = 16, 7  # held-out names in the picture, and which
SIZE = 64  # of the prepared pictures that the card is about
ON_SHEET = {"train": 20, "test": 4}  # names


def one(options: argparse.Namespace, part: str, *choices: str) -> None:
    """Trains the config with its choices; publishes what it measured on the way, and the picture."""
    chosen = [*choices, *(("tiny", "text=words") if options.tiny else ())]
    config = ":".join(filter(None, (str(options.root / CONFIG), ",".join(chosen))))
    workdir = options.work / part
    train(options.root, config, workdir)
    receipts = read_receipts(workdir / run_files.RECEIPTS)
    hours = [{**receipt, "hours": round(receipt["seconds"] / 3600, 1)} for receipt in receipts]
    replace_receipts(options.out / "receipts", part, hours)
    save_png(options.out / f"{part}.png", held_out_picture(Run(ConfigDict(load(config)), workdir)))


def held_out_picture(run: Run) -> np.ndarray:
    """Held-out names, two to a row: what was drawn in the three styles, and the three real drawings."""
    real = run.source.reference("test")
    captions = run.source.tokenizer.decode(real["tokens"])
    place = {caption: row for row, caption in enumerate(captions)}
    names = [caption.removeprefix(f"{STYLES[0]} style: ") for caption in captions if caption.startswith(STYLES[0])]
    told = lambda name: [f"{style} style: {name}" for style in STYLES]
    # An unknown word stands for many names, and skin tones are many drawings of one.
    plain = [name for name in dict.fromkeys(names) if "[unknown]" not in name and "skin tone" not in name]
    whole = [name for name in plain if all(caption in place for caption in told(name))]
    chosen = np.random.default_rng(SEED).permutation(len(whole))[:NAMES]
    prompts = [caption for row in chosen for caption in told(whole[row])]
    count, drawer = len(prompts), Drawer(run)
    conditions = prompted(run.source, prompts, count)
    drawn = drawer.draw(run.latest_state().params, run.default_sampler, conditions, count, "held_out", count)
    shown = np.stack([drawn, real["data"][[place[prompt] for prompt in prompts]]], axis=1)
    shown = shown.reshape(-1, len(STYLES), *shown.shape[1:]).swapaxes(1, 2).reshape(-1, *drawn.shape[1:])
    texts = [text for row in chosen for text in (*told(whole[row]), *(["real"] * len(STYLES)))]
    return captioned_grid(shown, texts, columns=4 * len(STYLES))


def card(options: argparse.Namespace) -> None:
    """The card of the prepared set as receipts, and the sheet."""
    try:
        prepared = Prepared.open(prepared_folder(SIZE))
    except NotPrepared as error:
        raise SystemExit(str(error)) from error
    about = prepared.card
    names = {split: len({header["code"] for header in prepared.headers(split)}) for split in about["splits"]}
    receipts = []
    for source, drawn in zip(about["sources"], [*about["labels"], "names"]):
        counts = about["groups"]["style"].get(drawn, names)
        receipts.append(
            card_receipt(
                about,
                "emoji",
                sum(counts.values()),
                of=drawn,
                package=f"{source['package']} {source['version']} ({source['registry']})",
                **{name: source[name] for name in ("licence", "attribution")},
                **counts,
            )
        )
    for reason, entry in about["skipped"]["reasons"].items():
        first = ", ".join(entry["first"][:3])
        receipts.append(card_receipt(about, "left_out", entry["count"], reason=reason, first=first))
    replace_receipts(options.out / "receipts", "card", receipts)
    save_png(options.out / "sheet.png", sheet(prepared))


def card_receipt(about: dict, metric: str, value: int | None, **more) -> dict:
    """A receipt of a count, which no model took part in."""
    return sampler_free(
        metric,
        value,
        config=dict(about["options"], content=about["sha256"]),
        config_path="card.json",
        seed=0,
        images_seen=0,
        seconds=0.0,
        evaluator=about["command"],
        samples=sum(split["count"] for split in about["splits"].values()),
        **more,
    )


def sheet(prepared: Prepared) -> np.ndarray:
    """Names spread evenly over training, then over what is held out, each in its three drawings over their captions."""
    pictures, captions = [], []
    for split, count in ON_SHEET.items():
        pixels, fields = prepared.pixels(split, tuple(prepared.card["shape"]), "pad")
        place = {(field["style"], field["caption"]): row for row, field in enumerate(fields)}
        names = [name for name in dict.fromkeys(field["caption"] for field in fields) if "skin tone" not in name]
        whole = [name for name in names if all((style, name) in place for style in STYLES)]
        for index in np.linspace(0, len(whole) - 1, min(count, len(whole))).astype(int):
            pictures += [pixels[place[style, whole[index]]] for style in STYLES]
            captions += [f"{'held out: ' * (split == 'test')}{style} style: {whole[index]}" for style in STYLES]
    return captioned_grid(np.stack(pictures), captions, columns=4 * len(STYLES))


PARTS = {
    "main": lambda options: one(options, "main"),
    "accelerator": lambda options: one(options, "accelerator", "accelerator"),
    "card": card,
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts asked for; returns the exit status."""
    return run_parts(__file__, PARTS, arguments, default=("main",))


if __name__ == "__main__":
    sys.exit(main())

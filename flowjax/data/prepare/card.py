"""The card of a prepared set: what it is, where it came from, what is in it and what is not, for programs and people."""

import hashlib
import io
import json
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import flowjax
from flowjax.data.prepare.plan import Plan
from flowjax.data.record_format import unpack
from flowjax.data.records import CARD, FORMAT, Prepared, pixels_of
from flowjax.data.resizing import resize
from flowjax.data.skipped import Skipped
from flowjax.disk import write_atomically

CELL, CAPTION, COLUMNS, ROWS = 96, 26, 10, 6  # pixels of a picture and of the lines under it on the sheet


def write_card(
    plan: Plan, folder: pathlib.Path, shards: Sequence[Mapping[str, Any]], skipped: Skipped, identity: str
) -> dict[str, Any]:
    """Writes card.md and sheet.png, and card.json last: with it the set can be read.

    Args:
      plan: what was written.
      folder: where.
      shards: what each shard holds.
      skipped: everything left out.
      identity: the plan's.
    """
    splits, groups = {}, {}
    for shard in shards:
        split = splits.setdefault(shard["split"], {"count": 0, "shards": []})
        split["count"] += shard["count"]
        split["shards"].append({name: shard[name] for name in ("file", "count", "bytes", "sha256")})
        for value, count in shard["groups"].items():
            groups.setdefault(value, {}).setdefault(shard["split"], 0)
            groups[value][shard["split"]] += count
    # One order of keys, whatever order the shards met them in.
    groups = {value: groups[value] for value in sorted(groups, key=lambda v: (len(v), v) if v.isdigit() else (0, v))}
    number, total, squares = np.sum([s["moments"] for s in shards if s["split"] == "train"], axis=0)
    shapes = {tuple(shape) for shard in shards for shape in shard["shapes"]}
    whole = hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest()
    counted = ", ".join(f"{split['count']:,} {name}" for name, split in splits.items())
    card = {
        "name": plan.name,
        "format": FORMAT,
        "made_by": f"flowjax {flowjax.__version__}",
        "command": plan.command,
        "summary": f"{sum(split['count'] for split in splits.values()):,} pictures ({counted}); {skipped.message()}",
        "sources": [dict(source) for source in plan.sources],
        "options": dict(plan.options),
        "shape": list(shapes.pop()) if len(shapes) == 1 else None,
        "std": float(np.sqrt(squares / number - (total / number) ** 2) / 127.5),
        "labels": list(plan.labels),
        "splits": splits,
        "groups": {plan.group: groups} if plan.group else {},
        "skipped": {"count": skipped.count, "reasons": skipped.reasons},
        "sha256": whole,
        "identity": identity,
    }
    prepared = Prepared(folder, card)
    write_atomically(folder / "sheet.png", sheet(prepared))
    write_atomically(folder / "card.md", as_text(card))
    write_atomically(folder / CARD, json.dumps(card, ensure_ascii=False, indent=1))
    return card


def as_text(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    lines = [f"# {card['name']}", "", card["summary"], "", "Made by `" + card["command"] + "`", "", "## Sources", ""]
    for source in card["sources"]:
        lines.append("- " + "; ".join(f"{name}: {value}" for name, value in source.items() if value))
    lines += [
        "",
        "## Counts",
        "",
        "| | " + " | ".join(card["splits"]) + " |",
        "| --- |" + " --- |" * len(card["splits"]),
    ]
    lines.append("| all | " + " | ".join(f"{split['count']:,}" for split in card["splits"].values()) + " |")
    for field, values in card["groups"].items():
        for value, counts in values.items():
            row = " | ".join(f"{counts.get(split, 0):,}" for split in card["splits"])
            lines.append(f"| {field} {value} | {row} |")
    lines += ["", "## Left out", "", Skipped(card["skipped"]["reasons"]).message(), "", "## Options", ""]
    lines += [f"- {name}: {value}" for name, value in card["options"].items()]
    shape = " x ".join(map(str, card["shape"])) if card["shape"] else "various"
    lines += [
        f"- shape: {shape}",
        f"- std: {card['std']:.4f}",
        f"- content: {card['sha256']}",
        "",
        "![](sheet.png)",
        "",
    ]
    return "\n".join(lines)


def sheet(prepared: Prepared) -> bytes:
    """A page of pictures spread evenly over the splits, the last row from the test split, with caption or label below."""
    from PIL import Image, ImageDraw, ImageFont

    chosen = []
    for split, rows in (("train", ROWS - 1), ("test", 1)):
        count = prepared.count(split)
        wanted = min(rows * COLUMNS, count)
        if wanted:
            reader = prepared.reader(split)
            chosen += [(split, unpack(reader[int(i)])) for i in np.linspace(0, count - 1, wanted).astype(int)]
    lines = -(-len(chosen) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * (CELL + 8) + 8, lines * (CELL + CAPTION + 8) + 8), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(9)
    for place, (split, fields) in enumerate(chosen):
        left, top = 8 + place % COLUMNS * (CELL + 8), 8 + place // COLUMNS * (CELL + CAPTION + 8)
        pixels = resize(pixels_of(fields["image"]), (CELL, CELL, 3), "pad")
        page.paste(Image.fromarray(pixels), (left, top))
        text = _words(fields, prepared.card["labels"])
        colour = "#0f6f74" if split == "test" else "#444444"
        pen.multiline_text((left, top + CELL + 1), text, fill=colour, font=font, spacing=1)
    buffer = io.BytesIO()
    page.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _words(fields: Mapping[str, Any], labels: Sequence[str], width: int = 18) -> str:
    caption = fields.get("caption")
    caption = caption[0] if isinstance(caption, list) and caption else caption
    if not caption and "label" in fields:
        caption = labels[fields["label"]] if labels else f"label {fields['label']}"
    text = (caption or "").encode("latin-1", "replace").decode("latin-1")  # the built-in face has no more letters
    return "\n".join(textwrap.wrap(text, width)[:2])

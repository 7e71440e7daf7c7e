"""Shards of ArrayRecord, written one after another so that nothing half written is ever taken for whole.

A shard is written under another name, read back for its length, and renamed; then a small file beside it says that it is
done and what is in it. What was done is kept when a run is cut off, and the card, written last, makes the set readable.
"""

import errno
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from flowjax import disk
from flowjax.data.prepare.card import write_card
from flowjax.data.prepare.fetch import PrepareError
from flowjax.data.prepare.plan import Example, Plan
from flowjax.data.record_format import BadPicture, EncodedPicture, pack
from flowjax.data.records import CARD, FORMAT
from flowjax.data.skipped import Skipped

SHARD = 4096  # examples read for one shard: a cut-off run loses at most the shard it was at
PROGRESS = ".progress"


def write_plan(plan: Plan, folder: pathlib.Path, say: Callable[[str], None], shard_size: int = SHARD) -> dict[str, Any]:
    """Writes a data set, or what of it is not there yet, and returns its card.

    Args:
      plan: what to write.
      folder: where to.
      say: prints a line.
      shard_size: examples of one shard.
    """
    identity = plan.identity(format=FORMAT, shard_size=shard_size)
    try:
        return _write(plan, folder, say, shard_size, identity)
    except (OSError, RuntimeError) as error:
        if not disk.is_full(error):
            raise
        done = len(list((folder / PROGRESS).glob("*-*.json"))) if (folder / PROGRESS).is_dir() else 0
        raise PrepareError(
            f"The disk is full: {disk.free(folder):,} bytes free at {folder}; {done} shards are whole and kept. Make room and "
            "run this command again (it goes on from there), or choose another place with --to or FLOWJAX_DATA."
        ) from error


def _write(plan: Plan, folder: pathlib.Path, say: Callable, shard_size: int, identity: str) -> dict[str, Any]:
    card_file, progress = folder / CARD, folder / PROGRESS
    if folder.exists() and not folder.is_dir():
        raise PrepareError(f"{folder} is a file. Give a folder to --to.")
    if not card_file.is_file() and not progress.is_dir() and any(folder.glob("*.array_record")):
        raise PrepareError(
            f"{folder} holds ArrayRecord files of something else. Give an empty or a new folder to --to."
        )
    if card_file.is_file():
        card = json.loads(card_file.read_text(encoding="utf-8"))
        if card.get("name") != plan.name:
            raise PrepareError(f"{folder} holds the prepared set '{card.get('name')}'. Give another folder to --to.")
        if card.get("identity") == identity and _whole(folder, card):
            say(f"{folder} is already prepared: {card['summary']}")
            return card
        say(f"{folder} holds this data set made otherwise or in part; making it anew.")
    progress.mkdir(parents=True, exist_ok=True)
    known = progress / "plan.json"
    if not known.is_file() or json.loads(known.read_text())["identity"] != identity:
        for file in [card_file, *folder.glob("*.array_record"), *progress.iterdir()]:
            file.unlink(missing_ok=True)
        disk.write_atomically(known, json.dumps({"identity": identity}))
    for file in folder.glob("*.part"):
        file.unlink()

    places = [
        (split, index, -(-count // shard_size))
        for split, count in plan.counts.items()
        for index in range(-(-count // shard_size))
    ]
    shards = []
    for number, (split, index, total) in enumerate(places):
        shard = _shard(plan, folder, split, index, total, shard_size)
        shards.append(shard)
        kept = "kept" if shard.pop("kept", False) else "wrote"
        say(f"[{number + 1}/{len(places)}] {kept} {shard['file']}: {shard['count']:,} examples")
    skipped = Skipped()
    skipped.merge(plan.skipped)
    for shard in shards:
        skipped.merge(Skipped(shard["skipped"]))
    if not sum(shard["count"] for shard in shards if shard["split"] == "train"):
        raise PrepareError(f"No training example is left of {sum(plan.counts.values())} found: {skipped.message()}.")
    card = write_card(plan, folder, shards, skipped, identity)
    shutil.rmtree(progress)
    say(f"{folder}: {card['summary']}")
    return card


def _whole(folder: pathlib.Path, card: dict[str, Any]) -> bool:
    shards = [shard for split in card["splits"].values() for shard in split["shards"]]
    files = [folder / shard["file"] for shard in shards]
    return all(file.is_file() and file.stat().st_size == shard["bytes"] for file, shard in zip(files, shards))


def _shard(plan: Plan, folder: pathlib.Path, split: str, index: int, total: int, size: int) -> dict[str, Any]:
    """One shard: what its note says when it is done already, else written."""
    file = folder / f"{split}-{index:05d}-of-{total:05d}.array_record"
    note = folder / PROGRESS / f"{split}-{index:05d}.json"
    if note.is_file() and file.is_file():
        shard = json.loads(note.read_text(encoding="utf-8"))
        if shard["bytes"] == file.stat().st_size:
            return {**shard, "kept": True}
    start, stop = index * size, min((index + 1) * size, plan.counts[split])
    part = file.with_name(f"{file.name}.part")
    try:
        shard = write_records(part, plan.read(split, start, stop), plan.group)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
    shard = {"file": file.name, "split": split, **shard}
    disk.write_atomically(note, json.dumps(shard, ensure_ascii=False))
    return shard


def write_records(file: pathlib.Path, examples: Iterable[Example], group: str = "") -> dict[str, Any]:
    """Writes examples to an ArrayRecord file; bad ones are skipped and counted. Returns what is in it."""
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    writer = ArrayRecordWriter(str(file), "group_size:1")  # one record a chunk: the unit of random access
    skipped, digest, count = Skipped(), hashlib.sha256(), 0
    moments, groups, shapes = np.zeros(3), {}, set()
    try:
        for name, fields in examples:
            try:
                if isinstance(fields, Exception):
                    raise fields
                image = fields["image"]
                pixels = image.decode() if isinstance(image, EncodedPicture) else image
            except BadPicture:
                skipped.add("corrupt picture", name)
                continue
            record = pack(fields)
            writer.write(record)
            digest.update(hashlib.sha256(record).digest())
            count += 1
            # Sums of whole numbers stay exact below 2^53, so the figures do not depend on how the shards were cut.
            values = pixels.astype(np.int64)
            moments += (values.size, values.sum(), np.square(values).sum())
            shapes.add(pixels.shape)
            if group:
                groups[str(fields[group])] = groups.get(str(fields[group]), 0) + 1
    finally:
        if writer.is_open():
            writer.close()
    reader = ArrayRecordReader(str(file))
    written = reader.num_records()
    reader.close()
    if written != count:
        raise OSError(errno.EIO, f"{file} holds {written} records of the {count} that were written; run this again")
    return {
        "count": count,
        "bytes": file.stat().st_size,
        "sha256": digest.hexdigest(),
        "moments": moments.tolist(),
        "shapes": sorted(shapes)[:2],
        "groups": groups,
        "skipped": skipped.reasons,
    }

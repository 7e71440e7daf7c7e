"""A folder of pictures (flowjax/data/folders.py) as a prepared set: decoded once to find the bad ones, resized if wished."""

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from flowjax.data.folders import list_folder, stamps
from flowjax.data.listing import Item, Listing
from flowjax.data.prepare.fetch import PrepareError
from flowjax.data.prepare.plan import Example, Plan
from flowjax.data.record_format import BadPicture, EncodedPicture, decode_picture
from flowjax.data.resizing import resize


def plan(
    given: pathlib.Path | None,
    store: pathlib.Path,
    say: Callable[[str], None],
    size: int = 0,
    fit: str = "crop",
    called: str = "",
    test_share: float = 0.05,
) -> Plan:
    """The pictures and captions of a folder.

    Args:
      given: the folder.
      store: not used: nothing is fetched.
      say: prints a line.
      size: pixels of a side; 0 keeps every file as it is, to be resized when it is read.
      fit: 'crop' cuts out the middle, 'pad' puts the whole picture on white.
      called: the name of the prepared set; the folder's by default.
      test_share: the share of names held out, where the folder has no train and test of its own.
    """
    if given is None:
        raise PrepareError("Preparing a folder needs --from FOLDER, the folder that holds the pictures.")
    listing = list_folder(given, test_share)
    root = given.expanduser()
    read = lambda item: (root / item.name).read_bytes()
    return listing_plan("folder", given, listing, read, stamps(root, listing), size, fit, called, test_share)


def listing_plan(
    kind: str,
    given: pathlib.Path,
    listing: Listing,
    read: Callable[[Item], bytes],
    facts: list[Any],
    size: int,
    fit: str,
    called: str,
    test_share: float,
) -> Plan:
    """The plan of encoded pictures with captions and labels.

    Args:
      kind: 'folder' or 'webdataset'.
      given: where they come from.
      listing: what there is.
      read: item -> the bytes of its file.
      facts: names, sizes and times of change of the files, to notice when they change.
      size: pixels of a side, 0 to keep the files.
      fit: 'crop' or 'pad'.
      called: the name of the prepared set.
      test_share: the share held out.
    """

    def examples(split: str, start: int, stop: int) -> Iterator[Example]:
        for item in listing.splits[split][start:stop]:
            try:
                content = read(item)
                pixels = decode_picture(content)
            except (BadPicture, OSError) as error:
                yield item.name, BadPicture(str(error))
                continue
            image = resize(pixels, (size, size, 3), fit) if size else EncodedPicture(content, pixels.shape[:2])
            fields: dict[str, Any] = {"image": image, "name": item.name}
            if item.captions:
                fields["caption"] = list(item.captions)
            if item.label is not None:
                fields["label"] = item.label
            yield item.name, fields

    name = called or (given.resolve().name if given.is_dir() else kind)
    conditions = [[item.name, item.captions, item.label] for items in listing.splits.values() for item in items]
    digest = hashlib.sha256(json.dumps([facts, conditions]).encode()).hexdigest()
    command = f"python -m flowjax.data.prepare {kind} --from {given}" + (f" --size {size}" if size else "")
    return Plan(
        name=name,
        command=command + (f" --called {called}" if called else ""),
        counts={split: len(items) for split, items in listing.splits.items() if items},
        read=examples,
        sources=[{kind: name, "licence": "that of the folder's owner", "listing_sha256": digest}],
        options={"size": size or "as they are", "fit": fit, "test_share": test_share},
        labels=listing.labels,
        group="label" if listing.num_classes is not None else "",
        skipped=listing.skipped,
    )

"""What a folder or a set of archives holds, before any picture is opened, and the source that decodes it as it is read."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

from flowjax.choices import Spec
from flowjax.data.canvas import make_frame
from flowjax.data.pictures import FilePictures, PictureSource, estimated_deviation, mirror, picture_source
from flowjax.data.record_format import BadPicture, decode_picture
from flowjax.data.resizing import FITS
from flowjax.data.skipped import Skipped

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True)
class Item:
    """One picture: its name, its captions and its label, where it has them."""

    name: str
    captions: tuple[str, ...] = ()
    label: int | None = None


@dataclasses.dataclass
class Listing:
    """What a folder or a set of archives holds: split -> items, the names of classes, and what was left out."""

    splits: dict[str, list[Item]]
    labels: tuple[str, ...]
    skipped: Skipped

    @property
    def num_classes(self) -> int | None:
        """One more than the largest label; None when there are none."""
        found = [item.label for items in self.splits.values() for item in items if item.label is not None]
        return max(len(self.labels), max(found) + 1) if found else None


def held_out(name: str, share: float) -> bool:
    """Whether a name belongs to the test split: by its hash, so that it stays there when others come or go."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") < share * 2**64


def check_test_share(share: float) -> None:
    """Raises a ValueError unless the share is in [0, 1)."""
    if not 0 <= share < 1:
        raise ValueError(f"test_share={share}; give a share from 0 up to 1, 1 excluded.")


def captions_of(value: Any) -> tuple[str, ...] | None:
    """A caption or a list of captions as a tuple without empty ones; None when it is neither."""
    values = value if isinstance(value, (list, tuple)) else [value]
    if not all(item is None or isinstance(item, str) for item in values):
        return None
    return tuple(item.strip() for item in values if item and item.strip())


def file_source(
    listing: Listing,
    read: Callable[[Item], bytes],
    size: int,
    fit: str,
    flipped: bool,
    tokenizer: Spec | None,
    text_length: int,
    labels: bool,
    identity: Any,
    mask_multiple: int = 0,
    canvas: tuple = (),
) -> PictureSource:
    """A source of encoded pictures that are decoded and resized when a batch asks for them.

    Args:
      listing: what there is.
      read: item -> the bytes of its file.
      size: pixels of a side.
      fit: 'crop' or 'pad'.
      flipped: augmentation, mirror half of the training pictures.
      tokenizer: spec of the tokenizer, None for batches without captions.
      text_length: ids of a caption, 0 for the longest.
      labels: whether batches carry labels.
      identity: plain values that change when a file does.
      mask_multiple: keep proportions on a canvas (make_frame); 0 for none.
      canvas: its height and width; () for those of make_frame.
    """
    if size < 1 or fit not in FITS:
        raise ValueError(f"size={size}, fit='{fit}'; expected a positive size and one of {', '.join(FITS)}.")
    frame = make_frame((size, size, 3), fit, mask_multiple, canvas)

    def pictures(items: list[Item]) -> FilePictures:
        def load(index: int) -> dict[str, Any]:
            item = items[index]
            try:
                content = read(item)
            except OSError as error:
                raise BadPicture(f"the file cannot be read: {error}") from error
            fields: dict[str, Any] = frame(decode_picture(content))
            if item.label is not None:
                fields["label"] = item.label
            if item.captions:
                fields["captions"] = item.captions
            return fields

        every = lambda: [caption for item in items for caption in item.captions]
        facts = [identity, [dataclasses.astuple(item) for item in items], size, fit]
        facts += [dataclasses.astuple(frame)] if mask_multiple else []
        return FilePictures(load, len(items), every, facts, lambda index: items[index].name)

    train, test = pictures(listing.splits["train"]), pictures(listing.splits["test"])
    return picture_source(
        train,
        test,
        frame,
        estimated_deviation(train),
        listing.num_classes if labels else None,
        tokenizer,
        text_length,
        transforms=(mirror(),) if flipped else (),
        labels=listing.labels,
        card={"skipped": {"count": listing.skipped.count, "reasons": listing.skipped.reasons}},
    )

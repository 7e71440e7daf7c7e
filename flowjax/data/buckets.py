r"""Buckets by aspect ratio and resolution: pictures keep nearly all of what they show, and every batch has one shape.

Each picture goes to the shape whose proportions are nearest to its own (in the logarithm: 1:2 and 2:1 are equally far from
1:1); among shapes of the same proportions, to the largest that it fills without being enlarged. Each bucket is a
RecordSource, and they take turns step by step with the shares of their pictures (mixtures.py): the bucket of a step is a
function of (seed, step), all processes agree on it, and there is one compiled program for each shape.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from flowjax.contract import DataSpec
from flowjax.data.crops import Cropping
from flowjax.data.mixtures import MixedSource, mixed
from flowjax.data.sources import RecordSource
from flowjax.data.turns import make_schedule

Shape = tuple[int, int, int]


def bucket_shapes(side: int, multiple: int, channels: int = 3, largest_ratio: float = 2.0) -> tuple[Shape, ...]:
    """The shapes with sides that are multiples of `multiple`, and about the pixels of a square of `side`, never more.

    Args:
      side: of the square.
      multiple: what divides every side: the patch of a transformer, the total stride of a U-Net.
      channels: of the pictures.
      largest_ratio: of the longer to the shorter side.
    """
    if side % multiple:
        raise ValueError(
            f"side={side} is not a multiple of {multiple}. Use {max(1, round(side / multiple)) * multiple}."
        )
    shapes = []
    for width in range(multiple, side * side // multiple + 1, multiple):
        height = side * side // width // multiple * multiple
        if height and max(height, width) <= largest_ratio * min(height, width):
            shapes.append((height, width, channels))
    # Of shapes with one height only the widest: the others have fewer pixels and no other use.
    widest = {height: width for height, width, _ in shapes}
    return tuple(shape for shape in shapes if widest[shape[0]] == shape[1])


def nearest_bucket(sizes: Int[np.ndarray, "n 2"], shapes: Sequence[Shape]) -> Int[np.ndarray, " n"]:
    """The bucket of each picture from its height and width."""
    if len(sizes) and sizes.min() < 1:
        raise ValueError(f"A picture has the size {tuple(sizes[sizes.min(1).argmin()])}; sides are at least 1 pixel.")
    wanted, own = np.array([shape[:2] for shape in shapes], float), sizes.astype(float)
    ratio = lambda pair: np.log(pair[..., 0] / pair[..., 1])
    distance = np.abs(ratio(own)[:, None] - ratio(wanted)[None])
    alike = distance <= distance.min(1, keepdims=True) + 1e-9
    # Scaled down the factor is at most 1. Best is the largest such; where all enlarge, the one that enlarges least.
    factor = np.max(wanted[None] / own[:, None], axis=2)
    score = np.where(factor <= 1 + 1e-9, factor, -factor)
    return np.argmax(np.where(alike, score, -np.inf), axis=1).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Some of the records, by their places."""

    records: Any
    places: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Any:
        return self.records[int(self.places[index])]


def bucketed(
    records: Any,
    sizes: Int[np.ndarray, "n 2"],
    decode: Callable[[Any], Mapping[str, Any]],
    spec: DataSpec,
    shapes: Sequence[Shape],
    test: Any = (),
    test_sizes: Int[np.ndarray, "m 2"] | None = None,
    crop: str = "random",
    flip: bool = False,
    least: int = 1,
    hold: int = 1,
    identity: str = "",
    tokenizer: Any = None,
) -> MixedSource | RecordSource:
    """A source in buckets; one bucket alone is a plain RecordSource.

    Args:
      records: the training records.
      sizes: height and width of each one's picture.
      decode: record -> example, `data` a picture [h, w, c] in its own size.
      spec: of the data; its `shape` is one of the shapes, the one that samples are drawn at.
      shapes: the buckets (bucket_shapes makes a set of them).
      test: held-out records.
      test_sizes: height and width of their pictures.
      crop: 'random' or 'centre': what is cut off of training pictures.
      flip: whether training pictures are mirrored half of the time.
      least: a bucket with fewer training pictures is dissolved into the nearest others; use the batch size.
      hold: how many steps in a row are of one bucket; `steps_per_dispatch` is a good choice.
      identity: what the records are, for fingerprints.
      tokenizer: what turned captions into ids.
    """
    test_sizes = np.zeros((0, 2), int) if test_sizes is None else test_sizes
    if len(sizes) != len(records) or len(test_sizes) != len(test):
        raise ValueError(
            f"There are {len(sizes)} sizes for {len(records)} records, and {len(test_sizes)} for {len(test)} test records."
        )
    base, shapes = tuple(spec.shape), [tuple(shape) for shape in shapes]
    if base not in shapes:
        raise ValueError(f"The base shape {base} is not one of the buckets {shapes}: samples are drawn at it. Add it.")
    assigned = nearest_bucket(sizes, shapes)
    while (counts := np.bincount(assigned, minlength=len(shapes))).min() < least and len(shapes) > 1:
        # The base shape stays as long as there is another to dissolve: samples need it.
        order = sorted(range(len(shapes)), key=lambda index: (shapes[index] == base, counts[index]))
        if counts[order[0]] >= least:
            break
        del shapes[order[0]]
        assigned = nearest_bucket(sizes, shapes)
    held_out = nearest_bucket(test_sizes, shapes)
    children, kept = [], []
    for index, shape in enumerate(shapes):
        if not counts[index]:
            continue
        cut = Cropping(shape[0], shape[1], crop, flip)
        child = RecordSource(
            Chosen(records, np.flatnonzero(assigned == index)),
            decode,
            dataclasses.replace(spec, shape=shape, shapes=()),
            cut.augment,
            Chosen(test, np.flatnonzero(held_out == index)),
            fit=cut.fit,
            identity=f"{identity} {shape} {least}" if identity else "",
            tokenizer=tokenizer,
        )
        children.append(child)
        kept.append(shape)
    if base not in kept:
        raise ValueError(f"No picture is nearest to the base shape {base}, so nothing would train it. Choose another.")
    if len(children) == 1:
        return children[0]
    schedule = make_schedule(len(children), [child.size for child in children], (), None)
    return mixed(children, schedule, kept.index(base), hold)

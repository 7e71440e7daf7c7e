r"""Pixels as mixtures: which background, which colour and how much of it, and what hangs together.

At the edge of an object a pixel is p = b + a (c - b), a mixture of background b and paint c. Of the paints a scene can
hold (the eight colours, each of them times DARK, the ink) the one whose segment from b passes nearest to p explains it;
a is its coverage. Inside a textured object, pixels lie between c and DARK c instead, and are covered wholly.

On black, a pixel of dark paint and one that bright paint half covers look alike: then a fine gap between two objects
may be bridged, or a textured object may fall apart. So there are three masks, from generous to strict, and whoever fits
shapes to what hangs together goes on to the next where the fit is bad.

All of that is a function of (background, p): it is tabulated once for p in steps of 8 and looked up.
"""

import functools

import numpy as np
from scipy import ndimage

from flowjax.shapes.vocabulary import BACKGROUNDS, COLOURS, DARK, INK

BACKGROUND_RGB = np.array(list(BACKGROUNDS.values()), np.float32)
COLOUR_RGB = np.array(list(COLOURS.values()), np.float32)
INK_RGB = np.array([INK[name] for name in BACKGROUNDS], np.float32)
INK_PAINT = len(COLOURS)  # the paint index of ink, after the colours

_BITS = 5
_NEAR = 40.0  # how far from a background colour a pixel may be, less than half of the 88 between beige and white
# Below this distance from the background nothing counts as an object: the faintest paint, dark green on black, is 46 away.
_FAINT = 23.0
_ALIKE = 12.0  # paints that explain a pixel this nearly as well as the best are possible too
_NEIGHBOURS = np.zeros((3, 3, 3), bool)
_NEIGHBOURS[1] = True  # within a picture all eight neighbours, between pictures none


def codes(pixels: np.ndarray) -> np.ndarray:
    """Where a pixel [..., 3] in 0..255 stands in the tables, int [...]."""
    steps = np.clip(pixels, 0, 255).astype(np.uint8) >> (8 - _BITS)
    red, green, blue = (steps[..., i].astype(np.int32) for i in range(3))
    return (red << 2 * _BITS) | (green << _BITS) | blue


def _segment(p: np.ndarray, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where on the segment from start to end each p [m, 3] falls, 0..1, and its squared distance from there."""
    along = end - start
    share = np.clip((p - start) @ along / (along @ along), 0, 1)
    return share, ((p - start - share[:, None] * along) ** 2).sum(1)


@functools.cache
def tables() -> dict[str, np.ndarray]:
    """What each pixel can be.

    Returns:
      near: the background within _NEAR of a pixel, -1 for none [codes]; then, [backgrounds, codes] each,
      coverage: the largest of the possible paints, bright, dark or ink;
      bright: the coverage of the best paint among the bright ones and ink;
      paint: the index of the best paint, INK_PAINT for ink.
    """
    step = 256 >> _BITS
    levels = np.arange(0, 256, step, dtype=np.float32) + (step - 1) / 2
    p = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    away = ((p[:, None] - BACKGROUND_RGB) ** 2).sum(-1)
    near = np.where(away.min(1) < _NEAR**2, away.argmin(1), -1).astype(np.int8)
    shape = (len(BACKGROUND_RGB), len(p))
    coverage, bright, paint = (np.zeros(shape, kind) for kind in (np.float32, np.float32, np.int8))
    for b, background in enumerate(BACKGROUND_RGB):
        pure = [_segment(p, background, paint_rgb) for paint_rgb in (*COLOUR_RGB, INK_RGB[b])]
        dark = [_segment(p, background, DARK * colour) for colour in COLOUR_RGB]
        inside = [(np.ones(len(p)), _segment(p, colour, DARK * colour)[1]) for colour in COLOUR_RGB]
        every = dark + inside + pure
        owners = np.array([*range(len(dark)), *range(len(inside)), *range(len(pure))])
        share, misfit = (np.stack([item[i] for item in every]) for i in (0, 1))
        visible = ((p - background) ** 2).sum(1) > _FAINT**2
        coverage[b] = np.where(misfit <= misfit.min(0) + _ALIKE**2, share, 0).max(0) * visible
        paint[b] = owners[misfit.argmin(0)]
        best = np.argmin(np.stack([item[1] for item in pure]), axis=0)
        bright[b] = np.stack([item[0] for item in pure])[best, np.arange(len(p))] * visible
    return {"near": near, "coverage": coverage, "bright": bright, "paint": paint}


def find_background(pixels: np.ndarray, code: np.ndarray, least_share: float) -> tuple[np.ndarray, np.ndarray]:
    """The background that most pixels are near [n], and whether it is one: enough pixels, and they average to it."""
    near = tables()["near"][code].reshape(len(code), -1)
    counts = np.stack([(near == b).sum(1) for b in range(len(BACKGROUND_RGB))], axis=1)
    background = counts.argmax(1)
    mine = near == background[:, None]
    total = np.maximum(mine.sum(1), 1)
    mean = np.einsum("np,npc->nc", mine.astype(np.float32), pixels.reshape(len(pixels), -1, 3)) / total[:, None]
    off = np.sqrt(((mean - BACKGROUND_RGB[background]) ** 2).sum(1))
    return background, (counts.max(1) >= least_share * near.shape[1]) & (off < _NEAR / 2)


def connected(mask: np.ndarray, least_area: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What hangs together in each picture of mask [n, h, w], but for specks.

    Returns:
      labels [n, h, w], 0 for background and specks, k + 1 for component k; the picture of each component [m]; and its
      box (top, left, bottom, right), bottom and right excluded, [m, 4].
    """
    labels, number = ndimage.label(mask, _NEIGHBOURS)
    areas = np.bincount(labels.ravel(), minlength=number + 1)
    keep = areas >= least_area
    keep[0] = False
    renamed = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    labels = renamed[labels]
    found = ndimage.find_objects(labels, int(keep.sum())) if keep.any() else []
    boxes = [(z.start, y.start, x.start, y.stop, x.stop) for z, y, x in found]
    boxes = np.array(boxes, np.int32).reshape(-1, 5)
    return labels, boxes[:, 0], boxes[:, 1:]


def grow(mask: np.ndarray) -> np.ndarray:
    """A mask [n, h, w] and the eight neighbours of each of its pixels."""
    wide = mask.copy()
    wide[:, :, 1:] |= mask[:, :, :-1]
    wide[:, :, :-1] |= mask[:, :, 1:]
    tall = wide.copy()
    tall[:, 1:] |= wide[:, :-1]
    tall[:, :-1] |= wide[:, 1:]
    return tall

r"""From scenes to pixels, by signed distances.

The share of a pixel that a shape covers is approximated by clip(1/2 - d, 0, 1), where d is the signed distance in pixels
from the pixel's centre to the shape's edge, negative inside. That is exact for a straight edge along an axis, and off by
(sqrt(2) - 1)² / 4 = 0.043 at most for one at 45 degrees. For boxes the shares of the two axes are multiplied, which is
exact at corners too. Objects are painted one over the other,

    image <- image + coverage (paint - image),                                                                     (1)

each in a small window around its centre only, all windows of one kind at once: the cost is that of the pixels that
objects cover. Textures are averaged over each pixel in the same way, so that a scene looks the same at every size.
"""

import functools

import numpy as np
from jaxtyping import UInt8

from flowjax.shapes.scenes import EXTENTS, Scene
from flowjax.shapes.vocabulary import (
    BACKGROUNDS,
    CELLS,
    CHECKS,
    COLOURS,
    CROSS_ARM,
    DARK,
    INK,
    KINDS,
    LETTER_HEIGHT,
    MOST_OBJECTS,
    RING_HOLE,
    STRIPES,
    TEXTURES,
    WORDS,
    word_bitmap,
    word_width,
)

CHUNK = 256  # scenes painted at a time: their pixels then stay in the cache

_COLOURS = np.array(list(COLOURS.values()), np.float32)
_BACKGROUNDS = np.array(list(BACKGROUNDS.values()), np.float32)
_INK = np.array([INK[name] for name in BACKGROUNDS], np.float32)
_STRIPED, _CHECKED = TEXTURES.index("striped"), TEXTURES.index("checked")


def _share(distance: np.ndarray) -> np.ndarray:
    """The share of a pixel inside an edge at a signed distance in pixels."""
    return np.clip(0.5 - distance, 0.0, 1.0)


def _disc(x, y, radius):
    return _share(np.sqrt(x * x + y * y) - radius)


def _box(x, y, half_width, half_height):
    return _share(np.abs(x) - half_width) * _share(np.abs(y) - half_height)


def _circle(x, y, radius):
    return _disc(x, y, radius)


def _square(x, y, radius):
    return _box(x, y, radius, radius)


def _triangle(x, y, radius):
    # The slanted edges are |x| = (radius + y) / 2, so their normals are (2, -1) and (-2, -1) over sqrt(5).
    root = np.sqrt(np.float32(5))
    return _share((2 * x - y - radius) / root) * _share((-2 * x - y - radius) / root) * _share(y - radius)


def _diamond(x, y, radius):
    # A square that stands on a corner: a box along the diagonals.
    root = np.sqrt(np.float32(2))
    return _box((x + y) / root, (x - y) / root, radius / root, radius / root)


def _cross(x, y, radius):
    upright, level = _box(x, y, radius * CROSS_ARM, radius), _box(x, y, radius, radius * CROSS_ARM)
    middle = _box(x, y, radius * CROSS_ARM, radius * CROSS_ARM)
    return upright + level - middle


def _ring(x, y, radius):
    return _disc(x, y, radius) - _disc(x, y, radius * RING_HOLE)


# One coverage for each of KINDS: (x [m, 1, w], y [m, w, 1], radius [m, 1, 1]) in pixels -> [m, w, w].
_COVERAGES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "cross": _cross,
    "ring": _ring,
}


def _wave(position: np.ndarray, radius: np.ndarray, bands: np.ndarray | int) -> np.ndarray:
    """The average over a pixel of bands that alternate between 1 and -1 across [-radius, radius], the first one 1."""
    # The integral of the square wave is a triangle wave, 1 - |z mod 2 - 1| in units z of a band. Where a pixel reaches
    # beyond the box, only its part inside counts: the rest of it shows no object.
    band = 2 * radius / bands
    low, high = (np.clip(position + half, -radius, radius) for half in (-0.5, 0.5))
    areas = [band * (1 - np.abs(np.mod((edge + radius) / band, 2) - 1)) for edge in (low, high)]
    return (areas[1] - areas[0]) / np.maximum(high - low, 1e-6)


def _brightness(texture, x, y, radius):
    """What the colour is multiplied with: 1, or DARK in every second band or cell."""
    bands = np.where(texture == _CHECKED, CHECKS, STRIPES)
    wave = _wave(y, radius, bands) * np.where(texture == _CHECKED, _wave(x, radius, CHECKS), 1.0)
    light = (1 + DARK) / 2 + (1 - DARK) / 2 * wave
    return np.where(texture > 0, light, 1.0).astype(np.float32)


@functools.cache
def _word_bitmaps() -> np.ndarray:
    """The cells of every word, [words, 5, longest], words pushed to the left."""
    longest = max(word_width(word) for word in WORDS)
    bitmaps = np.zeros((len(WORDS), LETTER_HEIGHT, longest), np.float32)
    for index, word in enumerate(WORDS):
        bitmaps[index, :, : word_width(word)] = word_bitmap(word)
    bitmaps.setflags(write=False)
    return bitmaps


def _overlap(first: np.ndarray, cell: float, cells: int, pixels: int) -> np.ndarray:
    """How much of each pixel each cell of a row of cells covers: [n, pixels, cells], cells starting at `first` [n]."""
    low = first[:, None, None] + cell * np.arange(cells)
    left = np.arange(pixels)[:, None]
    return np.clip(np.minimum(left + 1, low + cell) - np.maximum(left, low), 0, 1).astype(np.float32)


def _write_words(image: np.ndarray, scene: Scene, height: int, width: int) -> None:
    """Paints the words of the scenes that have one, in place."""
    rows = np.flatnonzero(scene.word)
    if not len(rows):
        return
    shorter = min(height, width)
    cell = float(shorter // CELLS) if shorter >= CELLS else shorter / CELLS
    bitmaps = _word_bitmaps()[scene.word[rows]]
    widths = np.array([word_width(word) for word in WORDS])[scene.word[rows]]
    # Aligned with the grid of cells: at whole sizes of cells every pixel is then ink or background.
    left = np.round(scene.word_centre[rows, 0] * width / cell - widths / 2) * cell
    top = np.round(scene.word_centre[rows, 1] * height / cell - LETTER_HEIGHT / 2) * cell
    across = _overlap(left, cell, bitmaps.shape[2], width)
    down = _overlap(top, cell, LETTER_HEIGHT, height)
    coverage = (down @ bitmaps @ across.transpose(0, 2, 1))[..., None]
    ink = _INK[scene.background[rows]][:, None, None]
    image[rows] += coverage * (ink - image[rows])


def _paint(scene: Scene, height: int, width: int) -> np.ndarray:
    """A chunk of scenes -> [n, height, width, 3], uint8."""
    n, shorter = len(scene), min(height, width)
    radius = (EXTENTS / 2 * shorter).astype(np.float32)
    window = int(np.ceil(2 * radius.max())) + 2
    image = np.empty((n, height + 2 * window, width + 2 * window, 3), np.float32)
    image[:] = _BACKGROUNDS[scene.background][:, None, None]
    _write_words(image[:, window:-window, window:-window], scene, height, width)

    row, slot = np.nonzero(scene.present)
    kind, radius = scene.kind[row, slot], radius[scene.size[row, slot]][:, None, None]
    centre = scene.centre[row, slot] * (width, height)
    corner = np.floor(centre - window / 2 + 0.5).astype(np.int64)
    offset = (corner - centre + 0.5).astype(np.float32)  # from the object's centre to the first pixel's
    steps = np.arange(window, dtype=np.float32)
    x, y = (offset[:, 0, None] + steps)[:, None, :], (offset[:, 1, None] + steps)[:, :, None]
    coverage = np.empty((len(row), window, window), np.float32)
    for index, name in enumerate(KINDS):
        chosen = np.flatnonzero(kind == index)
        coverage[chosen] = _COVERAGES[name](x[chosen], y[chosen], radius[chosen])
    paint = np.ones_like(coverage)
    texture = scene.texture[row, slot]
    worn = np.flatnonzero(texture)
    paint[worn] = _brightness(texture[worn][:, None, None], x[worn], y[worn], radius[worn])
    colours = _COLOURS[scene.colour[row, slot]]

    # Windows stay inside the padded picture even where a centre does not: such an object is cut off by the frame.
    corner = np.clip(corner + window, 0, (width + window, height + window))
    down, across = np.arange(window)[:, None], np.arange(window)
    for place in range(MOST_OBJECTS):  # one object of each scene at a time, so that no pixel is written twice
        chosen = np.flatnonzero(slot == place)
        if not len(chosen):
            break
        where = (
            row[chosen][:, None, None],
            corner[chosen, 1][:, None, None] + down,
            corner[chosen, 0][:, None, None] + across,
        )
        before = image[where]
        after = paint[chosen][..., None] * colours[chosen][:, None, None]
        image[where] = before + coverage[chosen][..., None] * (after - before)
    inner = image[:, window:-window, window:-window]
    return (inner + 0.5).astype(np.uint8)


def render(scene: Scene, height: int, width: int) -> UInt8[np.ndarray, "n height width 3"]:
    """Pictures of scenes: RGB, uint8, at any resolution and aspect ratio.

    Args:
      scene: what to draw; sizes are relative to the shorter side, centres to each side.
      height: in pixels.
      width: in pixels.
    """
    if min(height, width) < 8:
        raise ValueError(f"A picture of {height}x{width} pixels holds no readable shape. Use 8x8 or more.")
    image = np.empty((len(scene), height, width, 3), np.uint8)
    chunk = max(CHUNK * 32 * 32 // (height * width), 1)
    for first in range(0, len(scene), chunk):
        part = slice(first, first + chunk)
        image[part] = _paint(scene[part], height, width)
    return image

r"""Which object is this: kind, size and texture by least squares over all of them.

Let q = p - b be a window of pixels around a component, less the background, and c its paint. An object whose bright
part covers the share B of each pixel and whose dark part covers D would look like m = B v + D w, with v = c - b and
w = DARK c - b. Its misfit, over the pixels that belong to nobody else,

    E = sum |q - m|² = sum |q|² - 2 (B·<q, v> + D·<q, w>) + |v|² B·B + 2 <v, w> B·D + |w|² D·D,                    (1)

is a handful of matrix products for all components, hypotheses and shifts at once. The least E names the object, and
E / sum |m|², after what the picture's own noise explains, says how well it is drawn: a half object or another shape
leaves much of itself unexplained, and is no object that has a name.
"""

import dataclasses
import functools
import itertools

import numpy as np
from scipy import ndimage

from flowjax.shapes.vocabulary import CHECKS, CROSS_ARM, DARK, KINDS, RING_HOLE, SIZES, STRIPES, TEXTURES

EXTENTS = tuple(SIZES.values())
_REACH = 1.0  # how far the centre of an object may be from the middle of the window, in pixels


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to draw every object: how large and how blurred, tried at shifts `spacing` pixels apart.

    `true` objects have a name. The others stand for what is too large or too small to be one of the sizes: without them
    a circle drawn too small would be taken for the diamond that it resembles most.
    """

    scale: float
    blur: float
    spacing: float
    true: bool


VARIANTS = (
    Variant(1.0, 0.0, 0.25, True),
    Variant(1.0, 0.6, 0.25, True),
    Variant(0.9, 0.4, 0.5, True),
    Variant(1.1, 0.4, 0.5, True),
    Variant(0.7, 0.4, 0.5, False),
    Variant(0.8, 0.4, 0.5, False),
    Variant(1.2, 0.4, 0.5, False),
    Variant(1.3, 0.4, 0.5, False),
)
_INSIDE = {
    "circle": lambda u, v: u * u + v * v <= 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 1,
    "triangle": lambda u, v: (abs(u) <= (1 + v) / 2) & (v <= 1),
    "diamond": lambda u, v: abs(u) + abs(v) <= 1,
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) <= CROSS_ARM) & (np.maximum(abs(u), abs(v)) <= 1),
    "ring": lambda u, v: (u * u + v * v <= 1) & (u * u + v * v >= RING_HOLE**2),
}


@dataclasses.dataclass(frozen=True)
class Bank:
    """Hypotheses about a window of `side` x `side` pixels: T of them, every shift of every object of one size.

    Attributes:
      side: the window.
      kind, texture: what each hypothesis is, int [T].
      shift: (x, y) of its centre in pixels from the middle of the window, [T, 2].
      true: whether it has a name, bool [T].
      bright, dark: coverages B and D, [side * side, T].
      squares: B², B D and D², [side * side, T] each.
    """

    side: int
    kind: np.ndarray
    texture: np.ndarray
    shift: np.ndarray
    true: np.ndarray
    bright: np.ndarray
    dark: np.ndarray
    squares: tuple[np.ndarray, np.ndarray, np.ndarray]


def _patterns(u: np.ndarray, v: np.ndarray, textured: bool):
    """(kind, texture, where it is bright, where it is dark) for every object, over a box with coordinates u and v."""
    part = lambda parts, at: np.floor((at + 1) / 2 * parts).astype(int)
    darks = {
        "plain": np.zeros(np.broadcast_shapes(u.shape, v.shape), bool),
        "striped": np.broadcast_to(part(STRIPES, v) % 2 == 1, (len(v), u.shape[1])),
        "checked": (part(CHECKS, u) + part(CHECKS, v)) % 2 == 1,
    }
    for kind, name in enumerate(KINDS):
        inside = _INSIDE[name](u, v)
        for texture, pattern in enumerate(TEXTURES if textured else TEXTURES[:1]):
            yield kind, texture, inside & ~darks[pattern], inside & darks[pattern]


@functools.lru_cache(maxsize=8)
def bank(extent: float, textured: bool) -> Bank:
    """The hypotheses for objects of an extent in pixels, found by counting sub-pixels."""
    side = int(np.ceil(extent * max(variant.scale for variant in VARIANTS) + 2 * _REACH)) // 2 * 2 + 2
    fine = int(np.clip(160 / extent, 4, 12))  # sub-pixels a side of a pixel
    position = (np.arange(side * fine) + 0.5) / fine - side / 2
    average = lambda inside: inside.reshape(side, fine, side, fine).mean((1, 3), dtype=np.float32)
    facts, brights, darks = [], [], []
    for variant in VARIANTS:
        shifts = np.arange(-_REACH + variant.spacing / 2, _REACH, variant.spacing) + 0.125
        for dy, dx in itertools.product(shifts, shifts):
            u, v = ((position - d) * 2 / (extent * variant.scale) for d in (dx, dy))
            for kind, texture, bright, dark in _patterns(u[None], v[:, None], textured):
                facts.append((kind, texture, dx, dy, variant.true))
                for coverages, where in ((brights, bright), (darks, dark)):
                    coverage = average(where)
                    if variant.blur:
                        coverage = ndimage.gaussian_filter(coverage, variant.blur)
                    coverages.append(coverage.ravel())
    kind, texture, dx, dy, true = np.array(facts).T
    bright, dark = np.stack(brights, axis=1), np.stack(darks, axis=1)
    squares = bright**2, bright * dark, dark**2
    shift = np.stack([dx, dy], axis=1)
    return Bank(side, kind.astype(int), texture.astype(int), shift, true > 0, bright, dark, squares)


def windows(values: np.ndarray, picture: np.ndarray, corner: np.ndarray, side: int) -> np.ndarray:
    """The windows [m, side, side, ...] of values [n, h, w, ...] with the given top left corners (y, x), 0 outside."""
    around = [(0, 0), (side, side), (side, side)] + [(0, 0)] * (values.ndim - 3)
    padded = np.pad(values, around)
    y = np.clip(corner[:, 0], -side, values.shape[1])[:, None] + side + np.arange(side)
    x = np.clip(corner[:, 1], -side, values.shape[2])[:, None] + side + np.arange(side)
    return padded[picture[:, None, None], y[:, :, None], x[:, None, :]]


def misfits(
    bank: Bank, q: np.ndarray, free: np.ndarray, colour: np.ndarray, background: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Equation (1): E and sum |m|², [m, T], for windows q [m, P, 3], their free pixels [m, P], paint and background."""
    v, w = colour - background, DARK * colour - background
    free = free.astype(np.float32)
    seen = q * free[..., None]
    cross = np.einsum("mpc,mc->mp", seen, v, optimize=True) @ bank.bright
    bright_bright, bright_dark, dark_dark = bank.squares
    power = (v * v).sum(1)[:, None] * (free @ bright_bright)
    if bank.texture.any():
        cross += np.einsum("mpc,mc->mp", seen, w, optimize=True) @ bank.dark
        power += 2 * (v * w).sum(1)[:, None] * (free @ bright_dark) + (w * w).sum(1)[:, None] * (free @ dark_dark)
    total = (seen * seen).sum((1, 2))[:, None]
    return total - 2 * cross + power, power

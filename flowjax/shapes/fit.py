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

import numpy as np

from flowjax.shapes.vocabulary import CHECKS, CROSS_ARM, DARK, KINDS, RING_HOLE, SIZES, STRIPES, TEXTURES

EXTENTS = tuple(SIZES.values())
_FINE = 12  # sub-pixels a side of a pixel, for coverages
SHIFTS = np.arange(-0.75, 1.01, 0.25)  # of the centre against the middle of the window
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
      bright, dark: coverages B and D, [side * side, T].
      squares: B², B D and D², [side * side, T] each.
    """

    side: int
    kind: np.ndarray
    texture: np.ndarray
    shift: np.ndarray
    bright: np.ndarray
    dark: np.ndarray
    squares: tuple[np.ndarray, np.ndarray, np.ndarray]


@functools.lru_cache(maxsize=32)
def bank(extent: float, textured: bool) -> Bank:
    """The hypotheses for objects of an extent in pixels, found by counting sub-pixels."""
    side = int(np.ceil(extent + 2 * SHIFTS[-1] + 1)) // 2 * 2 + 2
    position = (np.arange(side * _FINE) + 0.5) / _FINE - side / 2
    kinds, textures, shifts, brights, darks = [], [], [], [], []
    average = lambda inside: inside.reshape(side, _FINE, side, _FINE).mean((1, 3), dtype=np.float32).ravel()
    for dy in SHIFTS:
        for dx in SHIFTS:
            u, v = (position[None] - dx) * 2 / extent, (position[:, None] - dy) * 2 / extent
            row = lambda parts, at: np.floor((at + 1) / 2 * parts).astype(int)
            for kind, name in enumerate(KINDS):
                inside = _INSIDE[name](u, v)
                for texture, pattern in enumerate(TEXTURES if textured else TEXTURES[:1]):
                    if pattern == "striped":
                        dark = inside & (row(STRIPES, v) % 2 == 1)
                    elif pattern == "checked":
                        dark = inside & ((row(CHECKS, u) + row(CHECKS, v)) % 2 == 1)
                    else:
                        dark = np.zeros_like(inside)
                    kinds.append(kind)
                    textures.append(texture)
                    shifts.append((dx, dy))
                    brights.append(average(inside & ~dark))
                    darks.append(average(dark))
    bright, dark = np.stack(brights, axis=1), np.stack(darks, axis=1)
    squares = bright**2, bright * dark, dark**2
    return Bank(side, np.array(kinds), np.array(textures), np.array(shifts), bright, dark, squares)


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

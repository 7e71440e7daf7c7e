r"""Reading the word: every word at every place of both bands, by least squares.

A cell of a letter is one pixel, after pictures have been pooled to cells of one pixel. With q = p - b, ink v and the
bitmap T of a word at a place, whose surroundings S are its box and one cell around it,

    E = sum over S of |q - T v|² = sum over S of |q|² - 2 T·<q, v> + |v|² T·T

is least for the word that is written. It is read only if nearly every cell is right: what is ink and is no word of the
vocabulary is reported as unknown.
"""

import dataclasses
import functools

import numpy as np
from scipy import ndimage

from flowjax.shapes.segment import BACKGROUND_RGB, INK_RGB
from flowjax.shapes.vocabulary import BAND, LETTER_HEIGHT, WORDS, word_bitmap

BLUR = 0.6  # pixels; every word is looked for sharp and with this blur
LEGIBLE = 0.12  # the largest share of a word's ink that may be wrong, squared errors of cells summed
ROWS = LETTER_HEIGHT + 2  # a word and one cell above and below


@dataclasses.dataclass(frozen=True)
class Lines:
    """All words at all places of a line `width` cells wide: bitmaps and surroundings [ROWS * width, T]."""

    word: np.ndarray
    left: np.ndarray
    bitmap: np.ndarray
    around: np.ndarray


@functools.lru_cache(maxsize=32)
def lines(width: int) -> Lines:
    """Every word that fits at every place where it stands a cell or more from the frame."""
    words, lefts, bitmaps, arounds = [], [], [], []
    for word, text in enumerate(WORDS):
        glyphs = word_bitmap(text).astype(np.float32)
        length = glyphs.shape[1]
        for left in range(1, width - length) if text else ():
            bitmap, around = np.zeros((2, ROWS, width), np.float32)
            bitmap[1:-1, left : left + length] = glyphs
            around[:, left - 1 : left + length + 1] = 1
            for sharp in (bitmap, ndimage.gaussian_filter(bitmap, BLUR) * around):
                words.append(word), lefts.append(left), bitmaps.append(sharp.ravel()), arounds.append(around.ravel())
    stack = lambda arrays: np.stack(arrays, axis=1) if arrays else np.zeros((ROWS * width, 0), np.float32)
    return Lines(np.array(words, int), np.array(lefts, int), stack(bitmaps), stack(arounds))


def read_words(
    pixels: np.ndarray, background: np.ndarray, ink: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The word of each picture.

    Args:
      pixels: [n, h, w, 3] in 0..255, one pixel to a cell.
      background: its index [n].
      ink: which pixels look like ink, bool [n, h, w].
      side: the shorter side of the picture.

    Returns:
      the word [n], 0 for none, -1 for ink in a band that cannot be read; the middle of it (x, y) in pixels [n, 2]; and
      the pixels that belong to it [n, h, w].
    """
    n, height, width = ink.shape
    word, middle, written = np.zeros(n, int), np.zeros((n, 2)), np.zeros(ink.shape, bool)
    depth = int(np.ceil(BAND * side))
    table = lines(width)
    for tops in (range(depth - LETTER_HEIGHT), range(height - depth, height - LETTER_HEIGHT)):
        band = slice(0, depth) if tops[0] == 0 else slice(height - depth, height)
        rows = np.flatnonzero((ink[:, band].sum((1, 2)) >= LETTER_HEIGHT) & (word <= 0))
        if not len(rows) or not len(table.word):
            continue
        v = (INK_RGB - BACKGROUND_RGB)[background[rows]]
        power = (v * v).sum(1)[:, None]
        best, choice, line = np.full(len(rows), np.inf), np.zeros(len(rows), int), np.zeros(len(rows), int)
        for top in tops:  # of the line's surroundings: its letters begin a row below
            q = pixels[rows, top : top + ROWS] - BACKGROUND_RGB[background[rows]][:, None, None]
            if q.shape[1] < ROWS:
                continue
            q = q.reshape(len(rows), -1, 3)
            misfit = (q * q).sum(2) @ table.around - 2 * np.einsum("mpc,mc->mp", q, v, optimize=True) @ table.bitmap
            ink_power = power * (table.bitmap**2).sum(0)
            wrong = (misfit + ink_power) / ink_power
            at = wrong.argmin(1)
            value = wrong[np.arange(len(rows)), at]
            better = value < best
            best, choice, line = (np.where(better, new, old) for new, old in ((value, best), (at, choice), (top, line)))
        legible = best < LEGIBLE
        word[rows] = np.where(legible, table.word[choice], -1)
        done, choice, line = rows[legible], choice[legible], line[legible]
        cells = table.around[:, choice].T.reshape(-1, ROWS, width) > 0
        for row, top, own in zip(done, line, cells, strict=True):
            written[row, top : top + ROWS] |= own
        lengths = np.array([word_bitmap(WORDS[i]).shape[1] for i in table.word[choice]])
        middle[done] = np.stack([table.left[choice] + lengths / 2, line + ROWS / 2], axis=1)
        unread = rows[~legible]
        written[unread, band] |= ink[unread, band]
    return word, middle, written

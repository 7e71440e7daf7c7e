r"""What scenes are made of: names, and the one number or picture behind each name.

Renderer and parser share this file and nothing else, so it says all that both must agree on. Lengths are fractions of
the shorter side of the picture; centres are fractions of the width (x, to the right) and of the height (y, downwards).

An object of extent e fills the square box of side e around its centre. With u, v in [-1, 1] over that box, v downwards:

    circle    u² + v² <= 1                        square    |u|, |v| <= 1
    ring      RING_HOLE <= sqrt(u² + v²) <= 1     diamond   |u| + |v| <= 1
    triangle  |u| <= (1 + v) / 2 (apex on top)    cross     min(|u|, |v|) <= CROSS_ARM, |u|, |v| <= 1

A plain object has its colour all over. A striped one has STRIPES horizontal bands of equal height over the box, the
first, third and fifth in the colour, the others in the colour times DARK; a checked one has CHECKS x CHECKS cells, the
cell in row i and column j in the colour where i + j is even, and in the colour times DARK elsewhere. Only large objects
have a texture: in a small one it could not be read at 32x32. Boxes keep GAP from each other and MARGIN from the frame.

A word stands in a band of height BAND at the top or at the bottom, which no object enters. Its letters are 3x5 cells
with one empty column between them, each cell 1/CELLS of the shorter side (rounded down to whole pixels, from 32x32
upwards), aligned with the grid of such cells; INK gives the colour of the letters on each background.
"""

import numpy as np

KINDS = ("circle", "square", "triangle", "diamond", "cross", "ring")
COLOURS = {
    "red": (225, 30, 40),
    "orange": (255, 135, 10),
    "yellow": (255, 230, 40),
    "green": (20, 150, 50),
    "cyan": (60, 215, 235),
    "blue": (30, 65, 220),
    "purple": (135, 30, 165),
    "pink": (255, 140, 195),
}
SIZES = {"small": 0.22, "large": 0.40}
TEXTURES = ("plain", "striped", "checked")
BACKGROUNDS = {"black": (18, 18, 18), "gray": (112, 112, 112), "white": (245, 245, 245), "beige": (222, 205, 170)}
INK = {"black": (250, 250, 250), "gray": (250, 250, 250), "white": (10, 10, 10), "beige": (10, 10, 10)}

MOST_OBJECTS = 6
GAP = 0.05
MARGIN = 0.02
BAND = 0.24
CELLS = 32

RING_HOLE = 0.5
CROSS_ARM = 1 / 3
STRIPES = 5
CHECKS = 4
DARK = 0.42

# "" is the absence of a word, so that index 0 means none.
WORDS = (
    "",
    "hi",
    "go",
    "no",
    "ok",
    "yes",
    "cat",
    "dog",
    "sun",
    "sky",
    "sea",
    "art",
    "jax",
    "zen",
    "ice",
    "owl",
    "bee",
) + ("fox", "map", "flow", "love", "hope", "fish", "bird", "tree")

# Rows from top to bottom, three cells each.
LETTERS = {
    "a": ("010", "101", "111", "101", "101"),
    "b": ("110", "101", "110", "101", "110"),
    "c": ("011", "100", "100", "100", "011"),
    "d": ("110", "101", "101", "101", "110"),
    "e": ("111", "100", "110", "100", "111"),
    "f": ("111", "100", "110", "100", "100"),
    "g": ("011", "100", "101", "101", "011"),
    "h": ("101", "101", "111", "101", "101"),
    "i": ("111", "010", "010", "010", "111"),
    "j": ("001", "001", "001", "101", "010"),
    "k": ("101", "101", "110", "101", "101"),
    "l": ("100", "100", "100", "100", "111"),
    "m": ("101", "111", "111", "101", "101"),
    "n": ("110", "101", "101", "101", "101"),
    "o": ("010", "101", "101", "101", "010"),
    "p": ("110", "101", "110", "100", "100"),
    "r": ("110", "101", "110", "101", "101"),
    "s": ("011", "100", "010", "001", "110"),
    "t": ("111", "010", "010", "010", "010"),
    "u": ("101", "101", "101", "101", "111"),
    "v": ("101", "101", "101", "101", "010"),
    "w": ("101", "101", "111", "111", "101"),
    "x": ("101", "101", "010", "101", "101"),
    "y": ("101", "101", "010", "010", "010"),
    "z": ("111", "001", "010", "100", "111"),
}
LETTER_HEIGHT, LETTER_WIDTH = 5, 3


def word_bitmap(word: str) -> np.ndarray:
    """The cells of a word, bool [5, 4 * letters - 1]: its letters with an empty column between two of them."""
    glyphs = [np.array([[cell == "1" for cell in row] for row in LETTERS[letter]]) for letter in word]
    gap = np.zeros((LETTER_HEIGHT, 1), bool)
    columns = [part for glyph in glyphs for part in (glyph, gap)][:-1]
    return np.concatenate(columns, axis=1) if columns else np.zeros((LETTER_HEIGHT, 0), bool)


def word_width(word: str) -> int:
    """The width of a word in cells."""
    return max(len(word) * (LETTER_WIDTH + 1) - 1, 0)

r"""Scenes, and the law that they are drawn from.

A scene is a row of a struct of arrays. `SceneLaw.draw` turns one row of uniforms into one scene, whatever its
neighbours, so a scene is a function of the counter (seed, stream, step, row) that the uniforms come from: endless,
reproducible, splittable, and the same on one process or eight.

**Held-out combinations.** One (kind, colour) pair in eight, one colour for every kind and no colour twice, and two of
the twelve textured (kind, texture) pairs never occur in training or test scenes, although each kind, colour and texture
does. Scenes of the split `held_out` hold at least one of them: what a model gets right there, it has composed.

**Placement.** Objects are placed one by one, large ones first, each at the first free point of its own list: the
additive sequence of Roberts (2018), p_k = frac(u + k a) with a = (1/g, 1/g²) and g³ = g + 1, started at a uniform point
u, so that each p_k alone is uniform and a few dozen of them cover the frame evenly. A row where some object finds no
room tries again with the lists moved on, up to RESTARTS times where it has few objects. Where that fails it takes a fixed
layout, whose objects then walk about as hard discs do in the Monte Carlo of Metropolis et al. (1953): a move that would
touch another object or the frame is refused. At most as many objects are large as such a layout holds; those beyond are small.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from flowjax.choices import choose
from flowjax.shapes.vocabulary import (
    BACKGROUNDS,
    BAND,
    CELLS,
    COLOURS,
    GAP,
    KINDS,
    LETTER_HEIGHT,
    MARGIN,
    MOST_OBJECTS,
    SIZES,
    TEXTURES,
    WORDS,
    word_width,
)

SPLITS = ("train", "test", "held_out")
EXTENTS = np.array(list(SIZES.values()))
LARGE = list(SIZES).index("large")
WORD_WIDTHS = np.array([word_width(word) for word in WORDS]) / CELLS

# (3 kind + colour + 1) mod 8 == 0: six of 48 pairs, all kinds and six colours different.
HELD_OUT_COLOURS = np.array(
    [[(3 * kind + colour + 1) % 8 == 0 for colour in range(len(COLOURS))] for kind in range(len(KINDS))]
)
HELD_OUT_TEXTURES = np.array(
    [[(kind, texture) in (("triangle", "striped"), ("circle", "checked")) for texture in TEXTURES] for kind in KINDS]
)

_SCENE_COLUMNS = 8
_OBJECT_COLUMNS = 6
COLUMNS = _SCENE_COLUMNS + _OBJECT_COLUMNS * MOST_OBJECTS

CANDIDATES = 32
RESTARTS, FEW = 8, 3
WALK = (1.0, 0.2, 0.5, 0.1, 0.3, 0.1) * 4  # how far an object may move, in each sweep of the walk
_PLASTIC = 1.32471795724474602596
_STRIDE = np.array([1 / _PLASTIC, 1 / _PLASTIC**2])

# Layouts for rows without room, as centres (x, y). Capacities, in the order filled: four of any size; one large and
# eight small; two large and six small. With a word the third row is the band, so the capacities are 6 and 5 there.
_QUARTERS = np.array([(x, y) for y in (0.25, 0.75) for x in (0.25, 0.75)])
_LOWER = [(x, y) for y in (0.595, 0.87) for x in (0.17, 0.5, 0.83)]
_ONE_LARGE = np.array([(0.23, 0.23), (0.595, 0.23), (0.87, 0.23), *_LOWER])
_TWO_LARGE = np.array([(0.25, 0.23), (0.75, 0.23), *_LOWER])


@dataclasses.dataclass(frozen=True)
class Scene:
    """n scenes. Entries of objects from `count` on are zero; objects are in no particular order.

    Attributes:
      count: how many objects, int [n], at most 6.
      kind: index into KINDS, int [n, 6].
      colour: index into COLOURS, int [n, 6].
      size: index into SIZES, int [n, 6].
      texture: index into TEXTURES, int [n, 6].
      centre: (x, y) as fractions of width and height, float [n, 6, 2].
      background: index into BACKGROUNDS, int [n].
      word: index into WORDS, 0 for none, int [n].
      word_centre: (x, y) of the middle of the word, float [n, 2]; zero without a word.
    """

    count: Int[np.ndarray, " n"]
    kind: Int[np.ndarray, "n 6"]
    colour: Int[np.ndarray, "n 6"]
    size: Int[np.ndarray, "n 6"]
    texture: Int[np.ndarray, "n 6"]
    centre: Float[np.ndarray, "n 6 2"]
    background: Int[np.ndarray, " n"]
    word: Int[np.ndarray, " n"]
    word_centre: Float[np.ndarray, "n 2"]

    def __len__(self) -> int:
        return len(self.count)

    def __getitem__(self, rows) -> "Scene":
        """The scenes of a slice or of an array of indices; one index gives one scene, n = 1."""
        rows = slice(rows, rows + 1 or None) if isinstance(rows, (int, np.integer)) else rows
        return Scene(**{field.name: getattr(self, field.name)[rows] for field in dataclasses.fields(self)})

    @property
    def present(self) -> np.ndarray:
        """Which of the six entries are objects, bool [n, 6]."""
        return np.arange(MOST_OBJECTS) < self.count[:, None]

    @property
    def held_out(self) -> np.ndarray:
        """Which scenes hold a combination that training scenes never hold, bool [n]."""
        pairs = HELD_OUT_COLOURS[self.kind, self.colour] | HELD_OUT_TEXTURES[self.kind, self.texture]
        return (pairs & self.present).any(axis=1)


def concatenate(scenes: Sequence[Scene]) -> Scene:
    """One batch of scenes out of several."""
    names = [field.name for field in dataclasses.fields(Scene)]
    return Scene(**{name: np.concatenate([getattr(scene, name) for scene in scenes]) for name in names})


def _pick(uniforms: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Indices drawn with the given weights [..., k], one distribution a row or one for all."""
    total = np.cumsum(weights, axis=-1)
    return np.minimum((uniforms[..., None] * total[..., -1:] >= total).sum(-1), weights.shape[-1] - 1)


def _chosen(names: Sequence[str], table: Sequence[str], what: str) -> np.ndarray:
    """1 for the entries of the table that are named, 0 for the others."""
    if not names:
        raise ValueError(f"No {what} is allowed. Name at least one of {', '.join(table)}.")
    weights = np.zeros(len(table))
    for name in names:
        weights[choose(what, name, {entry: i for i, entry in enumerate(table)})] = 1
    return weights


@dataclasses.dataclass(frozen=True)
class SceneLaw:
    """The distribution of scenes.

    Attributes:
      objects: the least and the largest number of objects, each number as likely, unless `count_weights` says so.
      count_weights: relative shares of those numbers.
      kinds: the kinds that occur, all as likely; likewise colours, sizes, textures and backgrounds.
      textured: the share of large objects with a texture, when `textures` names any but plain.
      words: the share of scenes with a word.
      held_out: whether training and test scenes leave out the held-out combinations.
    """

    objects: tuple[int, int] = (1, 3)
    count_weights: tuple[float, ...] | None = None
    kinds: tuple[str, ...] = KINDS
    colours: tuple[str, ...] = tuple(COLOURS)
    sizes: tuple[str, ...] = tuple(SIZES)
    textures: tuple[str, ...] = TEXTURES
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)
    textured: float = 0.5
    words: float = 0.0
    held_out: bool = True

    def __post_init__(self):
        least, most = self.objects
        if not 1 <= least <= most <= MOST_OBJECTS:
            raise ValueError(
                f"objects={tuple(self.objects)}: expected (least, most) with 1 <= least <= most <= {MOST_OBJECTS}."
            )
        if self.count_weights is not None and (
            len(self.count_weights) != most - least + 1 or min(self.count_weights) < 0 or sum(self.count_weights) <= 0
        ):
            raise ValueError(
                f"count_weights={self.count_weights}: expected {most - least + 1} shares >= 0, one for each number of "
                f"objects from {least} to {most}."
            )
        for name, share in (("textured", self.textured), ("words", self.words)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share}: expected a share from 0 to 1.")
        room = 2 if self.words else 4
        if "small" not in self.sizes and most > room:
            raise ValueError(
                f"{most} large objects have no room{' beside a word' if self.words else ''}: at most {room} fit. Allow "
                "small objects, or fewer."
            )
        _chosen(self.sizes, tuple(SIZES), "size")
        _chosen(self.backgrounds, tuple(BACKGROUNDS), "background")
        colours, _ = self._pairs("train")
        if not colours.any():
            raise ValueError("Every (kind, colour) pair allowed is a held-out one. Allow more, or set held_out=False.")

    def _pairs(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Weights of (kind, colour) and of (kind, texture) in a split, without and with the held-out ones."""
        kinds = _chosen(self.kinds, KINDS, "kind")
        colours = np.outer(kinds, _chosen(self.colours, tuple(COLOURS), "colour"))
        textures = np.outer(kinds, _chosen(self.textures, TEXTURES, "texture"))
        textures[:, 0] = 0
        if self.held_out and split != "held_out":
            colours, textures = colours * ~HELD_OUT_COLOURS, textures * ~HELD_OUT_TEXTURES
        return colours, textures

    def draw(self, uniforms: Float[np.ndarray, "n c"], split: str = "train") -> Scene:
        """One scene for each row of uniforms in [0, 1), [n, COLUMNS].

        Args:
          uniforms: independent uniforms; the scene is a function of its row alone.
          split: `train` and `test` have one law, and differ in the uniforms given; scenes of `held_out` hold at least
            one held-out combination each.
        """
        choose("split", split, dict.fromkeys(SPLITS))
        n = len(uniforms)
        scene, own = uniforms[:, :_SCENE_COLUMNS], uniforms[:, _SCENE_COLUMNS:COLUMNS]
        own = own.reshape(n, MOST_OBJECTS, _OBJECT_COLUMNS)
        least, most = self.objects
        shares = np.ones(most - least + 1) if self.count_weights is None else np.array(self.count_weights, float)
        count = least + _pick(scene[:, 0], shares)
        background = _pick(scene[:, 1], _chosen(self.backgrounds, tuple(BACKGROUNDS), "background"))
        has_word = scene[:, 2] < self.words
        word = np.where(has_word, 1 + (scene[:, 3] * (len(WORDS) - 1)).astype(int), 0)
        kind, colour, size, texture = self._attributes(own, scene[:, 4], count, has_word, split)
        on_top = scene[:, 6] < 0.5
        centre = place(own[:, :, 4:6], EXTENTS[size], count, has_word, on_top)
        # The first object is the one that split `held_out` marks: turn the order, so that it may stand anywhere.
        turn = (np.arange(MOST_OBJECTS) + (scene[:, 7] * count).astype(int)[:, None]) % count[:, None]
        present = np.arange(MOST_OBJECTS) < count[:, None]
        kind, colour, size, texture = (
            np.where(present, np.take_along_axis(value, turn, 1), 0).astype(np.int32)
            for value in (kind, colour, size, texture)
        )
        centre = np.where(present[..., None], np.take_along_axis(centre, turn[..., None], 1), 0.0)
        return Scene(
            count=count.astype(np.int32),
            kind=kind,
            colour=colour,
            size=size,
            texture=texture,
            centre=centre,
            background=background.astype(np.int32),
            word=word.astype(np.int32),
            word_centre=_word_centre(scene[:, 5], word, on_top),
        )

    def _attributes(self, own, marked, count, has_word, split):
        """Kind, colour, size and texture [n, 6]; in split `held_out` the first object has a held-out combination."""
        pair_weights, texture_weights = self._pairs(split)
        # A kind is as likely as any other that has an allowed colour left.
        kind = _pick(own[:, :, 0], (pair_weights.sum(1) > 0).astype(float))
        size = _pick(own[:, :, 2], _chosen(self.sizes, tuple(SIZES), "size"))
        # Which objects wear a texture: u below `textured`, and then u / textured is uniform again and picks it.
        share = max(self.textured, 1e-12)
        wears = own[:, :, 3] < self.textured
        forced = np.zeros(len(own), bool)
        if split == "held_out":
            held_colours, held_textures = pair_weights * HELD_OUT_COLOURS, texture_weights * HELD_OUT_TEXTURES
            by_texture = held_textures.any() and "large" in self.sizes and self.textured > 0
            if not held_colours.any() and not by_texture:
                raise ValueError(
                    f"The kinds {self.kinds}, colours {self.colours} and textures {self.textures} allow no held-out "
                    "combination. Allow more of them."
                )
            # A quarter of the scenes hold a texture pair, the others a colour pair, where both exist.
            threshold = 0.25 if held_colours.any() else 1.0
            forced = (marked < threshold) if by_texture else forced
            kind[~forced, 0] = _pick(own[~forced, 0, 0], (held_colours.sum(1) > 0).astype(float))
            if by_texture:
                kind[forced, 0] = _pick(own[forced, 0, 0], (held_textures.sum(1) > 0).astype(float))
                size[forced, 0], wears[forced, 0] = LARGE, True
        colour = _pick(own[:, :, 1], pair_weights[kind])
        large = size == LARGE
        most_large = np.where(has_word, np.where(count <= 5, 2, 1), np.where(count <= 4, 4, 2))
        if "small" in self.sizes:
            large &= np.cumsum(large, axis=1) <= most_large[:, None]
            size = np.where(large, size, list(SIZES).index("small"))
        wears &= large & (texture_weights.sum(1) > 0)[kind]
        again = np.minimum(own[:, :, 3] / share, 1 - 1e-12)
        again[forced, 0] = own[forced, 0, 3]
        texture = np.where(wears, _pick(again, texture_weights[kind]), 0)
        if split == "held_out":
            colour[~forced, 0] = _pick(own[~forced, 0, 1], held_colours[kind[~forced, 0]])
            if forced.any():
                texture[forced, 0] = _pick(own[forced, 0, 3], held_textures[kind[forced, 0]])
        return kind, colour, size, texture


def _word_centre(uniform, word, on_top):
    """The middle of the word: anywhere along its band, one cell from the frame."""
    half = WORD_WIDTHS[word] / 2 + 1 / CELLS
    x = half + uniform * (1 - 2 * half)
    y = np.where(on_top, (1 + LETTER_HEIGHT / 2) / CELLS, 1 - (1 + LETTER_HEIGHT / 2) / CELLS)
    return np.where(word[:, None] > 0, np.stack([x, y], axis=1), 0.0)


def place(
    uniforms: Float[np.ndarray, "n 6 2"],
    extent: Float[np.ndarray, "n 6"],
    count: Int[np.ndarray, " n"],
    has_word: np.ndarray,
    on_top: np.ndarray,
    candidates: int = CANDIDATES,
    restarts: int = RESTARTS,
) -> Float[np.ndarray, "n 6 2"]:
    """Centres whose boxes keep GAP from each other and MARGIN from the frame and stay out of the word's band.

    They hold at every aspect ratio, since extents are fractions of the shorter side. Never fails; see the header.
    """
    n = len(uniforms)
    order = np.argsort(np.where(np.arange(MOST_OBJECTS) < count[:, None], -extent, 1), axis=1, kind="stable")
    ranked = np.take_along_axis(extent, order, 1)
    start = np.take_along_axis(uniforms, order[..., None], 1)
    centre, crowded, open_rows = np.zeros((n, MOST_OBJECTS, 2)), np.arange(0), np.arange(n)
    low = np.stack([np.full(n, MARGIN), np.where(has_word & on_top, BAND, MARGIN)], axis=1)
    high = np.stack([np.full(n, 1 - MARGIN), np.where(has_word & ~on_top, 1 - BAND, 1 - MARGIN)], axis=1)
    for restart in range(restarts):
        steps = (restart * candidates + np.arange(candidates))[:, None] * _STRIDE
        found, placed = _place_once(
            start[open_rows], ranked[open_rows], count[open_rows], low[open_rows], high[open_rows], steps
        )
        centre[open_rows[placed]] = found[placed]
        open_rows = open_rows[~placed]
        if restart == 0:  # crowded rows seldom fare better a second time
            few = count[open_rows] <= FEW
            crowded, open_rows = open_rows[~few], open_rows[few]
        if not len(open_rows):
            break
    open_rows = np.concatenate([open_rows, crowded])
    if len(open_rows):
        part = (start[open_rows], ranked[open_rows], count[open_rows])
        fixed = _layout(*part, has_word[open_rows], on_top[open_rows])
        centre[open_rows] = _walk(fixed, *part, low[open_rows], high[open_rows])
    result = np.empty_like(centre)
    np.put_along_axis(result, order[..., None], centre, axis=1)
    return result


def _place_once(start, extent, count, low, high, steps):
    """One pass over the objects: centres, and which rows found room for all of theirs."""
    n = len(start)
    centre, placed, rows = np.zeros_like(start), np.ones(n, bool), np.arange(n)
    for rank in range(int(count.max(initial=0))):
        half = extent[:, rank, None, None] / 2
        tries = steps if rank else steps[:1]  # the first object is free to stand where it likes
        fraction = (start[:, rank, None] + tries) % 1.0
        points = (low[:, None] + half) + fraction * (high - low - extent[:, rank, None])[:, None]
        free = np.ones(points.shape[:2], bool)
        for other in range(rank):
            reach = half[..., 0] + extent[:, other, None] / 2 + GAP
            away = np.abs(points - centre[:, other, None])
            free &= (away[..., 0] >= reach) | (away[..., 1] >= reach)
        first = free.argmax(axis=1)
        placed &= free[rows, first] | (rank >= count)
        centre[:, rank] = points[rows, first]
    return centre, placed


def _layout(start, extent, count, has_word, on_top):
    """A fixed place for each object, large ones first, mirrored at random: for rows in which nothing else fits."""
    uniform = start[:, 0]
    larges = ((extent == EXTENTS[LARGE]) & (np.arange(MOST_OBJECTS) < count[:, None])).sum(1)
    quarters = np.concatenate([_QUARTERS, np.zeros((2, 2))])
    tables = np.stack([_ONE_LARGE[:MOST_OBJECTS], _TWO_LARGE[:MOST_OBJECTS], quarters])
    centre = tables[np.where((count <= 4) & ~has_word, 2, np.where(larges == 2, 1, 0))]
    x, y = centre[..., 0], centre[..., 1]
    x = np.where(uniform[:, :1] < 0.5, x, 1 - x)
    # Below a band the two rows move down by its height; a band at the bottom is the mirror image of that.
    y = np.where(has_word[:, None], y + BAND - MARGIN, y)
    mirrored = np.where(has_word, ~on_top, uniform[:, 1] < 0.5)
    centre = np.stack([x, np.where(mirrored[:, None], 1 - y, y)], axis=-1)
    # Boxes are square, so rows may be columns, unless a word takes a row.
    turned = ~has_word & (start[:, 1, 0] < 0.5)
    return np.where(turned[:, None, None], centre[..., ::-1], centre)


def _walk(centre, start, extent, count, low, high):
    """Objects in turn try a step within a square; steps onto another object or out of the frame are refused."""
    centre = centre.copy()
    present = np.arange(MOST_OBJECTS) < count[:, None]
    for sweep, reach in enumerate(WALK):
        steps = reach * ((start + (sweep + 1) * _STRIDE) % 1.0 - 0.5)
        for rank in range(int(count.max())):
            half, point = extent[:, rank, None] / 2, centre[:, rank] + steps[:, rank]
            away = np.abs(point[:, None] - centre)
            clear = (away >= (half + extent / 2 + GAP)[..., None]).any(-1) | ~present
            clear[:, rank] = True
            moves = clear.all(1) & ((point >= low + half) & (point <= high - half)).all(1)
            centre[moves, rank] = point[moves]
    return centre

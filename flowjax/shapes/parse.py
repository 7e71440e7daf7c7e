r"""From pixels to scenes, and so from any picture to a verdict on any caption.

    1. Pictures are pooled until a letter's cell is one pixel: a side of 32..63, or less if the picture is smaller.
    2. The background is the one that most pixels are near.
    3. The word is read and its ink put aside (letters.py).
    4. Whatever else hangs together is a component (segment.py), and every object is fitted to it (fit.py). Where no
       object fits, the stricter masks are tried, and last the pixels of one colour: two objects that touch come apart
       in this way if each is whole.
    5. What is left unexplained counts as an object of kind -1: it is there, and it has no name, so that a caption that
       does not speak of it is judged wrong.

Nothing here looks at a caption: a picture cannot be read with the answer in mind.
"""

import dataclasses

import numpy as np

from flowjax.shapes import fit, letters, segment
from flowjax.shapes.scenes import LARGE, Scene, concatenate
from flowjax.shapes.segment import COLOUR_RGB
from flowjax.shapes.vocabulary import CELLS, DARK, MOST_OBJECTS

CHUNK = 256  # pictures read at a time: their arrays then stay near the processor
WELL_DRAWN = np.array([0.08, 0.05])  # the largest unexplained share of an object that has a name, by size
ALIEN = 0.5  # how far a pixel may be from what it should be, in contrasts of its object
VISIBLE = 0.92  # the smallest share of an object that nothing else may hide
NOISE = 12.0  # the largest standard deviation, in grey levels, that is put down to noise
FAINT = 32.0  # how far from the background, in grey levels, a blot may be without counting
LEAST_BACKGROUND = 0.2  # the share of a picture; four large squares leave a third of it free
SPECK = 0.0028  # the least area that is looked at, in squares of the shorter side: 3 pixels at 32 x 32
LEAST_AREA = 3  # and in pixels
UNKNOWN = -1


def as_levels(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pictures as float32 in 0..255, and which of them are finite. uint8 is taken as it is, floats as [-1, 1]."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"Pictures to parse have shape {images.shape}; expected [n, height, width, 3].")
    if images.dtype == np.uint8:
        return images.astype(np.float32), np.ones(len(images), bool)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"Pictures to parse are {images.dtype}; expected uint8 in 0..255 or floats in [-1, 1].")
    finite = np.isfinite(images).all(axis=(1, 2, 3))
    images = np.where(finite[:, None, None, None], images, 0).astype(np.float32)
    return (np.clip(images, -1, 1) + 1) * 127.5, finite


def pool(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Averages over blocks of factor x factor pixels; what does not fill a block at the right and bottom is dropped."""
    if factor == 1:
        return pixels
    n, height, width, channels = pixels.shape
    height, width = height // factor, width // factor
    pixels = pixels[:, : height * factor, : width * factor]
    return pixels.reshape(n, height, factor, width, factor, channels).mean((2, 4), dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class _Fits:
    """What fits each of m components best, and how much of it stays unexplained."""

    wrong: np.ndarray
    kind: np.ndarray
    size: np.ndarray
    texture: np.ndarray
    centre: np.ndarray  # (x, y) in pixels


def _fit(look: "_Look", labels, closed, picture, box, colour, side, least_area) -> _Fits:
    """Fits every object to every component; `closed` are the pixels [n, h, w] that something else explains."""
    m = len(picture)
    fits = _Fits(np.full(m, np.inf), *(np.zeros(m, np.int32) for _ in range(3)), np.zeros((m, 2)))
    middle, longest = (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]).max(1)
    for size, extent in enumerate(np.array(fit.EXTENTS) * side):
        tried = np.flatnonzero(np.abs(longest - extent) <= max(0.3 * extent, 2.0))
        if not len(tried):
            continue
        bank = fit.bank(float(extent), size == LARGE)
        corner = np.floor(middle[tried] - bank.side / 2).astype(int)
        around = fit.windows(labels, picture[tried], corner, bank.side)
        own = around == (tried + 1)[:, None, None]
        others = ((around > 0) & ~own) | fit.windows(closed, picture[tried], corner, bank.side)
        free = own | ~segment.grow(others)
        near = segment.grow(segment.grow(own))  # beyond that, background: other eyes than these look at it
        window = fit.windows(look.q, picture[tried], corner, bank.side) * near[..., None]
        flat = (len(tried), bank.side**2)
        misfit, power = fit.misfits(
            bank,
            window.reshape(*flat, 3),
            free.reshape(flat),
            COLOUR_RGB[colour[tried]],
            look.background[picture[tried]],
        )
        expected = 3 * look.noise[picture[tried]] ** 2 * (near & free).sum((1, 2))
        rows, best = np.arange(len(tried)), misfit.argmin(1)
        wrong = (misfit[rows, best] - expected) / np.maximum(power[rows, best], 1)
        cover = (bank.bright + bank.dark)[:, best]
        wrong[(free.reshape(flat) * cover.T).sum(1) < VISIBLE * cover.sum(0)] = np.inf
        wrong[~bank.true[best]] = np.inf
        # A blot on or beside a large object hardly shows in the sum: count the pixels that are something else.
        v, w = (scale * COLOUR_RGB[colour[tried]] - look.background[picture[tried]] for scale in (1.0, DARK))
        drawn = bank.bright.T[best][..., None] * v[:, None] + bank.dark.T[best][..., None] * w[:, None]
        off = ((window.reshape(*flat, 3) - drawn) ** 2).sum(2)
        alien = np.maximum(ALIEN**2 * (v * v).sum(1), (4 * look.noise[picture[tried]]) ** 2)[:, None]
        wrong[((off > alien) & free.reshape(flat)).sum(1) >= least_area] = np.inf
        better = wrong < fits.wrong[tried]
        chosen, best = tried[better], best[better]
        fits.wrong[chosen], fits.size[chosen] = wrong[better], size
        fits.kind[chosen], fits.texture[chosen] = bank.kind[best], bank.texture[best]
        fits.centre[chosen] = (corner[better] + bank.side / 2)[:, ::-1] + bank.shift[best]
    return fits


def _vote(paint: np.ndarray, weight: np.ndarray, labels: np.ndarray, number: int) -> np.ndarray:
    """The colour that has most weight among the pixels of each component; UNKNOWN where none has any."""
    at = np.flatnonzero((labels > 0) & (paint < len(COLOUR_RGB)))
    ballots = (labels.ravel()[at] - 1).astype(np.int64) * len(COLOUR_RGB) + paint.ravel()[at]
    counts = np.bincount(ballots, weight.ravel()[at], minlength=number * len(COLOUR_RGB))
    counts = counts.reshape(number, len(COLOUR_RGB))
    return np.where(counts.max(1, initial=0) > 0, counts.argmax(1), UNKNOWN)


def _by_colour(mask: np.ndarray, paint: np.ndarray, least_area: float):
    """Components of one colour each: like segment.connected, with every colour in a picture of its own."""
    planes = np.concatenate([mask & (paint == colour) for colour in range(len(COLOUR_RGB))])
    labels, picture, box = segment.connected(planes, least_area)
    return labels.reshape(len(COLOUR_RGB), *mask.shape).max(0), picture % len(mask), box


def _objects(look: "_Look", written: np.ndarray, recognised: np.ndarray, side: int) -> np.ndarray:
    """All objects of n pictures, those of a picture that have a name before those that have none.

    Returns:
      rows of picture, kind, colour, size, texture, x and y in pixels.
    """
    least_area = max(SPECK * side**2, LEAST_AREA)
    rows, taken, open_ = [], written.copy(), np.ones_like(written)
    for stage in range(4):
        # Where no background is to be seen there is nothing that objects could stand out from: one look is enough.
        some = np.flatnonzero(open_.any((1, 2)) & (recognised | (stage == 0)))
        if not len(some):
            break
        part = look[some]
        mask = (part.generous, part.middling, part.strict, part.generous)[stage] & open_[some]
        mask &= ~segment.grow(taken[some])
        find = _by_colour(mask, part.paint, least_area) if stage == 3 else segment.connected(mask, least_area)
        labels, picture, box = find
        colour = _vote(part.paint, part.coverage, labels, len(picture))
        fits = _fit(part, labels, taken[some], picture, box, colour, side, least_area)
        named = (fits.wrong < WELL_DRAWN[fits.size]) & (colour != UNKNOWN)
        columns = (some[picture], fits.kind, colour, fits.size, fits.texture, *fits.centre.T)
        rows.append(np.stack(columns, axis=1)[named])
        taken[some] |= np.append(False, named)[labels]
        if stage == 0:
            open_ = np.append(False, ~named)[labels]
        open_ &= ~segment.grow(taken)
    # What no stage could name, and what is too faint to be an object but can be seen.
    open_ |= look.visible & ~segment.grow(segment.grow(taken))
    labels, picture, box = segment.connected(open_, least_area)
    colour = _vote(look.paint, look.coverage, labels, len(picture))
    nothing = np.full(len(picture), UNKNOWN)
    x, y = (box[:, 1] + box[:, 3]) / 2, (box[:, 0] + box[:, 2]) / 2
    size = np.abs((box[:, 2:] - box[:, :2]).max(1, initial=0)[:, None] - np.array(fit.EXTENTS) * side).argmin(1)
    rows.append(np.stack([picture, nothing, colour, size, nothing, x, y], axis=1))
    return np.concatenate(rows)


@dataclasses.dataclass(frozen=True)
class _Look:
    """Pictures as the tables see them; indexing takes some of them."""

    q: np.ndarray  # less the background, [n, h, w, 3]
    background: np.ndarray  # its colour [n, 3]
    noise: np.ndarray  # its standard deviation [n]
    paint: np.ndarray
    coverage: np.ndarray
    generous: np.ndarray
    middling: np.ndarray
    strict: np.ndarray
    visible: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "_Look":
        return _Look(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


def _look(pixels: np.ndarray, code: np.ndarray, background: np.ndarray) -> _Look:
    table = segment.tables()
    at = background[:, None, None], code
    coverage, bright = table["coverage"][at], table["bright"][at]
    colour = segment.BACKGROUND_RGB[background]
    q = pixels - colour[:, None, None]
    away = (q * q).sum(-1)
    free = ~segment.grow(coverage > 0.25)
    noise = np.sqrt((away * free).sum((1, 2)) / np.maximum(3 * free.sum((1, 2)), 1))
    noise = np.minimum(noise, NOISE)
    visible = away > np.maximum(FAINT, 4 * noise)[:, None, None] ** 2
    masks = coverage > 0.5, coverage > 0.8, bright > 0.5, visible
    return _Look(q, colour, noise, table["paint"][at], coverage, *masks)


def _parse(pixels: np.ndarray) -> Scene:
    """Some pictures in 0..255, all finite."""
    factor = max(min(pixels.shape[1:3]) // CELLS, 1)
    pixels = pool(pixels, factor)
    n, height, width, _ = pixels.shape
    side = min(height, width)
    code = segment.codes(pixels)
    background, recognised = segment.find_background(pixels, code, LEAST_BACKGROUND)
    look = _look(pixels, code, background)
    word, word_centre = np.zeros(n, int), np.zeros((n, 2))
    written = np.zeros((n, height, width), bool)
    if side >= CELLS:
        ink = (look.paint == segment.INK_PAINT) & look.strict
        word, word_centre, written = letters.read_words(pixels, background, ink, side)
    rows = _objects(look, written, recognised, side)
    picture = rows[:, 0].astype(int)
    order = np.argsort(picture, kind="stable")
    rows, picture = rows[order], picture[order]
    count = np.bincount(picture, minlength=n)
    slot = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    rows, picture, slot = (values[slot < MOST_OBJECTS] for values in (rows, picture, slot))
    table = np.zeros((n, MOST_OBJECTS, 6))
    table[picture, slot] = rows[:, 1:]
    kind, colour, size, texture = (table[..., i].astype(np.int32) for i in range(4))
    return Scene(
        count=count.astype(np.int32),
        kind=kind,
        colour=colour,
        size=size,
        texture=texture,
        centre=table[..., 4:] / (width, height),
        background=np.where(recognised, background, UNKNOWN).astype(np.int32),
        word=word.astype(np.int32),
        word_centre=word_centre / (width, height),
    )


def parse(images: np.ndarray) -> Scene:
    """What is in pictures [n, height, width, 3], uint8 or floats in [-1, 1]. Never fails on what a picture shows.

    `count` may exceed the six objects that have entries; an entry of kind -1 is something that has no name, a word of
    -1 is ink that cannot be read, a background of -1 is none of the vocabulary. A picture with a pixel that is not
    finite holds nothing: no objects, background and word -1. Below 32x32 letters have no pixels: no word is read.
    """
    levels, finite = as_levels(images)
    chunk = max(CHUNK * CELLS * CELLS // (images.shape[1] * images.shape[2]), 1)
    scenes = [_parse(levels[first : first + chunk]) for first in range(0, len(levels), chunk)]
    scene = concatenate(scenes or [_parse(np.zeros((1, *levels.shape[1:]), np.float32))[:0]])
    for values in (scene.count, scene.kind, scene.colour, scene.size, scene.texture, scene.centre, scene.word_centre):
        values[~finite] = 0
    scene.background[~finite] = scene.word[~finite] = UNKNOWN
    return scene

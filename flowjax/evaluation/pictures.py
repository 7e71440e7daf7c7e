"""Pictures of samples: image grids and two-dimensional scatter panels, as uint8 arrays and small PNG files.

Tiny images are enlarged by whole factors with nearest-neighbour sampling, so that a pixel stays a pixel and a reader
sees what the model made, not what an interpolation made of it.
"""

import io
import math
import os
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Int, Shaped, UInt8

from flowjax.evaluation.run_files import write_atomically

SIZE_LIMIT = 300_000  # bytes; a page with forty of them still opens at once
TARGET_WIDTH = 768  # pixels; grids are enlarged towards it
CAPTION_WIDTH = 112  # pixels; with captions an image is enlarged to at least that, for some twenty letters in a line
CAPTION_LINES = 6


def to_uint8(images: Shaped[np.ndarray, "*shape"], low: float = -1.0, high: float = 1.0) -> UInt8[np.ndarray, "*shape"]:
    """Maps [low, high] to 0..255, clipping outside; uint8 passes through, and NaN is drawn black."""
    if images.dtype == np.uint8:
        return images
    unit = (np.asarray(images, np.float64) - low) / (high - low)
    return np.rint(255 * np.clip(np.nan_to_num(unit, nan=0.0), 0, 1)).astype(np.uint8)


def on_white(
    images: Shaped[np.ndarray, "n height width c"],
    pixel_mask: Bool[np.ndarray, "n height width"],
    high: float = 1.0,
) -> Shaped[np.ndarray, "n tallest widest c"]:
    """Images smaller than their arrays on white, without the rows and columns in which none of them shows anything.

    Args:
      images: in [low, high].
      pixel_mask: where each one's image is, in the top left corner.
      high: the value of white.
    """
    seen = pixel_mask.any(axis=0)
    rows, columns = (1 + int(np.max(np.flatnonzero(seen.any(axis=axis)), initial=0)) for axis in (1, 0))
    whole = np.where(pixel_mask[..., None], images, np.asarray(high, images.dtype))
    return whole[:, :rows, :columns]


def grid(
    images: Shaped[np.ndarray, "n h w c"],
    columns: int | None = None,
    *,
    labels: Int[np.ndarray, " n"] | None = None,
    scale: int | None = None,
    gap: int = 1,
    low: float = -1.0,
    high: float = 1.0,
) -> UInt8[np.ndarray, "height width 3"]:
    """Lays images out in one picture, row by row; with labels, a row holds one class.

    Args:
      images: n images with 1 or 3 channels (a fourth, alpha, is dropped), in [low, high] or uint8.
      columns: images in a row; by default the square root of n, or with labels the size of the largest class up to 16.
      labels: the class of each image; classes are sorted, and places without an image stay blank.
      scale: whole enlargement factor; by default the largest that keeps the grid within 768 pixels.
      gap: white pixels between images, before enlargement.
    """
    n, height, width, channels = images.shape
    if n == 0:
        raise ValueError("A grid needs at least one image; got an array with none.")
    if channels not in (1, 3, 4):
        raise ValueError(f"A grid needs images with 1, 3 or 4 channels, last; got shape {images.shape}.")
    pixels = to_uint8(images, low, high)
    pixels = np.repeat(pixels, 3, axis=-1) if channels == 1 else pixels[..., :3]
    if labels is None:
        columns = columns or math.ceil(math.sqrt(n))
        rows = [range(start, min(start + columns, n)) for start in range(0, n, columns)]
    else:
        groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        columns = columns or min(16, max(len(group) for group in groups))
        rows = [group[:columns] for group in groups]
    canvas = np.full((len(rows) * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, index in enumerate(row):
            top, left = gap + i * (height + gap), gap + j * (width + gap)
            canvas[top : top + height, left : left + width] = pixels[index]
    scale = scale or max(1, TARGET_WIDTH // max(canvas.shape[:2]))
    return enlarge(canvas, scale)


def captioned_grid(
    images: Shaped[np.ndarray, "n h w c"],
    captions: Sequence[str],
    columns: int | None = None,
    *,
    low: float = -1.0,
    high: float = 1.0,
) -> UInt8[np.ndarray, "height width 3"]:
    """Lays images out with the caption of each beneath it, in letters that can be read at the size of the picture.

    Args:
      images: n images with 1 or 3 channels (a fourth, alpha, is dropped), in [low, high] or uint8.
      captions: n texts; one that takes more than CAPTION_LINES lines ends in an ellipsis.
      columns: images in a row; by default the square root of n.
    """
    from PIL import Image, ImageDraw, ImageFont

    n, height, width, channels = images.shape
    if n == 0 or len(captions) != n:
        raise ValueError(
            f"A captioned grid needs a caption for each image; got {n} images and {len(captions)} captions."
        )
    if channels not in (1, 3, 4):
        raise ValueError(f"A grid needs images with 1, 3 or 4 channels, last; got shape {images.shape}.")
    pixels = to_uint8(images, low, high)
    pixels = np.repeat(pixels, 3, axis=-1) if channels == 1 else pixels[..., :3]
    scale = max(1, -(-CAPTION_WIDTH // width))
    height, width, gap = height * scale, width * scale, 6
    font = ImageFont.load_default(size=11)
    line_height = 13
    wrapped = [_wrap(caption, lambda text: font.getlength(text) <= width) for caption in captions]
    columns = columns or math.ceil(math.sqrt(n))
    rows = [range(start, min(start + columns, n)) for start in range(0, n, columns)]
    tops, top = [], gap
    for row in rows:
        tops.append(top)
        top += height + max(len(wrapped[index]) for index in row) * line_height + 2 * gap
    canvas = Image.new("RGB", (gap + columns * (width + gap), top), "white")
    drawing = ImageDraw.Draw(canvas)
    for row, top in zip(rows, tops):
        for place, index in enumerate(row):
            left = gap + place * (width + gap)
            canvas.paste(Image.fromarray(enlarge(pixels[index], scale)), (left, top))
            for line, text in enumerate(wrapped[index]):
                drawing.text((left, top + height + 1 + line * line_height), text, fill="#333333", font=font)
    return np.asarray(canvas)


def _wrap(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Lines of whole words that fit, at most CAPTION_LINES; a word that is too long alone is cut."""
    lines, current = [], ""
    for word in text.split():
        while not fits(word):
            cut = next(count for count in range(len(word) - 1, 0, -1) if count == 1 or fits(word[:count]))
            lines, current, word = [*lines, *([current] if current else []), word[:cut]], "", word[cut:]
        joined = f"{current} {word}".strip()
        if fits(joined):
            current = joined
        else:
            lines, current = [*lines, current], word
    lines += [current] if current else []
    if len(lines) > CAPTION_LINES:
        last = lines[CAPTION_LINES - 1]
        while last and not fits(last + "…"):
            last = last[:-1]
        lines = [*lines[: CAPTION_LINES - 1], last + "…"]
    return lines


def enlarge(picture: UInt8[np.ndarray, "h w c"], factor: int) -> UInt8[np.ndarray, "height width c"]:
    """Repeats each pixel factor x factor times."""
    if factor < 1:
        raise ValueError(f"The enlargement factor must be a whole number of at least 1; got {factor}.")
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def scatter(
    generated: Shaped[np.ndarray, "n 2"],
    true: Shaped[np.ndarray, "m 2"],
    titles: Sequence[str] = ("generated", "true"),
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws generated points beside true ones on the same axes, which the true points set (robustly).

    Points outside the frame are counted under the panel, so that a few runaways neither shrink the picture nor vanish.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    generated, true = np.asarray(generated, np.float64), np.asarray(true, np.float64)
    centre = np.median(true, axis=0)
    radius = 1.25 * max(np.quantile(np.abs(true - centre), 0.995), 1e-6)
    figure = Figure(figsize=(7.2, 3.9), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, points, title, colour in zip(figure.subplots(1, 2), (generated, true), titles, ("#0f6f74", "#6b7280")):
        inside = np.all(np.abs(points - centre) <= radius, axis=1)  # False for NaN
        axes.scatter(*points[inside].T, s=max(1.0, min(9.0, 12000 / max(len(points), 1))), c=colour, alpha=0.55, lw=0)
        axes.set(xlim=(centre[0] - radius, centre[0] + radius), ylim=(centre[1] - radius, centre[1] + radius))
        axes.set(aspect="equal", xticks=[], yticks=[])
        outside = int(np.sum(~inside))
        axes.set_title(title, fontsize=11, color="#333333")
        axes.set_xlabel(f"{len(points):,} points, {outside:,} outside the frame", fontsize=8, color="#666666")
        for spine in axes.spines.values():
            spine.set_color("#cccccc")
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def encode_png(picture: UInt8[np.ndarray, "h w c"], limit: int = SIZE_LIMIT) -> bytes:
    """PNG bytes of at most `limit`: exact where it fits, else 256 colours, else smaller by half until it fits."""
    from PIL import Image

    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    while True:
        for candidate in (image, image.convert("RGB").quantize(256)):
            buffer = io.BytesIO()
            candidate.save(buffer, format="PNG", optimize=True)
            if buffer.tell() <= limit or min(image.size) <= 1:
                return buffer.getvalue()
        image = image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BOX)


def save_png(path: str | os.PathLike, picture: UInt8[np.ndarray, "h w c"], limit: int = SIZE_LIMIT) -> None:
    """Writes a picture as a PNG file of at most `limit` bytes, atomically."""
    write_atomically(path, encode_png(picture, limit))

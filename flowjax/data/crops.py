"""Pictures of any size to one shape, with chance or without: resized to cover it, cut, flipped.

The chance is three uniforms of a generator that is a function of (seed, position), so an example is cut the same way in
every process, thread and resumed run. Flips are off unless asked for: they break words, and captions that say "left".
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

CROPS = ("random", "centre")
Picture = Shaped[np.ndarray, "h w c"]
Scaled = Shaped[np.ndarray, "a b c"]


def resize(pixels: Picture, height: int, width: int, box: tuple[float, float, float, float] | None = None) -> Scaled:
    """Scales a picture, each axis by itself: whole factors down are box means, all else is bicubic.

    Down, the bicubic kernel is as wide as the factor (antialiasing). What overshoots the picture's own range is cut off.

    Args:
      pixels: uint8 or float32, any number of channels.
      height: of the result.
      width: of the result.
      box: top, left, bottom, right of the part to be scaled, in pixels; all of it unless told.
    """
    from PIL import Image

    tall, wide = pixels.shape[:2]
    top, left, bottom, right = box or (0.0, 0.0, float(tall), float(wide))
    if (bottom - top, right - left) == (height, width) and top == int(top) and left == int(left):
        return pixels[int(top) : int(bottom), int(left) : int(right)]
    across, down = (
        Image.Resampling.BOX if part >= size and part % size == 0 else Image.Resampling.BICUBIC
        for part, size in ((right - left, width), (bottom - top, height))
    )

    def scaled(plane: np.ndarray) -> np.ndarray:
        image = Image.fromarray(np.ascontiguousarray(plane))
        image = image.resize((width, tall), across, box=(left, 0, right, tall))
        return np.asarray(image.resize((width, height), down, box=(0, top, width, bottom)))

    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:  # at once; rounds to whole levels between the axes as well
        return scaled(pixels)
    planes = [scaled(pixels[..., channel].astype(np.float32)) for channel in range(pixels.shape[2])]
    result = np.clip(np.stack(planes, axis=-1), pixels.min(), pixels.max())
    return (np.rint(result) if pixels.dtype == np.uint8 else result).astype(pixels.dtype)


def cover(pixels: Picture, height: int, width: int, down: float = 0.5, across: float = 0.5) -> Scaled:
    """The largest part of a picture that has the proportions height : width, scaled to that size.

    Args:
      pixels: the picture.
      height: of the result.
      width: of the result.
      down: which part, where the picture is too tall: 0 is the top, 1 the bottom, 0.5 the middle.
      across: the same from left to right, where it is too wide.
    """
    tall, wide = pixels.shape[:2]
    scale = max(height / tall, width / wide)

    def place(length: int, size: int, share: float) -> tuple[float, float]:
        # A whole number of result pixels from the edge: a picture that needs no scaling is cut, not resampled.
        room = max(0, math.floor(length * scale - size + 1e-6))
        start = min(int(share * (room + 1)), room) / scale
        return start, min(start + size / scale, float(length))

    (top, bottom), (left, right) = place(tall, height, down), place(wide, width, across)
    return resize(pixels, height, width, (top, left, bottom, right))


@dataclasses.dataclass(frozen=True)
class Cropping:
    """Makes the picture `data` of an example one of a shape, float32 in [-1, 1]: for RecordSource's `augment` and `fit`.

    Attributes:
      height, width: of the result.
      crop: 'random' or 'centre', in training.
      flip: whether training pictures are mirrored half of the time.
    """

    height: int
    width: int
    crop: str = "random"
    flip: bool = False

    def __post_init__(self):
        if self.crop not in CROPS:
            raise ValueError(f"crop='{self.crop}'; expected one of {', '.join(CROPS)}.")

    def augment(self, example: Mapping[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        """For training: the cut and the mirror image are drawn."""
        down, across, mirror = generator.random(3)  # always three, so that no option changes another's draw
        places = (down, across) if self.crop == "random" else (0.5, 0.5)
        pixels = cover(example["data"], self.height, self.width, *places)
        return {**example, "data": unit_range(pixels[:, ::-1] if self.flip and mirror < 0.5 else pixels)}

    def fit(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """For evaluation: the middle, never mirrored."""
        return {**example, "data": unit_range(cover(example["data"], self.height, self.width))}


def unit_range(pixels: Picture) -> Picture:
    """uint8 pixels as float32 in [-1, 1]; float32 pixels as they are."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / 127.5 - 1
    return np.ascontiguousarray(pixels)

"""Pictures of any size to one square or oblong: covered and cut in the middle, or fitted in whole with white around."""

import dataclasses

import numpy as np
from jaxtyping import UInt8

from flowjax.data import crops

FITS = ("crop", "pad")
LUMA = np.float32([0.299, 0.587, 0.114])  # Rec. 601


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Pictures to arrays of one shape that they fill: a frame, as sources take it (another is canvas.Canvas).

    Attributes:
      shape: height, width, channels of the arrays.
      fit: 'crop' or 'pad', see `resize`.
    """

    shape: tuple[int, ...]
    fit: str

    def __post_init__(self):
        if self.fit not in FITS:
            raise ValueError(f"fit='{self.fit}'; expected one of {', '.join(FITS)}.")

    def __call__(self, pixels: UInt8[np.ndarray, "h w c"]) -> dict[str, np.ndarray]:
        """`data`, the picture as it is where it has the shape, resized or made grey otherwise."""
        return {"data": pixels if pixels.shape == self.shape else resize(pixels, self.shape, self.fit)}


def resize(pixels: UInt8[np.ndarray, "h w c"], shape: tuple[int, ...], fit: str = "crop") -> UInt8[np.ndarray, "a b d"]:
    """Scales a picture to [height, width, channels], keeping its proportions.

    Args:
      pixels: the picture, 1 or 3 channels.
      shape: the shape it shall have; 1 channel makes it grey by the luma weights of Rec. 601.
      fit: 'crop' covers the shape and cuts off what is over; 'pad' fits the whole picture in, on white.
    """
    if fit not in FITS:
        raise ValueError(f"fit='{fit}'; expected one of {', '.join(FITS)}.")
    height, width, channels = shape
    pixels = with_channels(pixels, channels)
    tall, wide = pixels.shape[:2]
    if (tall, wide) == (height, width):
        return pixels
    if fit == "crop":
        return crops.cover(pixels, height, width)
    scale = min(height / tall, width / wide)
    inner = (min(height, max(1, round(tall * scale))), min(width, max(1, round(wide * scale))))
    canvas = np.full(shape, 255, np.uint8)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    canvas[top : top + inner[0], left : left + inner[1]] = crops.resize(pixels, *inner)
    return canvas


def with_channels(pixels: UInt8[np.ndarray, "h w c"], channels: int) -> UInt8[np.ndarray, "h w d"]:
    """RGB as grey, or grey as RGB, or the picture as it is."""
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels[..., :1], 3, axis=-1)
    return np.rint(pixels[..., :3] @ LUMA).astype(np.uint8)[..., None]

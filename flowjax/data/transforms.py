"""Augmentations of a training batch on the host. Each is a function of the images and of a few uniforms for every row.

Digits may move by a pixel and may be dequantised; they may not be flipped, for a flipped digit is another sign.
"""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Transform:
    """`apply(images [b, ...], uniforms [b, columns]) -> images`: the uniforms are its only randomness.

    Of pictures on a canvas (canvas.py) it is given their `pixel_mask` [b, height, width] as a third argument.
    """

    columns: int
    apply: Callable[..., np.ndarray]


def shift(pixels: int) -> Transform:
    """Moves each image by up to `pixels` along both axes; what comes in at the border is -1, the background."""
    if pixels < 1:
        raise ValueError(f"shift={pixels} moves nothing. Use at least 1 pixel, or leave the option out.")

    def apply(images: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        height, width = images.shape[1:3]
        padded = np.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), constant_values=-1)
        moves = (uniforms * (2 * pixels + 1)).astype(int)  # [b, 2], each in 0..2 pixels
        rows = moves[:, :1] + np.arange(height)
        columns = moves[:, 1:] + np.arange(width)
        return padded[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]

    return Transform(2, apply)


def dequantise(levels: int, shape: tuple[int, ...]) -> Transform:
    """Adds uniform noise as wide as the gap between two of the `levels` values in [-1, 1]; rounding undoes it."""
    gap = 2 / (levels - 1)

    def apply(images: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        return (images + gap * (uniforms.reshape(images.shape) - 0.5)).astype(np.float32)

    return Transform(int(np.prod(shape)), apply)

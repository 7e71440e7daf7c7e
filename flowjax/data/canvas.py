r"""Pictures in their own proportions on one canvas, with a mask that says where they are (FiT, Lu et al. 2024).

Where buckets (buckets.py) have a program for each shape, a canvas has one for all: each picture lies in the top left
corner of an array of one shape, and a masked network leaves out the rest. A picture of a x b pixels is scaled by

    s = min(1, side / sqrt(a b), height / a, width / b)                                                (1)

(canvas height x width): to about the pixels of a square of `side`, never more and never enlarged, and it fits. Both sides
are rounded down to multiples of `multiple`, which cuts less than one multiple off. Only a picture that would have less
than one multiple is enlarged, until its shorter side is one; what then sticks out of the canvas is cut off.

So a transformer with patches p that divide `multiple` never sees more than (side / p)^2 of them: that is `max_tokens`.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt8

from flowjax.data import crops
from flowjax.data.resizing import Fitted, with_channels

LARGEST_RATIO = 2.0  # of the longer to the shorter side, for which a canvas has room unless told


@dataclasses.dataclass(frozen=True)
class Canvas:
    """Pictures to arrays of one shape, as equation (1) says; a frame like resizing.Fitted.

    Attributes:
      shape: height, width, channels of the arrays.
      side: of the square whose number of pixels no picture exceeds.
      multiple: what divides the sides of what is visible.
    """

    shape: tuple[int, int, int]
    side: int
    multiple: int

    def __post_init__(self):
        height, width, _ = self.shape
        for what, sides in (("size", (self.side,)), ("canvas", (height, width))):
            if self.multiple < 1 or any(length < 1 or length % self.multiple for length in sides):
                near = tuple(max(1, round(length / max(1, self.multiple))) * max(1, self.multiple) for length in sides)
                raise ValueError(
                    f"{what}={sides if len(sides) > 1 else sides[0]} with mask_multiple={self.multiple}; expected multiples of "
                    f"it, such as {near if len(near) > 1 else near[0]}."
                )
        if max(height, width) * self.multiple > self.side**2:
            raise ValueError(
                f"On a canvas of {height} x {width} a picture one multiple high or wide could have more pixels than the "
                f"square of size={self.side}. Use sides of at most {self.side**2 // self.multiple}."
            )

    def visible_size(self, tall: int, wide: int) -> tuple[int, int]:
        """Height and width on the canvas of a picture of so many pixels."""
        height, width, _ = self.shape
        scale = min(1.0, self.side / math.sqrt(tall * wide), height / tall, width / wide)
        scale = max(scale, self.multiple / min(tall, wide))
        whole = lambda length: int(length * scale / self.multiple + 1e-9) * self.multiple
        return min(height, whole(tall)), min(width, whole(wide))

    def __call__(self, pixels: UInt8[np.ndarray, "h w c"]) -> dict[str, np.ndarray]:
        """`data`, the canvas with the picture on it, and `extent`, the picture's height and width there."""
        height, width = self.visible_size(*pixels.shape[:2])
        data = np.zeros(self.shape, np.uint8)
        data[:height, :width] = crops.cover(with_channels(pixels, self.shape[2]), height, width)
        return {"data": data, "extent": np.int32([height, width])}


Frame = Fitted | Canvas  # picture -> `data` uint8, an array of `frame.shape`, and perhaps its `extent`


def corner_mask(extent: Int[np.ndarray, "n 2"], height: int, width: int) -> Bool[np.ndarray, "n {height} {width}"]:
    """True in the top left corners of so many rows and columns."""
    down, across = np.arange(height) < extent[:, :1], np.arange(width) < extent[:, 1:]
    return down[:, :, None] & across[:, None, :]


def make_frame(shape: tuple[int, ...], fit: str, mask_multiple: int = 0, canvas: Sequence[int] = ()) -> Frame:
    """What makes pictures of any size into arrays of one shape: all of one size, or each of its own on a canvas.

    Args:
      shape: height, width, channels that pictures are fitted to; for a canvas a square that they have the pixels of.
      fit: 'crop' or 'pad', see resizing.py.
      mask_multiple: what divides the sides of pictures on a canvas; 0 to fit them to `shape`.
      canvas: height and width of the canvas; by default one with room for proportions up to 2:1, both ways.
    """
    if not mask_multiple:
        if canvas:
            raise ValueError(f"canvas={tuple(canvas)} is for pictures with masks. Set mask_multiple, or leave it out.")
        return Fitted(tuple(shape), fit)
    side, other, channels = shape
    if fit != "crop" or side != other or len(canvas) not in (0, 2):
        raise ValueError(
            f"mask_multiple={mask_multiple} with fit='{fit}', size {side} x {other}, canvas={tuple(canvas)}: pictures on a "
            "canvas keep their proportions. Leave `fit` at 'crop', give `size`, and a canvas of (height, width) or none."
        )
    longest = max(side, int(side * math.sqrt(LARGEST_RATIO) / mask_multiple) * mask_multiple)
    return Canvas((*(tuple(canvas) or (longest, longest)), channels), side, mask_multiple)

r"""Where a token is: rotary positions of a grid of tokens, at the trained resolution and beyond it.

Rotary positions (Su et al. 2021) turn pairs of entries of queries and keys by angles that are linear in the position.
With R(p) the rotation at position p, the logit of a query at p and a key at q is

    (R(p) q)^T (R(q) k) = q^T R(q - p) k,                                                                   (1)

a function of the difference alone. On a grid (Heo et al. 2024; Lu et al. 2024, FiT) the first half of a head's d entries
turns with the row and the second with the column, each with the d / 4 frequencies

    f_i = theta^(-2 i / m),     m = d / 2,     i = 0 ... m / 2 - 1.                                         (2)

Beyond the trained length L, at s = length / L > 1, the slow waves reach angles that were never seen. The ways out, with
g_i the new frequencies (s = 1 where the image is no larger than in training, and then nothing changes):

    interpolation   g = f / s                                     all positions inside the trained range (Chen et al. 2023)
    ntk             g = (2) with theta s^(m / (m - 2))            the fastest wave keeps its speed, the slowest is f / s
    yarn            f where a wave turns more than 32 times in L, f / s where less than once, a ramp in i between;
                    queries and keys times 1 + 0.1 ln s           (Peng et al. 2023)
    ntk_by_parts    ntk, and from 0.75 to 1.25 turns over to f / s below; f above a ramp from 2 to 16 turns

`per_axis` takes s for rows and for columns (the "vision" variants of FiT), otherwise the larger serves both. With
`scale_logits` queries and keys grow by sqrt(ln N / ln N_trained), N the number of tokens, so that the softmax over more
tokens stays as sharp. The bounds of the ramps, rounded to whole i, are those of the published code.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.choices import choose
from flowjax.models.embeddings import coordinate_features

POSITIONS = {"fixed": "sines and cosines added to the tokens", "rope": "rotations of queries and keys"}
EXTRAPOLATIONS = ("none", "interpolation", "ntk", "ntk_by_parts", "yarn")


# Cosines and sines [1 or b, n, d / 2] that turn the pairs of entries of queries and keys.
Rotation = tuple[Float[Array, "_ n f"], Float[Array, "_ n f"]]


def rotate(x: Float[Array, "b n h d"], rotation: Rotation) -> Float[Array, "b n h d"]:
    """Turns the pairs (x_0, x_1), (x_2, x_3), ... of each head, in float32."""
    wide = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    cos, sin = (table[:, :, None] for table in rotation)
    first, second = wide[..., 0], wide[..., 1]
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def _ramp(size: int, theta: float, length: int, fast: float, slow: float) -> Float[np.ndarray, " f"]:
    """1 for waves that turn more than `fast` times in `length`, 0 for less than `slow` times, linear in i between."""
    index = lambda turns: size * math.log(length / (2 * math.pi * turns)) / (2 * math.log(theta))
    low, high = max(math.floor(index(fast)), 0), min(math.ceil(index(slow)), size - 1)
    high = high + 0.001 if high == low else high
    return 1.0 - np.clip((np.arange(size // 2) - low) / (high - low), 0.0, 1.0)


def frequencies(
    size: int, theta: float = 10000.0, extrapolation: str = "none", stretch: float = 1.0, trained_length: int = 1
) -> Float[np.ndarray, " f"]:
    """The size / 2 angular frequencies of one axis, (2) or its replacement at s = `stretch` > 1.

    Args:
      size: m, the entries of a head that turn with this axis.
      theta: the base.
      extrapolation: one of EXTRAPOLATIONS.
      stretch: s, the length over the trained length.
      trained_length: L.
    """
    exponents = 2 * np.arange(size // 2) / size
    plain = theta**-exponents
    if stretch <= 1 or extrapolation == "none":
        return plain
    interpolated = plain / stretch
    if extrapolation == "interpolation":
        return interpolated
    if extrapolation == "yarn":
        keep = _ramp(size, theta, trained_length, 32.0, 1.0)
        return keep * plain + (1 - keep) * interpolated
    ntk = (theta * stretch ** (size / (size - 2))) ** -exponents
    if extrapolation == "ntk":
        return ntk
    keep = _ramp(size, theta, trained_length, 1.25, 0.75)
    mixed = keep * ntk + (1 - keep) * interpolated
    keep = _ramp(size, theta, trained_length, 16.0, 2.0)
    return keep * plain + (1 - keep) * mixed


@dataclasses.dataclass(frozen=True)
class Positions:
    """How a transformer on a grid of tokens knows where they are.

    Attributes:
      kind: 'fixed' or 'rope'.
      trained: rows and columns of the grid it is or was trained on.
      theta: base of the rotary frequencies.
      extrapolation: what to do on larger grids, see the module; 'fixed' knows 'none' and 'interpolation'.
      per_axis: stretch rows and columns each by its own factor.
      scale_logits: sharpen attention on larger grids.
    """

    kind: str
    trained: tuple[int, ...]
    theta: float = 10000.0
    extrapolation: str = "none"
    per_axis: bool = True
    scale_logits: bool = False

    def __post_init__(self):
        choose("position", self.kind, POSITIONS)
        choose("extrapolation", self.extrapolation, dict.fromkeys(EXTRAPOLATIONS))
        if self.kind == "fixed" and self.extrapolation not in ("none", "interpolation"):
            raise ValueError(
                f"extrapolation '{self.extrapolation}' changes rotary frequencies, but position is 'fixed'. "
                "Set position='rope', or extrapolation to 'none' or 'interpolation'."
            )
        if self.kind == "fixed" and (self.scale_logits or self.theta != 10000.0):
            raise ValueError(
                "theta and scale_logits act on rotary positions, but position is 'fixed'. Set position='rope'."
            )
        if len(self.trained) != 2 or min(self.trained) < 1:
            raise ValueError(f"The trained grid is (rows, columns), both positive; it is {self.trained}.")

    def _stretches(self, rows: int, columns: int) -> tuple[float, float]:
        stretches = [max(1.0, now / before) for now, before in zip((rows, columns), self.trained)]
        return tuple(stretches) if self.per_axis else (max(stretches),) * 2

    def _cells(self, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
        return row.reshape(-1), column.reshape(-1)

    def features(self, rows: int, columns: int, size: int) -> Float[np.ndarray, "cells size"] | None:
        """What is added to the tokens of a grid, row by row; None for rotary positions."""
        if self.kind != "fixed":
            return None
        stretches = self._stretches(rows, columns) if self.extrapolation == "interpolation" else (1.0, 1.0)
        row, column = self._cells(rows, columns)
        return coordinate_features(row / stretches[0], column / stretches[1], size)

    def rotation(self, rows: int, columns: int, head_size: int) -> Rotation | None:
        """How queries and keys of a grid's tokens turn, row by row; None for fixed positions."""
        if self.kind != "rope":
            return None
        if head_size % 4 or head_size < 8:
            raise ValueError(
                f"Rotary positions need heads of 8, 12, 16, ... channels (pairs for rows and for columns), not {head_size}. "
                "Change the width or the number of heads."
            )
        stretches, cells = self._stretches(rows, columns), self._cells(rows, columns)
        angles = [
            cell[:, None] * frequencies(head_size // 2, self.theta, self.extrapolation, stretch, length)
            for cell, stretch, length in zip(cells, stretches, self.trained)
        ]
        angles, scale = np.concatenate(angles, axis=1), 1.0
        if self.extrapolation == "yarn":
            scale *= 1.0 + 0.1 * math.log(max(stretches))
        if self.scale_logits and rows * columns > math.prod(self.trained) > 1:
            scale *= math.sqrt(math.log(rows * columns) / math.log(math.prod(self.trained)))
        table = lambda wave: jnp.asarray(scale * wave(angles)[None], jnp.float32)
        return table(np.cos), table(np.sin)

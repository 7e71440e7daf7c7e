r"""Pictures made worse, by a known strength from 0, which leaves them as they are, to 1.

blur      Gaussian, of a standard deviation of strength / 20 of the shorter side
noise     normal, of a standard deviation of strength x 64 grey levels
blocks    the discrete cosine transform of blocks of 8 x 8 pixels, rounded to multiples of
          strength x 24 (1 + row + column), as JPEG coarsens what is fine; blocks at the edge are filled up by repetition
"""

import numpy as np
from jaxtyping import Float, UInt8
from scipy import fft, ndimage

SIDE = 8
BLUR, NOISE, STEP = 1 / 20, 64.0, 24.0

Images = UInt8[np.ndarray, "n h w c"]
Strengths = Float[np.ndarray, " n"]


def blur(images: Images, strength: Strengths, uniforms: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n h w c"]:
    """See the module header; the uniforms are not used."""
    scale = BLUR * min(images.shape[1:3])
    made = [ndimage.gaussian_filter(x, (s * scale, s * scale, 0)) for x, s in zip(images.astype(np.float64), strength)]
    return np.stack(made)


def noise(images: Images, strength: Strengths, uniforms: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n h w c"]:
    """See the module header; each uniform is the seed of one picture's noise."""
    seeds = (uniforms * 2**53).astype(np.uint64)
    drawn = np.stack([np.random.Generator(np.random.Philox(key=seed)).normal(size=images.shape[1:]) for seed in seeds])
    return images + NOISE * strength[:, None, None, None] * drawn


def blocks(images: Images, strength: Strengths, uniforms: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n h w c"]:
    """See the module header; the uniforms are not used."""
    n, height, width, channels = images.shape
    filled = np.pad(images, ((0, 0), (0, -height % SIDE), (0, -width % SIDE), (0, 0)), mode="edge").astype(np.float64)
    rows, columns = (side // SIDE for side in filled.shape[1:3])
    cells = filled.reshape(n, rows, SIDE, columns, SIDE, channels)
    place = np.arange(SIDE)
    step = STEP * (1 + place[:, None, None, None] + place[:, None]) * strength[:, None, None, None, None, None]
    coefficients = fft.dctn(cells, axes=(2, 4), norm="ortho")
    coarse = np.where(step > 0, np.round(coefficients / np.maximum(step, 1e-9)) * step, coefficients)
    made = fft.idctn(coarse, axes=(2, 4), norm="ortho").reshape(filled.shape)
    return made[:, :height, :width]


DEGRADATIONS = {"blur": blur, "noise": noise, "blocks": blocks}


def damage(images: Images, whole: Images) -> Float[np.ndarray, " n"]:
    """How far pictures are from what they were: the root mean square difference, in grey levels."""
    return np.sqrt(np.mean((images.astype(np.float64) - whole) ** 2, axis=(1, 2, 3)))


def degrade(
    images: Images, which: np.ndarray, strength: Strengths, uniforms: Float[np.ndarray, " n"]
) -> UInt8[np.ndarray, "n h w c"]:
    """Each picture by its own kind and strength.

    Args:
      images: RGB or grey.
      which: place of each picture's kind in DEGRADATIONS, int [n].
      strength: from 0 to 1.
      uniforms: one for each picture, for what is random.
    """
    made = images.astype(np.float64)
    for index, function in enumerate(DEGRADATIONS.values()):
        rows = np.flatnonzero(which == index)
        if len(rows):
            made[rows] = function(images[rows], strength[rows], uniforms[rows])
    return np.clip(np.rint(made), 0, 255).astype(np.uint8)

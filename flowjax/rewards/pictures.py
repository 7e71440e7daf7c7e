"""Rewards that look at pictures: how small a picture becomes.

    compressibility    -(bytes of the file) / (height * width)

Written as a JPEG, it was the first reward that diffusion models were tuned by (Black et al. 2023): no gradient, no network, and
one sees at a glance whether the tuning works. With weight=-1 pictures gain detail instead. Every file has a header of some
hundred bytes, which all pictures share.
"""

import io

import numpy as np
from jaxtyping import Float

from flowjax.contract import DataSpec
from flowjax.rewards.calls import RewardMistake
from flowjax.rewards.reward import Reward

FORMATS = {"jpeg": dict(quality=95), "png": dict()}


def compressibility(format: str = "jpeg", quality: int | None = None, data: DataSpec | None = None) -> Reward:
    """Minus the bytes of a picture's file per pixel, for pictures in [-1, 1]; NaN where one is not finite.

    Args:
      format: 'jpeg' or 'png'.
      quality: of JPEG, from 1 to 95; 95 unless told.
      data: what samples look like.
    """
    if format not in FORMATS:
        raise ValueError(f"The reward 'compressibility' has format='{format}'; expected {' or '.join(FORMATS)}.")
    if quality is not None and (format != "jpeg" or not 1 <= quality <= 95):
        raise ValueError(
            f"The reward 'compressibility' has format='{format}' and quality={quality}; expected a quality from 1 to 95, which "
            "JPEG alone has."
        )
    options = FORMATS[format] if quality is None else dict(quality=quality)
    if data is not None:
        check_pictures("compressibility", data, (1, 3))

    def score(samples, cond):
        if samples.ndim != 4 or samples.shape[-1] not in (1, 3):
            raise RewardMistake(f"has samples of shape {samples.shape}; expected [b, height, width, 1 or 3].")
        finite = np.isfinite(samples).all(axis=(1, 2, 3))
        worth = np.full(len(samples), np.nan)
        for place in np.flatnonzero(finite):
            worth[place] = -file_size(samples[place], format, options) / np.prod(samples.shape[1:3])
        return worth

    return Reward(score=score)


def file_size(picture: Float[np.ndarray, "h w c"], format: str, options: dict) -> int:
    """Bytes of a picture's file.

    Args:
      picture: in [-1, 1], of one channel or three.
      format: of the file.
      options: of that format.
    """
    from PIL import Image

    levels = np.round((np.clip(picture, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels).save(file, format, **options)
    return file.tell()


def check_pictures(reward: str, data: DataSpec, channels: tuple[int, ...]) -> None:
    """Refuses data that are no pictures which fill their arrays.

    Args:
      reward: its name, for the message.
      data: what samples look like.
      channels: how many a picture may have.
    """
    if len(data.shape) != 3 or data.shape[-1] not in channels or data.masked:
        raise ValueError(
            f"The reward '{reward}' reads pictures (height, width, {' or '.join(map(str, channels))} channels), and the data "
            f"have the shape {tuple(data.shape)}{', in part masked' if data.masked else ''}. Leave it out, or use such data."
        )

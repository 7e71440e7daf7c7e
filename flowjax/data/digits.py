"""The 1,797 handwritten digits of scikit-learn: real images that need no download, and train in seconds."""

import functools

import numpy as np

from flowjax.contract import DataSpec
from flowjax.data import draws, transforms
from flowjax.data.sources import ArraySource

LEVELS = 17  # the raw values are 0..16


@functools.cache
def _raw() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # a second to import

    values, labels = load_digits(return_X_y=True)
    images = (values.reshape(-1, 8, 8, 1) / 8 - 1).astype(np.float32)
    return images, labels.astype(np.int32)


def digits(
    test_share: float = 0.2,
    split_seed: int = 0,
    train_on: str = "train",
    labels: bool = True,
    shift: int = 0,
    dequantise: bool = False,
) -> ArraySource:
    """Digits, 8 x 8 x 1 in [-1, 1] (17 levels), ten classes; the split takes the same share of every class.

    Args:
      test_share: the share of each class that is held out.
      split_seed: which examples those are.
      train_on: 'train', or 'all' to train on the test images too (then no figure is a held-out one).
      labels: whether batches carry `label`.
      shift: augmentation, move training images by up to so many pixels; 0 for none.
      dequantise: augmentation, add uniform noise as wide as a grey level to training images.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share={test_share}; it must lie between 0 and 1, both excluded.")
    if train_on not in ("train", "all"):
        raise ValueError(f"train_on='{train_on}'; expected 'train' or 'all'.")
    images, classes = _raw()
    held_out = np.zeros(len(images), bool)
    for label in range(10):
        members = draws.generator(split_seed, draws.SPLIT, label).permutation(np.flatnonzero(classes == label))
        held_out[members[: round(test_share * len(members))]] = True
    arrays = {"data": images, "label": classes} if labels else {"data": images}
    train = arrays if train_on == "all" else {name: value[~held_out] for name, value in arrays.items()}
    test = {name: value[held_out] for name, value in arrays.items()}
    augmentations = (
        *((transforms.shift(shift),) if shift else ()),
        *((transforms.dequantise(LEVELS, (8, 8, 1)),) if dequantise else ()),
    )
    spec = DataSpec((8, 8, 1), 10 if labels else None, float(train["data"].std()))
    return ArraySource(train, test, spec, LEVELS, augmentations)

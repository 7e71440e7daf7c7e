"""How far apart two arrays are."""

import numpy as np


def apart(ours, theirs, relative: bool = False) -> float:
    """The largest absolute difference of two arrays, or that over the largest magnitude of the reference."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs).max(initial=0.0)
    return float(difference / np.abs(theirs).max() if relative else difference)

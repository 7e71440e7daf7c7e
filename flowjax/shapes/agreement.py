"""Which scenes agree with others in everything: how a parser is held to the scenes behind its pictures."""

import numpy as np
from jaxtyping import Bool

from flowjax.shapes.scenes import Scene

ATTRIBUTES = ("kind", "colour", "size", "texture")


def agree(truth: Scene, found: Scene, away: float = 0.03) -> Bool[np.ndarray, " n"]:
    """Scenes that are equal in background, word and number of objects, and object by object in every attribute.

    Args:
      truth: what was drawn.
      found: what was read.
      away: how far apart the places of an object and its partner, the nearest one, may be; the frame has side 1.
    """
    right = (truth.count == found.count) & (truth.background == found.background) & (truth.word == found.word)
    for row in np.flatnonzero(right):
        count = truth.count[row]
        distance = np.abs(truth.centre[row, :count, None] - found.centre[row, None, :count]).max(-1)
        partner = distance.argmin(1)
        right[row] = (distance.min(1) < away).all() and len(set(partner)) == count
        for name in ATTRIBUTES:
            right[row] &= (getattr(truth, name)[row, :count] == getattr(found, name)[row, partner]).all()
    return right

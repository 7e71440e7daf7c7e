r"""Comparisons of points x ~ N(0, I) with a known score, where a learnt score can be held against the true one.

linear       r(x) = a . x                                                                                      (1)
quadratic    r(x) = -(c / 2) |x - o|^2                                                                         (2)
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from flowjax.choices import Spec, build
from flowjax.contract import DataSpec
from flowjax.data import draws
from flowjax.data.judgements import JudgedSource, Judgement

Score = Callable[[Float[np.ndarray, "*n d"]], Float[np.ndarray, "*n"]]


def linear(direction: tuple = (1.0, 0.0)) -> tuple[Score, int]:
    """Equation (1), and the number of coordinates.

    Args:
      direction: a, one number for each coordinate.
    """
    a = np.asarray(direction, np.float64)
    return lambda points: points @ a, len(a)


def quadratic(centre: tuple = (0.0, 0.0), curvature: float = 1.0) -> tuple[Score, int]:
    """Equation (2), and the number of coordinates.

    Args:
      centre: o, one number for each coordinate.
      curvature: c.
    """
    o = np.asarray(centre, np.float64)
    return lambda points: -0.5 * curvature * ((points - o) ** 2).sum(axis=-1), len(o)


SCORES: dict[str, Callable[..., tuple[Score, int]]] = {"linear": linear, "quadratic": quadratic}


def compared_points(
    score: Spec | None = None, examples: int = 2, temperature: float = 1.0, theta: float = 1.0
) -> JudgedSource:
    """Normal points, compared or ranked by a known score.

    Args:
      score: spec of SCORES; linear unless told.
      examples: of a comparison; rankings from three on.
      temperature: what scores are divided by when comparisons come out.
      theta: above 1 for pairs that may end in a tie (losses/comparisons.py).
    """
    worth, size = build("score", score or dict(name="linear"), SCORES)
    pairs = -(-examples * size // 2)

    def draw(uniforms, split):
        normals = draws.normal_pairs(uniforms[:, :pairs].reshape(-1), uniforms[:, pairs:].reshape(-1))
        points = normals.reshape(len(uniforms), -1)[:, : examples * size].reshape(-1, examples, size)
        return points.astype(np.float32), worth(points), {}

    return JudgedSource(draw, 2 * pairs, Judgement(temperature, theta), DataSpec((size,), compared=examples))

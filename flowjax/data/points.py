r"""Distributions in the plane: the mixture of modes on a ring (with its closed form), moons, checkerboard, spirals.

Every point is a function of four uniforms (flowjax/data/draws.py). All are centred, and about as wide as the noise.
Labels are the mode, the moon, the cell and the arm; batches carry them with `labels=True`.
"""

import numpy as np

from flowjax.contract import DataSpec
from flowjax.data import draws
from flowjax.data.sources import PointSource
from flowjax.paths.oracles import ring, ring_modes


def _source(draw, num_classes: int, labels: bool, oracle=None, weights=()) -> PointSource:
    """Measures the standard deviation of a coordinate on 2^16 points of a fixed seed."""
    points, _ = draw(draws.row_uniforms(0, draws.MEASURE, 0, 0, 2**16))
    std = float(np.sqrt(points.var(axis=0).mean()))
    weights = tuple(map(float, weights)) if labels else ()
    return PointSource(draw, DataSpec((2,), num_classes if labels else None, std, class_weights=weights), oracle)


def mixture(
    modes: int = 8, radius: float = 2.0, std: float = 0.15, weights: str = "even", labels: bool = False
) -> PointSource:
    """`modes` Gaussians N(m_k, std^2 I) on a ring; `weights` is 'even', or 'uneven' with w_k proportional to k + 1."""
    shares, means = ring_modes(modes, radius, weights)
    edges = np.cumsum(shares)[:-1]

    def draw(u):
        mode = np.searchsorted(edges, u[:, 0], side="right")
        return means[mode] + std * draws.normal_pairs(u[:, 1], u[:, 2]), mode

    return _source(draw, modes, labels, ring(modes, radius, std, weights), () if weights == "even" else shares)


def moons(noise: float = 0.1, labels: bool = False) -> PointSource:
    """Two half circles of radius 1 that reach into one another, with Gaussian noise, centred and scaled by 1.5."""

    def draw(u):
        moon = (u[:, 0] < 0.5).astype(int)
        sign, angle = 1 - 2 * moon, np.pi * u[:, 1]
        # The upper arc is (cos, sin); the lower is it turned by pi about (1/2, 1/4). Their common centre is moved to 0.
        points = np.stack([sign * (np.cos(angle) - 0.5), sign * (np.sin(angle) - 0.25)], axis=1)
        return 1.5 * (points + noise * draws.normal_pairs(u[:, 2], u[:, 3])), moon

    return _source(draw, 2, labels)


def checkerboard(labels: bool = False) -> PointSource:
    """Uniform on the eight dark cells of a four by four board over [-2, 2]^2."""

    def draw(u):
        cell = (u[:, 0] * 8).astype(int)
        row, column = cell // 2, 2 * (cell % 2) + cell // 2 % 2
        return np.stack([column + u[:, 1] - 2, row + u[:, 2] - 2], axis=1), cell

    return _source(draw, 8, labels)


def spirals(arms: int = 2, turns: float = 1.5, noise: float = 0.05, labels: bool = False) -> PointSource:
    """`arms` Archimedean spirals of outer radius 2; the root of the uniform spreads points evenly along an arm."""

    def draw(u):
        arm = (u[:, 0] * arms).astype(int)
        way = np.sqrt(u[:, 1])
        angle = 2 * np.pi * (turns * way + arm / arms)
        points = 2 * way[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return points + noise * draws.normal_pairs(u[:, 2], u[:, 3]), arm

    return _source(draw, arms, labels)

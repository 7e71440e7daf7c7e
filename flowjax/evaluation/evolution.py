r"""An evolutionary search over linear combinations: coefficients of any sign whose sum is one.

    theta(c) = sum_i c_i theta_i,   sum_i c_i = 1,   c = argmin judge(c)

The judge is a measured value, so there is no gradient. A child is the best of the population, half the time blended with
another one, and moved by a Gaussian within the plane sum = 0; it takes the place of the worst if it is better. The Gaussian
grows when a child is the new best and shrinks when not, so that one in five is (Rechenberg's rule). Liu et al. 2024 (LCSC,
arXiv:2404.02241) search combinations of a run's checkpoints so; an average of any kind is one of them.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Coefficients = Float[np.ndarray, " n"]
GROWTH = 1.5  # of the Gaussian after a success; a failure takes a quarter of it back


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search ended with.

    Attributes:
      coefficients: the best.
      value: of the judge.
      start: the best value among those that the search began with.
    """

    coefficients: Coefficients
    value: float
    start: float


def averages(count: int) -> Float[np.ndarray, "m n"]:
    """Where a search begins: the last of `count` alone, and the means of the last 2, 4, 8, ... and all of them."""
    lengths = sorted({1, count, *(2**power for power in range(count.bit_length()) if 2**power <= count)})
    return np.stack([(np.arange(count) >= count - length) / length for length in lengths])


def evolve(
    judge: Callable[[Coefficients], float],
    starts: Float[np.ndarray, "m n"],
    trials: int,
    seed: int = 0,
    population: int = 12,
    width: float = 0.1,
) -> Found:
    """The best coefficients after so many trials.

    Args:
      judge: coefficients -> a value, lower is better. It must be a function: the same draws for every candidate. A value that
        is no number is worse than any other.
      starts: coefficients to begin with, one row each.
      trials: how many children are judged.
      seed: of the search.
      population: how many are kept.
      width: the first standard deviation of the Gaussian, for each coefficient.
    """
    if trials < 0 or population < 2 or width <= 0:
        raise ValueError(
            f"evolve: trials={trials}, population={population}, width={width}; expected none or more, two or more, and a "
            "positive number."
        )
    starts = np.asarray(starts, np.float64)
    if not np.allclose(starts.sum(axis=1), 1.0):
        raise ValueError(f"evolve: the coefficients of a start add up to {starts.sum(axis=1)}; expected 1.")
    random, size = np.random.default_rng(seed), starts.shape[1]

    def value_of(candidate: Coefficients) -> float:
        value = float(judge(candidate))
        return value if value == value else float("inf")

    kept = sorted((value_of(start), tuple(start)) for start in starts)[:population]
    first = kept[0][0]
    for _ in range(trials if size > 1 else 0):
        best, other = np.array(kept[0][1]), np.array(kept[random.integers(len(kept))][1])
        blend, move = random.uniform() * random.integers(2), random.normal(size=size)
        child = best + blend * (other - best) + width * (move - move.mean())
        value = value_of(child)
        success = value < kept[0][0]
        width *= GROWTH if success else GROWTH**-0.25
        kept = sorted([*kept, (value, tuple(child))])[:population]
    return Found(np.array(kept[0][1]), kept[0][0], first)

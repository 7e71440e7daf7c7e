"""Comparisons that a model makes of its own samples: the best and the worst of a group, or all in twos as people choose."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from flowjax.contract import Collect, Sampler
from flowjax.methods import groups

# The rows of the first and of the second of each pair, and 1 where the first is better, -1 where the second is, 0 for neither;
# an expected outcome is between.
Outcome = Int[np.ndarray, " m"] | Float[np.ndarray, " m"]
Rows = tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"], Outcome]


def own_pairs(
    grouped: groups.Groups,
    policy: Sampler,
    updates: int,
    temperature: float | None = None,
    expected: bool = False,
    seed: int = 0,
) -> Collect:
    """Comparisons of a model's own samples.

    Args:
      grouped: samples in groups, judged.
      policy: what draws them.
      updates: how many learn from one rollout.
      temperature: of comparisons in twos; None for the best and the worst of each group.
      expected: their outcome is the mean of what could be drawn.
      seed: of the run, for outcomes that are drawn.
    """
    if temperature is not None and (temperature <= 0 or grouped.group_size % 2):
        raise ValueError(
            f"method.temperature={temperature} and group_size={grouped.group_size}: expected a temperature above 0, and an "
            "even number of samples, which are compared in twos."
        )

    def compare(worth: Float[np.ndarray, " n"], step: int) -> Rows:
        if temperature is None:
            return extremes(worth, grouped.group_size)
        draw = None if expected else np.random.default_rng((seed, step))
        return comparisons(worth, temperature, draw)

    def batches(arrays: Mapping[str, np.ndarray], values: groups.Values, step: int) -> list[dict[str, np.ndarray]]:
        worth = grouped.worth(values)
        first, second, outcome = compare(worth, step)
        compared = {name: array[first] for name, array in arrays.items()}
        told = ~np.isnan(worth[first] - worth[second]) if expected else np.abs(outcome)
        compared |= {"others": arrays["data"][second][:, None], "outcome": outcome, "mask": told.astype(np.float32)}
        return groups.split_rows(compared, np.split(np.arange(len(first)), updates))

    return grouped.collect(grouped.rollout(policy), batches, updates, policy.brings)


def comparisons(worth: Float[np.ndarray, " n"], temperature: float, draw: np.random.Generator | None) -> Rows:
    """Samples in twos, and who wins by the law of Bradley and Terry; 0 where one is not known.

    Args:
      worth: of samples; NaN where it is not known.
      temperature: the difference in worth that is told with the odds of e to one.
      draw: of the outcomes; None for their mean, tanh((worth of the first - of the second) / (2 temperature)).
    """
    first, second = np.arange(0, len(worth), 2), np.arange(1, len(worth), 2)
    ahead = (worth[first] - worth[second]) / temperature
    known = ~np.isnan(ahead)
    mean = np.tanh(0.5 * np.where(known, ahead, 0.0))
    if draw is None:
        return first, second, mean.astype(np.float32)
    wins = draw.random(len(first)) < 0.5 * (1.0 + mean)
    return first, second, np.where(known, np.where(wins, 1, -1), 0).astype(np.int32)


def extremes(worth: Float[np.ndarray, " n"], group_size: int) -> Rows:
    """The best and the worst sample of each group; 0 where nothing is told.

    Args:
      worth: of samples, group by group; NaN where it is not known.
      group_size: of each group.
    """
    high, low, told = groups.bounds(worth, group_size)
    first = np.arange(len(high)) * group_size
    return first + high.argmax(axis=1), first + low.argmin(axis=1), told.astype(np.int32)

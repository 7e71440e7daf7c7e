r"""Rewards that are written down: those whose optimum is known in closed form, and a quick look at pictures.

    linear       a . x                                                                                             (1)
    quadratic    -(c / 2) |x - o|^2                                                                                (2)
    brightness   the mean of a picture's values

For (1) and (2) the best distribution at a given divergence from a Gaussian mixture is a Gaussian mixture again
(paths/closed_forms.py): where a method of preference tuning ends can be held against where it should.
"""

import jax.numpy as jnp

from flowjax.arrays import mean_per_example, sum_per_example
from flowjax.rewards.reward import Reward


def linear(direction: tuple = (1.0, 0.0)) -> Reward:
    """Equation (1).

    Args:
      direction: a, one number for each coordinate of an example.
    """
    a = jnp.asarray(direction, jnp.float32)

    def value(params, samples, cond):
        if samples.shape[1:] != a.shape:
            raise ValueError(
                f"The reward 'linear' has a direction of shape {a.shape}, and an example has {samples.shape[1:]}. Give one "
                "number for each coordinate."
            )
        return sum_per_example(samples * a)

    return Reward(value)


def quadratic(centre: float | tuple = 0.0, curvature: float = 1.0) -> Reward:
    """Equation (2).

    Args:
      centre: o, one number or one for each coordinate.
      curvature: c, above zero.
    """
    if curvature <= 0:
        raise ValueError(f"The reward 'quadratic' has curvature={curvature}; expected a positive number.")
    o = jnp.asarray(centre, jnp.float32)
    return Reward(lambda params, samples, cond: -0.5 * curvature * sum_per_example((samples - o) ** 2))


def brightness() -> Reward:
    """The mean of all values: a reward that is easy to please, for a first look."""
    return Reward(lambda params, samples, cond: mean_per_example(samples))

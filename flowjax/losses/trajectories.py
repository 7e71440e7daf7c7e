r"""Pairs that a flow connects, and distances between where a student lands and where trajectories lead.

A student is regressed on such an end point y by a distance of its own x, one value for each example of D elements:

    squared        mean (x - y)^2                                                                                  (1)
    pseudo-Huber   (sqrt(|x - y|^2 + c^2) - c) / D,         c = width * sqrt(D)                                    (2)

Both are averages over elements. For |x - y| << c (2) is |x - y|^2 / (2 c D), for |x - y| >> c it is |x - y| / D: outliers
pull no harder than others (Song & Dhariwal 2023, width 0.00054).
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowjax.arrays import expand_to, mean_per_example, sum_per_example
from flowjax.paths.flow_maps import pair_through
from flowjax.paths.path import GaussianPath

Step = Callable[
    [Float[Array, "b ..."], Float[Array, " b"], Float[Array, " b"]], Float[Array, "b ..."]
]  # (x, t, s) -> the point at s


def matched_pair(
    path: GaussianPath,
    onward: Step,
    noise: Float[Array, "b ..."],
    data: Float[Array, "b ..."],
    backwards: Bool[Array, " b"],
    last: float | None = None,
) -> tuple[Float[Array, "b ..."], Float[Array, "b ..."]]:
    """The pairs (noise, data) that a flow connects, from noise forwards or, where `backwards`, from data.

    A prediction that fixes no velocity at the clean end cannot leave it. Its way back begins shortly before, at the mean of the
    points that come from the data there, which is alpha times them.

    Args:
      path: the path from whose one end to the other the flow leads.
      onward: (x, t, s) -> the point at s.
      noise: where it begins with noise.
      data: where it begins with data.
      backwards: which examples begin with data.
      last: where their way begins, the path's end unless told; samplers.field.last_time knows it for a prediction.
    """
    first, end = jnp.full(len(data), path.start), jnp.full(len(data), path.end)
    last = end if last is None else jnp.full(len(data), last)
    t, s = jnp.where(backwards, last, first), jnp.where(backwards, first, end)
    from_data = expand_to(backwards, data)
    x = jnp.where(from_data, path.alpha(last[0]) * data, path.sigma(first[0]) * noise)
    began, sample = pair_through(path, x, t, onward(x, t, s), s)
    return began, jnp.where(from_data, data, sample)


def squared_distance(x: Float[Array, "b ..."], y: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Equation (1)."""
    return mean_per_example((x - y) ** 2)


def pseudo_huber(x: Float[Array, "b ..."], y: Float[Array, "b ..."], width: float = 0.00054) -> Float[Array, " b"]:
    """Equation (2), without cancellation where x is near y; `width` is in units of one element's error."""
    size = x.size // len(x)
    c = width * math.sqrt(size)
    squared = sum_per_example((x - y) ** 2)
    return squared / ((jnp.sqrt(squared + c**2) + c) * size)

r"""Trajectories of a frozen field inside a loss, and distances between where a student lands and where they lead.

`solve` follows dx/dt = v(x, t) from times t to times s, each example from its own time to its own, forwards or backwards.
With h = (s - t) / n and n equal steps:

| solver   | step                                                              | evaluations | error  |
| euler    | x + h v(x, t)                                                     | 1           | h      |
| midpoint | x + h v(x + h/2 v, t + h/2)                                       | 2           | h^2    |
| heun     | x + h/2 [v(x, t) + v(x + h v, t + h)]                             | 2           | h^2    |
| rk4      | x + h/6 (k1 + 2 k2 + 2 k3 + k4)                                   | 4           | h^4    |

Heun and RK4 evaluate at s; Euler and the midpoint rule never do, so they serve fields that are not determined there.

A student is regressed on such an end point y by a distance of its own x, one value for each example of D elements:

    squared        mean (x - y)^2                                                                                  (1)
    pseudo-Huber   (sqrt(|x - y|^2 + c^2) - c) / D,         c = width * sqrt(D)                                    (2)

Both are averages over elements. For |x - y| << c (2) is |x - y|^2 / (2 c D), for |x - y| >> c it is |x - y| / D: outliers
pull no harder than others (Song & Dhariwal 2023, width 0.00054).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowjax.arrays import batch_times, expand_to, mean_per_example, sum_per_example
from flowjax.choices import choose
from flowjax.paths.flow_maps import pair_through
from flowjax.paths.path import GaussianPath

Velocity = Callable[[Float[Array, "b ..."], Float[Array, " b"]], Float[Array, "b ..."]]  # (x, t[b]) -> dx/dt
Time = Float[Array, "..."] | float
Step = Callable[
    [Float[Array, "b ..."], Float[Array, " b"], Float[Array, " b"]], Float[Array, "b ..."]
]  # (x, t, s) -> the point at s


def _euler(velocity, x, t, t_next):
    return x + expand_to(t_next - t, x) * velocity(x, t)


def _midpoint(velocity, x, t, t_next):
    half = expand_to(0.5 * (t_next - t), x)
    return x + 2.0 * half * velocity(x + half * velocity(x, t), 0.5 * (t + t_next))


def _heun(velocity, x, t, t_next):
    h = expand_to(t_next - t, x)
    first = velocity(x, t)
    return x + 0.5 * h * (first + velocity(x + h * first, t_next))


def _rk4(velocity, x, t, t_next):
    h, middle = expand_to(t_next - t, x), 0.5 * (t + t_next)
    k1 = velocity(x, t)
    k2 = velocity(x + 0.5 * h * k1, middle)
    k3 = velocity(x + 0.5 * h * k2, middle)
    k4 = velocity(x + h * k3, t_next)
    return x + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)


SOLVERS = {"euler": _euler, "midpoint": _midpoint, "heun": _heun, "rk4": _rk4}
REACH_THE_END = ("heun", "rk4")  # evaluate the field at s


def solve(
    velocity: Velocity, x: Float[Array, "b ..."], t: Time, s: Time, steps: int, solver: str = "midpoint"
) -> Float[Array, "b ..."]:
    """The points that trajectories through x at the times t reach at the times s.

    Args:
      velocity: (x, t[b]) -> dx/dt.
      x: the points.
      t: one time, or one for each example.
      s: likewise; before or after t. Where s = t the point stays.
      steps: of equal length, for each example in its own stretch of time.
      solver: one of SOLVERS.
    """
    if steps < 1:
        raise ValueError(f"solve: steps is {steps}; expected at least 1.")
    step = choose("solver", solver, SOLVERS)
    t, s = batch_times(t, x), batch_times(s, x)

    def advance(x, index):
        # Mixed this way both ends are met to the last bit.
        at = lambda place: (1.0 - place) * t + place * s
        return step(velocity, x, at(index / steps), at((index + 1) / steps)), None

    return jax.lax.scan(advance, x, jnp.arange(steps, dtype=t.dtype))[0]


def matched_pair(
    path: GaussianPath,
    onward: Step,
    noise: Float[Array, "b ..."],
    data: Float[Array, "b ..."],
    backwards: Bool[Array, " b"],
) -> tuple[Float[Array, "b ..."], Float[Array, "b ..."]]:
    """The pairs (noise, data) that a flow connects, from noise forwards or, where `backwards`, from data.

    Args:
      path: the path from whose one end to the other the flow leads.
      onward: (x, t, s) -> the point at s.
      noise: where it begins with noise.
      data: where it begins with data.
      backwards: which examples begin with data.
    """
    first, last = jnp.full(len(data), path.start), jnp.full(len(data), path.end)
    begin, end = jnp.where(backwards, last, first), jnp.where(backwards, first, last)
    x = jnp.where(expand_to(backwards, data), data, path.sigma(first[0]) * noise)
    return pair_through(path, x, begin, onward(x, begin, end), end)


def squared_distance(x: Float[Array, "b ..."], y: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Equation (1)."""
    return mean_per_example((x - y) ** 2)


def pseudo_huber(x: Float[Array, "b ..."], y: Float[Array, "b ..."], width: float = 0.00054) -> Float[Array, " b"]:
    """Equation (2), without cancellation where x is near y; `width` is in units of one element's error."""
    size = x.size // len(x)
    c = width * math.sqrt(size)
    squared = sum_per_example((x - y) ** 2)
    return squared / ((jnp.sqrt(squared + c**2) + c) * size)

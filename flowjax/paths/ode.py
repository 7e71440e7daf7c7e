r"""Explicit solvers of dx/dt = v(x, t): one step, and many.

With h = t_next - t, for one time of the whole batch or for one of each example, forwards or backwards:

| solver   | step                                                              | evaluations | order |
| euler    | x + h v(x, t)                                                     | 1           | 1     |
| midpoint | x + h v(x + h/2 v, t + h/2)                                       | 2           | 2     |
| heun     | x + h/2 [v(x, t) + v(x + h v, t_next)]                            | 2           | 2     |
| rk4      | x + h/6 (k1 + 2 k2 + 2 k3 + k4)                                   | 4           | 4     |

Heun and RK4 evaluate at t_next; Euler and the midpoint rule never do, so they serve fields that are not determined there.
Samplers make these steps one at a time (samplers/steppers.py); losses follow a frozen field with `solve`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.arrays import batch_times, expand_to
from flowjax.choices import choose

Time = Float[Array, "..."] | float
Velocity = Callable[[Float[Array, "b ..."], Float[Array, "..."]], Float[Array, "b ..."]]  # (x, t) -> dx/dt


def euler(velocity: Velocity, x: Float[Array, "b ..."], t: Time, t_next: Time) -> Float[Array, "b ..."]:
    """x + h v: order 1."""
    return x + expand_to(t_next - t, x) * velocity(x, t)


def midpoint(velocity: Velocity, x: Float[Array, "b ..."], t: Time, t_next: Time) -> Float[Array, "b ..."]:
    """The explicit midpoint rule: order 2, never evaluates at t_next."""
    half = expand_to(0.5 * (t_next - t), x)
    return x + 2.0 * half * velocity(x + half * velocity(x, t), 0.5 * (t + t_next))


def heun(velocity: Velocity, x: Float[Array, "b ..."], t: Time, t_next: Time) -> Float[Array, "b ..."]:
    """The explicit trapezoidal rule: order 2."""
    h = expand_to(t_next - t, x)
    first = velocity(x, t)
    return x + 0.5 * h * (first + velocity(x + h * first, t_next))


def rk4(velocity: Velocity, x: Float[Array, "b ..."], t: Time, t_next: Time) -> Float[Array, "b ..."]:
    """The classical Runge-Kutta method: order 4."""
    h, middle = expand_to(t_next - t, x), 0.5 * (t + t_next)
    k1 = velocity(x, t)
    k2 = velocity(x + 0.5 * h * k1, middle)
    k3 = velocity(x + 0.5 * h * k2, middle)
    k4 = velocity(x + h * k3, t_next)
    return x + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)


SOLVERS = {"euler": euler, "midpoint": midpoint, "heun": heun, "rk4": rk4}
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

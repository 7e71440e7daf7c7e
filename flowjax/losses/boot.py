r"""Bootstrapping along the teacher's trajectory, without data (BOOT, Gu et al. 2023, for any path).

A student of two times is asked for jumps from the noise end t_0 of the path alone, X_{t_0->s}(x0). A point it reaches is where
the teacher goes on from: with t < s and Phi the teacher's step from t to s,

    y = Phi_{t->s}(X_{t_0->t}(x0)),        X_{t_0->s}(x0; p*) = y,        loss = |p(x0, t_0, s) - stop_gradient(p*)|^2. (1)

On the linear path with velocities p(x0, 0, s) is the average velocity up to s, and an Euler step gives

    p* = p(x0, 0, t) + (s - t) / s (v(x_t, t) - p(x0, 0, t)),        x_t = x0 + t p(x0, 0, t).                      (2)

At s = t_0 nothing has been travelled and the student is the teacher's field, the boundary from which all of this starts:

    loss = |p(x0, t_0, t_0) - p_teacher(x0, t_0)|^2.                                                                (3)
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.arrays import mean_per_example
from flowjax.losses.flow_maps import Jumper
from flowjax.losses.trajectories import Step
from flowjax.paths.flow_maps import flow_jump, jump_target
from flowjax.paths.path import GaussianPath

Points = Float[Array, "b ..."]
Times = Float[Array, " b"]


def boot_target(
    predict: Jumper, path: GaussianPath, prediction: str, x: Points, t: Times, s: Times, onward: Step
) -> Points:
    """p* of equation (1), without gradient.

    Args:
      predict: (x, t, s) -> the student's prediction of a jump.
      path: the path.
      prediction: what `predict` returns.
      x: points at the noise end of the path.
      t: where the student is left; where it is the noise end itself, the teacher goes all the way.
      s: where the teacher arrives, after t.
      onward: (x, t, s) -> the teacher's step.
    """
    start = jnp.full_like(t, path.start)
    reached = flow_jump(path, prediction, predict(x, start, t), x, start, t)
    return jax.lax.stop_gradient(jump_target(path, prediction, x, start, onward(reached, t, s), s))


def boot_loss(
    predict: Jumper, path: GaussianPath, prediction: str, x: Points, t: Times, s: Times, onward: Step
) -> Float[Array, " b"]:
    """Equation (1), per element."""
    target = boot_target(predict, path, prediction, x, t, s, onward)
    start = jnp.full_like(t, path.start)
    return mean_per_example((predict(x, start, s) - target) ** 2)


def boundary_loss(predict: Jumper, path: GaussianPath, x: Points, field: Points) -> Float[Array, " b"]:
    """Equation (3), per element; `field` is the teacher's prediction of the student's kind at the noise end."""
    start = jnp.full(x.shape[:1], path.start)
    return mean_per_example((predict(x, start, start) - jax.lax.stop_gradient(field)) ** 2)

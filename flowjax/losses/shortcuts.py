r"""Shortcut models: one long jump is two short ones.

For an exact flow map, with m halfway between t and s,

    X_{t->s}(x) = X_{m->s}(X_{t->m}(x)),                                                                           (1)

which on the linear path says that an average velocity is the average of two,

    U(x, t, t + 2d) = (U(x, t, t + d) + U(x', t + d, t + 2d)) / 2,      x' = x + d U(x, t, t + d)                  (2)

(Frans et al. 2024). A student that knows the jumps of one length learns those of twice the length from itself. The smallest
jumps are Euler steps of the field, which the same network learns at s = t by flow matching.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.paths.flow_maps import flow_jump, jump_target
from flowjax.paths.path import GaussianPath

Points = Float[Array, "b ..."]
Jumper = Callable[[Points, Float[Array, " b"], Float[Array, " b"]], Points]  # (x, t, s) -> prediction


def two_jumps(
    predict: Jumper,
    path: GaussianPath,
    prediction: str,
    x: Points,
    t: Float[Array, " b"],
    s: Float[Array, " b"],
    smallest: float,
) -> Points:
    """The prediction whose jump from t to s lands where two jumps of half the length do, without gradient.

    Args:
      predict: (x, t, s) -> the prediction of a jump; of the field where s = t.
      path: the path on which x lies.
      prediction: what `predict` returns.
      x: points at the times t.
      t: where jumps begin.
      s: where they end, after t.
      smallest: the halves of this length or less are steps of the field.
    """
    half = 0.5 * (s - t)
    middle = t + half
    told = lambda now, to: jnp.where(half <= smallest * (1 + 1e-3), now, to)  # where the network is told it goes
    between = flow_jump(path, prediction, predict(x, t, told(t, middle)), x, t, middle)
    landed = flow_jump(path, prediction, predict(between, middle, told(middle, s)), between, middle, s)
    return jax.lax.stop_gradient(jump_target(path, prediction, x, t, landed, s))

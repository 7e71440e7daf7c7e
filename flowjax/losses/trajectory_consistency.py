r"""Consistency trajectory models: jumps between any two times of a trajectory, compared at its clean end.

G(x, t, s) = X_{t->s} of a network of two times (paths/flow_maps.py), T the end of the path, t <= u <= s, and y the point at u
that a teacher's solver reaches from x at t. Soft consistency (Kim et al. 2024):

    d( G'(G(x, t, s), s, T),  stop_gradient G'(G(y, u, s), s, T) ),                                                (1)

with G' a slowly following copy whose parameters have no gradient, but through which the gradient flows to G(x, t, s): errors
at s are weighed by what becomes of them. With u = s the teacher alone is the target, with u near t the student is.

Beside it the network at s = t is fitted to the pairs' own predictions (denoising score matching). Its weight makes both
gradients with respect to the last layer equally long; see losses/autoencoding.py, equation (3). An adversary may tell the
student's clean ends from data; its weight is the same ratio, kept between 0.01 and 10.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.arrays import expand_to
from flowjax.paths.flow_maps import flow_jump
from flowjax.paths.path import GaussianPath

Points = Float[Array, "b ..."]
Times = Float[Array, " b"]
Jumper = Callable[[Points, Times, Times], Points]  # (x, t, s) -> prediction


def jump_between(predict: Jumper, path: GaussianPath, prediction: str, x: Points, t: Times, s: Times) -> Points:
    """G(x, t, s); a point that is where it should go stays, whatever the prediction leaves undetermined there."""
    there = t >= s
    before = jnp.where(there, 0.5 * (path.start + path.end), t)
    after = jnp.where(there, path.end, s)
    return jnp.where(expand_to(there, x), x, flow_jump(path, prediction, predict(x, t, s), x, before, after))


def soft_ends(
    predict: Jumper,
    still: Jumper,
    judge: Jumper,
    path: GaussianPath,
    prediction: str,
    x: Points,
    t: Times,
    y: Points,
    u: Times,
    s: Times,
) -> tuple[Points, Points]:
    """The two clean ends of equation (1): the student's, and the target, which has no gradient.

    Args:
      predict: (x, t, s) -> the student's prediction of a jump.
      still: the same, with parameters that have no gradient.
      judge: of G', likewise.
      path: the path on which the points lie.
      prediction: what all three return.
      x: points at the times t.
      t: where jumps begin.
      y: where the teacher's trajectories through x are at u.
      u: between t and s.
      s: where jumps end.
    """
    to_end = lambda point: jump_between(judge, path, prediction, point, s, jnp.full_like(s, path.end))
    wanted = to_end(jump_between(still, path, prediction, y, u, s))
    found = to_end(jump_between(predict, path, prediction, x, t, s))
    return found, jax.lax.stop_gradient(wanted)

r"""Consistency models: two points of one trajectory must be sent to the same end.

With X_{t->s} the jump of a prediction (paths/flow_maps.py) and T the clean end of the path, a consistency function is

    f(x, t) = X_{t->T}(x; p(x, t)),          f(x, T) = x whatever the network says.                                (1)

On the linear path with a velocity f = x + (1 - t) u, and with the preconditioned data prediction of Karras et al. it is the
c_skip x + c_out F of Song et al. 2023. For neighbouring times t < s and points x, y of one trajectory at them

    loss = w(t, s) d(f(x, t), stop_gradient(f'(y, s))),                                                            (2)

f' the function itself or a slowly following copy. y comes from x by a step of a teacher's solver, or is the point at s of
the pair behind x: its velocity x1 - x0 is an unbiased estimate of the teacher's, at the price of noise that grows with s - t
(Song et al. 2023). To first order f' - f is (s - t) df/dt, so the gradient of a squared d is

    -2 w (s - t) df/dt . grad f:                                                                                   (3)

the weights `gap` and `noise_gap` keep it from vanishing as grids get finer. All that is given is f at T: what f should be
travels from there towards the noise, one pair of times at a time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.arrays import expand_to
from flowjax.choices import choose
from flowjax.losses.trajectories import squared_distance
from flowjax.paths.flow_maps import flow_jump
from flowjax.paths.path import GaussianPath

Points = Float[Array, "b ..."]
Predict = Callable[[Points, Float[Array, " b"]], Points]
Distance = Callable[[Points, Points], Float[Array, " b"]]

GAPS: dict[str, Callable] = {
    "uniform": lambda path, t, s: jnp.ones_like(t),
    "gap": lambda path, t, s: 1.0 / (s - t),
    "noise_gap": lambda path, t, s: 1.0 / (path.noise_to_signal(t) - path.noise_to_signal(s)),
}


def gap_weight(path: GaussianPath, name: str, t: Float[Array, " b"], s: Float[Array, " b"]) -> Float[Array, " b"]:
    """w(t, s): 1, 1 / (s - t), or 1 / (n(t) - n(s)) with the noise level n = sigma / alpha (Song & Dhariwal 2023)."""
    return choose("weight of a pair of times", name, GAPS)(path, t, s)


def jump_to_end(predict: Predict, path: GaussianPath, prediction: str, x: Points, t: Float[Array, " b"]) -> Points:
    """Equation (1); a point that is at the end stays, whatever the prediction leaves undetermined there."""
    end = jnp.full_like(t, path.end)
    there = t >= end
    # The jump is taken from a time where it is determined, so that no derivative of the branch not taken is infinite.
    before = jnp.where(there, 0.5 * (path.start + path.end), t)
    jumped = flow_jump(path, prediction, predict(x, t), x, before, end)
    return jnp.where(expand_to(there, x), x, jumped)


def consistency_loss(
    predict: Predict,
    target: Predict,
    path: GaussianPath,
    prediction: str,
    x: Points,
    t: Float[Array, " b"],
    y: Points,
    s: Float[Array, " b"],
    weight: str = "gap",
    distance: Distance = squared_distance,
) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
    """Equation (2).

    Args:
      predict: (x, t) -> the student's prediction.
      target: the same of f'; no gradient flows through it.
      path: the path on which the points lie.
      prediction: what both return.
      x: points at the times t.
      t: the noisier times.
      y: where the trajectories through x are at s.
      s: the cleaner times, at most the path's end.
      weight: 'uniform', 'gap' or 'noise_gap'.
      distance: d, one value for each example.

    Returns:
      The loss of each example, and `error`, the distance without its weight.
    """
    wanted = jax.lax.stop_gradient(jump_to_end(target, path, prediction, y, s))
    error = distance(jump_to_end(predict, path, prediction, x, t), wanted)
    return gap_weight(path, weight, t, s) * error, {"error": error}

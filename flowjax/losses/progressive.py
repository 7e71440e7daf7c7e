r"""Progressive distillation: one step of the student does what two steps of its teacher do (Salimans & Ho 2022).

With X_{t->s} the jump of a prediction (paths/flow_maps.py; a step of DDIM, on the linear path one of Euler) and m between t
and s, the teacher goes from x_t to

    y = X_{m->s}(X_{t->m}(x_t)),                                                                                   (1)

and the student is regressed on the prediction p* at (x_t, t) whose single jump ends there, X_{t->s}(x_t; p*) = y:

    loss = weight(t) |p(x_t, t) - stop_gradient(p*)|^2.                                                            (2)

On the linear path with velocities and m halfway, p* is the mean of the teacher's two velocities. Repeated with the student as
the next teacher and twice the stride, after k stages one step is 2^k steps of the first teacher.
"""

import jax
from jaxtyping import Array, Float

from flowjax.arrays import mean_per_example
from flowjax.losses.denoising import Predict
from flowjax.losses.trajectories import Step
from flowjax.paths.flow_maps import flow_jump, jump_target
from flowjax.paths.path import GaussianPath

Times = Float[Array, " b"]


def jump_of(predict: Predict, path: GaussianPath, prediction: str) -> Step:
    """One step of a network of one time: its prediction held constant from t to s."""
    return lambda x, t, s: flow_jump(path, prediction, predict(x, t), x, t, s)


def two_steps(step: Step, x: Float[Array, "b ..."], t: Times, middle: Times, s: Times) -> Float[Array, "b ..."]:
    """Equation (1)."""
    return step(step(x, t, middle), middle, s)


def landing_loss(
    predict: Predict,
    path: GaussianPath,
    prediction: str,
    x: Float[Array, "b ..."],
    t: Times,
    landed: Float[Array, "b ..."],
    s: Times,
) -> Float[Array, " b"]:
    """Equation (2) without the weight: the mean squared error per element, in the prediction's own space.

    Args:
      predict: (x, t) -> the student's prediction.
      path: the path on which the points lie.
      prediction: what `predict` returns.
      x: the points at the times t.
      t: one time for each example.
      landed: y; no gradient flows through it.
      s: where the teacher landed.
    """
    target = jax.lax.stop_gradient(jump_target(path, prediction, x, t, landed, s))
    return mean_per_example((predict(x, t) - target) ** 2)

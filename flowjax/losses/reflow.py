r"""Reflow: flow matching on the pairs (x0, x1) that a flow makes itself, which straightens it (Liu et al. 2022).

The loss is that of any prediction at a random point of a pair's path (denoising.py), with the distance of one's choice,

    loss = d(r p(x_t, t), r p*),        r = |dq / dp| moves the error to the space of a prediction q.              (1)

Pairs of a deterministic flow do not cross at t = 0: there the minimiser is the slope of the pair itself, and the fixed point
takes one step from noise to data. For a Gaussian it is `straight_velocity` (paths/closed_forms.py).

Annealing (SlimFlow, Zhu et al. 2024): a student that does not start from its teacher begins with independent noise and ends
with the pair's,

    x0' = sqrt(1 - b^2) x0 + b e,        b from 1 to 0,                                                            (2)

which keeps the noise normal on the way: b = 1 is plain flow matching on the teacher's samples, b = 0 is reflow.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flowjax.arrays import expand_to
from flowjax.choices import Spec, build
from flowjax.losses.denoising import Predict
from flowjax.paths.path import GaussianPath
from flowjax.paths.predictions import error_ratio, target

Points = Float[Array, "b ..."]
Anneal = Callable[[Int[Array, " b"]], Float[Array, " b"]]  # step -> b


def _progress(step, steps):
    if steps < 1:
        raise ValueError(f"annealing.steps is {steps}; expected at least 1.")
    return jnp.minimum(step / steps, 1.0)


def linear(steps: int) -> Anneal:
    """b = 1 - k / K, then 0."""
    return lambda step: 1.0 - _progress(step, steps)


def cosine(steps: int) -> Anneal:
    """b = (1 + cos(pi k / K)) / 2, then 0."""
    return lambda step: 0.5 * (1.0 + jnp.cos(math.pi * _progress(step, steps)))


def exponential(steps: int) -> Anneal:
    """b = e^{-k / K}: it never ends."""
    if steps < 1:
        raise ValueError(f"annealing.steps is {steps}; expected at least 1.")
    return lambda step: jnp.exp(-step / steps)


ANNEALINGS: dict[str, Callable[..., Anneal]] = {"linear": linear, "cosine": cosine, "exponential": exponential}


def make_annealing(spec: Spec) -> Anneal:
    """The schedule of a spec, for example dict(name='cosine', steps=5000)."""
    anneal = build("annealing", spec, ANNEALINGS)
    anneal(jnp.zeros(1, jnp.int32))  # says what is wrong now
    return anneal


def annealed(noise: Points, fresh: Points, share: Float[Array, " b"]) -> Points:
    """Equation (2) with b = share."""
    share = expand_to(share, noise)
    return jnp.sqrt(1.0 - share**2) * noise + share * fresh


def pair_loss(
    predict: Predict,
    path: GaussianPath,
    prediction: str,
    noise: Points,
    data: Points,
    t: Float[Array, " b"],
    distance: Callable[[Points, Points], Float[Array, " b"]],
    loss_space: str | None = None,
) -> tuple[Float[Array, " b"], Points, Points]:
    """Equation (1), the points x_t and what is predicted there.

    Args:
      predict: (x, t) -> a prediction of the kind `prediction`.
      path: the path.
      prediction: what `predict` returns.
      noise: x0 of the pair.
      data: x1.
      t: one time for each example.
      distance: d.
      loss_space: q; the prediction itself by default.
    """
    x = path.sample(noise, data, t)
    value, goal = predict(x, t), target(path, prediction, noise, data, t)
    ratio = 1.0 if loss_space in (None, prediction) else expand_to(error_ratio(path, prediction, loss_space, t), x)
    return distance(ratio * value, ratio * goal), x, value

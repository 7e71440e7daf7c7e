r"""From a prediction to a jump: how a network that is told where it goes moves a point from one time to another.

A prediction at (x_t, t) states data x1 and noise x0 together with x_t = alpha x1 + sigma x0 (predictions.py). Held constant,
they put the point at the time s at

    X_{t->s} = alpha(s) x1 + sigma(s) x0.                                                                         (1)

For a network of one time this is the step of DDIM, right for small s - t alone. A network that takes both times, p(x, t, s),
can make it right for every s: then (1) *is* the flow map. With D the determinant of p's row (a, b), c and primes at s,

    D X_{t->s} = (alpha' b - sigma' a) x_t + (sigma' alpha - alpha' sigma) c p.                                   (2)

The boundary X_{t->t} = x holds whatever the network says, and at s = t the network is the field itself, as
d/ds X_{t->s} is its velocity. On the linear path a velocity gives X = x + (s - t) u: p is the average velocity of MeanFlow
and of shortcut models; s = 1 is the consistency function x + (1 - t) u; and the G of consistency trajectory models,
(1 - s) / (1 - t) x + (s - t) / (1 - t) g, is the same with g = x + (1 - t) u. All of these are one parametrisation.
"""

from jaxtyping import Array, Float

from flowjax.arrays import batch_times, expand_to
from flowjax.paths.path import GaussianPath
from flowjax.paths.predictions import prediction_row

Time = Float[Array, "..."] | float


def flow_jump(
    path: GaussianPath, prediction: str, value: Float[Array, "b ..."], x: Float[Array, "b ..."], t: Time, s: Time
) -> Float[Array, "b ..."]:
    """X_{t->s} of a prediction: equation (2).

    Args:
      path: the path on which x lies.
      prediction: the kind of `value`, one of PREDICTIONS.
      value: what the network says at (x, t), or at (x, t, s).
      x: the points at time t.
      t: one time, or one for each example.
      s: likewise, where to; before or after t.
    """
    t, s = batch_times(t, x), batch_times(s, x)
    a, b, c = prediction_row(path, prediction, t)
    alpha, sigma, alpha_s, sigma_s = path.alpha(t), path.sigma(t), path.alpha(s), path.sigma(s)
    divisor = alpha * b - sigma * a
    from_x = (alpha_s * b - sigma_s * a) / divisor
    from_value = (sigma_s * alpha - alpha_s * sigma) * c / divisor
    return expand_to(from_x, x) * x + expand_to(from_value, value) * value

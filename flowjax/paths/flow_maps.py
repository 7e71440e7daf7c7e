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

Backwards: two points of a trajectory, x at t and y at s, lie on the line of one pair alone,

    x1 = (sigma(s) x - sigma(t) y) / E,   x0 = (alpha(t) y - alpha(s) x) / E,   E = alpha(t) sigma(s) - alpha(s) sigma(t), (3)

and `jump_target` is the prediction at t that (2) takes to y: a regression on where a teacher lands. Both exist for s != t.
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
    from_x, from_value = _coefficients(path, prediction, x, t, s)
    return expand_to(from_x, x) * x + expand_to(from_value, value) * value


def jump_target(
    path: GaussianPath, prediction: str, x: Float[Array, "b ..."], t: Time, landed: Float[Array, "b ..."], s: Time
) -> Float[Array, "b ..."]:
    """The prediction at (x, t) whose jump to s is `landed`: equation (2) solved for p.

    Args:
      path: the path on which both points lie.
      prediction: what is wanted, one of PREDICTIONS.
      x: the points at time t.
      t: one time, or one for each example.
      landed: the points at time s.
      s: likewise, other than t.
    """
    from_x, from_value = _coefficients(path, prediction, x, t, s)
    return (landed - expand_to(from_x, x) * x) / expand_to(from_value, x)


def pair_through(
    path: GaussianPath, x: Float[Array, "b ..."], t: Time, landed: Float[Array, "b ..."], s: Time
) -> tuple[Float[Array, "b ..."], Float[Array, "b ..."]]:
    """(noise, data) whose path goes through x at t and through `landed` at s: equation (3)."""
    t, s = batch_times(t, x), batch_times(s, x)
    alpha, sigma, alpha_s, sigma_s = (expand_to(value, x) for value in (*_ends(path, t), *_ends(path, s)))
    divisor = alpha * sigma_s - alpha_s * sigma
    return (alpha * landed - alpha_s * x) / divisor, (sigma_s * x - sigma * landed) / divisor


def _ends(path, t):
    return path.alpha(t), path.sigma(t)


def _coefficients(path, prediction, x, t, s):
    """What (2) multiplies x and p by."""
    t, s = batch_times(t, x), batch_times(s, x)
    a, b, c = prediction_row(path, prediction, t)
    (alpha, sigma), (alpha_s, sigma_s) = _ends(path, t), _ends(path, s)
    divisor = alpha * b - sigma * a
    return (alpha_s * b - sigma_s * a) / divisor, (sigma_s * alpha - alpha_s * sigma) * c / divisor

r"""What makes a network of two times a flow map: the point where a trajectory ends does not depend on where one starts.

Write the jump of a prediction (paths/flow_maps.py) as X_{t->s} = a(t, s) x + b(t, s) p(x, t, s). Along a trajectory dx/dt = v
the exact flow map stays put,

    0  =  d/dt X_{t->s}(x_t)  =  a_t x + a v + b_t p + b dp/dt  =:  r,            dp/dt = (v . grad_x + d/dt) p,    (1)

where a_t, b_t are derivatives by t. With v_p the velocity that p states at x (its value were s = t) this is a regression with a
target made by the network itself,

    v* = v_p + r,          loss = | v_p - stop_gradient(v*) |^2,                                                   (2)

whose value is |r|^2: an error is measured as the velocity with which it moves the end point. It is the same for a network that
is read as another prediction. Solving (1) for p itself would not be: b_t, by which p would then count, is zero for a data
prediction at the clean end, which is the jump, and it would never learn that one.

On the linear path with a velocity a = 1 and b = s - t, and (2) is the identity of MeanFlow (Geng et al. 2025),

    p* = v + (s - t) dp/dt.                                                                                        (3)

At s = 1 it is that of continuous-time consistency models (Song et al. 2023; Lu & Song 2025). With s = t nothing is left but
p* = v: flow matching. dp/dt is one Jacobian-vector product, exact through every network of the package. v is the velocity of
a teacher, or in its place that of a pair, x1 - x0, whose conditional expectation it is: (1) is linear in v.

v enters (1) twice: as the velocity a v, where x1 - x0 may stand for its expectation, and as the direction of dp/dt, which is
multiplied by the network's own Jacobian. Improved MeanFlow (Geng et al. 2025b) takes that direction from the network itself,
p(x, t, t): the target then depends on x alone but for a v, and has less noise. See `direction`.

Early in training dp/dt is noise. r is split into

    r = a (v - v_p) + share (a_t x + a v_p + b_t p + b dp/dt),                                                     (4)

which at share = 0 is flow matching on every path, and at share = 1 is (1) (the warm-up of Lu & Song 2025).

Continuous-time consistency has its own loss (continuous_consistency.py), with b_t in it as Lu & Song have it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.arrays import expand_to, sum_per_example
from flowjax.paths.flow_maps import flow_jump
from flowjax.paths.path import GaussianPath
from flowjax.paths.predictions import convert

Jumper = Callable[
    [Float[Array, "b ..."], Float[Array, " b"], Float[Array, " b"]], Float[Array, "b ..."]
]  # (x, t, s) -> prediction


class Tangent(NamedTuple):
    """What equation (1) says at a point.

    Attributes:
      value: p(x, t, s).
      residual: r, the velocity of the end point.
      slope: b_t.
    """

    value: Float[Array, "b ..."]
    residual: Float[Array, "b ..."]
    slope: Float[Array, " b"]


def flow_map_tangent(
    predict: Jumper,
    path: GaussianPath,
    prediction: str,
    x: Float[Array, "b ..."],
    t: Float[Array, " b"],
    s: Float[Array, " b"],
    velocity: Float[Array, "b ..."],
    share: float | Float[Array, "..."] = 1.0,
    direction: Float[Array, "b ..."] | None = None,
) -> Tangent:
    """Equation (1), by one Jacobian-vector product along (direction, 1, 0).

    Args:
      predict: (x, t, s) -> the network's prediction of a jump from t to s.
      path: the path on which x lies.
      prediction: what `predict` returns.
      x: points at the times t.
      t: where jumps begin.
      s: where they end.
      velocity: dx/dt at x.
      share: of equation (4), one or one for each example.
      direction: dx/dt where the network is differentiated; the velocity unless told.
    """
    ones = jnp.ones_like(t)
    direction = velocity if direction is None else direction
    value, slope_of_value = jax.jvp(predict, (x, t, s), (direction, ones, jnp.zeros_like(s)))
    # a x + b p is linear in (x, p): its derivative by t at fixed x and p, and its value at (v, dp/dt).
    jump = lambda x, p, t: flow_jump(path, prediction, p, x, t, s)
    at_rest = jax.jvp(lambda t: jump(x, value, t), (t,), (ones,))[1]
    residual = at_rest + jump(velocity, slope_of_value, t)
    if not (isinstance(share, (int, float)) and share == 1):
        local = jump(velocity - convert(path, prediction, "velocity", value, x, t), jnp.zeros_like(x), t)
        residual = local + expand_to(jnp.asarray(share), x) * (residual - local)
    unit = jnp.ones(t.shape)
    slope = jax.jvp(lambda t: flow_jump(path, prediction, unit, 0.0 * unit, t, s), (t,), (ones,))[1]
    return Tangent(value, residual, slope)


def flow_map_loss(
    predict: Jumper,
    path: GaussianPath,
    prediction: str,
    x: Float[Array, "b ..."],
    t: Float[Array, " b"],
    s: Float[Array, " b"],
    velocity: Float[Array, "b ..."],
    power: float = 1.0,
    floor: float = 1e-2,
    direction: Float[Array, "b ..."] | None = None,
) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
    """Equation (2) times the adaptive weight 1 / stop_gradient(|r|^2 + floor)^power.

    Args:
      predict: (x, t, s) -> the prediction of a jump.
      path: the path on which x lies.
      prediction: what `predict` returns.
      x: points at the times t.
      t: where jumps begin.
      s: where they end; t itself for plain flow matching.
      velocity: a teacher's at x, or x1 - x0 of the pair behind x; no gradient flows through it.
      power: 0 for a plain squared error, 1 for MeanFlow's weight.
      floor: keeps the weight finite; in squared errors summed over an example.
      direction: dx/dt where the network is differentiated, as `velocity` without gradient; the velocity unless told.

    Returns:
      The loss of each example, and `error`, the squared error per element without the weight.
    """
    velocity, direction = jax.lax.stop_gradient((velocity, direction))
    tangent = flow_map_tangent(predict, path, prediction, x, t, s, velocity, direction=direction)
    stated, residual = (
        convert(path, prediction, "velocity", tangent.value, x, t),
        jax.lax.stop_gradient(tangent.residual),
    )
    squared = sum_per_example((stated - jax.lax.stop_gradient(stated) - residual) ** 2)
    weight = jax.lax.stop_gradient(squared + floor) ** -power
    return weight * squared, {"error": squared / (x.size // len(x))}

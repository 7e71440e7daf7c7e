r"""Continuous-time consistency: the limit of neighbouring times, made stable.

With f = X_{t->T} = a x + b p the consistency function and r = df/dt along trajectories (losses/flow_maps.py), comparing f at
neighbouring times t and t + h moves p, to first order, towards p + h r / b. As |b| falls to 0 on the way to T, -b_t r has
the same direction and stays finite there: the tangent

    g = -b_t r,          on the trigonometric path   g ~ cos(phi) df/dphi,  phi = pi (1 - t) / 2,                   (1)

which is that of Lu & Song 2025 for F ~ p. Its size varies over orders of magnitude, so it is normalised, and the weight of
a time is learnt together with it: with u(t) the logarithm of the expected error,

    loss = e^{-u(t)} mean |p - stop_gradient(p + g / (rms(g) + c))|^2 + u(t),                                      (2)

whose minimum over u is e^u = E[mean | ... |^2]. A weight in front of the error in (2) would be undone by u.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.arrays import expand_to, mean_per_example
from flowjax.losses.flow_maps import Tangent


def normalised_tangent(tangent: Tangent, constant: float = 0.1) -> Float[Array, "b ..."]:
    """g / (rms(g) + constant) of equations (1) and (2), without gradient."""
    g = -expand_to(tangent.slope, tangent.residual) * tangent.residual
    size = expand_to(jnp.sqrt(mean_per_example(g**2)), g)
    return jax.lax.stop_gradient(g / (size + constant))


def tangent_loss(
    value: Float[Array, "b ..."], tangent: Float[Array, "b ..."], log_variance: Float[Array, " b"] | None = None
) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
    """Equation (2).

    Args:
      value: p, through which the gradient flows.
      tangent: where it is to move (normalised_tangent).
      log_variance: u of each example's time; None for u = 0.

    Returns:
      The loss of each example, and `error`, the squared error without its weight.
    """
    error = mean_per_example((value - jax.lax.stop_gradient(value + tangent)) ** 2)
    loss = error if log_variance is None else jnp.exp(-log_variance) * error + log_variance
    return loss, {"error": error}

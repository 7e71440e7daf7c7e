r"""Log-likelihood of data under the probability-flow ODE (Chen et al. 2018; Song et al. 2020).

Along a trajectory of dx/dt = v the log-density falls by the divergence of v, so a solve from data (t = 1) back to noise
(t = 0) gives

    log p_1(x_1) = log p_0(x_0) - int_0^1 div v(x_t, t) dt,       p_0(x) = q(x / sigma) / sigma^d,       (1)

with q the law of the path's noise (Gaussian, or the Student t law of PFGM++) and sigma = sigma(start). p_0 is exact
where alpha(start) = 0 (linear, trigonometric, vp_cosine). Elsewhere it neglects alpha(start) x1: for Gaussian noise an
error of alpha E[x1] x0 / sigma nats to first order, where alpha is 0.0066 on the vp path; centred data has none.
Where the path ends at some noise the likelihood is that of data with that noise added.

The divergence is exact (one jvp for each dimension) or Hutchinson's estimate e^T J e with Rademacher probes e, drawn
once for a whole solve, so that the solver integrates a smooth function and the result is unbiased.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from flowjax.arrays import dot_per_example
from flowjax.paths.noises import Noise, gaussian
from flowjax.samplers.adaptive import Adaptive, solve
from flowjax.samplers.field import Field


def velocity_and_divergence(
    field: Field, x: Float[Array, "b ..."], t: Any, probes: Float[Array, "p b ..."]
) -> tuple[Float[Array, "b ..."], Float[Array, " b"]]:
    """(v, sum over probes of e^T J e): the divergence for a basis, Hutchinson's estimate for scaled random probes."""

    def along(probe):
        value, slope = jax.jvp(lambda y: field.velocity(y, t), (x,), (probe,))
        return value, dot_per_example(probe, slope)

    values, traces = jax.lax.map(along, probes)
    return values[0], jnp.sum(traces, axis=0)


def basis_probes(x: Float[Array, "b ..."]) -> Float[Array, "p b ..."]:
    """The unit vectors, the same for each example: the exact divergence."""
    size = math.prod(x.shape[1:])
    basis = jnp.eye(size, dtype=x.dtype).reshape(size, 1, *x.shape[1:])
    return jnp.broadcast_to(basis, (size, *x.shape))


def rademacher_probes(keys: Key[Array, " b"], x: Float[Array, "b ..."], count: int) -> Float[Array, "p b ..."]:
    """`count` random sign vectors for each example, scaled so that their quadratic forms add up to one estimate."""
    signs = jax.vmap(lambda key: jax.random.rademacher(key, (count, *x.shape[1:]), x.dtype))(keys)
    return jnp.moveaxis(signs, 1, 0) / math.sqrt(count)


def _prior(field: Field, law: Noise | None, x: Float[Array, "b ..."], start: float) -> Float[Array, " b"]:
    sigma = field.path.sigma(jnp.asarray(start, x.dtype))
    return (law or gaussian()).log_density(x / sigma) - math.prod(x.shape[1:]) * jnp.log(sigma)


def log_likelihood(
    field: Field,
    x: Float[Array, "b ..."],
    grid: np.ndarray,
    keys: Key[Array, " b"] | None = None,
    probes: int | None = None,
    law: Noise | None = None,
) -> tuple[Float[Array, " b"], Float[Array, "b ..."]]:
    """Equation (1) with RK4 on a fixed grid.

    Args:
      field: the prediction.
      x: data, at grid[-1].
      grid: rising times, as for sampling; solved backwards.
      keys: one key for each example, for Hutchinson's estimate.
      probes: how many probes; None for the exact divergence.
      law: of the path's noise, as in training; None for Gaussian noise.

    Returns:
      (log p in nats [b], the noise that x maps to).
    """
    directions = _directions(x, keys, probes)
    times = jnp.asarray(np.asarray(grid)[::-1].copy(), x.dtype)

    def derivative(x, t):
        return velocity_and_divergence(field, x, t, directions)

    def step(carry, ends):
        x, integral = carry
        t, t_next = ends
        h = t_next - t
        k1, d1 = derivative(x, t)
        k2, d2 = derivative(x + 0.5 * h * k1, t + 0.5 * h)
        k3, d3 = derivative(x + 0.5 * h * k2, t + 0.5 * h)
        k4, d4 = derivative(x + h * k3, t_next)
        x = x + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        return (x, integral + h / 6.0 * (d1 + 2.0 * d2 + 2.0 * d3 + d4)), None

    (noise, integral), _ = jax.lax.scan(step, (x, jnp.zeros(x.shape[:1], x.dtype)), (times[:-1], times[1:]))
    # The solve ran from data to noise, so `integral` is minus the integral of (1).
    return _prior(field, law, noise, float(grid[0])) + integral, noise


def adaptive_log_likelihood(
    solver: Adaptive,
    field_of: Callable[[Mapping[str, Array]], Field],
    x: Float[Array, "b ..."],
    start: float,
    end: float,
    conditions: Mapping[str, Array] | None = None,
    keys: Key[Array, " b"] | None = None,
    probes: int | None = None,
    law: Noise | None = None,
) -> tuple[Float[Array, " b"], Float[Array, "b ..."]]:
    """Equation (1) with an adaptive solver, for each example on its own; see `log_likelihood` and `Adaptive.solve`."""
    directions = jnp.moveaxis(_directions(x, keys, probes), 1, 0)

    def one(x, directions, conditions):
        field = field_of(jax.tree.map(lambda c: c[None], conditions))

        def derivative(t, state):
            velocity, divergence = velocity_and_divergence(field, state[0][None], t, directions[:, None])
            return velocity[0], divergence[0]

        (noise, integral), _ = solve(solver, derivative, (x, jnp.zeros((), x.dtype)), end, start)
        return _prior(field, law, noise[None], start)[0] + integral, noise

    return jax.vmap(one)(x, directions, dict(conditions or {}))


def _directions(x, keys, probes) -> Float[Array, "p b ..."]:
    if probes is None:
        return basis_probes(x)
    if keys is None:
        raise ValueError(f"Hutchinson's estimate with {probes} probes needs `keys`, one for each example.")
    return rademacher_probes(keys, x, probes)


def bits_per_dim(
    log_likelihood: Float[Array, " b"], size: int, width: float = 2.0, levels: int = 256
) -> Float[Array, " b"]:
    """Bits per dimension of integer images: -log p / (d ln 2) - log2(width / levels).

    A density in model units becomes one per integer step, of width / levels model units. Data must have been
    dequantized, (integer + u) / levels with u uniform in [0, 1), for this to bound the likelihood of the integers.

    Args:
      log_likelihood: nats of one example, in model units.
      size: the number of elements d.
      width: the width of the data's range in model units: 2 for [-1, 1].
      levels: how many integers that range holds.
    """
    return -log_likelihood / (size * math.log(2.0)) - math.log2(width / levels)

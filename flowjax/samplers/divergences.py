r"""How far one flow has moved from another: by the likelihoods of what their ODEs end in, or along the way.

A velocity v on a path belongs to a family of SDEs with the same marginals, of which one forgets its noise ("memoryless",
Domingo-Enrich et al. 2024): with score s and

    v = (alpha' / alpha) x + b s,      b = sigma (sigma alpha' / alpha - sigma'),                                  (1)

dx = (v + b s) dt + sqrt(2 b) dW. Two velocities v and w have drifts that differ by 2 (v - w), so by Girsanov

    KL = E int |v - w|^2 / b dt,      x_t under v.                                                                 (2)

On the linear path b = (1 - t) / t. Where w is the flow of p and v that of q(x) = p(x) exp(r(x)) / Z, (2) is KL(q, p) itself;
for any other v it is an upper bound for v's own SDE, not for what its ODE draws: a push that falls as 1 / t near the noise
end, which the SDE forgets, moves the ODE for little. At the noise end b is infinite and nothing is counted; at the data end b
is zero: networks that differ there at all have a divergence that grows with the logarithm of the number of steps.

What ODEs end in has a density (likelihood.py), so that

    KL = E[ log q(x1) - log p(x1) ],    x1 by the ODE of v,                                                        (3)

which costs two more solves with the divergence of a field in them: exact where an example has few elements, else with
Hutchinson's estimate.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from flowjax.arrays import sum_per_example
from flowjax.paths.noises import Noise
from flowjax.paths.path import GaussianPath
from flowjax.samplers.field import Field
from flowjax.samplers.likelihood import log_likelihood


def memoryless_rate(path: GaussianPath, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """b of equation (1), for times with alpha > 0."""
    sigma = path.sigma(t)
    return sigma * (sigma * path.alpha_dot(t) / path.alpha(t) - path.sigma_dot(t))


def path_divergence(
    field: Field, reference: Field, grid: np.ndarray, x: Float[Array, "b ..."]
) -> tuple[Float[Array, "b ..."], Float[Array, " b"]]:
    """Samples of a field by the midpoint rule, and equation (2) along each of their paths, by the same rule.

    Args:
      field: what is followed.
      reference: from which the divergence is taken, on the same path.
      grid: the times, rising.
      x: the points at grid[0].

    Returns:
      The points at grid[-1], and one number for each; its mean is the divergence.
    """
    times = jnp.asarray(grid, x.dtype)

    def step(carry, pair):
        x, total = carry
        t, t_next = pair
        h = t_next - t
        middle, between = x + 0.5 * h * field.velocity(x, t), t + 0.5 * h
        velocity = field.velocity(middle, between)
        away = sum_per_example((velocity - reference.velocity(middle, between)) ** 2)
        return (x + h * velocity, total + h * away / memoryless_rate(field.path, between)), None

    start = (x, jnp.zeros(len(x), x.dtype))
    (x, total), _ = jax.lax.scan(step, start, (times[:-1], times[1:]))
    return x, total


def likelihood_divergence(
    field: Field,
    reference: Field,
    grid: np.ndarray,
    samples: Float[Array, "b ..."],
    keys: Key[Array, " b"] | None = None,
    probes: int | None = None,
    law: Noise | None = None,
) -> Float[Array, " b"]:
    """log q - log p of equation (3), one number for each sample; zero for equal fields.

    Args:
      field: whose samples they are.
      reference: from which the divergence is taken, on the same path, with the same noise.
      grid: the times, rising, of RK4.
      samples: what the ODE of the field ends in.
      keys: one for each example, for Hutchinson's estimate.
      probes: how many; None for the exact divergence of fields.
      law: of the path's noise; None for Gaussian noise.
    """
    own, _ = log_likelihood(field, samples, grid, keys, probes, law)
    other, _ = log_likelihood(reference, samples, grid, keys, probes, law)
    return own - other

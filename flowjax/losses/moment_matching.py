r"""Inductive moment matching: jumps from two neighbouring times must make the same distribution, not the same points.

M particles, each a pair (x0, x1) of its own, share the times t < r <= s (Zhou et al. 2025). With the student's jumps

    y_j = X_{t->s}(x_t^j),          z_j = stop_gradient(X_{r->s}(x_r^j)),                                          (1)

the loss of a group is the squared maximum mean discrepancy of the two sets, as a V-statistic:

    MMD^2 = mean_{jk} k(y_j, y_k) + mean_{jk} k(z_j, z_k) - 2 mean_{jk} k(y_j, z_k),                               (2)
    k(a, b) = exp(-w max(|a - b|, eps) / D),          w = 1 / (scale |db X|),                                      (3)

a Laplace kernel whose width is the reach of the jump: |db X| = |dX_{t->s} / dp|, |s - t| for a velocity on the linear path.
With one particle (2) is 2 - 2 k(y, z), a consistency model with that distance. As r follows t by a small step in noise
level, the distribution at s that starts from t is taught by the one that starts from r, and in the end by the data.

The weight of a time (Zhou et al. 2025, after VDM), with lambda = log(alpha^2 / sigma^2):

    w(t) = 1/2 sigmoid(b - lambda) dlambda/dt alpha^a / (alpha^2 + sigma^2).                                       (4)
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.paths.path import GaussianPath, time_at_noise_level

SMALLEST = 1e-4  # eps of (3): the root has no derivative where two points meet


def laplace_kernel(
    a: Float[Array, "g m d"], b: Float[Array, "g n d"], inverse_width: Float[Array, " g"]
) -> Float[Array, "g m n"]:
    """Equation (3) between all particles of each group."""
    squared = jnp.sum((a[:, :, None] - b[:, None]) ** 2, axis=-1)
    distance = jnp.sqrt(jnp.maximum(squared, SMALLEST**2))
    return jnp.exp(-inverse_width[:, None, None] * distance / a.shape[-1])


def discrepancy(
    own: Float[Array, "g m d"],
    target: Float[Array, "g m d"],
    inverse_width: Float[Array, " g"],
    mask: Float[Array, "g m"] | None = None,
) -> Float[Array, "g m"]:
    """Equation (2), as one value for each particle: the mean over a group's particles is its MMD^2.

    Args:
      own: y, flattened to vectors.
      target: z; no gradient flows through it.
      inverse_width: w of each group.
      mask: 1 for a particle, 0 for padding; all count by default.
    """
    target = jax.lax.stop_gradient(target)
    mask = jnp.ones(own.shape[:2]) if mask is None else mask
    share = mask / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1.0)
    mean = lambda a, b: jnp.einsum("gmn,gn->gm", laplace_kernel(a, b, inverse_width), share)
    return mean(own, own) + mean(target, target) - mean(own, target) - mean(target, own)


def follower(
    path: GaussianPath, t: Float[Array, "..."], s: Float[Array, "..."], step: float, highest: float
) -> Float[Array, "..."]:
    """r: the time whose noise level sigma / alpha is lower than that of t by `step` of `highest`, at most s.

    Args:
      path: of the times.
      t, s: the ends of the jump.
      step: 2^-k.
      highest: the noise level that counts as the highest; where t is noisier still, r is a share `step` below it.
    """
    level = path.noise_to_signal(t)
    # Beyond `highest` a fixed step would be next to none.
    lower = jnp.where(level > highest, level * (1.0 - step), level - step * highest)
    return jnp.where(lower > 0, jnp.minimum(time_at_noise_level(path, jnp.maximum(lower, 0.0)), s), s)


def time_weight(path: GaussianPath, t: Float[Array, " b"], a: float, b: float) -> Float[Array, " b"]:
    """Equation (4)."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    slope = 2 * (path.alpha_dot(t) / alpha - path.sigma_dot(t) / sigma)
    return 0.5 * jax.nn.sigmoid(b - path.log_snr(t)) * slope * alpha**a / (alpha**2 + sigma**2)

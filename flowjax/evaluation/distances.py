r"""How far two sets of samples are from one another. Every distance takes x [n, ...] and y [m, ...], flattened to rows.

    sliced W2      SW2^2 = E_theta W2^2(theta.x, theta.y), theta uniform on the sphere; on a line W2 pairs sorted
                   values; a translation by m has SW2^2 = |m|^2 / d. (Bonneel et al. 2015)
    exact W2       W2^2 = min over permutations of mean |x_i - y_p(i)|^2, by assignment.
    Sinkhorn       S = OT_eps(x, y) - OT_eps(x, x) / 2 - OT_eps(y, y) / 2: positive, zero only for equal sets, and
                   exactly |m|^2 for a translation by m, at any eps. (Genevay et al. 2018; Feydy et al. 2019)
    MMD            E k(x, x') + E k(y, y') - 2 E k(x, y), unbiased: an example is not paired with itself, so
                   it is zero in the mean for equal distributions, and may be negative. (Gretton et al. 2012)
    KID            that, with k = (x.y / d + 1)^3 on features, averaged over subsets. (Binkowski et al. 2018)
    Frechet        |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x^1/2 C_y C_x^1/2)^1/2), the W2^2 of the Gaussians fitted to
                   the two sets of features; "FID" when those are Inception's. (Heusel et al. 2017) It is biased upwards
                   by O(1/n), so only values at one n compare.

Distances between many points run in float32; means, covariances and eigenvalues in float64, on the host.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.paths import transport

Samples = Float[Array, "_ ..."] | Float[np.ndarray, "_ ..."]  # each set has its own count
DIRECTIONS_AT_ONCE = 64


def as_rows(x: Samples) -> Float[Array, "n d"]:
    """Flattens examples to rows, in float32 on the device."""
    x = jnp.asarray(x, jnp.float32)
    return x.reshape(x.shape[0], -1)


def _rows_pair(
    name: str, x: Samples, y: Samples, equal: bool = False
) -> tuple[Float[Array, "n d"], Float[Array, "m d"]]:
    x, y = as_rows(x), as_rows(y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{name}: the sets have examples of {x.shape[1]} and {y.shape[1]} numbers; give both one shape."
        )
    if equal and len(x) != len(y):
        raise ValueError(f"{name} pairs the sets, which have {len(x)} and {len(y)} examples. Cut the larger one down.")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"{name} needs at least 2 examples in each set; got {len(x)} and {len(y)}.")
    return x, y


def sliced_w2(x: Samples, y: Samples, directions: int = 512, seed: int = 0) -> float:
    """Sliced W2 (not squared) over fixed directions. The sets must have equally many examples."""
    x, y = (np.asarray(rows) for rows in _rows_pair("sliced_w2", x, y, equal=True))
    theta = np.random.default_rng(seed).standard_normal((directions, x.shape[1]), np.float32)
    theta /= np.linalg.norm(theta, axis=1, keepdims=True)
    total = 0.0
    for first in range(0, directions, DIRECTIONS_AT_ONCE):  # on the host: NumPy sorts some ten times faster than XLA
        block = theta[first : first + DIRECTIONS_AT_ONCE]
        gap = np.sort(block @ x.T, axis=1) - np.sort(block @ y.T, axis=1)
        total += np.square(gap, dtype=np.float64).mean(axis=1).sum()
    return float(np.sqrt(total / directions))


def exact_w2(x: Samples, y: Samples) -> float:
    """W2 (not squared) by assignment; the sets must have equally many examples, a few thousand at most: O(n^3)."""
    x, y = _rows_pair("exact_w2", x, y, equal=True)
    cost = np.asarray(transport.squared_distances(x, y), np.float64)
    return float(np.sqrt(cost[np.arange(len(x)), transport.assignment(cost)].mean()))


@jax.jit
def _debiased(x, y, epsilon):
    def cost(a, b):
        return transport.entropic_cost(transport.sinkhorn_potentials(transport.squared_distances(a, b), epsilon))

    return cost(x, y) - 0.5 * cost(x, x) - 0.5 * cost(y, y)


def sinkhorn_w2(x: Samples, y: Samples, relative_epsilon: float = 0.05) -> float:
    """Root of the debiased Sinkhorn divergence, which needs no assignment and no equal counts.

    Args:
      x: one set, [n, ...].
      y: the other, [m, ...]; n and m may differ.
      relative_epsilon: the temperature as a share of the median squared distance within y.
    """
    x, y = _rows_pair("sinkhorn_w2", x, y)
    epsilon = relative_epsilon * squared_median_distance(y)
    return float(jnp.sqrt(jnp.maximum(_debiased(x, y, epsilon), 0.0)))


def squared_median_distance(x: Samples) -> float:
    """The median over pairs i < j of |x_i - x_j|^2."""
    x = as_rows(x)
    squared = np.asarray(transport.squared_distances(x, x))
    return float(np.median(squared[np.triu_indices(len(x), 1)]))


def _unbiased(k_xx, k_yy, k_xy):
    n, m = k_xy.shape
    within_x = (jnp.sum(k_xx) - jnp.trace(k_xx)) / (n * (n - 1))
    within_y = (jnp.sum(k_yy) - jnp.trace(k_yy)) / (m * (m - 1))
    return within_x + within_y - 2 * jnp.mean(k_xy)


@jax.jit
def _gaussian_mmd(x, y, variance):
    kernel = lambda a, b: jnp.exp(-transport.squared_distances(a, b) / (2 * variance))
    return _unbiased(kernel(x, x), kernel(y, y), kernel(x, y))


def mmd(x: Samples, y: Samples, bandwidth: float | None = None) -> float:
    """Unbiased MMD^2 with k = exp(-|x - y|^2 / (2 h^2)); h is the median distance within y unless given."""
    x, y = _rows_pair("mmd", x, y)
    variance = squared_median_distance(y) if bandwidth is None else bandwidth**2
    return float(_gaussian_mmd(x, y, variance))


class Kid(NamedTuple):
    """The mean over subsets, and the standard deviation from one subset to another."""

    mean: float
    std: float


@jax.jit
def _cubic_mmd(x, y):
    kernel = lambda a, b: (jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST) / a.shape[1] + 1) ** 3
    return _unbiased(kernel(x, x), kernel(y, y), kernel(x, y))


def kid(x: Samples, y: Samples, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> Kid:
    """Kernel distance with the cubic kernel, over random subsets without replacement.

    Args:
      x: features of one set, [n, d].
      y: features of the other.
      subsets: how many subsets.
      subset_size: examples in each, but at most half of the smaller set: subsets that hold everything do not vary.
      seed: which subsets.
    """
    x, y = _rows_pair("kid", x, y)
    size = min(subset_size, max(min(len(x), len(y)) // 2, 2))
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        chosen_x, chosen_y = (generator.choice(len(z), size, replace=False) for z in (x, y))
        values.append(float(_cubic_mmd(x[chosen_x], y[chosen_y])))
    return Kid(float(np.mean(values)), float(np.std(values)))


def moments(features: Samples) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """Mean and covariance (divided by n - 1) of features, in float64."""
    rows = np.asarray(features, np.float64).reshape(len(features), -1)
    if len(rows) < 2:
        raise ValueError(f"A covariance needs at least 2 examples; got {len(rows)}.")
    mean = rows.mean(axis=0)
    return mean, (rows - mean).T @ (rows - mean) / (len(rows) - 1)


def gaussian_w2_squared(
    mean_x: Float[np.ndarray, " d"],
    covariance_x: Float[np.ndarray, "d d"],
    mean_y: Float[np.ndarray, " d"],
    covariance_y: Float[np.ndarray, "d d"],
) -> float:
    """W2^2 of two Gaussians.

    C_x C_y is not symmetric, but shares its eigenvalues with the symmetric C_x^1/2 C_y C_x^1/2; the trace
    of the root is the sum of their roots. Two `eigh` therefore do what a general matrix root does less accurately, and
    singular covariances (fewer examples than features) need no ridge.
    """
    values, vectors = np.linalg.eigh(covariance_x)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = root @ covariance_y @ root
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0)).sum()
    return float(((mean_x - mean_y) ** 2).sum() + np.trace(covariance_x) + np.trace(covariance_y) - 2 * shared)


def frechet(x: Samples, y: Samples) -> float:
    """Frechet distance (squared, as is the custom) between two sets of features."""
    _rows_pair("frechet", x, y)
    return gaussian_w2_squared(*moments(x), *moments(y))

r"""Are the samples good (precision, density), and is everything there (recall, coverage)? By k-nearest-neighbour balls.

Let B(y_j) be the ball around y_j that reaches its k-th nearest neighbour within its own set, itself not counted.

    precision = share of generated x_i in at least one ball of the real set,           (Kynkaanniemi et al. 2019)
    recall    = share of real y_j in at least one ball of the generated set,
    density   = 1 / (k n) sum_i #{j : x_i in B(y_j)},  may exceed one,                 (Naeem et al. 2020)
    coverage  = share of real y_j whose own ball holds at least one generated sample.

`mode_weights` asks the same of a mixture whose modes are known: the samples' share of each mode against its weight.

Distances come in blocks of CHUNK rows, so memory grows with n, not n^2.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flowjax.evaluation.distances import Samples, as_rows
from flowjax.paths.oracles import GaussianMixture
from flowjax.paths.transport import squared_distances

CHUNK = 1024

_squared = jax.jit(squared_distances)
_count_inside = jax.jit(lambda x, y, radii: jnp.sum(squared_distances(x, y) <= radii, axis=1))
_nearest = jax.jit(lambda x, y: jnp.min(squared_distances(x, y), axis=1))


def _chunks(x: Float[Array, "n d"]) -> Iterator[Float[Array, "c d"]]:
    return (x[first : first + CHUNK] for first in range(0, len(x), CHUNK))


def _squared_radii(x: Float[Array, "n d"], k: int) -> Float[np.ndarray, " n"]:
    # The nearest of all is the point itself, at distance zero: the k-th neighbour is the (k + 1)-th smallest. NumPy
    # partitions a block on the host much faster than XLA finds its top k.
    return np.concatenate([np.partition(np.asarray(_squared(rows, x)), k, axis=1)[:, k] for rows in _chunks(x)])


def _balls(x: Float[Array, "n d"], y: Float[Array, "m d"], radii: Float[np.ndarray, " m"]) -> np.ndarray:
    """For each row of x, in how many balls of y it lies."""
    return np.concatenate([np.asarray(_count_inside(rows, y, radii)) for rows in _chunks(x)])


def _nearest_squared(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[np.ndarray, " n"]:
    return np.concatenate([np.asarray(_nearest(rows, y)) for rows in _chunks(x)])


def precision_recall(generated: Samples, real: Samples, k: int = 3) -> dict[str, float]:
    """Precision, recall, density and coverage of generated features against real ones.

    Args:
      generated: [n, ...].
      real: [m, ...].
      k: which neighbour a ball reaches.
    """
    x, y = as_rows(generated), as_rows(real)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"precision_recall: features of {x.shape[1]} and {y.shape[1]} numbers; use one extractor.")
    if min(len(x), len(y)) <= k:
        raise ValueError(f"precision_recall: k={k} needs more than {k} examples a set; got {len(x)} and {len(y)}.")
    radii_x, radii_y = _squared_radii(x, k), _squared_radii(y, k)
    balls = _balls(x, y, radii_y)
    return {
        "precision": float((balls > 0).mean()),
        "recall": float((_balls(y, x, radii_x) > 0).mean()),
        "density": float(balls.mean() / k),
        "coverage": float((_nearest_squared(y, x) <= radii_y).mean()),
    }


def nearest_distances(x: Samples, y: Samples) -> Float[np.ndarray, " n"]:
    """For each example of x, the Euclidean distance to the nearest example of y."""
    return np.sqrt(_nearest_squared(as_rows(x), as_rows(y)))


def nearest(x: Samples, y: Samples) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """For each example of x, the distance to the nearest example of y, and which that is."""
    x, y = as_rows(x), as_rows(y)
    places = np.concatenate([np.asarray(_squared(rows, y)).argmin(axis=1) for rows in _chunks(x)])
    return np.asarray(jnp.linalg.norm(x - y[places], axis=1)), places


def mode_weights(samples: Samples, oracle: GaussianMixture, confidence: float = 0.999) -> dict[str, float]:
    """How well the modes of a mixture are kept: each sample goes to the mode with the largest responsibility.

    Returns:
      mode_weight_error: the total variation 1/2 sum_k |share_k - w_k|, from 0 to 1. Perfect samples have about
        sum_k sqrt(w_k (1 - w_k) / (2 pi n)), not 0.
      stray: the share of samples further from their mode than the ball that holds `confidence` of it; perfect samples
        have 1 - confidence.
      missing_modes: how many modes got no sample.
    """
    from scipy.stats import chi2

    x = np.asarray(samples, np.float64).reshape(len(samples), -1)
    weights, means, stds = (np.asarray(value, np.float64) for value in (oracle.weights, oracle.means, oracle.stds))
    if x.shape[1] != means.shape[1]:
        raise ValueError(f"mode_weights: samples have {x.shape[1]} coordinates, the oracle {means.shape[1]}.")
    scaled = np.sum((x[:, None] - means) ** 2, axis=-1) / stds**2  # [n, k], chi-square with d degrees for its own mode
    mode = np.argmax(np.log(weights) - x.shape[1] * np.log(stds) - scaled / 2, axis=1)
    share = np.bincount(mode, minlength=len(weights)) / len(x)
    stray = scaled[np.arange(len(x)), mode] > chi2.ppf(confidence, x.shape[1])
    return {
        "mode_weight_error": float(np.abs(share - weights).sum() / 2),
        "stray": float(stray.mean()),
        "missing_modes": float((share == 0).sum()),
    }

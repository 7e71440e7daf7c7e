r"""How sure is a figure? Intervals for means and for distances between sets, and the spread of real against real.

**Means** over samples (accuracies) get the percentile bootstrap: the mean of n values drawn with replacement, over and
over; the interval holds the middle 95% of those means.

**Distances** between sets must not be bootstrapped so. Drawing with replacement repeats examples. A repeated example has a
neighbour at distance zero and pairs with itself in a kernel; a covariance of repeated examples has fewer directions. All
these shift the resampled values away from the value itself, a Frechet distance by as much again as its whole O(1/n) bias,
so that the interval may not even hold the figure. Here examples are left out instead (the jackknife that deletes groups;
Efron & Tibshirani 1993, 11.5): both sets are cut into G groups, D_g is the distance without group g of either, and

    se^2 = (G - 1) / G sum_g (D_g - mean D)^2,       interval = D -+ t_{G-1}(97.5%) se.

The D_g all have the same bias, which cancels in the differences. The interval therefore is about the mean of D **at this
number of samples**: where another n samples of the same model against another n real ones would come out on average. It
is not about the limit of infinitely many. Held against repeated draws (tests/evaluation/test_resampling.py) it has the
right width for Frechet, kernel and sliced distances, and is 1.4 to 1.6 times too wide for precision, recall, density and
coverage, whose balls all change when a point leaves. Near the floor, where D grows with the square of the difference, it
is too wide rather than too narrow.

**The floor**, D(real, real), of one pair of sets is as noisy as one sample. Splitting one pool of 2n real examples in two
at random again and again gives values with the law that a perfect model's D has: their mean is the floor, and their
standard deviation says how far from it a perfect model may come out.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from flowjax.evaluation import distances
from flowjax.evaluation.distances import Samples

Values = dict[str, float]
Measure = Callable[[Samples, Samples], Values]
GROUPS = 20
RESAMPLES = 1000


def bootstrap_mean(values: Shaped[np.ndarray, " n"], seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """The percentile bootstrap of a mean over samples."""
    values = np.asarray(values, np.float64)
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _group_rows(n: int, groups: int, seed: int) -> list[np.ndarray]:
    if n < 2 * groups:
        raise ValueError(
            f"An interval from {groups} groups needs at least {2 * groups} samples; got {n}. Lower `groups`."
        )
    return np.array_split(np.random.default_rng(seed).permutation(n), groups)


def _reach(without: Sequence[float], level: float) -> float:
    from scipy.stats import t

    count = len(without)
    error = np.sqrt((count - 1) / count * np.sum((np.asarray(without) - np.mean(without)) ** 2))
    return float(t.ppf((1 + level) / 2, count - 1) * error)


def jackknife(
    measure: Measure, one: Samples, other: Samples, groups: int = GROUPS, seed: int = 0, level: float = 0.95
) -> Values:
    """How far the interval of each value of a measure reaches to either side of it, by leaving groups out of both sets."""
    one, other = np.asarray(one), np.asarray(other)
    parts = []
    for rows in _group_rows(len(one), groups, seed):
        keep = np.setdiff1d(np.arange(len(one)), rows)
        parts.append(measure(one[keep], other[keep]))
    return {name: _reach([part[name] for part in parts], level) for name in parts[0]}


def jackknife_frechet(one: Samples, other: Samples, groups: int = GROUPS, seed: int = 0, level: float = 0.95) -> Values:
    """`jackknife` of the Frechet distance; a group is taken out of the sums, so covariances are summed up once."""
    sums = []
    rows = _group_rows(len(one), groups, seed)
    for features in (np.asarray(one, np.float64), np.asarray(other, np.float64)):
        features = features - features.mean(axis=0)  # the sums then lose no digits; the means are added again below
        sums.append((features, features.T @ features))
    shift = np.asarray(one, np.float64).mean(axis=0) - np.asarray(other, np.float64).mean(axis=0)

    def moments_without(group: np.ndarray, features: np.ndarray, squares: np.ndarray):
        left = len(features) - len(group)
        mean = -features[group].sum(axis=0) / left
        covariance = (squares - features[group].T @ features[group] - left * np.outer(mean, mean)) / (left - 1)
        return mean, covariance

    parts = []
    for group in rows:
        (mean_x, covariance_x), (mean_y, covariance_y) = (moments_without(group, *each) for each in sums)
        parts.append(distances.gaussian_w2_squared(mean_x + shift, covariance_x, mean_y, covariance_y))
    return {"frechet": _reach(parts, level)}


@jax.jit
def _kernel_sums(rows: Float[Array, "m d"], blocks: Float[Array, "g m d"]) -> Float[Array, " g"]:
    """Sums of the cubic kernel of KID between a block of rows and each of the blocks."""
    total = lambda block: jnp.sum((jnp.matmul(rows, block.T, precision="highest") / rows.shape[1] + 1) ** 3)
    return jax.lax.map(total, blocks)


def jackknife_kid(one: Samples, other: Samples, groups: int = GROUPS, seed: int = 0, level: float = 0.95) -> Values:
    """`jackknife` of the kernel distance over all pairs, around which the mean over subsets lies.

    A kernel distance is made of sums over pairs, so the sums over pairs of groups give every D_g. The last few samples
    that do not fill a group are left out.
    """
    size = len(_group_rows(len(one), groups, seed)[-1])
    order = np.random.default_rng(seed).permutation(len(one))[: size * groups]
    x, y = (jnp.asarray(features, jnp.float32)[order].reshape(groups, size, -1) for features in (one, other))
    cross = np.stack([np.asarray(_kernel_sums(block, y), np.float64) for block in x])
    within = []
    for blocks in (x, y):
        sums = np.stack([np.asarray(_kernel_sums(block, blocks), np.float64) for block in blocks])
        norms = np.asarray(jnp.sum(blocks**2, axis=-1) / blocks.shape[-1], np.float64)
        sums[np.diag_indices(groups)] -= ((norms + 1) ** 3).sum(axis=1)  # an example is not paired with itself
        within.append(sums)

    def distance(keep: np.ndarray) -> float:
        n = keep.sum() * size
        inner = sum(sums[np.ix_(keep, keep)].sum() for sums in within) / (n * (n - 1))
        return float(inner - 2 * cross[np.ix_(keep, keep)].sum() / n**2)

    return {"kid": _reach([distance(np.arange(groups) != g) for g in range(groups)], level)}


def real_floor(measure: Measure, pool: Samples, pairs: int, seed: int = 0) -> tuple[Values, Values]:
    """(mean, standard deviation) of the measure over `pairs` random splits of a pool of real features into two halves.

    With one pair the standard deviations are missing.
    """
    half = len(pool) // 2
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(pairs):
        order = generator.permutation(len(pool))
        found.append(measure(pool[order[:half]], pool[order[half : 2 * half]]))
    means = {name: float(np.mean([values[name] for values in found])) for name in found[0]}
    stds = {name: float(np.std([values[name] for values in found], ddof=1)) for name in found[0]} if pairs > 1 else {}
    return means, stds

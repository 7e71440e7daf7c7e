r"""Averages of parameters during training, and averages of any length made afterwards from stored ones.

An average follows its source, after every update, by

    average <- average + rate(step) (source - average),          rate = 1 - decay,                                  (1)

where `step` is the 0-based index of the update that has just been made: after the first update the rate is rate(0).

| name     | decay at step k                     | reference                                                      |
| constant | decay                               |                                                                |
| warmup   | min(decay, (1 + k) / (10 + k))      | the averages of TensorFlow and of DDPM                         |
| halflife | 2^(-B / min(images, ramp_up k B))   | Karras et al. 2022: B images a step, k B images seen before it |
| power    | (1 - 1 / (k + 1))^(gamma + 1)       | Karras et al. 2024                                             |

The last three forget the first parameters on their own; halflife and power even start with a copy (decay 0 at k = 0).

Power function. Multiplying out (1) with the decay of the last row, the source after update i (i = 1 ... n) has weight

    (i / n)^(gamma+1) - ((i-1) / n)^(gamma+1) = integral of p(u) from i-1 to i,  p(u) = (gamma+1) u^gamma / n^(gamma+1),

so the average has exactly the profile p, whose width relative to the length of training is the same at all times:

    std(gamma) = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))).                                                   (2)

It depends on the ratio of times alone, so counting images instead of steps changes nothing while the batch is constant.

Afterwards. A stored average i has profile p_i (gamma_i, time T_i). The weights X that bring sum_i X_i p_i nearest to a
wanted profile p in the mean square solve A X = B with A_ij = <p_i, p_j>, B_i = <p_i, p>, and for T_a <= T_b

    <p_a, p_b> = (gamma_a + 1)(gamma_b + 1) (T_a / T_b)^gamma_b / ((gamma_a + gamma_b + 1) T_b).                    (3)

The same sum of the stored parameters is then the wanted average. Negative weights are normal.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from flowjax.contract import Rate


def constant(decay: float = 0.9999) -> Rate:
    """The same decay at every step: a window of about 1 / (1 - decay) updates."""
    _check_decay(decay)
    return lambda step: jnp.full(jnp.shape(step), 1.0 - decay, jnp.float32)


def warmup(decay: float = 0.9999) -> Rate:
    """Decay min(decay, (1 + step) / (10 + step)): short at first, so the initial parameters are soon forgotten."""
    _check_decay(decay)

    def rate(step: Int[Array, ""]) -> Float[Array, ""]:
        count = step.astype(jnp.float32)
        return jnp.maximum(1.0 - decay, 9.0 / (10.0 + count))

    return rate


def halflife(batch_size: int, images: float = 500_000.0, ramp_up: float = 0.05) -> Rate:
    """A half-life in images, at most the share `ramp_up` of the images seen so far (0: no ramp-up).

    Args:
      batch_size: images of one update.
      images: the half-life once training is long enough.
      ramp_up: share of the images seen that the half-life may not exceed.
    """
    if batch_size < 1 or images <= 0 or ramp_up < 0:
        raise ValueError(
            f"halflife needs batch_size >= 1, images > 0, ramp_up >= 0; got {batch_size}, {images} and {ramp_up}."
        )

    def rate(step: Int[Array, ""]) -> Float[Array, ""]:
        half = jnp.full(jnp.shape(step), images, jnp.float32)
        if ramp_up > 0:
            half = jnp.minimum(half, ramp_up * batch_size * step.astype(jnp.float32))
        # The floor makes the first update (no images seen yet) a copy: 2^(-huge) = 0.
        return -jnp.expm1(-np.log(2.0) * batch_size / jnp.maximum(half, 1e-8))

    return rate


def power(std: float = 0.1) -> Rate:
    """The power-function average whose profile has this standard deviation, relative to the length of training."""
    gamma = gamma_of_std(std)

    def rate(step: Int[Array, ""]) -> Float[Array, ""]:
        # At step 0: log1p(-1) = -inf and expm1(-inf) = -1, so the rate is 1 and the average starts as a copy.
        return -jnp.expm1((gamma + 1.0) * jnp.log1p(-1.0 / (step.astype(jnp.float32) + 1.0)))

    return rate


EMAS = {"constant": constant, "warmup": warmup, "halflife": halflife, "power": power}


def _check_decay(decay: float) -> None:
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"An average's decay must be in [0, 1): 0 copies, 1 would never move. It is {decay}.")


def std_of_gamma(gamma: float) -> float:
    """The relative width (2) of the profile with exponent gamma."""
    return float(np.sqrt((gamma + 1.0) / ((gamma + 2.0) ** 2 * (gamma + 3.0))))


def gamma_of_std(std: float) -> float:
    """The exponent of the profile of relative width std: the largest real root of (2) as a cubic in gamma.

    std must be below 1 / sqrt(12), the width of the flat profile gamma = 0.
    """
    if not 0.0 < std < 12.0**-0.5:
        raise ValueError(
            f"The relative std of a power average lies in (0, {12.0**-0.5:.4f}), often 0.05 to 0.15; it is {std}."
        )
    roots = np.roots([1.0, 7.0, 16.0 - std**-2, 12.0 - std**-2])
    return float(np.max(roots.real[np.abs(roots.imag) < 1e-6 * (1 + np.abs(roots.real))]))


@dataclasses.dataclass(frozen=True)
class Profile:
    """A power-function average: its relative width, and when it was stored (in steps or images, one unit for all)."""

    std: float
    time: float


def synthesis_weights(profiles: Sequence[Profile], wanted: Profile) -> Float[np.ndarray, " n"]:
    """The weights, of sum one, with which stored averages add up to the wanted one; see (3).

    Reference: Karras et al. 2024, section 3.2.

    Args:
      profiles: the stored averages: two widths, at several times each.
      wanted: a width, best between or above the stored ones; its time must not be later than the last stored one, and
        is best one of the stored ones (between two of them the short averages have nothing to be made of).
    """
    if not profiles:
        raise ValueError("synthesis_weights needs at least one stored profile.")
    last = max(profile.time for profile in profiles)
    if wanted.time > last:
        raise ValueError(
            f"The wanted average is at time {wanted.time}, after the last stored one at {last}: nothing was seen then."
        )
    gammas = np.array([gamma_of_std(profile.std) for profile in profiles], np.float64)
    times = np.array([profile.time for profile in profiles], np.float64)
    gram = _inner(gammas[:, None], times[:, None], gammas[None], times[None])
    target = _inner(gammas, times, np.float64(gamma_of_std(wanted.std)), np.float64(wanted.time))
    weights = np.linalg.solve(gram, target)
    return weights / weights.sum()


def _inner(gamma_a, time_a, gamma_b, time_b) -> np.ndarray:
    ratio, later = time_a / time_b, np.maximum(time_a, time_b)
    exponent = np.where(time_a <= time_b, gamma_b, -gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) * ratio**exponent / ((gamma_a + gamma_b + 1) * later)


def combine(trees: Iterable[PyTree], weights: Float[np.ndarray, " n"]) -> PyTree:
    """The weighted sum of parameter trees, read one after the other, with the types of the first.

    NumPy leaves are summed in float64 on the host; jax leaves in float32 where they lie, so sharded trees stay sharded.
    """
    if len(weights) == 0:
        raise ValueError("combine needs at least one tree and its weight.")
    total, types = None, None
    for tree, weight in zip(trees, weights.tolist(), strict=True):
        wide = jax.tree.map(lambda leaf, weight=weight: weight * _widen(leaf), tree)
        total = wide if total is None else jax.tree.map(lambda a, b: a + b, total, wide)
        types = jax.tree.map(lambda leaf: leaf.dtype, tree) if types is None else types
    return jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), total, types)


def _widen(leaf):
    return leaf.astype(jnp.float32) if isinstance(leaf, jax.Array) else np.asarray(leaf, np.float64)

r"""Policy gradients on the steps of a stochastic sampler: each step is an action whose density is known.

A step draws x' from N(mean, std^2) (samplers/transition.py). With A the advantage of the sample that the steps led to and
rho = p(x') / p_old(x') (Schulman et al. 2017, for denoising Black et al. 2023; for flows Liu et al. 2025),

    loss = max(-A rho, -A clip(rho, 1 - eps, 1 + eps)),                                                            (1)

whose gradient is -A grad log p on policy, where rho = 1. A step moves the mean by h c (v - v_ref) if the velocity moves by
v - v_ref, so its divergence from a reference is known exactly,

    KL = |mean - mean_ref|^2 / (2 std^2)    (summed, or averaged over the D elements).                             (2)

The released Flow-GRPO code prints |mean - mean_ref|^2 / (2 g^2) with std^2 = g^2 h instead: (2) times h. A log-probability
that is averaged over elements moves D times less than the density: clipping ranges and KL weights belong to one or the other.

Advantages compare the rewards of one group, such as the samples of one caption:

    A = (r - mean of the group) / (s + floor),                                                                     (3)

with s the standard deviation of the group, or of all. Flow-GRPO's divides by n and has a floor of 1e-4; DanceGRPO's divides by
n - 1, and its floor is 1e-8. Where a group's rewards are equal there is nothing to learn.

Several rewards each have an advantage of their own, and their weighted mean is the sample's, which is not normalised again,

    A = sum_m w_m A_m / sum_m |w_m|                                                                                (4)

(Xue et al. 2025; Li et al. 2025): each reward counts by its weight, whatever its units, and where rewards disagree A is small.
The released code of Flow-GRPO and DiffusionNFT adds the weighted rewards up first and normalises their sum by (3), so that the
reward that spreads most is most of A. Here (4) is done for these methods too; who wants the sum makes one reward of it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flowjax.choices import choose

Metrics = dict[str, Float[Array, " b"]]
SCOPES = ("group", "all")


def clipped_loss(
    log_ratio: Float[Array, " b"], advantage: Float[Array, " b"], clip: float
) -> tuple[Float[Array, " b"], Metrics]:
    """Equation (1).

    Args:
      log_ratio: log p(x') - log p_old(x'), through which the gradient flows.
      advantage: of the sample.
      clip: eps.

    Returns:
      The loss, and `ratio`, `clipped` (whether the gradient is cut off) and `divergence`, which estimates KL(p_old, p) as
      rho - 1 - log rho, never below zero (Schulman 2020).
    """
    ratio = jnp.exp(log_ratio)
    plain, held = -advantage * ratio, -advantage * jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    metrics = dict(ratio=ratio, clipped=(held > plain).astype(ratio.dtype), divergence=ratio - 1.0 - log_ratio)
    return jnp.maximum(plain, held), jax.lax.stop_gradient(metrics)


class Advantages(NamedTuple):
    """What `group_advantages` makes of rewards.

    Attributes:
      values: one for each reward.
      flat: the share of groups whose known rewards are all equal.
    """

    values: Float[np.ndarray, " n"]
    flat: float


def group_advantages(
    rewards: Float[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    scope: str = "group",
    limit: float = 5.0,
    floor: float = 1e-4,
    unbiased: bool = False,
) -> Advantages:
    """Equation (3), on the host.

    Args:
      rewards: NaN where one is not known: it has no part in its group, and its advantage is zero.
      groups: to which group each belongs.
      scope: of the standard deviation, 'group' or 'all'.
      limit: between -limit and which advantages are kept.
      floor: added to the standard deviation.
      unbiased: whether the standard deviation divides by one less than there are.
    """
    choose("scope of a standard deviation", scope, dict.fromkeys(SCOPES))
    rewards = np.asarray(rewards, np.float64)
    if np.isinf(rewards).any():
        raise ValueError(
            f"{np.sum(np.isinf(rewards))} of {rewards.size} rewards are infinite; NaN is for what is not known."
        )
    known = ~np.isnan(rewards)
    _, place = np.unique(groups, return_inverse=True)
    count = place.max() + 1
    sizes = np.maximum(np.bincount(place[known], minlength=count), 1)
    worth = np.where(known, rewards, 0.0)
    mean = np.bincount(place, worth) / sizes
    centred = np.where(known, rewards - mean[place], 0.0)
    less = int(unbiased)
    variance = np.bincount(place, centred**2) / np.maximum(sizes - less, 1)
    of_all = np.nanstd(rewards, ddof=less) if known.sum() > less else 0.0
    spread = np.sqrt(variance)[place] if scope == "group" else of_all
    lowest, highest = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(lowest, place[known], rewards[known])
    np.maximum.at(highest, place[known], rewards[known])
    flat = lowest >= highest  # of a group of which nothing is known too
    values = np.where(flat[place], 0.0, centred / np.where(flat[place], 1.0, spread + floor))
    return Advantages(np.clip(values, -limit, limit).astype(np.float32), float(flat.mean()))


def combined_rewards(
    rewards: dict[str, Float[np.ndarray, " n"]],
    weights: dict[str, float],
    groups: Int[np.ndarray, " n"],
    scope: str = "group",
    floor: float = 1e-4,
    unbiased: bool = False,
) -> Float[np.ndarray, " n"]:
    """Equation (4): several rewards as one, each in units of its own spread.

    Args:
      rewards: name -> values.
      weights: name -> weight.
      groups: to which group each belongs.
      scope, floor, unbiased: of `group_advantages`, for each reward.
    """
    if rewards.keys() != weights.keys():
        raise ValueError(
            f"There are rewards {sorted(rewards)} and weights {sorted(weights)}; they must have one set of names."
        )
    total = sum(abs(weight) for weight in weights.values())
    if not total:
        raise ValueError("All weights of rewards are zero, so nothing would be preferred.")
    own = lambda values: group_advantages(values, groups, scope, np.inf, floor, unbiased).values
    return sum(weights[name] * own(values) for name, values in rewards.items()) / total

r"""Preferences without a reward: a network moves towards what won and away from what lost, held by a frozen reference.

Let e(x1) be a network's error of predicting at a random point of the path through x1, and d = e_network - e_reference what
tuning has cost there: below zero the network does better than the reference. Up to a factor and a constant, -d bounds the
log-ratio of the two models' densities at x1 (Wallace et al. 2023), so with pairs that were compared, at equal noise and
equal time,

    margin = -(beta / 2) (d_better - d_worse),     loss = -log sigmoid(margin).                                    (1)

At the reference the loss is log 2. With examples that were only called good (y = 1) or bad (y = -1), and z what tuning has
gained on average (Li et al. 2024, after Kahneman and Tversky: losses and gains are felt from where one stands),

    loss = 1 - sigmoid(y beta (-d - z)),                                                                           (2)

which is 1/2 at the reference. beta is in units of the error: an error that is summed over D elements rather than averaged
takes a beta D times smaller, and an error in the noise is t^2 times that of the velocity on the linear path.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Metrics = dict[str, Float[Array, " b"]]


def paired_preference_loss(
    cost_better: Float[Array, " b"], cost_worse: Float[Array, " b"], beta: float
) -> tuple[Float[Array, " b"], Metrics]:
    """Equation (1).

    Args:
      cost_better: d of the examples that won.
      cost_worse: d of those that lost, at the same noise and time.
      beta: how firmly the reference holds.

    Returns:
      The loss of each pair, and `cost_better`, `cost_worse`, `margin` and `accuracy`: whether the pair is told apart rightly,
      one half where it is not told apart at all.
    """
    margin = -0.5 * beta * (cost_better - cost_worse)
    accuracy = 0.5 * (1.0 + jnp.sign(margin))
    metrics = dict(cost_better=cost_better, cost_worse=cost_worse, margin=margin, accuracy=accuracy)
    return -jax.nn.log_sigmoid(margin), metrics


def unpaired_preference_loss(
    cost: Float[Array, " b"],
    good: Float[Array, " b"],
    gain: Float[Array, ""] | Float[Array, " b"],
    beta: float,
    weight_good: float = 1.0,
    weight_bad: float = 1.0,
) -> tuple[Float[Array, " b"], Metrics]:
    """Equation (2).

    Args:
      cost: d of each example.
      good: 1 for a good example, -1 for a bad one.
      gain: z, taken without gradient.
      beta: how firmly the reference holds.
      weight_good: of good examples.
      weight_bad: of bad ones.
    """
    utility = good * beta * (-cost - jax.lax.stop_gradient(gain))
    weight = jnp.where(good > 0, weight_good, weight_bad)
    return weight * (1.0 - jax.nn.sigmoid(utility)), dict(cost=cost, accuracy=0.5 * (1.0 + jnp.sign(utility)))


def average_gain(cost: Float[Array, " b"], mask: Float[Array, " b"]) -> Float[Array, ""]:
    """z of equation (2): the mean of -d over a batch, not below zero, without gradient."""
    mean = jnp.sum(-cost * mask) / jnp.maximum(jnp.sum(mask), 1.0)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))

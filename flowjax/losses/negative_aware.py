r"""Learning from good and bad samples by regression (Zheng et al. 2025, DiffusionNFT): no likelihoods, and any sampler.

Let X_old(x_t) be the clean prediction of the policy that drew the samples, X that of the network which is trained, and p in
[0, 1] how good a sample x1 is. Two mixtures of them, one ahead of the old policy and one behind it,

    X+ = (1 - b) X_old + b X,      X- = (1 + b) X_old - b X,                                                       (1)

are fitted to the sample, in proportion to how good and how bad it is:

    loss = [ p |X+ - x1|^2 / w+  +  (1 - p) |X- - x1|^2 / w- ] / b.                                                (2)

With w = 1 the minimum over X at a point x_t is, where X_old = E[x1 | x_t] is exact,

    X = X_old + (2 / b) E[p | x_t] (X_good - X_old),     X_good = E[p x1 | x_t] / E[p | x_t]:                       (3)

guidance towards what the good samples have. The published w+ and w- are the mean absolute errors of X+ and X-, without
gradient: every sample then counts alike, however noisy its time, and the minimum is a median rather than a mean.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.arrays import mean_per_example

SMALLEST = 1e-5  # of w


def goodness(advantage: Float[Array, " b"], limit: float) -> Float[Array, " b"]:
    """p = 1/2 + A / (2 limit), kept within [0, 1].

    Args:
      advantage: A.
      limit: the advantage at which a sample is wholly good.
    """
    return jnp.clip(0.5 + advantage / (2.0 * limit), 0.0, 1.0)


def negative_aware_loss(
    clean: Float[Array, "b ..."],
    old_clean: Float[Array, "b ..."],
    data: Float[Array, "b ..."],
    good: Float[Array, " b"],
    strength: float = 1.0,
    adaptive: bool = True,
) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
    """Equation (2), averaged over the elements of a sample.

    Args:
      clean: X, through which the gradient flows.
      old_clean: X_old at the same point; taken without gradient.
      data: x1.
      good: p.
      strength: b.
      adaptive: whether the errors are divided by w+ and w-.

    Returns:
      The loss, and `moved`: the mean squared distance of X from X_old.
    """
    old = jax.lax.stop_gradient(old_clean)

    def fit(mixture: Float[Array, "b ..."]) -> Float[Array, " b"]:
        error = mixture - data
        squared = mean_per_example(error**2)
        if not adaptive:
            return squared
        return squared / jnp.maximum(jax.lax.stop_gradient(mean_per_example(jnp.abs(error))), SMALLEST)

    ahead, behind = fit((1.0 - strength) * old + strength * clean), fit((1.0 + strength) * old - strength * clean)
    moved = jax.lax.stop_gradient(mean_per_example((clean - old) ** 2))
    return (good * ahead + (1.0 - good) * behind) / strength, {"moved": moved}

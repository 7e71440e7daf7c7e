r"""Losses of an autoencoder with a Gaussian posterior, a perceptual distance and an adversary.

With x the image, y its reconstruction from z ~ q(z | x) = N(m, diag(exp(l))), D the number of values of an image:

    reconstruction  r = mean |x - y| + w_p P(x, y)
    KL              k = 1/2 sum (m^2 + exp(l) - 1 - l)                  = KL(q(z | x) || N(0, I)), in nats       (1)
    adversarial     a = -mean over patches of D(y)                       (hinge: adversarial.py)
    in all          r + w_k k / D + w_a lambda a                                                                 (2)

Works that sum the reconstruction over pixels have D times all of (2), with the same w_k: dividing the KL, a sum over the
latents, by the number of *pixel* values keeps the meaning of their weights (1e-6 in Rombach et al. 2022).

lambda balances the adversary against the reconstruction (Esser et al. 2021): with g_r and g_a the gradients of the
batch's means of r and a with respect to the last layer's kernel,

    lambda = stop_gradient(clip(|g_r| / (|g_a| + 1e-4), 0, 1e4)),                                                (3)

so that w_a alone says how loud the adversary is, whatever the scales of the two and however sharp it has become.

Linear case. Let x = w z* + noise with z* ~ N(0, 1) and the decoder be z -> w z. For a squared error |x - y|^2 / (2 s^2)
and weight b on the KL the best posterior is normal with variance 1 / (1 + |w|^2 / (b s^2)); see the tests.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from flowjax.arrays import mean_per_example, sum_per_example

GRADIENT_FLOOR = 1e-4
LARGEST_WEIGHT = 1e4


def absolute_error(images: Float[Array, "b ..."], reconstructions: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """mean |x - y| over the values of an example."""
    return mean_per_example(jnp.abs(images - reconstructions))


def gaussian_kl(mean: Float[Array, "b ..."], logvar: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Equation (1): KL(N(mean, exp(logvar)) || N(0, I)) of each example, in nats, summed over the latents."""
    # Near the prior exp(l) and 1 + l would cancel.
    return 0.5 * sum_per_example(mean**2 + (jnp.expm1(logvar) - logvar))


def sample_posterior(
    mean: Float[Array, "b ..."], logvar: Float[Array, "b ..."], noise: Float[Array, "b ..."]
) -> Float[Array, "b ..."]:
    """z = mean + std noise, differentiable in both moments."""
    return mean + jnp.exp(0.5 * logvar) * noise


def masked_mean(values: Float[Array, " b"], mask: Float[Array, " b"]) -> Float[Array, ""]:
    """The mean over the examples whose mask is 1."""
    return jnp.sum(jnp.where(mask > 0, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1.0)


def norm(tree: PyTree) -> Float[Array, ""]:
    """The Euclidean norm of all arrays of a tree together."""
    return jnp.sqrt(sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(tree)))


def adaptive_weight(reconstruction: PyTree, adversarial: PyTree) -> Float[Array, ""]:
    """Equation (3), from the two gradients with respect to the last layer."""
    ratio = norm(reconstruction) / (norm(adversarial) + GRADIENT_FLOOR)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, LARGEST_WEIGHT))


def balanced(
    reconstruction: Callable[[PyTree], Float[Array, " b"]],
    adversarial: Callable[[PyTree], Float[Array, " b"]],
    layer: PyTree,
    mask: Float[Array, " b"],
) -> Float[Array, ""]:
    """lambda of equation (3) of two losses that are functions of the last layer's parameters."""
    layer = jax.lax.stop_gradient(layer)
    gradient = lambda loss: jax.grad(lambda tree: masked_mean(loss(tree), mask))(layer)
    return adaptive_weight(gradient(reconstruction), gradient(adversarial))

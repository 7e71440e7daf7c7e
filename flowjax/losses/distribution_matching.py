r"""Matching a generator's distribution to a teacher's, through what two denoisers say of noised samples.

A generator makes x = G(z), and noise blurs it to y = alpha x + sigma e. Let q_t be the law of y and p_t that of noised data.
With scores s = (alpha m(y) - y) / sigma^2 for the posterior means m of clean data, `fake` f for q and `real` r for p,

    d/dtheta KL(q_t | p_t)  =  E[ alpha (dx/dtheta)^T (s_f - s_r)(y) ]                                             (1)
                            =  E[ alpha^2 / sigma^2 (dx/dtheta)^T (f - r)(y) ].                                    (2)

(The derivative of log q_t at fixed y has zero mean.) So a generator follows f - r, backwards, where f is a denoiser trained
on its samples: distribution matching (Wang et al. 2023, VSD; Yin et al. 2023, DMD). As a loss with that gradient, and with
the weight in the sample's own units that DMD takes in place of alpha^2 / sigma^2,

    g = (f - r) / mean |x - r|,             L = 1/2 mean | x - stop_gradient(x - g) |^2.                           (3)

mean |x - r| over the many elements of an image is nearly a function of t. Over the two of a point it is as often near zero as
not, and g has heavy tails; what stands for it there is the standard deviation of x given y for Gaussian data of deviation S,

    sigma S / sqrt(alpha^2 S^2 + sigma^2).                                                                         (4)

Other divergences between p and q weigh the same direction by a function of the density ratio (Xu et al. 2025, f-distill),

    h(rho) = rho^2 F''(rho),  rho = p_t(y) / q_t(y):  1 for KL(q | p),  rho for KL(p | q),  rho / (1 + rho) for
    Jensen-Shannon,                                                                                               (5)

with log rho from a discriminator in the non-saturating game.

Score identity (Zhou et al. 2024, SiD). The Fisher-like divergence E|r - f|^2 has a derivative through f's dependence on the
generator, which no one can compute. f = E[x | y], so E[(r - f) . (x - f)] = 0 whenever f is right, and the divergence is also
E[(r - f) . (r - x)], with another derivative at fixed f. Their combination

    L = (r - f) . [ (r - x) - a (r - f) ],        E L = (1 - a) E|r - f|^2   at the right f,                       (6)

is differentiated through both denoisers, of frozen parameters, into y and x. It works for a around 1.2, where it is negative
and rises to 0. For data N(0, S^2) and G(z) = theta + S z its gradient is c^2 theta with c = sigma^2 / (alpha^2 S^2 + sigma^2),
whatever a is.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.arrays import expand_to, mean_per_example
from flowjax.choices import choose
from flowjax.paths.path import GaussianPath

Loss = tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]
SMALLEST_SCALE = 1e-6  # of mean |x - r|


def matching_loss(
    generated: Float[Array, "b ..."],
    fake: Float[Array, "b ..."],
    real: Float[Array, "b ..."],
    scale: Float[Array, " b"] | None = None,
    weight: Float[Array, " b"] | None = None,
) -> Loss:
    """Equation (3). Its gradient by `generated` is weight (f - r) / scale, over the number of elements.

    Args:
      generated: x; the gradient reaches it here alone.
      fake: f(y), of the generator's own denoiser.
      real: r(y), of the teacher.
      scale: mean |x - r| unless given, as `posterior_scale` or, with `kl_weight` for the weight and equation (2), ones.
      weight: a factor for each example, such as equation (5); 1 unless given.

    Returns:
      The loss of each example, and `gap`, the mean |f - r|.
    """
    direction = jax.lax.stop_gradient(fake - real)
    gap = mean_per_example(jnp.abs(direction))
    direction = direction / expand_to(_scale(generated, real) if scale is None else scale, direction)
    if weight is not None:
        direction = direction * expand_to(jax.lax.stop_gradient(weight), direction)
    target = jax.lax.stop_gradient(generated - direction)
    return 0.5 * mean_per_example((generated - target) ** 2), {"gap": gap}


def kl_weight(path: GaussianPath, t: Float[Array, " b"]) -> Float[Array, " b"]:
    """alpha^2 / sigma^2 of equation (2)."""
    return (path.alpha(t) / path.sigma(t)) ** 2


def posterior_scale(path: GaussianPath, t: Float[Array, " b"], data_std: float) -> Float[Array, " b"]:
    """Equation (4)."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    return sigma * data_std / jnp.sqrt((alpha * data_std) ** 2 + sigma**2)


def score_identity_loss(
    generated: Float[Array, "b ..."],
    fake: Float[Array, "b ..."],
    real: Float[Array, "b ..."],
    alpha: float = 1.2,
    scale: Float[Array, " b"] | None = None,
) -> Loss:
    """Equation (6) over a scale, averaged over elements; the gradient flows through all three.

    Args:
      generated: x.
      fake: f(y), differentiable in y.
      real: r(y), likewise.
      alpha: a.
      scale: mean |x - r| unless given.

    Returns:
      The loss of each example, and `gap`, the mean |r - f|.
    """
    difference = real - fake
    product = difference * ((real - generated) - alpha * difference)
    value = mean_per_example(product) / (_scale(generated, real) if scale is None else scale)
    return value, {"gap": mean_per_example(jnp.abs(jax.lax.stop_gradient(difference)))}


def _scale(generated: Float[Array, "b ..."], real: Float[Array, "b ..."]) -> Float[Array, " b"]:
    return jax.lax.stop_gradient(jnp.maximum(mean_per_example(jnp.abs(generated - real)), SMALLEST_SCALE))


DIVERGENCES = {
    "reverse_kl": jnp.zeros_like,
    "forward_kl": lambda log_ratio: log_ratio,
    "jensen_shannon": jax.nn.log_sigmoid,
}  # log h as a function of log rho


def divergence_weight(name: str, log_ratio: Float[Array, " b"], largest: float = 3.0) -> Float[Array, " b"]:
    """h of equation (5).

    Args:
      name: of the divergence, one of DIVERGENCES.
      log_ratio: log(p / q) at the noised samples: the logits of a non-saturating discriminator.
      largest: log_ratio is held between -largest and largest, as a discriminator is sure of itself far too easily.
    """
    log_weight = choose("divergence", name, DIVERGENCES)
    return jnp.exp(log_weight(jnp.clip(log_ratio, -largest, largest)))

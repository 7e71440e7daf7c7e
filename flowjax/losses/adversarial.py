r"""Adversarial losses: a discriminator tells real from generated, a generator makes it fail.

D(x) are logits, several for an example where a discriminator judges patches or has several heads; p is the law of real
examples, q that of generated ones. A game is a pair of losses:

| game           | discriminator, halved                            | best D        | generator       | reference             |
| hinge          | relu(1 - D(real)) + relu(1 + D(fake))            | sign(p - q)   | -D(fake)        | Lim & Ye 2017         |
| non_saturating | softplus(-D(real)) + softplus(D(fake))           | log(p / q)    | softplus(-D)    | Goodfellow et al. 2014 |
| least_squares  | (1 - D(real))^2 + (1 + D(fake))^2                | (p-q) / (p+q) | (1 - D(fake))^2 | Mao et al. 2016       |

R1 (Mescheder et al. 2018) keeps a discriminator flat where the real examples are, and the game convergent,

    R1(x) = 1/2 |grad_x D(x)|^2.                                                                                  (1)

Its gradient needs second derivatives of D. With unit noise n and a small step h the first-order expansion of D gives

    1/2 E_n [ (D(x + h n) - D(x))^2 ] / h^2  ->  R1(x)     as h -> 0,                                              (2)

for which first derivatives do (Lin et al. 2025). Where D has several logits both are of their mean.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.arrays import mean_per_example, sum_per_example

Logits = Float[Array, "b ..."]
Score = Callable[[Float[Array, "b ..."]], Logits]


def generator_hinge(fake: Logits) -> Float[Array, " b"]:
    """-mean over the logits of generated examples."""
    return -mean_per_example(fake)


def discriminator_hinge(real: Float[Array, "b ..."], fake: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """(mean relu(1 - D(x)) + mean relu(1 + D(y))) / 2: 1 for a discriminator that says 0, 0 for one beyond its margins."""
    return 0.5 * (mean_per_example(jax.nn.relu(1.0 - real)) + mean_per_example(jax.nn.relu(1.0 + fake)))


def generator_non_saturating(fake: Logits) -> Float[Array, " b"]:
    """mean softplus(-D(y)): its gradient does not vanish where the discriminator is sure of itself."""
    return mean_per_example(jax.nn.softplus(-fake))


def discriminator_non_saturating(real: Float[Array, "b ..."], fake: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """(mean softplus(-D(x)) + mean softplus(D(y))) / 2: log 2 for a discriminator that says 0."""
    return 0.5 * (mean_per_example(jax.nn.softplus(-real)) + mean_per_example(jax.nn.softplus(fake)))


def generator_least_squares(fake: Logits) -> Float[Array, " b"]:
    """mean (1 - D(y))^2."""
    return mean_per_example((1.0 - fake) ** 2)


def discriminator_least_squares(real: Float[Array, "b ..."], fake: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """(mean (1 - D(x))^2 + mean (1 + D(y))^2) / 2: 1 for a discriminator that says 0."""
    return 0.5 * (mean_per_example((1.0 - real) ** 2) + mean_per_example((1.0 + fake) ** 2))


class Game(NamedTuple):
    """The two losses of a game.

    Attributes:
      generator: logits of generated examples -> one value for each.
      discriminator: (logits of real examples, of generated ones) -> one value for each pair.
    """

    generator: Callable[[Logits], Float[Array, " b"]]
    discriminator: Callable[[Logits, Logits], Float[Array, " b"]]


GAMES: dict[str, Game] = {
    "hinge": Game(generator_hinge, discriminator_hinge),
    "non_saturating": Game(generator_non_saturating, discriminator_non_saturating),
    "least_squares": Game(generator_least_squares, discriminator_least_squares),
}


def gradient_penalty(score: Score, examples: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """R1 of real examples: equation (1), exactly."""
    gradient = jax.grad(lambda x: jnp.sum(mean_per_example(score(x))))(examples)
    return 0.5 * sum_per_example(gradient**2)


def perturbed_penalty(
    score: Score,
    logits: Logits,
    examples: Float[Array, "b ..."],
    noise: Float[Array, "b ..."],
    step: float,
) -> Float[Array, " b"]:
    """R1 from a second evaluation at perturbed examples: the left side of equation (2) for one draw of the noise.

    Args:
      score: examples -> logits.
      logits: score(examples), which the game needs as well.
      examples: real ones.
      noise: unit noise of the same shape.
      step: h.
    """
    change = mean_per_example(score(examples + step * noise)) - mean_per_example(logits)
    return 0.5 * (change / step) ** 2

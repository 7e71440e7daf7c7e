r"""The law of the noise x0: Gaussian, or the heavy-tailed kernel of PFGM++, which any path can use.

PFGM++ (Xu et al. 2023) places N-dimensional data in N + D dimensions and perturbs it at radius r = sigma sqrt(D):

    x = x1 + R u,    R = r sqrt(B / (1 - B)),    B ~ Beta(N/2, D/2),    u uniform on the unit sphere.        (1)

With G_k ~ Gamma(k/2) independent, B / (1 - B) = G_N / G_D. A Gaussian vector z is sqrt(2 G_N) u, so the noise n of
x = x1 + sigma n is

    n = sqrt(D G_N / G_D) u = z / sqrt(2 G_D / D),    2 G_D ~ chi-square with D degrees of freedom:         (2)

n does not depend on sigma, and is the multivariate Student t distribution with D degrees of freedom, whose density is

    p(n) = Gamma((D + N)/2) / (Gamma(D/2) (D pi)^{N/2}) (1 + |n|^2 / D)^{-(D + N)/2}.                       (3)

So PFGM++ is a law of the noise, not a new path. Its variance per dimension is D / (D - 2); D -> infinity is the
Gaussian, D = 1 the Poisson flow (PFGM).
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flowjax.arrays import normal_rows, sum_per_example


@dataclasses.dataclass(frozen=True)
class Noise:
    """A law of the noise x0.

    Attributes:
      name: for logs.
      sample: (keys[b], shape) -> draws [b, *shape], draw i from keys[i] alone.
      log_density: x [b, ...] -> log p(x) [b], all axes but the first being one draw.
      variance: of every coordinate; infinite where it does not exist.
    """

    name: str
    sample: Callable[[Key[Array, " b"], tuple[int, ...]], Float[Array, "b ..."]]
    log_density: Callable[[Float[Array, "b ..."]], Float[Array, " b"]]
    variance: float


def gaussian() -> Noise:
    """The standard normal distribution."""

    def log_density(x):
        return -0.5 * sum_per_example(x**2) - 0.5 * math.log(2 * math.pi) * _dimensions(x)

    return Noise("gaussian", normal_rows, log_density, 1.0)


def pfgmpp(dimensions: float, clip: float = 0.0) -> Noise:
    """The noise (2) of PFGM++ with D = `dimensions` extra dimensions.

    Args:
      dimensions: D > 0, any size.
      clip: keep B within [clip, 1 - clip], as the authors do in training (with 1e-3) against the largest draws. It
        leaves B only where N / (N + D) is far from both bounds: for D >> 1000 N it would move every draw outwards.
    """
    if not dimensions > 0:
        raise ValueError(f"PFGM++ has dimensions={dimensions}; expected a positive number of extra dimensions D.")
    if not 0 <= clip < 0.5:
        raise ValueError(f"PFGM++ has clip={clip}; expected 0 (the exact law) or a small probability such as 1e-3.")

    def sample(keys, shape):
        def draw(key):
            normal_key, gamma_key = jax.random.split(key)
            z = jax.random.normal(normal_key, shape)
            # The gamma draw itself, not the beta draw it stands for: 1 - B would round for large D, B for small.
            chi_square = 2.0 * jax.random.gamma(gamma_key, 0.5 * dimensions)
            if clip == 0.0:
                return z * jnp.sqrt(dimensions / chi_square)
            square = jnp.sum(z**2)
            ratio = jnp.clip(square / chi_square, clip / (1.0 - clip), (1.0 - clip) / clip)
            return z * jnp.sqrt(dimensions * ratio / square)

        return jax.vmap(draw)(keys)

    def log_density(x):
        if clip:
            raise ValueError("Clipped PFGM++ noise puts mass on two spheres and has no density. Use clip=0 for it.")
        count = _dimensions(x)
        # Constants in Python's float64: for large D they are differences of huge, nearly equal numbers.
        constant = (
            math.lgamma(0.5 * (dimensions + count))
            - math.lgamma(0.5 * dimensions)
            - 0.5 * count * math.log(dimensions * math.pi)
        )
        return constant - 0.5 * (dimensions + count) * jnp.log1p(sum_per_example(x**2) / dimensions)

    variance = dimensions / (dimensions - 2) if dimensions > 2 else math.inf
    return Noise("pfgmpp", sample, log_density, variance)


def pfgmpp_radius(sigma: Float[Array, "..."] | float, dimensions: float) -> Float[Array, "..."] | float:
    """r = sigma sqrt(D): the radius at which PFGM++ meets the noise level sigma of a Gaussian path."""
    return sigma * math.sqrt(dimensions)


def _dimensions(x: Float[Array, "b ..."]) -> int:
    return math.prod(x.shape[1:])


NOISES: dict[str, Callable[..., Noise]] = {"gaussian": gaussian, "pfgmpp": pfgmpp}

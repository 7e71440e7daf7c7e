r"""Gaussian probability paths between noise (t = 0) and data (t = 1).

A path mixes data x1 and noise x0,

    x_t = alpha(t) x1 + sigma(t) x0,                                             (1)

with alpha rising and sigma falling in t. The velocity of a particle on a pair (x0, x1) is the time derivative of (1),

    v = alpha'(t) x1 + sigma'(t) x0,                                             (2)

and the marginal velocity E[v | x_t] transports the noise distribution to the data distribution. alpha' and sigma' come
from automatic differentiation of alpha and sigma, so a new path is two one-line functions.

Every path states the interval [start, end] in which (1), (2) and their conversions are finite: noise-exploding paths
start where their sigma is the largest they were trained with, and variance-preserving paths end just before t = 1,
where sigma'(t) is infinite.

| path      | alpha                        | sigma                        | reference                               |
| linear    | t                            | 1 - t                        | Liu et al. 2022, Lipman et al. 2022     |
| trig      | sin(pi t / 2)                | cos(pi t / 2)                | Albergo & Vanden-Eijnden 2022           |
| vp        | exp(-s^2 (b1-b0)/4 - s b0/2) | sqrt(1 - alpha^2)            | Song et al. 2020, s = 1 - t             |
| vp_cosine | cos(pi/2 (s+c)/(1+c)) / norm | sqrt(1 - alpha^2)            | Nichol & Dhariwal 2021, c = 0.008       |
| sub_vp    | as vp                        | 1 - alpha^2                  | Song et al. 2020                        |
| ve        | 1                            | smin (smax / smin)^s         | Song et al. 2020                        |
| edm       | 1                            | (1 - t) / t                  | Karras et al. 2022, t = 1 / (1 + sigma) |
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.arrays import expand_to
from flowjax.choices import choose

Schedule = Callable[[Float[Array, "..."]], Float[Array, "..."]]


@dataclasses.dataclass(frozen=True)
class GaussianPath:
    """x_t = alpha(t) x1 + sigma(t) x0, usable for t in [start, end]."""

    name: str
    alpha: Schedule
    sigma: Schedule
    start: float = 0.0
    end: float = 1.0

    def alpha_dot(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """d alpha / dt by forward-mode differentiation."""
        return _derivative(self.alpha, t)

    def sigma_dot(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """d sigma / dt by forward-mode differentiation."""
        return _derivative(self.sigma, t)

    def sample(
        self, noise: Float[Array, "b ..."], data: Float[Array, "b ..."], t: Float[Array, " b"]
    ) -> Float[Array, "b ..."]:
        """The point x_t of (1) on the pair (noise, data)."""
        return expand_to(self.alpha(t), data) * data + expand_to(self.sigma(t), noise) * noise

    def velocity(
        self, noise: Float[Array, "b ..."], data: Float[Array, "b ..."], t: Float[Array, " b"]
    ) -> Float[Array, "b ..."]:
        """The velocity (2) on the pair (noise, data)."""
        return expand_to(self.alpha_dot(t), data) * data + expand_to(self.sigma_dot(t), noise) * noise

    def log_snr(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """log(alpha^2 / sigma^2): rises from the noise end to the data end."""
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def noise_to_signal(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """sigma / alpha: the noise level in the units of Karras et al. 2022, in which two paths can be matched."""
        return self.sigma(t) / self.alpha(t)


def _derivative(function: Schedule, t: Float[Array, "..."]) -> Float[Array, "..."]:
    t = jnp.asarray(t)
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


def time_at_noise_level(path: GaussianPath, level: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """The time at which sigma / alpha equals a level, by bisection; levels beyond the ends give the ends.

    Args:
      path: any path; its sigma / alpha falls in t.
      level: the noise levels, an array of any shape.
    """
    level = jnp.asarray(level)
    low = jnp.full_like(level, path.start)
    high = end = jnp.full_like(level, path.end)

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        # sigma > level alpha rather than sigma / alpha > level: no division at pure noise.
        too_noisy = path.sigma(middle) > level * path.alpha(middle)
        return jnp.where(too_noisy, middle, low), jnp.where(too_noisy, high, middle)

    low, high = jax.lax.fori_loop(0, 60, halve, (low, high))
    middle = 0.5 * (low + high)
    return jnp.where(path.sigma(end) >= level * path.alpha(end), end, middle)


def linear_path() -> GaussianPath:
    """The straight path of rectified flow: alpha = t, sigma = 1 - t."""
    return GaussianPath("linear", lambda t: t, lambda t: 1.0 - t)


def trigonometric_path() -> GaussianPath:
    """alpha = sin(pi t / 2), sigma = cos(pi t / 2): variance-preserving for data of unit variance."""
    half = math.pi / 2

    # Written from either end in the variable that is small there: value and derivative keep their digits, zeros exact.
    return GaussianPath(
        "trigonometric",
        lambda t: jnp.where(t < 0.5, jnp.sin(half * t), jnp.cos(half * (1.0 - t))),
        lambda t: jnp.where(t < 0.5, jnp.cos(half * t), jnp.sin(half * (1.0 - t))),
    )


def _one_minus_exp(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """1 - e^x for x <= 0, with all digits in value and derivative.

    The plain difference loses the value near x = 0. expm1 keeps it, but JAX differentiates expm1 as 1 + expm1, which
    loses the derivative where e^x is small (6e-4 of sigma' at t = 0 of the VP path).
    """
    return jnp.where(x > -math.log(2.0), -jnp.expm1(x), 1.0 - jnp.exp(x))


def vp_path(beta_min: float = 0.1, beta_max: float = 20.0) -> GaussianPath:
    """Variance-preserving diffusion with a linear beta schedule (the continuous limit of DDPM)."""

    def log_alpha(t):
        s = 1.0 - t
        return -0.25 * s**2 * (beta_max - beta_min) - 0.5 * s * beta_min

    return GaussianPath(
        "vp",
        lambda t: jnp.exp(log_alpha(t)),
        lambda t: jnp.sqrt(_one_minus_exp(2.0 * log_alpha(t))),
        end=1.0 - 1e-3,
    )


def vp_cosine_path(offset: float = 0.008) -> GaussianPath:
    """Variance-preserving diffusion with the cosine schedule; alpha is the square root of their alpha-bar."""
    scale = math.pi / (2.0 * (1.0 + offset))
    first = math.cos(scale * offset)

    # cos(scale (s + offset)) written as a sine of what is left to pi/2, exact at the noise end t = 0.
    def alpha(t):
        return jnp.sin(scale * t) / first

    # Towards the data, 1 - alpha^2 = sin(a - c) sin(a + c) / cos^2(c) with a = scale (s + offset), c = scale offset,
    # free of cancellation. Towards the noise the derivative of that product cancels, and 1 - alpha^2 is safe.
    def sigma(t):
        s = 1.0 - t
        near_data = jnp.sin(scale * s) * jnp.sin(scale * (s + 2.0 * offset)) / first**2
        return jnp.sqrt(jnp.where(t < 0.5, 1.0 - alpha(t) ** 2, near_data))

    return GaussianPath("vp_cosine", alpha, sigma, end=1.0 - 1e-3)


def sub_vp_path(beta_min: float = 0.1, beta_max: float = 20.0) -> GaussianPath:
    """Sub-VP diffusion: the same alpha as `vp_path`, and sigma = 1 - alpha^2 without the root."""
    vp = vp_path(beta_min, beta_max)
    return GaussianPath("sub_vp", vp.alpha, lambda t: vp.sigma(t) ** 2, end=1.0 - 1e-3)


def ve_path(sigma_min: float = 0.01, sigma_max: float = 50.0) -> GaussianPath:
    """Variance-exploding diffusion: alpha = 1, sigma geometric between sigma_max (t = 0) and sigma_min (t = 1)."""
    ratio = math.log(sigma_max / sigma_min)
    return GaussianPath("ve", jnp.ones_like, lambda t: sigma_min * jnp.exp(ratio * (1.0 - t)))


def edm_path(sigma_min: float = 0.002, sigma_max: float = 80.0) -> GaussianPath:
    """alpha = 1, sigma = (1 - t) / t: the noise level of Karras et al., t = 1 / (1 + sigma), logit t = -ln sigma."""
    return GaussianPath(
        "edm", jnp.ones_like, lambda t: (1.0 - t) / t, start=1.0 / (1.0 + sigma_max), end=1.0 / (1.0 + sigma_min)
    )


PATHS: dict[str, Callable[..., GaussianPath]] = {
    "linear": linear_path,
    "trigonometric": trigonometric_path,
    "vp": vp_path,
    "vp_cosine": vp_cosine_path,
    "sub_vp": sub_vp_path,
    "ve": ve_path,
    "edm": edm_path,
}


def make_path(name: str, **options: float) -> GaussianPath:
    """Builds a path by name, for example make_path('vp', beta_max=20.0)."""
    return choose("path", name, PATHS)(**options)

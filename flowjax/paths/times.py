r"""The times at which a loss is evaluated: exact densities, distribution functions and quantiles on [0, 1].

A time distribution is known by its density p, its distribution function F and its quantile Q = F^{-1}; a draw is Q(u)
of a uniform u. Three operations keep it exact and serve every distribution:

    shift s       t' = S(t) with S of shift.py:  Q' = S Q,  F' = F S^{-1},  p'(t) = p(S^{-1} t) (S^{-1})'(t)   (1)
    truncation    t given low <= t <= high:      Q'(u) = Q(F(low) + u mass),  p' = p / mass                    (2)
    strata        u = (pi(row) + U) / B with pi a random permutation of a batch of B: each stratum once        (3)

(3) leaves the law of every single t as it is, and removes the variance between strata from the batch's average. A law may
also be no part of the loss at all, but the place where its terms vary most. With `importance` the loss is

    E_{t ~ p}[w(t) l(t) / p(t)] = integral of w(t) l(t) dt    over the support, whatever p is:                     (4)

what an average over uniform times has to be where the weight is that of a bound (Kingma et al. 2021).

| name           | draw                                | reference                                           |
| uniform        | u                                   |                                                     |
| stratified     | u, stratified                       | Kingma et al. 2021 (there a common offset)          |
| logit_normal   | sigmoid(m + s z)                    | Esser et al. 2024; their m is -m in our time        |
| edm_log_normal | 1 / (1 + exp(m + s z))              | Karras et al. 2022: ln sigma is normal              |
| trigonometric_log_normal | 2/pi arctan(exp(s z - m)) | Lu & Song 2025: the same on the trigonometric path |
| mode           | u + k (cos^2(pi u / 2) - 1 + u)     | Esser et al. 2024, with heavy tails                 |
| cosmap         | sin / (sin + cos) at pi u / 2       | Esser et al. 2024: log-SNR of the cosine schedule   |
| u_shaped       | 1/2 + asinh((2u - 1) sinh(a/2)) / a | Lee et al. 2024: p ~ e^{at} + e^{a(1-t)}            |
| beta           | by bisection of the incomplete beta |                                                     |
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy import special
from jaxtyping import Array, Float, Int, Key

from flowjax.arrays import uniform_rows
from flowjax.paths.shift import resolved_shift, shift_slope, shift_time, unshift_time

Times = Float[Array, "..."]
HALF_STEP = 2.0**-24  # half the spacing of jax.random.uniform in float32
BISECTIONS = 40  # halvings of [0, 1] that invert a distribution function to float32


@dataclasses.dataclass(frozen=True)
class TimeDistribution:
    """A law of t on `support`, and whether a batch draws it in strata.

    Attributes:
      name: for logs.
      density: p(t), zero outside the support.
      cumulative: F(t).
      quantile: Q(u), the inverse of F.
      support: the interval that holds all mass.
      stratified: draw one time in each of batch-size equally likely strata: equation (3).
      importance: the law only says where to look most. Weights are divided by its density: equation (4).
    """

    name: str
    density: Callable[[Times], Times]
    cumulative: Callable[[Times], Times]
    quantile: Callable[[Times], Times]
    support: tuple[float, float] = (0.0, 1.0)
    stratified: bool = False
    importance: bool = False


def sample_times(
    distribution: TimeDistribution,
    keys: Key[Array, " b"],
    rows: Int[Array, " b"],
    batch_size: int,
    key: Key[Array, ""],
) -> Float[Array, " b"]:
    """One time for each example, strictly inside the support up to rounding of the quantile.

    Args:
      distribution: the law, with its choice of strata.
      keys: one key for each example.
      rows: each example's index in the global batch, in [0, batch_size).
      batch_size: the size of the global batch, the number of strata.
      key: the key of the step, the same for all examples: it draws the permutation of the strata.
    """
    # jax.random.uniform draws multiples of 2^-23 in [0, 1): half a step more is symmetric, and never 0 or 1.
    u = uniform_rows(keys) + HALF_STEP
    if distribution.stratified:
        u = (jax.random.permutation(key, batch_size)[rows] + u) / batch_size
        u = jnp.clip(u, HALF_STEP, 1.0 - HALF_STEP)
    return distribution.quantile(u)


def shifted(distribution: TimeDistribution, shift: float) -> TimeDistribution:
    """The law of the shifted time: equation (1)."""
    if shift <= 0:
        raise ValueError(f"The shift of the times is {shift}; expected a positive number (1 changes nothing).")
    if shift == 1:
        return distribution
    return dataclasses.replace(
        distribution,
        density=lambda t: distribution.density(unshift_time(t, shift)) * shift_slope(t, 1.0 / shift),
        cumulative=lambda t: distribution.cumulative(unshift_time(t, shift)),
        quantile=lambda u: shift_time(distribution.quantile(u), shift),
        support=tuple(float(shift_time(end, shift)) for end in distribution.support),
    )


def truncated(distribution: TimeDistribution, low: float, high: float) -> TimeDistribution:
    """The law conditioned on low <= t <= high, for example the interval of a path: equation (2)."""
    low, high = max(low, distribution.support[0]), min(high, distribution.support[1])
    if (low, high) == distribution.support:
        return distribution
    if low >= high:
        raise ValueError(
            f"No time of '{distribution.name}' lies in [{low}, {high}]; expected low < high inside [0, 1]."
        )
    first, last = (float(distribution.cumulative(jnp.float32(end))) for end in (low, high))
    mass = last - first
    if mass <= 0:
        raise ValueError(
            f"'{distribution.name}' has no mass in [{low}, {high}] (to float32). Widen the interval or move the law."
        )
    return dataclasses.replace(
        distribution,
        density=lambda t: jnp.where((t >= low) & (t <= high), distribution.density(t) / mass, 0.0),
        cumulative=lambda t: jnp.clip((distribution.cumulative(t) - first) / mass, 0.0, 1.0),
        quantile=lambda u: jnp.clip(distribution.quantile(first + u * mass), low, high),
        support=(low, high),
    )


def _common(
    base: TimeDistribution,
    *,
    shift: float | str = 1.0,
    base_shape: tuple = (),
    low: float = 0.0,
    high: float = 1.0,
    stratified: bool = False,
    importance: bool = False,
    shape: tuple | None = None,
) -> TimeDistribution:
    """The options of every distribution: shift first, so that low and high bound the times that are drawn.

    Whoever knows the shape of the data gives it: with shift='resolution' the shift follows from it and base_shape.
    """
    shift = resolved_shift(shift, base_shape, shape)
    return dataclasses.replace(truncated(shifted(base, shift), low, high), stratified=stratified, importance=importance)


def _with_common_options(factory: Callable[..., TimeDistribution]) -> Callable[..., TimeDistribution]:
    """Adds the options of `_common` to a factory, and to its signature, which is the list of its options."""
    own, common = inspect.signature(factory), list(inspect.signature(_common).parameters.values())[1:]
    names = {parameter.name for parameter in common}

    @functools.wraps(factory)
    def build(*args, **options):
        base = factory(*args, **{name: value for name, value in options.items() if name not in names})
        return _common(base, **{name: value for name, value in options.items() if name in names})

    build.__signature__ = own.replace(parameters=[*own.parameters.values(), *common])
    return build


def _inside(t: Times, density: Times) -> Times:
    return jnp.where((t >= 0) & (t <= 1), density, 0.0)


def _bisect(increasing: Callable[[Times], Times], value: Times) -> Times:
    """The t in [0, 1] with increasing(t) = value."""

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        right = increasing(middle) < value
        return jnp.where(right, middle, low), jnp.where(right, high, middle)

    value = jnp.asarray(value)
    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (jnp.zeros_like(value), jnp.ones_like(value)))
    return 0.5 * (low + high)


def _positive(name: str, **values: float) -> None:
    for key, value in values.items():
        if not value > 0:
            raise ValueError(f"The time distribution '{name}' has {key}={value}; expected a positive number.")


@_with_common_options
def uniform() -> TimeDistribution:
    """t = u."""
    return TimeDistribution(
        "uniform", lambda t: _inside(t, jnp.ones_like(t)), lambda t: jnp.clip(t, 0.0, 1.0), lambda u: jnp.asarray(u)
    )


def _logit_normal(name: str, mean: float, std: float) -> TimeDistribution:
    _positive(name, std=std)

    def density(t):
        inside = (t > 0) & (t < 1)
        t = jnp.where(inside, t, 0.5)
        z = (special.logit(t) - mean) / std
        return jnp.where(inside, jnp.exp(-0.5 * z**2) / (math.sqrt(2 * math.pi) * std * t * (1 - t)), 0.0)

    return TimeDistribution(
        name,
        density,
        lambda t: special.ndtr((special.logit(jnp.clip(t, 0.0, 1.0)) - mean) / std),
        lambda u: jax.nn.sigmoid(mean + std * special.ndtri(u)),
    )


@_with_common_options
def logit_normal(mean: float = 0.0, std: float = 1.0) -> TimeDistribution:
    """logit t ~ N(mean, std^2). A mean below 0 moves mass to the noise end: SD3's m > 0 is mean = -m."""
    return _logit_normal("logit_normal", mean, std)


@_with_common_options
def edm_log_normal(mean: float = -1.2, std: float = 1.2) -> TimeDistribution:
    """ln sigma ~ N(mean, std^2) with t = 1 / (1 + sigma), hence logit t = -ln sigma ~ N(-mean, std^2)."""
    return _logit_normal("edm_log_normal", -mean, std)


@_with_common_options
def trigonometric_log_normal(mean: float = -1.0, std: float = 1.4) -> TimeDistribution:
    """ln tan(pi (1 - t) / 2) ~ N(mean, std^2): the log noise level of the trigonometric path (Lu & Song 2025)."""
    _positive("trigonometric_log_normal", std=std)
    angle = lambda t: 0.5 * math.pi * (1.0 - jnp.clip(t, 0.0, 1.0))
    z = lambda t: (jnp.log(jnp.sin(angle(t))) - jnp.log(jnp.sin(0.5 * math.pi - angle(t))) - mean) / std

    def density(t):
        inside = (t > 0) & (t < 1)
        t = jnp.where(inside, t, 0.5)
        slope = math.pi / jnp.sin(2.0 * angle(t))  # d ln tan(phi) / dphi = 2 / sin(2 phi)
        return jnp.where(inside, jnp.exp(-0.5 * z(t) ** 2) / (math.sqrt(2 * math.pi) * std) * slope, 0.0)

    return TimeDistribution(
        "trigonometric_log_normal",
        density,
        lambda t: special.ndtr(-z(t)),
        # 1 - 2/pi arctan(n) = 2/pi arctan(1/n): no cancellation towards the noise.
        lambda u: 2.0 / math.pi * jnp.arctan(jnp.exp(std * special.ndtri(u) - mean)),
    )


@_with_common_options
def mode(scale: float = 1.29) -> TimeDistribution:
    """t = u + scale (cos^2(pi u / 2) - 1 + u): mass in the middle (scale > 0) with tails that never vanish."""
    largest = 2 / (math.pi - 2)
    if not -1 <= scale <= largest:
        raise ValueError(f"The scale of 'mode' is {scale}; the map of u is monotone for -1 <= scale <= {largest:.4f}.")

    def quantile(u):
        return u - scale * (jnp.sin(0.5 * math.pi * u) ** 2 - u)

    def density(t):
        u = _bisect(quantile, jnp.clip(t, 0.0, 1.0))
        return _inside(t, 1.0 / (1.0 + scale * (1.0 - 0.5 * math.pi * jnp.sin(math.pi * u))))

    return TimeDistribution("mode", density, lambda t: _bisect(quantile, jnp.clip(t, 0.0, 1.0)), quantile)


@_with_common_options
def cosmap() -> TimeDistribution:
    """t / (1 - t) = tan(pi u / 2): the log-SNR of the cosine schedule, on the linear path."""

    def quantile(u):
        sine, cosine = jnp.sin(0.5 * math.pi * u), jnp.sin(0.5 * math.pi * (1.0 - u))
        return sine / (sine + cosine)

    def cumulative(t):
        t = jnp.clip(t, 0.0, 1.0)
        return 2.0 / math.pi * jnp.arctan2(t, 1.0 - t)

    return TimeDistribution(
        "cosmap", lambda t: _inside(t, 2.0 / (math.pi * (t**2 + (1.0 - t) ** 2))), cumulative, quantile
    )


@_with_common_options
def u_shaped(a: float = 4.0) -> TimeDistribution:
    """p(t) = a cosh(a (t - 1/2)) / (2 sinh(a/2)), proportional to e^{at} + e^{a(1-t)}: more at both ends."""
    _positive("u_shaped", a=a)
    top = 2.0 * math.sinh(0.5 * a)
    return TimeDistribution(
        "u_shaped",
        lambda t: _inside(t, a * jnp.cosh(a * (t - 0.5)) / top),
        lambda t: 0.5 + jnp.sinh(a * (jnp.clip(t, 0.0, 1.0) - 0.5)) / top,
        lambda u: 0.5 + jnp.arcsinh((u - 0.5) * top) / a,
    )


@_with_common_options
def beta(a: float = 1.0, b: float = 1.0) -> TimeDistribution:
    """p(t) = t^{a-1} (1 - t)^{b-1} / B(a, b): a > b moves mass to the data end."""
    _positive("beta", a=a, b=b)
    log_norm = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    def cumulative(t):
        return special.betainc(a, b, jnp.clip(t, 0.0, 1.0))

    def density(t):
        inner = jnp.clip(t, 0.0, 1.0)
        return _inside(t, jnp.exp(special.xlogy(a - 1.0, inner) + special.xlog1py(b - 1.0, -inner) - log_norm))

    return TimeDistribution("beta", density, cumulative, lambda u: _bisect(cumulative, u))


TIMES: dict[str, Callable[..., TimeDistribution]] = {
    "uniform": uniform,
    "stratified": functools.partial(uniform, stratified=True),
    "logit_normal": logit_normal,
    "edm_log_normal": edm_log_normal,
    "trigonometric_log_normal": trigonometric_log_normal,
    "mode": mode,
    "cosmap": cosmap,
    "u_shaped": u_shaped,
    "beta": beta,
}

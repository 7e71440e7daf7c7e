r"""The resolution shift: the same noise level is a different difficulty at another size.

A constant image of value c, seen as n noisy pixels x_i = t c + (1 - t) e_i, is estimated by mean(x) / t with standard
deviation (1 - t) / (t sqrt(n)). Equal difficulty at m pixels and n pixels therefore needs

    (1 - t') / t' = s (1 - t) / t,    s = sqrt(m / n),                            (1)

that is logit t' = logit t - ln s, or

    t' = t / (s - (s - 1) t).                                                    (2)

s > 1 (a larger image) moves mass to the noise end. The inverse is the shift by 1 / s. The same map belongs on the times
of training and on the grid of sampling.

References: Hoogeboom et al. 2023 (simple diffusion); Esser et al. 2024, section 5.3.2 (in reversed time).
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

Time = Float[Array, "..."] | float


def shift_time(t: Time, shift: float) -> Time:
    """Equation (2), an increasing map of [0, 1] onto itself; `shift` is s > 0, and 1 changes nothing."""
    return t / (shift - (shift - 1.0) * t)


def unshift_time(t: Time, shift: float) -> Time:
    """The inverse of `shift_time`."""
    return shift_time(t, 1.0 / shift)


def shift_slope(t: Time, shift: float) -> Time:
    """dt' / dt = s / (s - (s - 1) t)^2, for densities."""
    return shift / jnp.square(shift - (shift - 1.0) * t)


def shift_from_sizes(size: float, base: float) -> float:
    """s = sqrt(size / base) for numbers of pixels (or tokens): equation (1)."""
    if size <= 0 or base <= 0:
        raise ValueError(
            f"shift_from_sizes: sizes are numbers of pixels; expected positive ones, got {size} and {base}."
        )
    return math.sqrt(size / base)


def resolved_shift(shift: float | str, base_shape: tuple = (), shape: tuple | None = None) -> float:
    """A shift as a number: `shift` itself, or for 'resolution' equation (1) of the data's size over that of base_shape.

    Args:
      shift: a number, or 'resolution'.
      base_shape: with 'resolution', (height, width) at which the shift is 1: where the times were right as they are.
      shape: of one example, channels last.
    """
    if isinstance(shift, str) and shift != "resolution":
        raise ValueError(f"shift='{shift}'; expected a number, or 'resolution' with base_shape=(height, width).")
    if isinstance(shift, str) != bool(base_shape):
        raise ValueError(
            f"shift={shift!r} with base_shape={tuple(base_shape)}: 'resolution' and base_shape=(height, width) go together."
        )
    if not isinstance(shift, str):
        return shift
    if shape is None or len(shape) != len(base_shape) + 1:
        raise ValueError(
            f"shift='resolution' compares base_shape={tuple(base_shape)} with data of shape {shape}; expected the shape of "
            "examples with channels last, and a base_shape without the channels."
        )
    return shift_from_sizes(math.prod(shape[:-1]), math.prod(base_shape))


def shift_from_tokens(
    tokens: float, low: float = 256.0, low_mu: float = 0.5, high: float = 4096.0, high_mu: float = 1.15
) -> float:
    """s = exp(mu) with mu linear in the number of tokens, through (low, low_mu) and (high, high_mu), as in Flux."""
    if low == high:
        raise ValueError(f"shift_from_tokens: the line needs two different token counts; both are {low}.")
    return math.exp(low_mu + (high_mu - low_mu) * (tokens - low) / (high - low))

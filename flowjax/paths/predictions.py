r"""What a network can predict, and how any prediction becomes any other.

Every prediction is a row (a, b) of coefficients and a divisor c of the same pair (x1, x0):

    c p = a x1 + b x0.                                                           (1)

| prediction | a      | b      | c     |
| velocity   | alpha' | sigma' | 1     |
| noise      | 0      | 1      | 1     |
| data       | 1      | 0      | 1     |
| score      | 0      | -1     | sigma |
| v          | -sigma | alpha  | 1     |   Salimans & Ho 2022, pointing from data to noise

Together with x_t = alpha x1 + sigma x0 a row is a 2x2 system whose determinant is D = alpha b - sigma a. Solving it for
(x1, x0) and inserting the solution in the row (a', b', c') of another prediction q gives

    c' D q = (a' b - b' a) x_t + (b' alpha - a' sigma) c p.                      (2)

The conversion exists where D and c' are not zero. At fixed x_t an error in p moves q by the factor

    dq / dp = (D' / c') / (D / c),                                               (3)

so a squared loss in q is the squared loss in p times (3) squared: one formula converts every loss weight.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.arrays import expand_to
from flowjax.choices import choose
from flowjax.paths.path import GaussianPath

Row = tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]

_ROWS = {
    "velocity": lambda path, t: (path.alpha_dot(t), path.sigma_dot(t), jnp.ones_like(t)),
    "noise": lambda path, t: (jnp.zeros_like(t), jnp.ones_like(t), jnp.ones_like(t)),
    "data": lambda path, t: (jnp.ones_like(t), jnp.zeros_like(t), jnp.ones_like(t)),
    "score": lambda path, t: (jnp.zeros_like(t), -jnp.ones_like(t), path.sigma(t)),
    "v": lambda path, t: (-path.sigma(t), path.alpha(t), jnp.ones_like(t)),
}
PREDICTIONS: tuple[str, ...] = tuple(_ROWS)


def prediction_row(path: GaussianPath, prediction: str, t: Float[Array, "..."]) -> Row:
    """The coefficients (a, b, c) of equation (1) at the times t."""
    return choose("prediction", prediction, _ROWS)(path, jnp.asarray(t))


def determinant(path: GaussianPath, prediction: str, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """D = alpha b - sigma a: zero where the prediction does not determine data and noise."""
    a, b, _ = prediction_row(path, prediction, t)
    return path.alpha(t) * b - path.sigma(t) * a


def target(
    path: GaussianPath,
    prediction: str,
    noise: Float[Array, "b ..."],
    data: Float[Array, "b ..."],
    t: Float[Array, " b"],
) -> Float[Array, "b ..."]:
    """The value a perfect prediction takes on one pair (noise, data): equation (1)."""
    a, b, c = prediction_row(path, prediction, t)
    return expand_to(a / c, data) * data + expand_to(b / c, noise) * noise


def convert(
    path: GaussianPath,
    source: str,
    destination: str,
    value: Float[Array, "b ..."],
    x: Float[Array, "b ..."],
    t: Float[Array, " b"],
) -> Float[Array, "b ..."]:
    """Converts a prediction `value` at (x, t) from one kind to another: equation (2).

    Args:
      path: the path on which x lies.
      source: the kind of `value`, one of PREDICTIONS.
      destination: the kind wanted.
      value: the prediction.
      x: the point x_t.
      t: one time for each example.
    """
    if source == destination:
        return value
    a, b, c = prediction_row(path, source, t)
    a_out, b_out, c_out = prediction_row(path, destination, t)
    alpha, sigma = path.alpha(t), path.sigma(t)
    divisor = c_out * (alpha * b - sigma * a)
    from_x = (a_out * b - b_out * a) / divisor
    from_value = (b_out * alpha - a_out * sigma) * c / divisor
    return expand_to(from_x, x) * x + expand_to(from_value, value) * value


def error_ratio(path: GaussianPath, source: str, destination: str, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """|dq / dp| of equation (3): how much an error in `source` is magnified in `destination` at fixed x_t."""
    c = prediction_row(path, source, t)[2]
    c_out = prediction_row(path, destination, t)[2]
    return jnp.abs(determinant(path, destination, t) * c / (determinant(path, source, t) * c_out))


def convert_weight(
    path: GaussianPath, source: str, destination: str, weight: Float[Array, "..."], t: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The weight on a squared `destination` error that equals `weight` on the squared `source` error."""
    return weight * error_ratio(path, destination, source, t) ** 2

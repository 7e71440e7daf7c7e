r"""Preconditioning: a network whose inputs and targets have unit variance at every noise level, on any path.

Karras et al. 2022 write a denoiser of x1 + s x0 (s the noise-to-signal ratio, S the data's standard deviation) as

    D(x; s) = c_skip x + c_out F(c_in x, c_noise),                                                        (1)
    c_skip = S^2 / (s^2 + S^2),   c_out = s S / sqrt(s^2 + S^2),   c_in = 1 / sqrt(s^2 + S^2),   c_noise = ln(s) / 4.

A point of any path is such a point after division by alpha, with s = sigma / alpha. Multiplying through by alpha, with
n^2 = alpha^2 S^2 + sigma^2, the variance of x_t, (1) becomes

    D(x_t; t) = (alpha S^2 / n^2) x_t + (sigma S / n) F(x_t / n, c_noise),                                (2)

which needs no division by alpha: at the noise end D = S F(x / sigma), at the data end D = x. For centred data of
standard deviation S the error D - x1 is (sigma S / n) (F - F*) with a target F* of unit variance, so under the weight
lambda = n^2 / (sigma S)^2 (in (1)'s terms (s^2 + S^2) / (s S)^2) the loss is |F - F*|^2 at every level: 1 for F = 0.

The network is given c_noise as its time. The logarithm is held between ln 10^-4 and ln 10^4, beyond which (2) is the
point itself, or the network's guess of the mean, to four digits; without it the ends of the linear path are infinite.
"""

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from flowjax.arrays import batch_times, expand_to
from flowjax.contract import DataSpec
from flowjax.models.network import Conditions, Network, Tokens
from flowjax.paths.path import GaussianPath

LEVELS = (1e-4, 1e4)  # the noise-to-signal ratios between which c_noise moves


def noise_condition(path: GaussianPath, t: Float[Array, " b"]) -> Float[Array, " b"]:
    """c_noise = ln(sigma / alpha) / 4, finite also where alpha or sigma is zero."""
    low, high = LEVELS
    alpha, sigma = path.alpha(t), path.sigma(t)
    return 0.25 * (jnp.log(jnp.maximum(sigma, low * alpha)) - jnp.log(jnp.maximum(alpha, sigma / high)))


def edm(
    network: Network, path: GaussianPath, prediction: str, data: DataSpec, data_std: float | None = None
) -> Network:
    """Equation (2) around a network: a data prediction.

    Args:
      network: F.
      path: the path of the points it will see.
      prediction: what the method predicts; (2) is a data prediction and refuses to pass for another.
      data: its `std` is S.
      data_std: S, if it is not data.std.
    """
    if prediction != "data":
        raise ValueError(
            f"preconditioning 'edm' makes the network a data prediction, but method.prediction is '{prediction}'. "
            "Set method.prediction to 'data' (and method.loss to the space of the loss)."
        )
    std = float(data.std if data_std is None else data_std)
    if not (math.isfinite(std) and std > 0):
        raise ValueError(f"preconditioning 'edm' needs a positive standard deviation of the data; it is {std}.")

    def inputs(x, t, s) -> tuple:
        """x and the times as F sees them, and the coefficients of x and F in (2)."""
        t = batch_times(t, x)
        alpha, sigma = expand_to(path.alpha(t), x), expand_to(path.sigma(t), x)
        scale = jnp.sqrt(alpha**2 * std**2 + sigma**2)
        second = None if s is None else noise_condition(path, batch_times(s, x))
        return x / scale, noise_condition(path, t), second, alpha * (std / scale) ** 2, sigma * std / scale

    def apply(
        tree: PyTree,
        x: Float[Array, "b ..."],
        t: Float[Array, "..."],
        cond: Conditions,
        *,
        s: Float[Array, "..."] | None = None,
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b ..."]:
        scaled, first, second, skip, out = inputs(x, t, s)
        return skip * x + out * network.apply(tree, scaled, first, cond, s=second, keys=keys)

    def hidden(
        tree: PyTree,
        x: Float[Array, "b ..."],
        t: Float[Array, "..."],
        cond: Conditions,
        *,
        layer: int | tuple[int, ...],
        s: Float[Array, "..."] | None = None,
        keys: Key[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b ..."], Tokens | tuple[Tokens, ...]]:
        scaled, first, second, skip, out = inputs(x, t, s)
        output, tokens = network.hidden(tree, scaled, first, cond, layer=layer, s=second, keys=keys)
        return skip * x + out * output, tokens

    return dataclasses.replace(network, apply=apply, hidden=hidden if network.hidden else None)


def none(network: Network) -> Network:
    """The network as it is."""
    return network


PRECONDITIONINGS: dict[str, Callable[..., Network]] = {"none": none, "edm": edm}

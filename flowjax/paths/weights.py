r"""Loss weights, each defined on the squared error of a stated prediction and converted to any other.

A weight from a paper is a number in front of one particular error: min-SNR caps the error of the data prediction, EDM
normalises it, a sigmoid weights that of the noise. At fixed x_t these errors differ by known factors
(predictions.py, equation 3),

    w_q |dq|^2 = w_p |dp|^2    with    w_q = w_p |dp / dq|^2,                     (1)

so a weight is a pair (space, function), and (1) gives what stands in front of the loss at hand. The gradient is then
the same whatever the network predicts and whatever the loss is measured in. With SNR = alpha^2 / sigma^2:

| name          | space    | weight                                | reference                                   |
| uniform       | any      | 1                                     | by default in the space of the loss         |
| min_snr       | data     | min(SNR, gamma)                       | Hang et al. 2023                            |
| truncated_snr | data     | max(SNR, 1)                           | Salimans & Ho 2022                          |
| edm           | data     | (sigma^2 + s^2) / (sigma s)^2         | Karras et al. 2022, sigma: noise-to-signal  |
| sigmoid       | noise    | sigmoid(bias - ln SNR) d(ln SNR) / dt | Kingma & Gao 2023, Hoogeboom et al. 2024    |
| cosmap        | velocity | 2 / (pi (t^2 + (1 - t)^2))            | the density of the cosmap times as a weight |
| ramp          | velocity | t                                     | Lee et al. 2024, for reflowed pairs         |
| evidence      | data     | (d SNR / dt) / 2                      | Kingma et al. 2021: the bound of log p      |
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.choices import choose
from flowjax.paths.path import GaussianPath
from flowjax.paths.predictions import PREDICTIONS, convert_weight
from flowjax.paths.times import TimeDistribution

Times = Float[Array, "..."]
LEAST_DENSITY = 1e-6


@dataclasses.dataclass(frozen=True)
class Weight:
    """A factor on the squared error of one prediction.

    Attributes:
      name: for logs.
      space: the prediction whose error it weighs, one of PREDICTIONS; None for the space of the loss, whichever it is.
      function: (path, t) -> weight.
    """

    name: str
    space: str | None
    function: Callable[[GaussianPath, Times], Times]


def loss_weight(weight: Weight, path: GaussianPath, loss_space: str, t: Times) -> Times:
    """The factor on the squared error in `loss_space` that means the weight in its own space: equation (1)."""
    value = weight.function(path, t)
    if weight.space is None or weight.space == loss_space:
        return value
    return convert_weight(path, weight.space, loss_space, value, t)


def uniform(space: str | None = None) -> Weight:
    """One in front of the error of `space`; by default in front of the loss as it is."""
    if space is not None:
        choose("prediction", space, dict.fromkeys(PREDICTIONS))
    return Weight("uniform", space, lambda path, t: jnp.ones_like(t))


def min_snr(gamma: float = 5.0) -> Weight:
    """min(SNR, gamma) on the data error: the noise loss, except where little noise would make it dominate."""
    return Weight("min_snr", "data", lambda path, t: jnp.minimum(_snr(path, t), gamma))


def truncated_snr() -> Weight:
    """max(SNR, 1) on the data error: the noise loss, except that the noise end keeps its weight."""
    return Weight("truncated_snr", "data", lambda path, t: jnp.maximum(_snr(path, t), 1.0))


def edm(data_std: float = 0.5) -> Weight:
    """(sigma^2 + s^2) / (sigma s)^2 on the data error: unit weight on the output of EDM's preconditioned network."""

    def function(path, t):
        # 1/s^2 + 1/sigma^2, written so that no square overflows.
        return 1.0 / data_std**2 + 1.0 / path.noise_to_signal(t) ** 2

    return Weight("edm", "data", function)


def sigmoid(bias: float = -1.0, per_log_snr: bool = True) -> Weight:
    """sigmoid(bias - ln SNR) on the noise error: less weight on detail finer than ln SNR = bias.

    Args:
      bias: the log-SNR at which the weight has halved; lower for larger images.
      per_log_snr: multiply by d(ln SNR)/dt, so that under uniform times the loss is an integral over ln SNR and does
        not depend on the path. False leaves that density to the time distribution.
    """

    def function(path, t):
        log_snr, slope = jax.jvp(path.log_snr, (t,), (jnp.ones_like(t),))
        value = jax.nn.sigmoid(bias - log_snr)
        return value * slope if per_log_snr else value

    return Weight("sigmoid", "noise", function)


def cosmap() -> Weight:
    """2 / (pi (t^2 + (1 - t)^2)) on the velocity error: the cosmap times as a weight. Use one of the two."""
    return Weight("cosmap", "velocity", lambda path, t: 2.0 / (math.pi * (t**2 + (1.0 - t) ** 2)))


def over_times(weight: Weight, times: TimeDistribution) -> Weight:
    """The weight that goes with the times a config draws: divided by their density where they have `importance`."""
    if not times.importance:
        return weight
    # Where a density vanishes no time is drawn, but a weight that is asked for there is finite.
    density = lambda t: jnp.maximum(times.density(t), LEAST_DENSITY)
    return dataclasses.replace(weight, function=lambda path, t: weight.function(path, t) / density(t))


def ramp() -> Weight:
    """t on the velocity error: where little noise is left a straight flow is easy, and small errors are seen."""
    return Weight("ramp", "velocity", lambda path, t: t)


def evidence() -> Weight:
    """(d SNR / dt) / 2 on the data error: a sum over elements and a mean over uniform times bounds -log p, up to a constant.

    On the linear path it is t / (1 - t) on the velocity error, which has no end: let times stop before the data (time.high).
    """

    def function(path, t):
        log_snr, slope = jax.jvp(path.log_snr, (t,), (jnp.ones_like(t),))
        return 0.5 * jnp.exp(log_snr) * slope

    return Weight("evidence", "data", function)


def _snr(path, t):
    return (path.alpha(t) / path.sigma(t)) ** 2


WEIGHTS: dict[str, Callable[..., Weight]] = {
    "uniform": uniform,
    "min_snr": min_snr,
    "truncated_snr": truncated_snr,
    "edm": edm,
    "sigmoid": sigmoid,
    "cosmap": cosmap,
    "ramp": ramp,
    "evidence": evidence,
}

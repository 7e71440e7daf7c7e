r"""Multistep solvers in log-SNR: one evaluation a step, the past supplies the order.

With lambda = log(alpha / sigma), h = lambda' - lambda and a data prediction D the probability flow is solved by

    x' = (sigma'/sigma) x + alpha' int_0^h e^{u - h} D(lambda + u) du.             (1)

DPM-Solver++(2M) (Lu et al. 2022) extrapolates D linearly through the previous point, D0 + (D0 - D_prev) h / (2 h_prev).
UniPC (Zhao et al. 2023; order 2, B(h) = e^h - 1, data prediction) predicts in the same way and, once the network has
been evaluated at the predicted point, corrects that point with the new value: one order more for no evaluation.

Both are written with keep = sigma'/sigma and gain = alpha' - keep alpha (`jump`), which are finite where lambda is not.
A first step from pure noise (lambda = -inf) has h_prev / h infinite for its successor, whose correction by the past
then vanishes; a last step to clean data (h = inf) is the jump to D0, which is exact for a constant D.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from flowjax.samplers.steppers import OneStep, half_log_snr, jump


@dataclasses.dataclass(frozen=True)
class DPMSolverPP2M(OneStep):
    """DPM-Solver++(2M): order 2, one evaluation."""

    stages = (0.0,)

    def init(self, x: Float[Array, "b ..."]) -> PyTree:
        """The previous data estimate and its lambda."""
        return jnp.zeros_like(x), jnp.zeros((), x.dtype)

    def step(self, field, x, t, t_next, memory, keys, place):
        """One step; the first and a step to sigma' = 0 are of order 1."""
        previous, previous_level = memory
        data = field.data(x, t)
        level, level_next = half_log_snr(field.path, t), half_log_snr(field.path, t_next)
        extrapolation = 0.5 * (level_next - level) / (level - previous_level)
        plain = place.first | jnp.isinf(level_next) | jnp.isinf(level)
        estimate = data + jnp.where(plain, 0.0, extrapolation) * (data - previous)
        keep, gain = jump(field.path, t, t_next)
        return keep * x + gain * estimate, (data, level)


@dataclasses.dataclass(frozen=True)
class UniPC(OneStep):
    """UniPC-2 (bh2): a predictor and a corrector that share one evaluation a step; observed order 3.

    A step starts at the *predicted* point of the step before, evaluates there, corrects that point, and predicts the
    next. The result of the last step is therefore a prediction: correcting it would need an evaluation at the end.
    """

    stages = (0.0,)

    def init(self, x: Float[Array, "b ..."]) -> PyTree:
        """The corrected point, data estimate and time of the step before, and the estimate and lambda before that."""
        nothing, zero = jnp.zeros_like(x), jnp.zeros((), x.dtype)
        return nothing, nothing, zero, nothing, zero

    def step(self, field, x, t, t_next, memory, keys, place):
        """Corrects x with the evaluation at it, then predicts the point at t_next."""
        data = field.data(x, t)
        start, before, t_before, earlier, earlier_level = memory
        path = field.path
        level = half_log_snr(path, t)
        level_before = half_log_snr(path, t_before)
        # Corrector, over the step that led here: from (start, t_before), with `before` there and `earlier` behind it.
        keep, gain = jump(path, jnp.where(place.first, t, t_before), t)
        ratio = (earlier_level - level_before) / (level - level_before)
        past, present = _corrector_weights(level - level_before, ratio)
        has_past = (place.index > 1) & jnp.isfinite(ratio)
        slope = jnp.where(has_past, (earlier - before) / jnp.where(has_past, ratio, 1.0), 0.0)
        present = jnp.where(place.index > 1, present, 0.5)
        corrected = keep * start + gain * (before + jnp.where(has_past, past, 0.0) * slope + present * (data - before))
        x = jnp.where(place.first, x, corrected)
        # Predictor, over the step ahead.
        keep, gain = jump(path, t, t_next)
        ratio = (level_before - level) / (half_log_snr(path, t_next) - level)
        has_past = (~jnp.asarray(place.first)) & jnp.isfinite(ratio) & (ratio != 0.0)
        slope = jnp.where(has_past, (before - data) / jnp.where(has_past, ratio, 1.0), 0.0)
        return keep * x + gain * (data + 0.5 * slope), (x, data, t, before, level_before)


def _corrector_weights(h: Any, ratio: Any) -> tuple[Any, Any]:
    """rho of [[1, 1], [r, 1]] rho = [g1/B, 2 g2/B] with hh = -h, B = expm1(hh), g1 = B/hh - 1, g2 = g1/hh - 1/2."""
    finite = jnp.isfinite(h)
    hh = -jnp.where(finite, h, 1.0)
    growth = jnp.expm1(hh)
    g1 = growth / hh - 1.0
    first = jnp.where(finite, g1 / growth, 1.0)
    second = jnp.where(finite, 2.0 * (g1 / hh - 0.5) / growth, 1.0)
    past = (first - second) / (1.0 - ratio)
    return past, first - past

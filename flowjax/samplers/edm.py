r"""The stochastic sampler of Karras et al. 2022 (algorithm 2), on any path.

In y = x / alpha and sigma_edm = sigma / alpha every path is the path of EDM. A step first raises the noise,

    gamma = min(churn / N, sqrt(2) - 1) where churn_min <= sigma <= churn_max, else 0,
    sigma^ = sigma (1 + gamma),    y^ = y + sqrt(sigma^^2 - sigma^2) churn_noise z,

and then takes a Heun step of dy/dsigma = (y - D)/sigma from sigma^ to sigma', Euler if sigma' = 0. The time of sigma^
is found by inverting the path; sigma^ never exceeds the noisiest level of the path. A step from pure noise
(alpha = 0, sigma infinite) is the exact jump with a constant D, the limit of the Euler step.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from flowjax.arrays import normal_rows
from flowjax.paths.path import time_at_noise_level
from flowjax.samplers.steppers import OneStep, Stepper, jump


@dataclasses.dataclass(frozen=True)
class EDMStochastic(OneStep):
    """Noise, then Heun in sigma: order 2 when churn = 0; two evaluations, one in a last step to clean data.

    Attributes:
      churn: how much noise a whole run adds (S_churn); 0 is the deterministic sampler.
      churn_min, churn_max: the sigma / alpha between which noise is added (S_min, S_max).
      churn_noise: inflation of the noise added (S_noise).
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0

    stages = (0.0, 1.0)

    def step(self, field, x, t, t_next, memory, keys, place):
        """Noise, then Heun."""
        y, level, t = self._raise(field.path, x, t, keys, place.count)
        alpha, alpha_next = field.path.alpha(t), field.path.alpha(t_next)
        level_next = field.path.noise_to_signal(t_next)
        data = field.data(jnp.where(alpha == 0.0, x, alpha * y), t)
        keep, gain = jump(field.path, t, t_next)
        pure_noise = keep * x + gain * data
        slope = (y - data) / level
        euler = y + (level_next - level) * slope
        first = jnp.where(alpha == 0.0, pure_noise, alpha_next * euler)
        slope_next = (euler - field.data(first, t_next)) / level_next
        heun = alpha_next * (y + (level_next - level) * 0.5 * (slope + slope_next))
        return jnp.where(alpha == 0.0, pure_noise, heun), memory

    def finish(self, field: Any, end: float) -> Stepper:
        """Euler where the grid ends at clean data."""
        with jax.ensure_compile_time_eval():
            clean = float(field.path.sigma(jnp.asarray(end, jnp.float32))) < 1e-6
        return _EDMEuler(**dataclasses.asdict(self)) if clean else self

    def _raise(self, path, x, t, keys, count) -> tuple[Any, Any, Any]:
        """(y^, sigma^, t^)."""
        alpha = path.alpha(t)
        pure_noise = alpha == 0.0
        level = jnp.where(pure_noise, 1.0, path.sigma(t) / jnp.where(pure_noise, 1.0, alpha))
        y = x / jnp.where(pure_noise, 1.0, alpha)
        if self.churn == 0.0:
            return y, level, t
        inside = (level >= self.churn_min) & (level <= self.churn_max) & ~pure_noise
        gamma = jnp.where(inside, min(self.churn / count, math.sqrt(2.0) - 1.0), 0.0)
        highest = path.noise_to_signal(jnp.asarray(path.start, x.dtype))
        raised = jnp.where(inside, jnp.minimum(level * (1.0 + gamma), highest), level)
        added = jnp.sqrt(jnp.maximum(raised**2 - level**2, 0.0)) * self.churn_noise
        t_raised = time_at_noise_level(path, raised)
        return y + added * normal_rows(keys, x.shape[1:], x.dtype), raised, jnp.where(inside, t_raised, t)


@dataclasses.dataclass(frozen=True)
class _EDMEuler(EDMStochastic):
    """The last step, to clean data: noise, then E[x1 | x^] itself."""

    stages = (0.0,)

    def step(self, field, x, t, t_next, memory, keys, place):
        y, level, t = self._raise(field.path, x, t, keys, place.count)
        alpha = field.path.alpha(t)
        data = field.data(jnp.where(alpha == 0.0, x, alpha * y), t)
        return field.path.alpha(t_next) * data, memory

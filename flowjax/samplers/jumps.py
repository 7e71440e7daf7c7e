r"""Samplers of students: networks that jump over any stretch of time in one evaluation.

| stepper     | step from t to t_next                                                       | network  | reference        |
| flow_map    | X_{t->s'}, then noise again: see below                                      | (t, s)   | Kim et al. 2024  |
| consistency | E[x1 | x_t] by the network, then alpha(t_next) x1 + sigma(t_next) fresh noise | t       | Song et al. 2023 |

With gamma in [0, 1], `flow_map` jumps beyond t_next to the time s' whose noise level sigma / alpha is sqrt(1 - gamma^2)
times that of t_next, and makes up for it with gamma sigma(t_next) of fresh noise, so the noise level of t_next is met
exactly. gamma = 0 is the deterministic flow map; gamma = 1 jumps to the data each time, as `consistency` does.
"""

import dataclasses
import math

import jax.numpy as jnp

from flowjax.arrays import expand_to, normal_rows
from flowjax.paths.flow_maps import flow_jump
from flowjax.paths.path import time_at_noise_level
from flowjax.samplers.steppers import OneStep


def _again(path, x, keys, t, gamma):
    return x + gamma * expand_to(path.sigma(t), x) * normal_rows(keys, x.shape[1:], x.dtype)


@dataclasses.dataclass(frozen=True)
class FlowMap(OneStep):
    """Jumps of a network of two times, with the share gamma of the noise drawn afresh."""

    gamma: float = 0.0
    stages = (0.0,)

    def __post_init__(self):
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"The sampler 'flow_map' has gamma={self.gamma}; expected a number between 0 and 1.")

    def step(self, field, x, t, t_next, memory, keys, place):
        """One jump."""
        path, target = field.path, t_next
        if self.gamma:
            level = math.sqrt(1 - self.gamma**2) * path.noise_to_signal(t_next)
            target = jnp.asarray(time_at_noise_level(path, level), x.dtype)
        x = flow_jump(path, field.prediction, field.evaluate(x, t, target), x, t, target)
        if self.gamma:
            x = _again(path, x * expand_to(path.alpha(t_next) / path.alpha(target), x), keys, t_next, self.gamma)
        return x, memory


@dataclasses.dataclass(frozen=True)
class Consistency(OneStep):
    """A jump to the data, and noise again: multistep sampling of a network of one time."""

    stages = (0.0,)

    def step(self, field, x, t, t_next, memory, keys, place):
        """One jump to the data and back to t_next."""
        data = field.data(x, t)
        return _again(field.path, expand_to(field.path.alpha(t_next), x) * data, keys, t_next, 1.0), memory

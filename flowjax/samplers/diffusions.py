r"""Diffusion coefficients w(t) of the SDE dx = [v + w s] dt + sqrt(2 w) dW. Any w >= 0 keeps the marginals.

| name                  | w                     | remark                                                        |
| constant              | 1                     |                                                               |
| sbdm                  | W sigma/alpha         | the reverse SDE of score-based models; linear path: (1-t)/t   |
| sigma                 | sigma                 | Ma et al. 2024                                                |
| linear                | 1 - t                 | REPA                                                          |
| decreasing            | (1 + cos pi t)^2 / 4  |                                                               |
| increasing_decreasing | sin^2 pi t            |                                                               |
| Flow-GRPO             | (a^2/2) W sigma/alpha | linear path: g = a sqrt((1-t)/t), w = g^2/2; a = sqrt 2: sbdm |
| DanceGRPO             | eta^2 / 2             |                                                               |

W = alpha' sigma - alpha sigma' (1 on the linear path). sigma/alpha is infinite at pure noise; there, and only there,
the alpha of the *next* grid time takes its place, which is Flow-GRPO's rule: its first step has w = a^2 / (2 t_1).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from flowjax.paths.path import GaussianPath

Diffusion = Callable[[GaussianPath, Any, Any], Any] | None  # (path, t, t_next) -> w


def sbdm_diffusion(path: GaussianPath, t: Any, t_next: Any) -> Any:
    """sigma^2 alpha'/alpha - sigma sigma', finite at pure noise through the next time's alpha."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    wronskian = path.alpha_dot(t) * sigma - alpha * path.sigma_dot(t)
    return wronskian * sigma / jnp.where(alpha == 0.0, path.alpha(t_next), alpha)


DIFFUSIONS: dict[str, Callable[[GaussianPath, Any, Any], Any]] = {
    "constant": lambda path, t, t_next: jnp.ones_like(t),
    "sbdm": sbdm_diffusion,
    "sigma": lambda path, t, t_next: path.sigma(t),
    "linear": lambda path, t, t_next: 1.0 - t,
    "decreasing": lambda path, t, t_next: 0.25 * (1.0 + jnp.cos(jnp.pi * t)) ** 2,
    "increasing_decreasing": lambda path, t, t_next: jnp.sin(jnp.pi * t) ** 2,
}


def flow_grpo_diffusion(a: float) -> Diffusion:
    """w = g^2 / 2 with g = a sqrt((1 - t)/t) on the linear path; a^2/2 times `sbdm` on any."""
    return lambda path, t, t_next: 0.5 * a**2 * sbdm_diffusion(path, t, t_next)


def dance_grpo_diffusion(eta: float) -> Diffusion:
    """w = eta^2 / 2."""
    return lambda path, t, t_next: jnp.full_like(t, 0.5 * eta**2)

r"""Guidance: two predictions at the same point, combined.

With c the prediction to follow (conditional), u the one to leave (unconditional, or a weaker network's) and w the scale
(w = 1 is off):

| name          | formula                                                                   | reference               |
| none          | c                                                                         |                         |
| cfg           | u + w (c - u)                                                             | Ho & Salimans 2022      |
| autoguidance  | u + w (c - u), u from a weaker role with the same condition               | Karras et al. 2024      |
| cfg_zero_star | s u + w (c - s u), s = <c, u> / ||u||^2 on velocities; first steps zero   | Fan et al. 2025         |
| apg           | c + (w - 1) (m_perp + eta m_par), on data estimates                       | Sadat et al. 2024       |

In apg m <- (c - u) + momentum m, rescaled to at most `norm_threshold`, is split along c and across it. Another form,
u + w (m_perp + eta m_par), is in use too. eta = 1, momentum = 0 and no threshold make both plain cfg.

All of these may be limited to an interval [low, high] of t (Kynkaanniemi et al. 2024); outside it c alone is evaluated.
CFG is the same in velocity, noise and data, which are affine in each other; the last two rules are not, so a rule can
name the `space` in which it works. The guided field then *is* a prediction of that kind.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax import choices
from flowjax.arrays import dot_per_example, expand_to
from flowjax.paths.path import GaussianPath
from flowjax.paths.predictions import convert
from flowjax.samplers.field import Field, MemoryField


@dataclasses.dataclass(frozen=True)
class Guidance:
    """A rule for two predictions.

    Attributes:
      scale: w, for receipts.
      needs: the second prediction: None, 'unconditional', or 'weak'.
      combine: (followed, left, t[b], memory) -> (guided, memory).
      space: the kind of prediction in which `combine` works; None for the network's own.
      init: x -> memory; None for rules without memory.
      low, high: the times between which the rule applies, ends included.
      role: the role of the weak network.
    """

    scale: float = 1.0
    needs: str | None = None
    combine: Callable[[Any, Any, Any, Any], Any] | None = None
    space: str | None = None
    init: Callable[[Any], Any] | None = None
    low: float = -math.inf
    high: float = math.inf
    role: str | None = None

    def active(self, t: Any) -> Any:
        """Whether the rule applies at times t."""
        return (t >= self.low) & (t <= self.high)


def none() -> Guidance:
    """The conditional prediction as it is."""
    return Guidance()


def _linear(scale: float) -> Callable:
    return lambda followed, left, t, memory: (left + scale * (followed - left), memory)


def cfg(scale: float, low: float = -math.inf, high: float = math.inf) -> Guidance:
    """Classifier-free guidance u + w (c - u)."""
    return Guidance(scale, "unconditional", _linear(scale), low=low, high=high)


def autoguidance(scale: float, role: str = "weak", low: float = -math.inf, high: float = math.inf) -> Guidance:
    """Guidance away from a weaker role of the same network."""
    return Guidance(scale, "weak", _linear(scale), low=low, high=high, role=role)


def cfg_zero_star(
    scale: float, zero_steps: int = 1, low: float = -math.inf, high: float = math.inf, grid: Any = None
) -> Guidance:
    """CFG-Zero*: the best multiple of the unconditional velocity; no movement in the first `zero_steps` steps."""
    if zero_steps and grid is None:
        raise ValueError("Guidance 'cfg_zero_star' with zero_steps needs a sampler with a grid; set zero_steps=0.")
    if zero_steps < 0 or (grid is not None and zero_steps >= len(grid)):
        raise ValueError(f"Guidance 'cfg_zero_star': zero_steps={zero_steps} must lie in [0, number of steps).")
    # Just below the time at which movement starts: that time itself, in any rounding, is not to be zeroed.
    until = -math.inf if zero_steps == 0 else float(grid[zero_steps] - 1e-3 * (grid[zero_steps] - grid[zero_steps - 1]))

    def combine(followed, left, t, memory):
        multiple = dot_per_example(followed, left) / jnp.maximum(dot_per_example(left, left), 1e-12)
        left = expand_to(multiple, left) * left
        guided = left + scale * (followed - left)
        return jnp.where(expand_to(t < until, guided), 0.0, guided), memory

    return Guidance(scale, "unconditional", combine, "velocity", low=low, high=high)


APG_FORMS = ("followed", "left")


def apg(
    scale: float, eta: float = 0.0, momentum: float = -0.5, norm_threshold: float = math.inf, form: str = "followed",
    low: float = -math.inf, high: float = math.inf,
) -> Guidance:  # fmt: skip
    """Adaptive projected guidance: the part of the update along c, which saturates, is scaled by eta.

    Args:
      scale: w.
      eta: how much of the parallel part is kept.
      momentum: of the update, over the evaluations of one sample; negative pushes away from past updates.
      norm_threshold: the largest norm of the update of one sample.
      form: 'followed' adds (w - 1) times the update to c; 'left' adds w times the update to u.
      low, high: the interval of t.
    """
    choices.choose("form of apg", form, dict.fromkeys(APG_FORMS))

    def combine(followed, left, t, memory):
        active = expand_to((t >= low) & (t <= high), followed)
        memory = jnp.where(active, followed - left + momentum * memory, memory)
        norm = jnp.sqrt(dot_per_example(memory, memory))
        update = memory * expand_to(jnp.minimum(1.0, norm_threshold / jnp.maximum(norm, 1e-12)), memory)
        along = dot_per_example(update, followed) / jnp.maximum(dot_per_example(followed, followed), 1e-12)
        parallel = expand_to(along, followed) * followed
        update = update - parallel + eta * parallel
        guided = followed + (scale - 1.0) * update if form == "followed" else left + scale * update
        return guided, memory

    return Guidance(scale, "unconditional", combine, "data", jnp.zeros_like, low, high)


GUIDANCE: dict[str, Callable[..., Guidance]] = {
    "none": none,
    "cfg": cfg,
    "autoguidance": autoguidance,
    "cfg_zero_star": cfg_zero_star,
    "apg": apg,
}


def make_guidance(spec: Mapping[str, Any], grid: Any = None) -> Guidance:
    """Builds a guidance rule from its spec; `grid` is the sampler's, None when it has none."""
    return choices.build("guidance", spec, GUIDANCE, grid=grid)


def guide(
    guidance: Guidance,
    followed: Callable[..., Float[Array, "b ..."]],
    both: Callable[..., tuple[Float[Array, "b ..."], Float[Array, "b ..."]]],
    prediction: str,
    path: GaussianPath,
) -> Field | MemoryField:
    """The guided field.

    Args:
      guidance: the rule.
      followed: (x, t[b]) -> the conditional prediction alone; with s[b] behind, where a network of two times is asked.
      both: likewise -> (conditional prediction, the other prediction), best in one network call.
      prediction: what the network outputs.
      path: the path.
    """
    if guidance.needs is None:
        return Field(followed, prediction, path)
    space = guidance.space or prediction
    limited = guidance.low > -math.inf or guidance.high < math.inf

    def one(x, t, *to):
        value = followed(x, t, *to)
        return value, value

    def predict(x, t, memory, *to):
        active = guidance.active(t)
        pair = jax.lax.cond(jnp.any(active), both, one, x, t, *to) if limited else both(x, t, *to)
        followed_value, left = (convert(path, prediction, space, value, x, t) for value in pair)
        guided, memory = guidance.combine(followed_value, left, t, memory)
        return jnp.where(expand_to(active, guided), guided, followed_value), memory

    if guidance.init is None:
        return Field(lambda x, t, *to: predict(x, t, (), *to)[0], space, path, prediction)
    return MemoryField(predict, space, path, guidance.init, prediction)

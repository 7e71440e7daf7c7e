"""What is checked of a policy before its first update: that its loss computes what its rollout did, at the same times."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.contract import CheckResult
from flowjax.methods.parts import Setting
from flowjax.samplers.field import Field

RATIO = 1e-3  # rounding alone, of a log-probability summed over an image's elements


def check_ratio(what: str, log_ratio: Float[Array, "..."], clip: float) -> CheckResult:
    """Whether nothing is more or less likely than it was when it was drawn, but for rounding.

    Args:
      what: is likely ("step").
      log_ratio: of the likelihoods in the loss and in the rollout, at the same parameters.
      clip: beyond which the loss takes no notice.
    """
    worst = float(jnp.max(jnp.abs(jnp.expm1(log_ratio))))
    return CheckResult(
        "ratio before the first update",
        worst < min(clip, RATIO),
        f"the probability of a {what} differs from its rollout's by at most {worst:.1e}; it is clipped at {clip:.1e}",
        "The rollout and the loss do not compute the same: use precision='float32', log_prob='mean', or a wider clip.",
    )


def check_times(scored: Sequence[float], drawn: Sequence[float]) -> CheckResult:
    """Whether the loss asks the network at the times at which the rollout did.

    Args:
      scored: times of the loss.
      drawn: those of the rollout's steps that are learnt from.
    """
    told = lambda times: ", ".join(f"{t:.4g}" for t in times)
    same = list(scored) == list(drawn)
    return CheckResult(
        "times of rollout and loss",
        same,
        f"both ask the network at t = {told(scored)}" if same else f"{told(drawn)} against {told(scored)}",
        "The loss scores steps at other times than they were drawn at. Rollout and loss must share grid and window.",
    )


def times_asked(setting: Setting, run: Callable[[Setting], Any]) -> list[float]:
    """The times at which a network is asked, rising: it is run as one that writes them down, and says nothing but zeros.

    Args:
      setting: of the network.
      run: what asks it, given the same setting with the one that writes.
    """
    seen: list[float] = []

    def apply(tree, x, t, cond, *, s=None, keys=None):
        jax.debug.callback(lambda time: seen.append(float(time)), t[0])
        return jnp.zeros_like(x)

    run(dataclasses.replace(setting, network=dataclasses.replace(setting.network, apply=apply)))
    jax.effects_barrier()
    return sorted(seen)


def unconditional_field(setting: Setting) -> Field:
    """The field of a network that reads neither parameters nor conditions, as that of `times_asked`."""
    return Field(lambda x, t: setting.network.apply(None, x, t, {}), setting.prediction, setting.path)

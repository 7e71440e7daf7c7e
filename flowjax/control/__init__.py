"""Continuous control: environments by name, and those who show how it is done in them."""

from collections.abc import Callable

from flowjax.choices import Spec, build
from flowjax.control.environment import Environment, Episodes, roll_out
from flowjax.control.experts import linear, swing_up
from flowjax.control.gym import gym
from flowjax.control.lqr import lqr

ENVIRONMENTS: dict[str, Callable[..., Environment]] = {"lqr": lqr, "gym": gym}
EXPERTS: dict[str, Callable] = {"linear": linear, "swing_up": swing_up}

__all__ = ["ENVIRONMENTS", "EXPERTS", "Environment", "Episodes", "make_environment", "make_expert", "roll_out"]


def make_environment(spec: Spec) -> Environment:
    """An environment of a config.

    Args:
      spec: a name of ENVIRONMENTS and its options, as dict(name='lqr', horizon=50).
    """
    return build("environment", spec, ENVIRONMENTS)


def make_expert(spec: Spec, environment: Environment) -> Callable:
    """Who demonstrates: (observations [b, ...], keys [b]) -> actions.

    Args:
      spec: a name of EXPERTS and its options.
      environment: in which.
    """
    return build("expert", spec, EXPERTS, environment=environment)

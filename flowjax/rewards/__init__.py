"""What samples are worth: rewards by name, and several of them together."""

from collections.abc import Callable

from flowjax.rewards.known import brightness, linear, quadratic
from flowjax.rewards.reward import Reward, Rewards, make_rewards

REWARDS: dict[str, Callable[..., Reward]] = {"linear": linear, "quadratic": quadratic, "brightness": brightness}

__all__ = ["REWARDS", "Reward", "Rewards", "make_rewards"]

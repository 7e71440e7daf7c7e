"""What samples are worth: rewards by name, and several of them together."""

from collections.abc import Callable

from flowjax.rewards.calls import RewardMistake
from flowjax.rewards.hosted import python
from flowjax.rewards.known import brightness, linear, quadratic
from flowjax.rewards.learned import model
from flowjax.rewards.pictures import compressibility
from flowjax.rewards.remote import remote
from flowjax.rewards.reward import Reward, Rewards, make_rewards
from flowjax.rewards.scene import scene
from flowjax.rewards.traced import traced

REWARDS: dict[str, Callable[..., Reward]] = {
    "linear": linear,
    "quadratic": quadratic,
    "brightness": brightness,
    "compressibility": compressibility,
    "scene": scene,
    "model": model,
    "jax": traced,
    "python": python,
    "http": remote,
}

__all__ = ["REWARDS", "Reward", "RewardMistake", "Rewards", "make_rewards"]

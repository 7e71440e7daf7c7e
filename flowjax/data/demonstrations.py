"""Demonstrations: what an expert did in an environment, as actions with the observations they answer to.

An example is an action, `data`, under the condition `observation`; a flow that learns them is a policy. The environment comes
along, so that the policy can be tried where it was shown (evaluator `episode_return`).
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from flowjax.choices import Spec
from flowjax.contract import DataSpec
from flowjax.control import Environment, make_environment, make_expert, roll_out
from flowjax.data.sources import ArraySource


@dataclasses.dataclass(frozen=True)
class Demonstrations(ArraySource):
    """Actions and observations in memory.

    Attributes:
      environment: where they were made.
      returns: of the held-out episodes.
    """

    environment: Environment | None = None
    returns: Any = ()


def demonstrations(
    environment: Spec, expert: Spec, episodes: int = 200, test_episodes: int = 50, played: int = 0
) -> Demonstrations:
    """Plays episodes, the same ones each time.

    Args:
      environment: spec of flowjax.control.ENVIRONMENTS.
      expert: spec of flowjax.control.EXPERTS.
      episodes: to learn from.
      test_episodes: held out.
      played: seed of the episodes; runs with other seeds still learn from the same ones.
    """
    if episodes < 1 or test_episodes < 1:
        raise ValueError(
            f"There are episodes={episodes} and test_episodes={test_episodes}; expected 1 or more of both."
        )
    world = make_environment(environment)
    act = make_expert(expert, world)
    play = jax.jit(lambda keys: roll_out(world, lambda seen, keys: (act(seen, keys), ()), keys))
    shown = jax.tree.map(np.asarray, play(jax.random.split(jax.random.key(played), episodes + test_episodes)))
    if not all(np.isfinite(array).all() for array in (shown.actions, shown.observations)):
        raise ValueError("The expert's actions or what came of them are not finite numbers. Use a steadier expert.")

    def part(rows: slice) -> dict[str, np.ndarray]:
        taken = shown.alive[rows] > 0
        return {"data": shown.actions[rows][taken], "observation": shown.observations[rows][taken]}

    train, test = part(slice(None, episodes)), part(slice(episodes, None))
    spec = DataSpec(world.action_shape, std=float(train["data"].std()), observation_shape=world.observation_shape)
    returns = shown.rewards[episodes:].sum(axis=1)
    return Demonstrations(train, test, spec, environment=world, returns=returns)

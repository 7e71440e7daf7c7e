r"""The protocol of environments, and episodes in them.

An environment is a batch of worlds as two functions in JAX,

    reset(keys)                 -> state, observation [b, ...]
    step(state, action, keys)   -> state, observation, reward [b], ended [b]

with one key for each world: what happens in it is a function of its key and its actions. Every episode begins with `reset` and
takes `horizon` steps. That is a limit of time, not an end: what comes after would have been worth something, and a critic says
how much. `ended` says that a world came to an end of its own; from then on it is not `alive`, and its rewards are zero.

The state is a tree that only the environment reads. A world that is a program on the host keeps its own, and its state here is
a number by which it is found (gym.py).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree


class Step(NamedTuple):
    """What follows from an action.

    Attributes:
      state: for the next step.
      observation: what is seen then.
      reward: of the action.
      ended: True where there is no next step.
    """

    state: PyTree
    observation: Float[Array, "b ..."]
    reward: Float[Array, " b"]
    ended: Array


@dataclasses.dataclass(frozen=True)
class Environment:
    """A batch of worlds; see the module header.

    Attributes:
      observation_shape: of what is seen, about unit size.
      action_shape: of what is done, about unit size.
      horizon: steps of an episode.
      reset: keys -> (state, observation).
      step: (state, action, keys) -> Step.
      oracle: what is known of the best policy, with `best_return(horizon)`; None where nothing is.
    """

    observation_shape: tuple[int, ...]
    action_shape: tuple[int, ...]
    horizon: int
    reset: Callable[[Key[Array, " b"]], tuple[PyTree, Float[Array, "b ..."]]]
    step: Callable[[PyTree, Float[Array, "b ..."], Key[Array, " b"]], Step]
    oracle: Any = None

    def __post_init__(self):
        if self.horizon < 1:
            raise ValueError(f"An episode has horizon={self.horizon} steps; expected 1 or more.")

    @property
    def best_return(self) -> float | None:
        """What the best policy expects of an episode; None where nobody knows."""
        return None if self.oracle is None else float(self.oracle.best_return(self.horizon))


class Episodes(NamedTuple):
    """b episodes of k steps.

    Attributes:
      observations: before each step.
      actions: taken then.
      rewards: zero after the end.
      alive: 1 for steps before the end, the last one included.
      going: 1 where another step follows, or would but for the limit of time.
      last: what is seen after the last step.
      more: what the policy said beside its actions, [b, k, ...].
    """

    observations: Float[Array, "b k ..."]
    actions: Float[Array, "b k ..."]
    rewards: Float[Array, "b k"]
    alive: Float[Array, "b k"]
    going: Float[Array, "b k"]
    last: Float[Array, "b ..."]
    more: PyTree

    @property
    def returns(self) -> Float[Array, " b"]:
        """The sum of rewards of each episode."""
        return jnp.sum(self.rewards, axis=1)


def roll_out(
    environment: Environment,
    act: Callable[[Float[Array, "b ..."], Key[Array, " b"]], tuple[Float[Array, "b ..."], PyTree]],
    keys: Key[Array, " b"],
) -> Episodes:
    """One episode for each key.

    Args:
      environment: where.
      act: (observations, keys) -> (actions, whatever else is to be remembered, a tree of [b, ...]).
      keys: an episode is a function of its key and the policy.
    """
    state, observation = environment.reset(_at(keys, 0))

    def advance(carry, index):
        state, observation, alive = carry
        action, more = act(observation, _at(keys, 2 * index + 1))
        step = environment.step(state, action, _at(keys, 2 * index + 2))
        going = alive * (1.0 - step.ended.astype(jnp.float32))
        return (step.state, step.observation, going), (observation, action, alive * step.reward, alive, going, more)

    alive = jnp.ones(len(keys), jnp.float32)
    (_, last, _), steps = jax.lax.scan(advance, (state, observation, alive), jnp.arange(environment.horizon))
    observations, actions, rewards, alive, going, more = jax.tree.map(lambda array: jnp.moveaxis(array, 0, 1), steps)
    return Episodes(observations, actions, rewards, alive, going, last, more)


def _at(keys: Key[Array, " b"], index: Int[Array, ""] | int) -> Key[Array, " b"]:
    return jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)

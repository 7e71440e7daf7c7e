"""Environments of the package gymnasium, by their name: programs on the host, stepped from inside a compiled rollout.

Observations and actions are scaled by their bounds: actions from [-1, 1], and what lies beyond is cut off before the world sees
it; observations to [-1, 1] where they have bounds. Rewards are the world's own.

A call into the host is ordered by what it is given: every step takes the number that the step before returned, so that no
compiler can exchange two of them. Each rollout has worlds of its own, found by that number, and hands them back after the last
step; two rollouts may be under way at once. A world is reset with a seed made of its key, so an episode is a function of key
and actions, as in an environment in JAX, and a run that is resumed goes on to the bit. Calls go to the host from one device.
"""

import dataclasses
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, Key

from flowjax.control.environment import Environment, Step


def gym(id: str = "Pendulum-v1", horizon: int = 200) -> Environment:
    """An environment of gymnasium with continuous actions.

    Args:
      id: its name, as gymnasium.make takes it.
      horizon: steps of an episode, in place of the limit that is registered with the name.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError(
            f"The environment 'gym' ({id}) needs the package gymnasium. Install it: pip install 'flowjax-research[control]'."
        ) from error
    try:
        made = lambda: gymnasium.make(id, max_episode_steps=-1, disable_env_checker=True)
        first = made()
    except gymnasium.error.Error as error:
        raise ValueError(f"gymnasium does not make '{id}': {error}") from error
    for what, space in (("actions", first.action_space), ("observations", first.observation_space)):
        if not isinstance(space, gymnasium.spaces.Box):
            raise ValueError(f"'{id}' has {what} of {space}; expected real numbers (Box). Use another environment.")
    low, high = first.action_space.low, first.action_space.high
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(
            f"'{id}' has actions between {low} and {high}; expected finite bounds, by which they are scaled."
        )
    seen = first.observation_space
    largest = np.maximum(np.abs(seen.low), np.abs(seen.high))
    scale = np.where(np.isfinite(largest) & (largest > 0), largest, 1.0).astype(np.float32)
    worlds = _Worlds(made, horizon, scale, low, high)

    def of(count: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *seen.shape), jnp.float32)

    def reset(keys: Key[Array, " b"]):
        seeds = jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32))(keys)
        number = jax.ShapeDtypeStruct((), jnp.int32)
        return io_callback(worlds.reset, (number, of(len(keys))), seeds)

    def step(number, action, keys):
        count = len(keys)
        reward, ended = (jax.ShapeDtypeStruct((count,), dtype) for dtype in (jnp.float32, jnp.bool_))
        return Step(*io_callback(worlds.step, (number, of(count), reward, ended), number, action))

    return Environment(tuple(seen.shape), tuple(low.shape), horizon, reset, step)


@dataclasses.dataclass
class _Batch:
    """The worlds of one rollout."""

    worlds: list
    ended: np.ndarray
    steps: int = 0


class _Worlds:
    """Batches of worlds by number; those of finished rollouts are used again."""

    def __init__(self, make: Any, horizon: int, scale: np.ndarray, low: np.ndarray, high: np.ndarray):
        self._make, self._horizon, self._scale, self._low, self._high = make, horizon, scale, low, high
        self._lock, self._used, self._free, self._count = threading.Lock(), {}, {}, 0

    def reset(self, seeds):
        """New episodes; returns their number and what is seen first."""
        seeds = np.asarray(seeds)
        with self._lock:
            number, self._count = self._count, self._count + 1
            free = self._free.setdefault(len(seeds), [])
            batch = free.pop() if free else None
        batch = batch or _Batch([self._make() for _ in seeds], np.zeros(len(seeds), bool))
        batch.ended[:], batch.steps = False, 0
        seen = np.stack([world.reset(seed=int(seed))[0] for world, seed in zip(batch.worlds, seeds)])
        self._used[number] = batch
        return np.int32(number), (seen / self._scale).astype(np.float32)

    def step(self, number, actions):
        """One step of every world that has not come to its end."""
        number = np.asarray(number)
        batch = self._used[int(number)]
        share = (np.clip(np.asarray(actions, np.float64), -1.0, 1.0) + 1.0) / 2.0
        actions = (self._low + share * (self._high - self._low)).astype(self._low.dtype)
        seen = np.zeros((len(actions), *self._scale.shape), np.float32)
        rewards = np.zeros(len(actions), np.float32)
        for index in np.flatnonzero(~batch.ended):
            found, rewards[index], ended, _, _ = batch.worlds[index].step(actions[index])
            seen[index], batch.ended[index] = found / self._scale, ended
        batch.steps += 1
        if batch.steps == self._horizon:
            with self._lock:
                self._free[len(actions)].append(self._used.pop(int(number)))
        return number, seen, rewards, batch.ended.copy()

r"""The two networks beside a flow policy: how far it strays, and what its future is worth.

    noise    (observation, t) -> u, one number for each element of an action, and between two bounds
             std = exp(1/2 [l + (h - l)(tanh u + 1) / 2]),    l = log low^2,    h = log high^2                     (1)
    critic   observation -> value

Both are dense layers on the flattened observation; the noise network reads octaves of the time beside it. Both begin at
nothing: the noise at the geometric mean of its bounds, the values at zero.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from flowjax.choices import choose
from flowjax.contract import DataSpec
from flowjax.models.dense import Dense
from flowjax.models.embeddings import octave_features
from flowjax.models.mlp import ACTIVATIONS

OCTAVES = 3  # the times of a chain are a few


class _Layers(nn.Module):
    width: int
    depth: int
    activation: str
    outputs: int

    @nn.compact
    def __call__(self, features: Float[Array, "b c"]) -> Float[Array, "b outputs"]:
        for index in range(self.depth):
            features = ACTIVATIONS[self.activation](Dense(self.width, name=f"layer_{index}")(features))
        return Dense(self.outputs, kernel_init=nn.initializers.zeros, name="output")(features)


@dataclasses.dataclass(frozen=True)
class Critic:
    """A critic as functions of its parameter tree.

    Attributes:
      init: key -> tree.
      apply: (tree, observations) -> values [b].
    """

    init: Callable[[Key[Array, ""]], PyTree]
    apply: Callable[[PyTree, Float[Array, "b ..."]], Float[Array, " b"]]


@dataclasses.dataclass(frozen=True)
class NoiseNetwork:
    """How far a chain strays, as functions of a parameter tree.

    Attributes:
      init: key -> tree.
      apply: (tree, observations, t, share) -> standard deviations [b, ...] of actions. `share` of the range between the bounds
        is left, from 1, all of it, to 0, the lower bound.
      low, high: the bounds, before anything is taken off.
      hold: share of a run after which the upper bound begins to fall.
      left: share of the range that is left in the end.
    """

    init: Callable[[Key[Array, ""]], PyTree]
    apply: Callable[..., Float[Array, "b ..."]]
    low: float
    high: float
    hold: float
    left: float

    def share(self, progress: Any) -> Any:
        """How much of the range is left after a share of the run: all, then less by half a cosine."""
        fallen = jnp.clip((progress - self.hold) / max(1.0 - self.hold, 1e-6), 0.0, 1.0)
        return self.left + (1.0 - self.left) * 0.5 * (1.0 + jnp.cos(math.pi * fallen))


def critic(data: DataSpec, width: int = 64, depth: int = 2, activation: str = "tanh") -> Critic:
    """Values of observations.

    Args:
      data: shape of observations.
      width: units of a layer.
      depth: hidden layers.
      activation: silu, gelu, relu, tanh or softplus.
    """
    module = _layers("critic", width, depth, activation, 1)
    flat = lambda seen: seen.reshape(seen.shape[0], -1)
    shape = (1, math.prod(data.observation_shape))
    return Critic(
        lambda key: module.init(key, jnp.zeros(shape))["params"],
        lambda tree, seen: module.apply({"params": tree}, flat(seen))[:, 0],
    )


def noise_network(
    data: DataSpec,
    low: float = 0.1,
    high: float = 0.24,
    hold: float = 0.35,
    left: float = 0.7,
    width: int = 64,
    depth: int = 2,
    activation: str = "tanh",
) -> NoiseNetwork:
    """Equation (1); the defaults are those published for locomotion, where actions lie in [-1, 1].

    Args:
      data: shape of actions and of observations.
      low, high: standard deviations are between these.
      hold: share of a run after which `high` begins to fall.
      left: share of the range high - low that is left at the end of a run; 1 keeps it.
      width: units of a layer.
      depth: hidden layers.
      activation: silu, gelu, relu, tanh or softplus.
    """
    if not 0 < low <= high or not (0 <= hold <= 1 and 0 <= left <= 1):
        raise ValueError(
            f"The noise network has low={low}, high={high}, hold={hold}, left={left}; expected 0 < low <= high, and shares "
            "between 0 and 1."
        )
    module = _layers("noise network", width, depth, activation, math.prod(data.shape))

    def features(seen: Float[Array, "b ..."], t: Any) -> Float[Array, "b c"]:
        times = jnp.broadcast_to(jnp.asarray(t, jnp.float32), seen.shape[:1])
        return jnp.concatenate([seen.reshape(seen.shape[0], -1), octave_features(times, OCTAVES)], axis=-1)

    def init(key: Key[Array, ""]) -> PyTree:
        return module.init(key, features(jnp.zeros((1, *data.observation_shape)), 0.0))["params"]

    def apply(tree: PyTree, seen: Float[Array, "b ..."], t: Any, share: Any) -> Float[Array, "b ..."]:
        inside = 0.5 * (jnp.tanh(module.apply({"params": tree}, features(seen, t))) + 1.0)
        reach = jnp.log(1.0 + share * (high - low) / low)  # of the logarithm of the standard deviation: (h - l) / 2
        return (low * jnp.exp(reach * inside)).reshape(-1, *data.shape)

    return NoiseNetwork(init, apply, low, high, hold, left)


def _layers(name: str, width: int, depth: int, activation: str, outputs: int) -> _Layers:
    if width < 1 or depth < 1:
        raise ValueError(f"The {name} has width={width} and depth={depth}; expected 1 or more of both.")
    choose("activation", activation, ACTIVATIONS)
    return _Layers(width, depth, activation, outputs)

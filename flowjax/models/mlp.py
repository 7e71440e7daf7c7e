"""A plain network for points x[b, d] (or small flattened arrays): waves of the time beside x, then dense layers.

It is meant for two-dimensional densities, where a training step takes about a millisecond and every small operation
shows. So there is one concatenation at the entrance, no normalisation, and no separate embedding network.

Near t = 1 the velocity of a sharp density turns over a time of the order of the density's width, (1 - t) ~ width. The
octave features resolve steps of 2^-octaves in t; smooth features would leave the network to build that from biases.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from flowjax.choices import choose
from flowjax.contract import DataSpec
from flowjax.models.dense import Dense
from flowjax.models.embeddings import LARGEST_GUIDANCE, Dropout, octave_features
from flowjax.models.network import (
    Conditions,
    Network,
    from_module,
    guidance_condition,
    label_condition,
    observation_condition,
)

ACTIVATIONS = {"silu": nn.silu, "gelu": nn.gelu, "relu": nn.relu, "tanh": jnp.tanh, "softplus": nn.softplus}


class MLP(nn.Module):
    """Dense layers on (x, features of t, of s - t and of the guidance, observation, label vector); see `mlp` for options."""

    width: int = 256
    depth: int = 3
    activation: str = "silu"
    octaves: int = 8
    num_classes: int | None = None
    dropout: float = 0.0
    zero_output: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b ..."],
        t: Float[Array, " b"],
        s: Float[Array, " b"] | None = None,
        cond: Conditions | None = None,
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b ..."]:
        activation = choose("activation", self.activation, ACTIVATIONS)
        parts = [x.reshape(x.shape[0], -1), octave_features(t, self.octaves)]
        if s is not None:
            parts.append(octave_features(s - t, self.octaves))
        if "guidance" in (cond or {}):
            parts.append(octave_features(cond["guidance"] / LARGEST_GUIDANCE, self.octaves))
        if "observation" in (cond or {}):
            parts.append(cond["observation"].reshape(x.shape[0], -1))
        hidden = Dense(self.width, dtype=self.dtype, name="layer_0")(jnp.concatenate(parts, axis=-1))
        if self.num_classes is not None:
            # Adding a row of a table is the same as concatenating a one-hot label, without the wide matrix.
            hidden += nn.Embed(self.num_classes + 1, self.width, dtype=self.dtype, name="label")(cond["label"])
        hidden = Dropout(self.dropout, name="dropout_0")(activation(hidden), keys)
        for index in range(1, self.depth):
            hidden = activation(Dense(self.width, dtype=self.dtype, name=f"layer_{index}")(hidden))
            hidden = Dropout(self.dropout, name=f"dropout_{index}")(hidden, keys)
        kernel_init = nn.initializers.zeros if self.zero_output else nn.initializers.lecun_normal()
        size = x.size // x.shape[0]
        return Dense(size, kernel_init=kernel_init, dtype=self.dtype, name="output")(hidden).reshape(x.shape)


def mlp(
    data: DataSpec,
    dtype: str = "float32",
    width: int = 256,
    depth: int = 3,
    activation: str = "silu",
    octaves: int = 8,
    class_conditional: bool = True,
    guidance_conditional: bool = False,
    dropout: float = 0.0,
    two_times: bool = False,
    zero_output: bool = False,
) -> Network:
    """A network of `depth` dense layers. Of actions it reads the observations as well, beside x.

    Args:
      data: shape, number of classes and shape of observations.
      dtype: the type it computes in, 'float32' or 'bfloat16'; parameters are float32.
      width: units of a layer.
      depth: hidden layers.
      activation: silu, gelu, relu, tanh or softplus.
      octaves: pairs of time features; they resolve steps of 2^-octaves.
      class_conditional: read cond['label'] where the data have classes.
      guidance_conditional: read cond['guidance'], the scale of guidance to answer with.
      dropout: share of hidden units to drop when the network is given keys.
      two_times: take a second time s.
      zero_output: start as the zero function.
    """
    if depth < 1 or width < 1 or octaves < 0:
        raise ValueError(f"An MLP needs depth >= 1, width >= 1, octaves >= 0; got {depth}, {width} and {octaves}.")
    classes = data.num_classes if class_conditional else None
    module = MLP(width, depth, activation, octaves, classes, dropout, zero_output, jnp.dtype(dtype))
    choose("activation", activation, ACTIVATIONS)
    conditions = {} if classes is None else {"label": label_condition(classes)}
    if guidance_conditional:
        conditions |= guidance_condition()
    if data.observation_shape:
        conditions |= observation_condition(data.observation_shape)
    return from_module(module, data, conditions, two_times)

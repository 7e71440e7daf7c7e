r"""Discriminators: examples to the logits of being real.

| name   | examples | logits                              |
| patch  | images   | one for each patch                  |
| points | points   | one                                 |

Points. Dense layers, as in the network they judge (mlp.py), reading the time of a noised point and the label where the data
have classes. Heads on the features of a frozen network are in heads.py.

Patches (PatchGAN, Isola et al. 2017). A convolution of stride 2 and a leaky rectifier, `layers` times with twice the
channels each time (up to eight times the first), then one more of stride 1 and a last one to a single channel. A logit sees
a patch of the image, not all of it: it judges texture, and leaves what is where to the reconstruction. Group norm stands
where the original has batch norm, which would make the logit of one example depend on the others.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, PyTree

from flowjax.contract import DataSpec
from flowjax.models.convolution import Convolution
from flowjax.models.dense import Dense
from flowjax.models.embeddings import octave_features
from flowjax.models.network import Conditions
from flowjax.models.residual import group_norm

SLOPE = 0.2
MOST = 8  # times the first layer's channels


@dataclasses.dataclass(frozen=True)
class Discriminator:
    """A discriminator as functions of its parameter tree.

    Attributes:
      init: key -> tree.
      apply: (tree, examples) -> logits [b, ...], float32. One of noised examples takes (tree, examples, t, conditions).
    """

    init: Callable[[Key[Array, ""]], PyTree]
    apply: Callable[..., Array]


class PatchGAN(nn.Module):
    """See the module header."""

    channels: int
    layers: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: Float[Array, "b height width c"]) -> Float[Array, "b rows columns"]:
        x = images
        for layer in range(self.layers + 1):
            width = self.channels * min(2**layer, MOST)
            stride = 2 if layer < self.layers else 1
            x = Convolution(width, stride, dtype=self.dtype, name=f"convolution_{layer}")(x)
            if layer > 0:
                x = group_norm(self.dtype, width, f"norm_{layer}")(x)
            x = nn.leaky_relu(x, SLOPE)
        return Convolution(1, name="output")(x.astype(jnp.float32))[..., 0]


def patch(data: DataSpec, dtype: str = "float32", channels: int = 64, layers: int = 3) -> Discriminator:
    """PatchGAN.

    Args:
      data: shape (height, width, channels).
      dtype: the type it computes in; parameters and logits are float32.
      channels: channels of the first layer.
      layers: how often it halves the image.
    """
    smallest = min(data.shape[:2])
    if layers < 1 or smallest < 2**layers:
        raise ValueError(
            f"A patch discriminator of {layers} layers halves the image as often, and {tuple(data.shape[:2])} allows 1 to "
            f"{smallest.bit_length() - 1}. Change discriminator.layers."
        )
    module = PatchGAN(channels, layers, jnp.dtype(dtype))

    def init(key: Key[Array, ""]) -> PyTree:
        return module.init(key, jnp.zeros((1, *data.shape)))["params"]

    def apply(tree: PyTree, images: Float[Array, "b height width c"]) -> Float[Array, "b rows columns"]:
        return module.apply({"params": tree}, images)

    return Discriminator(init, apply)


class Points(nn.Module):
    """See the module header; t and label are None where it reads none."""

    width: int
    depth: int
    octaves: int
    num_classes: int | None
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b ..."], t: Float[Array, " b"] | None, label: Int[Array, " b"] | None
    ) -> Float[Array, "b 1"]:
        parts = [x.reshape(len(x), -1)]
        if t is not None:
            parts.append(octave_features(t, self.octaves))
        hidden = Dense(self.width, dtype=self.dtype, name="layer_0")(jnp.concatenate(parts, axis=-1))
        if label is not None:
            hidden += nn.Embed(self.num_classes + 1, self.width, dtype=self.dtype, name="label")(label)
        for index in range(1, self.depth):
            hidden = Dense(self.width, dtype=self.dtype, name=f"layer_{index}")(nn.leaky_relu(hidden, SLOPE))
        return Dense(1, name="output")(nn.leaky_relu(hidden, SLOPE).astype(jnp.float32))


def points(
    data: DataSpec,
    dtype: str = "float32",
    width: int = 128,
    depth: int = 3,
    octaves: int = 4,
    class_conditional: bool = True,
    noised: bool = False,
) -> Discriminator:
    """Dense layers.

    Args:
      data: shape and number of classes.
      dtype: the type it computes in; parameters and logits are float32.
      width: units of a layer.
      depth: hidden layers.
      octaves: pairs of time features.
      class_conditional: read cond['label'] where the data have classes.
      noised: read the time.
    """
    if depth < 1 or width < 1 or octaves < 0:
        raise ValueError(
            f"A discriminator of points needs depth >= 1, width >= 1, octaves >= 0; got {depth}, {width}, {octaves}."
        )
    classes = data.num_classes if class_conditional else None
    module = Points(width, depth, octaves, classes, jnp.dtype(dtype))

    def init(key: Key[Array, ""]) -> PyTree:
        time, label = jnp.zeros(1) if noised else None, None if classes is None else jnp.zeros(1, jnp.int32)
        return module.init(key, jnp.zeros((1, *data.shape)), time, label)["params"]

    def apply(
        tree: PyTree, x: Float[Array, "b ..."], t: Float[Array, " b"] | None = None, cond: Conditions | None = None
    ) -> Float[Array, "b 1"]:
        label = None if classes is None else cond["label"]
        return module.apply({"params": tree}, x, t if noised else None, label)

    return Discriminator(init, apply)


DISCRIMINATORS = {"patch": patch}  # of images alone: what an autoencoder's adversary may be

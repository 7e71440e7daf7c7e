"""The frozen encoders of representation alignment: what a network's tokens are compared with.

    dict(name="efficientnet_lite0", layer="b4", input_size=128)     a published image network (models/features)
    dict(name="run", restore_from="runs/small:ema", layer=3)        the tokens of another finished network of this project
    dict(name="stored")                                             `features` that the batch brings along

The first two see the very pictures that the network is trained on, augmentations included: nothing can come apart. Stored
features were computed once, of pictures as they are (data source `featured`), and cost nothing here.

A published network knows photographs. For pictures that look like nothing in ImageNet, train a small network on them
first, with labels or captions, and take its tokens: a denoiser has learnt what its pictures are made of.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from flowjax.arrays import example_keys
from flowjax.choices import Spec, build, choose
from flowjax.contract import Batch, DataSpec, Role
from flowjax.methods.finished import open_finished
from flowjax.models.features import EXTRACTORS, chosen_map
from flowjax.models.trunks import check_layer, hidden_channels

Features = Float[Array, "b h w c"]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What sees pictures, as a function on a parameter tree.

    Attributes:
      encode: (tree, batch, key) -> features on a grid; the tree is None where there is no role.
      channels: of the features.
      role: frozen; None where there is nothing to keep.
    """

    encode: Callable[[PyTree, Batch, Key[Array, ""]], Features]
    channels: int
    role: Role | None


def make_encoder(spec: Spec, data: DataSpec) -> Encoder:
    """The encoder of a spec: see the module header.

    Args:
      spec: `name` and options; of a published network also `layer` and `weights` ('published', or 'random' for tests).
      data: what it sees.
    """
    if "name" not in spec:
        raise ValueError(f"The encoder spec {dict(spec)} has no 'name'. Known: {', '.join((*ENCODERS, *EXTRACTORS))}.")
    if choose("encoder", spec["name"], {**ENCODERS, **EXTRACTORS}) in EXTRACTORS.values():
        return published(spec, data)
    return build("encoder", spec, ENCODERS, data=data)


def published(spec: Spec, data: DataSpec) -> Encoder:
    """One layer of a published image network.

    Args:
      spec: see models.features.chosen_map.
      data: pictures.
    """
    extractor, layer, load = chosen_map(spec)
    if len(data.shape) != 3 or data.shape[-1] not in (1, 3):
        raise ValueError(
            f"The encoder '{extractor.name}' sees pictures with 1 or 3 channels; the data have shape {tuple(data.shape)}. For "
            "latents take features of the pictures: source=dict(name='featured', ...) and encoder=dict(name='stored')."
        )
    role = Role(init=extractor.init) if load is None else Role(load=load)
    encode = lambda tree, batch, key: extractor.apply(tree, batch["data"])[layer]
    return Encoder(encode, extractor.channels[layer], role)


def run(data: DataSpec, restore_from: str, layer: int, time: float | None = None) -> Encoder:
    """The tokens of a finished network, without label or caption, near the data end of its path.

    Args:
      data: what it was trained on, perhaps at another resolution.
      restore_from: RUN_DIRECTORY or RUN_DIRECTORY:role; the average `ema` where the run has one, else `student`.
      layer: the block after which its tokens are taken, from 1.
      time: of its path, noise drawn anew each time; the end, clean data, unless told.
    """
    finished = open_finished(restore_from, data, "The encoder of the alignment")
    setting = finished.setting
    network, path = setting.network, setting.path
    check_layer(network, layer, f"The network of '{restore_from}'", "encoder.layer")
    time = path.end if time is None else time
    if not path.start <= time <= path.end:
        raise ValueError(f"encoder.time is {time}, outside the path of '{restore_from}', [{path.start}, {path.end}].")

    def encode(tree: PyTree, batch: Batch, key: Key[Array, ""]) -> Features:
        images = batch["data"]
        noise = setting.noise.sample(example_keys(key, batch["row"]), images.shape[1:])
        t = jnp.full(len(images), time)
        cond = network.drop({name: batch[name] for name in network.conditions}, jnp.ones(len(images), bool))
        return network.hidden(tree, path.sample(noise, images, t), t, cond, layer=layer)[1]

    return Encoder(encode, hidden_channels(network, data, layer), finished.role)


def stored(data: DataSpec) -> Encoder:
    """The features of the batch itself.

    Args:
      data: its feature_shape says what they are.
    """
    if not data.feature_shape:
        raise ValueError(
            "encoder 'stored' reads `features` of the batch, and these data bring none. Put the source into "
            "dict(name='featured', source=..., folder=...), or choose an encoder that computes them."
        )
    return Encoder(lambda tree, batch, key: batch["features"], data.feature_shape[-1], None)


ENCODERS: dict[str, Callable[..., Encoder]] = {"run": run, "stored": stored}

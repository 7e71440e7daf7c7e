r"""Distances between images as a frozen network sees them.

At every cell of every layer the channels h are scaled to unit length, and squared differences are weighted,

    d(x, y) = sum over layers, mean over cells, sum over channels of w_c (h_c(x) / |h(x)| - h_c(y) / |h(y)|)^2.   (1)

LPIPS (Zhang et al. 2018) is (1) on VGG16 or AlexNet with weights w that were fitted to people's judgements; `features` is the
same on any feature extractor, with w = 1 and the mean over layers. Only LPIPS with published weights may be called so in a
table; every distance has a `label` that says which it is.

    dict(name="lpips", network="vgg")                                  both files of published weights have to be there
    dict(name="features", extractor="efficientnet_lite0", layers=("b2", "b4"))
"""

import dataclasses
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from flowjax.choices import Spec, build, choose
from flowjax.contract import Role
from flowjax.losses.perception import feature_distance
from flowjax.models.features import FeatureExtractor, open_extractor
from flowjax.models.torch_files import RefusedFile, read_tensors
from flowjax.models.weights import find_weights

Images = Float[Array, "b height width c"]
LPIPS = {"vgg": "vgg16", "alex": "alexnet"}


@dataclasses.dataclass(frozen=True)
class Perceptual:
    """A distance between images.

    Attributes:
      distance: (tree, images, others) -> one value for each pair; images in [-1, 1], 1 or 3 channels.
      role: the frozen parameters.
      label: what it is, for receipts.
    """

    distance: Callable[[PyTree, Images, Images], Float[Array, " b"]]
    role: Role
    label: str


def make_perceptual(spec: Spec) -> Perceptual:
    """The distance of a spec: see the module header.

    Args:
      spec: `name` = 'lpips' or 'features', and options.
    """
    return build("perceptual distance", spec, DISTANCES)


def features(
    extractor: str = "efficientnet_lite0",
    layers: Sequence[str] = (),
    weights: str = "published",
    input_size: int | None = None,
) -> Perceptual:
    """Equation (1) without learnt weights.

    Args:
      extractor: one of models.features.EXTRACTORS.
      layers: the maps that are compared; all of them unless told.
      weights: 'published', which must be on this machine, or 'random', for tests.
      input_size: the side that images are resized to; the extractor's own unless told.
    """
    network, load = open_extractor(extractor, weights, input_size, layers)
    chosen = tuple(layers) or tuple(network.maps)
    role = Role(init=network.init) if load is None else Role(load=load)

    def distance(tree: PyTree, images: Images, others: Images) -> Float[Array, " b"]:
        one, other = (network.apply(tree, x) for x in (images, others))
        return feature_distance([one[layer] for layer in chosen], [other[layer] for layer in chosen])

    return Perceptual(distance, role, f"feature distance on {network.name}, {weights} weights, {'+'.join(chosen)}")


def lpips(network: str = "vgg", weights: str = "published", input_size: int = 0) -> Perceptual:
    """Equation (1) on VGG16 or AlexNet with learnt weights, version 0.1.

    Args:
      network: 'vgg', usual in training losses, or 'alex', usual in tables.
      weights: 'published': the network's in weights/vgg16 or weights/alexnet, the learnt ones in weights/lpips_vgg or
        weights/lpips_alex; 'random', for tests.
      input_size: the side that images are resized to; 0 for images as they are.
    """
    backbone = choose("network of LPIPS", network, LPIPS)
    eye, load = open_extractor(backbone, weights, input_size)

    def init(key: Key[Array, ""]) -> PyTree:
        keys = jax.random.split(key, len(eye.channels) + 1)
        linear = {
            name: jax.random.uniform(k, (size,)) / size for k, (name, size) in zip(keys[1:], eye.channels.items())
        }
        return {"network": eye.init(keys[0]), "linear": linear}

    role = Role(init=init)
    if load is not None:
        linear = find_weights(f"lpips_{network}")
        role = Role(load=lambda: {"network": load(), "linear": read_linear(eye, linear)})

    def distance(tree: PyTree, images: Images, others: Images) -> Float[Array, " b"]:
        one, other = (eye.apply(tree["network"], x) for x in (images, others))
        total = jnp.zeros(len(images))
        for layer, weight in tree["linear"].items():
            squared = (_unit(one[layer]) - _unit(other[layer])) ** 2
            total = total + jnp.mean(jnp.sum(squared * weight, axis=-1), axis=(1, 2))
        return total

    return Perceptual(distance, role, f"LPIPS 0.1 ({network}), {weights} weights")


def read_linear(eye: FeatureExtractor, path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The learnt weights of the layers, from the file that the package lpips brings.

    Args:
      eye: the network whose layers they weigh, in order.
      path: a state dictionary with lin0.model.1.weight [1, channels, 1, 1], ...
    """
    tensors, found = read_tensors(path), {}
    for index, (layer, size) in enumerate(eye.channels.items()):
        name = f"lin{index}.model.1.weight"
        if name not in tensors or tensors[name].shape != (1, size, 1, 1):
            have = {key: value.shape for key, value in list(tensors.items())[:5]}
            raise RefusedFile(
                f"The learnt weights of LPIPS on {eye.name} need '{name}' of shape {(1, size, 1, 1)}; {path} has {have}. "
                "Take the file of the same network, version 0.1."
            )
        found[layer] = np.asarray(tensors[name], np.float32).reshape(size)
    return found


def _unit(layer: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    # As published: the small number is added to the length, not under the root; the other one is for the gradient at zero.
    return layer / (jnp.sqrt(jnp.sum(layer**2, axis=-1, keepdims=True) + 1e-20) + 1e-10)


DISTANCES: dict[str, Callable[..., Perceptual]] = {"features": features, "lpips": lpips}

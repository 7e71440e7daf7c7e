r"""A frozen image network as a pure function on a parameter tree, with its layers by name.

What the networks here share. Images come as [b, height, width, 1 or 3] in [-1, 1], are resized to the network's input
size, and pass through units of convolution, batch normalisation and an activation. A frozen normalisation is an affine
map for each channel, so it is folded into the convolution once, when weights are read:

    y = scale (k * x - mean) / sqrt(variance + eps) + bias
      = (k scale / sqrt(variance + eps)) * x + (bias - mean scale / sqrt(variance + eps)),

and a tree is {unit: {'kernel': [rows, columns, in, out], 'bias': [out]}} with the units' published names.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from flowjax.models.torch_files import RefusedFile, read_tensors

Tree = Mapping[str, Mapping[str, Array | np.ndarray]]
Images = Float[Array, "b _h _w _c"] | Float[np.ndarray, "b _h _w _c"]  # sides and channels change from layer to layer
LAYOUT = ("NHWC", "HWIO", "NHWC")


@dataclasses.dataclass(frozen=True)
class Unit:
    """One convolution with what follows it, by its published names.

    Attributes:
      name: of the unit in the tree.
      kernel: (rows, columns, in, out); a depthwise kernel has 1 for `in`.
      convolution: name of the convolution in published files, without '.weight'.
      norm: name of its batch normalisation there; '' where the convolution has a bias instead.
    """

    name: str
    kernel: tuple[int, int, int, int]
    convolution: str
    norm: str = ""


@dataclasses.dataclass(frozen=True)
class FeatureExtractor:
    """A frozen network that sees images.

    Attributes:
      name: for receipts.
      size: the side that images are resized to.
      channels: layer -> channels. Layers called 'pooled' are vectors [b, c], all others maps [b, h, w, c].
      layer: the layer that distances are measured on unless told otherwise.
      units: what the tree holds.
      norm_epsilon: of the normalisations that are folded into it.
      apply: (tree, images in [-1, 1]) -> {layer: features}. Layers that nobody reads cost nothing under jit.
    """

    name: str
    size: int
    channels: Mapping[str, int]
    layer: str
    units: tuple[Unit, ...]
    norm_epsilon: float
    apply: Callable[[Tree, Images], dict[str, Array]]

    @property
    def maps(self) -> dict[str, int]:
        """The channels of the layers that are maps."""
        return {name: size for name, size in self.channels.items() if name != "pooled"}

    def init(self, key: Key[Array, ""]) -> dict[str, dict[str, Array]]:
        """Random weights that keep the size of activations: for tests; distances in random features mean little."""
        tree = {}
        for unit_key, unit in zip(jax.random.split(key, len(self.units)), self.units):
            deviation = float(np.sqrt(2 / np.prod(unit.kernel[:3])))
            kernel_key, bias_key = jax.random.split(unit_key)
            tree[unit.name] = {
                "kernel": deviation * jax.random.normal(kernel_key, unit.kernel),
                "bias": 0.1 * jax.random.normal(bias_key, unit.kernel[3:]),
            }
        return tree

    def fold(self, tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
        """The tree of published tensors, normalisations folded into kernels. Tensors it does not need are left out."""
        tree = {}
        for unit in self.units:
            rows, columns, taken, given = unit.kernel
            kernel = _tensor(tensors, f"{unit.convolution}.weight", (given, taken, rows, columns), self.name)
            if not unit.norm:
                bias = _tensor(tensors, f"{unit.convolution}.bias", (given,), self.name)
                turned = kernel.transpose(2, 3, 1, 0)
                tree[unit.name] = {"kernel": turned.astype(np.float32), "bias": bias.astype(np.float32)}
                continue
            scale, bias, mean, variance = (
                _tensor(tensors, f"{unit.norm}.{part}", (given,), self.name)
                for part in ("weight", "bias", "running_mean", "running_var")
            )
            factor = scale / np.sqrt(variance + self.norm_epsilon)
            folded = kernel.transpose(2, 3, 1, 0) * factor
            tree[unit.name] = {"kernel": folded.astype(np.float32), "bias": (bias - mean * factor).astype(np.float32)}
        return tree

    def vector(self, features: Mapping[str, Array], layer: str) -> Float[Array, "b c"]:
        """One vector for each image: a map averaged over its places."""
        value = features[layer]
        return value if value.ndim == 2 else value.mean(axis=(1, 2))


def _tensor(tensors: Mapping[str, np.ndarray], name: str, shape: tuple, network: str) -> np.ndarray:
    if name not in tensors:
        raise RefusedFile(
            f"The weights of {network} need a tensor '{name}', which the file lacks. It has {len(tensors)}, beginning with "
            f"{', '.join(list(tensors)[:3])}: probably another network's."
        )
    if tensors[name].shape != shape:
        raise RefusedFile(f"Tensor '{name}' has shape {tensors[name].shape}; {network} expects {shape}.")
    return np.asarray(tensors[name], np.float64)


def load_extractor(extractor: FeatureExtractor, path: str | os.PathLike) -> dict[str, dict[str, np.ndarray]]:
    """The tree of a published file (.pth or .safetensors), read without running anything in it."""
    return extractor.fold(read_tensors(path))


def resized(images: Images, size: int, method: str = "bilinear", antialias: bool = True) -> Images:
    """RGB images of size x size; grey ones are repeated. Antialiasing matters where images shrink, not where they grow."""
    batch, height, width, channels = images.shape
    if channels not in (1, 3):
        raise ValueError(f"Feature extractors read images [b, h, w, 1 or 3] in [-1, 1]; got shape {images.shape}.")
    images = jnp.asarray(images, jnp.float32)
    images = jnp.repeat(images, 3, axis=-1) if channels == 1 else images
    if (height, width) == (size, size):
        return images
    return jax.image.resize(images, (batch, size, size, 3), method, antialias=antialias)


def convolve(x: Images, unit: Mapping[str, Array], stride: int = 1, padding: Any = "SAME") -> Images:
    """Convolution and bias of one unit."""
    y = jax.lax.conv_general_dilated(x, unit["kernel"], (stride, stride), padding, dimension_numbers=LAYOUT)
    return y + unit["bias"]


def convolve_depthwise(x: Images, unit: Mapping[str, Array], stride: int = 1) -> Images:
    """A kernel of its own for each channel, zeros around the image ('SAME'), as a sum over the kernel's taps.

    XLA's grouped convolution is slow on a CPU; shifted views, scaled and added, are fused into one pass.
    """
    kernel = unit["kernel"]
    rows, columns = kernel.shape[:2]
    height, width = (-(-side // stride) for side in x.shape[1:3])
    pads = []
    for side, out, taps in ((x.shape[1], height, rows), (x.shape[2], width, columns)):
        total = max((out - 1) * stride + taps - side, 0)
        pads.append((total // 2, total - total // 2))
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    y = unit["bias"]
    for i in range(rows):
        for j in range(columns):
            view = padded[:, i : i + (height - 1) * stride + 1 : stride, j : j + (width - 1) * stride + 1 : stride]
            y = y + view * kernel[i, j, 0]
    return y

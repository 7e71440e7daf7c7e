r"""Low-rank adaptation (Hu et al. 2021) as functions on parameter trees: no network knows of it.

A kernel W [..., inputs, outputs] is a matrix from everything before its last axis to the last: a dense layer's [c, f], and a
convolution's [rows, columns, c, f], whose low-rank update is a convolution to r channels and a 1 x 1 one after it. Its
adapter is a pair of factors, down [..., inputs, r] and up [r, outputs], and the adapted kernel

    W + strength alpha / r  down up.                                                                               (1)

up starts at zero, so an adapted network starts as the network; down starts normal with variance 1 / inputs (all axes but the
last), so that x down has unit variance where x has. With r the smaller side of W the update can be any matrix.

An adapter tree is the part of the network's tree that is adapted, with {down, up} in the place of each kernel. Several
adapters of one network add up, each with its own strength.
"""

import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

FACTORS = {"down", "up"}


class Adapter(NamedTuple):
    """An adapter tree and how loud it is.

    Attributes:
      tree: as `lora_init` makes it.
      alpha: of equation (1); None for the rank, that is a factor of 1.
      strength: 1 as trained, 0 for none; between and beyond, more or less of it.
    """

    tree: PyTree
    alpha: float | None = None
    strength: float = 1.0


def adapted_paths(tree: PyTree, pattern: str) -> list[str]:
    """The paths 'a/b/kernel' of the arrays that a pattern adapts: those it is found in, of two axes or more.

    Args:
      tree: arrays, or their shapes.
      pattern: a regular expression.
    """
    named = _named(tree)
    found = [path for path, leaf in named.items() if leaf.ndim >= 2 and re.search(pattern, path)]
    if not found:
        listed = ", ".join(list(named)[:8])
        raise ValueError(
            f"No kernel of the network has a path in which '{pattern}' is found. Its paths begin with: {listed}."
        )
    return found


def lora_init(tree: PyTree, key: Key[Array, ""], rank: int, pattern: str = "kernel$") -> PyTree:
    """A new adapter, which changes nothing yet.

    Args:
      tree: the network's parameters, or their shapes.
      key: of the factors `down`.
      rank: r; of a kernel whose smaller side is smaller, that side.
      pattern: which arrays are adapted, see `adapted_paths`.
    """
    if rank < 1:
        raise ValueError(f"The rank of an adapter is {rank}; it must be at least 1.")
    named, adapter = _named(tree), {}
    paths = adapted_paths(tree, pattern)
    for path, one in zip(paths, jax.random.split(key, len(paths))):
        *inputs, outputs = named[path].shape
        size = min(rank, math.prod(inputs), outputs)
        deviation = 1.0 / math.sqrt(math.prod(inputs))
        *parents, last = path.split("/")
        node = adapter
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = {"down": deviation * jax.random.normal(one, (*inputs, size)), "up": jnp.zeros((size, outputs))}
    return adapter


def merged(base: PyTree, *adapters: Adapter) -> PyTree:
    """The network's parameters with every adapter added: equation (1).

    Args:
      base: the network's parameters.
      *adapters: any number of them.
    """
    changes: dict[str, Array] = {}
    for adapter in adapters:
        for path, (down, up) in _factors(adapter.tree).items():
            rank = up.shape[0]
            scale = adapter.strength * (1.0 if adapter.alpha is None else adapter.alpha / rank)
            changes[path] = changes.get(path, 0.0) + scale * jnp.tensordot(down, up, 1)
    unknown = sorted(changes.keys() - _named(base).keys())
    if unknown:
        raise ValueError(f"The adapter is of another network, which has {', '.join(unknown[:6])}.")

    def add(path, leaf):
        change = changes.get(_name(path))
        return leaf if change is None else leaf + change.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(add, base)


def is_adapter(tree: PyTree) -> bool:
    """Whether a tree is one of adapters rather than of a network's parameters."""
    names = [path.rpartition("/")[2] for path in _named(tree)]
    return bool(names) and set(names) == FACTORS


def _factors(tree: PyTree) -> dict[str, tuple[Array, Array]]:
    """Path of the kernel -> (down, up)."""
    named = _named(tree)
    kernels = dict.fromkeys(path.rpartition("/")[0] for path in named)
    return {path: (named[f"{path}/down"], named[f"{path}/up"]) for path in kernels}


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _named(tree: PyTree) -> dict[str, Any]:
    """Path -> leaf, an array or its shape."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}

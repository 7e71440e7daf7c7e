"""Where every array of the state lives: one mesh, one rule over parameter paths, four levels of sharding.

    axis    | splits
    data    | the batch; parameters are whole on each
    fsdp    | the batch too, and whatever config.sharding says: ZeRO 1 the optimizer's state, ZeRO 2 also the gradients,
            | ZeRO 3 also the parameters
    tensor  | the dimensions that config.partition_rules name

A rule never says which array it is about by position: it is a function of (path, shape), so it holds for parameters, for
their gradients and for the optimizer's copies of them alike.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree
from ml_collections import ConfigDict

from flowjax.training.state import State

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))
STACKED_BATCH = PartitionSpec(None, ("data", "fsdp"))
SMALLEST_SHARDED = 1024  # scalars; splitting less costs more messages than it saves memory
LEVELS = {"replicated": 0, "zero1": 1, "zero2": 2, "zero3": 3}


def make_mesh(
    sizes: Mapping[str, int] | ConfigDict, sharding: str, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh with the axes data, fsdp, tensor.

    Args:
      sizes: devices on each axis; 0 takes what is left, on `data` for replicated parameters and on `fsdp` otherwise.
      sharding: a key of LEVELS.
      devices: all devices of all processes unless given.
    """
    devices = list(jax.devices() if devices is None else devices)
    data, fsdp, tensor = (sizes[axis] for axis in AXES)
    tensor = tensor or 1
    fixed = max(data, 1) * max(fsdp, 1) * tensor
    if len(devices) % fixed:
        raise ValueError(
            f"The mesh data={data}, fsdp={fsdp}, tensor={tensor} needs a multiple of {fixed} devices, but there are "
            f"{len(devices)}. Change config.mesh so that the product divides {len(devices)}; 0 takes what is left."
        )
    left = len(devices) // fixed
    if not data and (LEVELS[sharding] == 0 or fsdp):
        data, fsdp = left, max(fsdp, 1)
    elif not fsdp:
        data, fsdp = max(data, 1), left
    if data * fsdp * tensor != len(devices):
        raise ValueError(
            f"The mesh data={data}, fsdp={fsdp}, tensor={tensor} uses {data * fsdp * tensor} of {len(devices)} devices. "
            "Set one axis to 0 to take what is left, or start with fewer devices."
        )
    return Mesh(np.asarray(devices).reshape(data, fsdp, tensor), AXES)


def path_name(path: Sequence) -> str:
    """'student/layers_0/kernel' for a key path of jax.tree_util."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def partition(path: str, shape: tuple[int, ...], mesh: Mesh, split: bool, rules: Sequence = ()) -> PartitionSpec:
    """The PartitionSpec of one array.

    Args:
      path: its name in the tree.
      shape: its shape.
      mesh: the mesh.
      split: whether to split it over the fsdp axis, along its longest dimension that divides.
      rules: pairs (regular expression, axis name or None for each dimension); the first match counts.
    """
    axes: list[str | None] = [None] * len(shape)
    for pattern, wanted in rules:
        if re.search(pattern, path):
            if len(wanted) != len(shape):
                continue  # an optimizer's scalar copy of a matrix: the rule is about the matrix
            axes = list(wanted)
            break
    for size, axis in zip(shape, axes):
        if axis is not None and (axis not in mesh.shape or size % mesh.shape[axis]):
            raise ValueError(
                f"A partition rule splits '{path}' of shape {shape} over the axis '{axis}' "
                f"({mesh.shape.get(axis, 'unknown')} devices), which does not divide {size}. Change config.partition_rules."
            )
    count = mesh.shape["fsdp"]
    if split and count > 1 and math.prod(shape) >= SMALLEST_SHARDED and "fsdp" not in axes:
        free = [i for i, size in enumerate(shape) if axes[i] is None and size % count == 0]
        if free:
            axes[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*axes)


def tree_shardings(
    tree: PyTree,
    mesh: Mesh,
    split: bool,
    rules: Sequence = (),
    name: Callable[[str, tuple[int, ...]], str] = lambda path, shape: path,
) -> PyTree:
    """The NamedSharding of every leaf of a tree of arrays or shapes; `name` says which parameter a leaf belongs to."""

    def place(path, leaf):
        return NamedSharding(mesh, partition(name(path_name(path), leaf.shape), leaf.shape, mesh, split, rules))

    return jax.tree_util.tree_map_with_path(place, tree)


def state_shardings(state: State, mesh: Mesh, sharding: str, rules: Sequence = ()) -> State:
    """The shardings of a whole State, from its shapes. A rule that matches no parameter is refused."""
    level = LEVELS[sharding]
    shapes = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_flatten_with_path(state.params)[0]}
    for pattern, _ in rules:
        if not any(re.search(pattern, name) for name in shapes):
            raise ValueError(
                f"The partition rule '{pattern}' matches no parameter. Parameters: {', '.join(list(shapes)[:8])}, ..."
            )

    def parameter(path: str, shape: tuple[int, ...]) -> str:
        """'student/0/mu/layer/kernel' is the optimizer's copy of 'student/layer/kernel', and lies where that lies."""
        role, *parts = path.split("/")
        names = [f"{role}/{'/'.join(parts[start:])}" for start in range(len(parts))]
        return next((name for name in names if shapes.get(name) == shape), path)

    whole = NamedSharding(mesh, PartitionSpec())
    return state.replace(
        step=whole,
        healthy=whole,
        params=tree_shardings(state.params, mesh, level >= 3, rules),
        optimizer=tree_shardings(state.optimizer, mesh, level >= 1, rules, name=parameter),
    )

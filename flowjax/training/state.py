"""The whole state of a run, how it starts, and the keys: everything that a checkpoint holds."""

import zlib
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from flowjax.contract import Method


@flax.struct.dataclass
class State:
    """Arrays, or their shapes, shardings or copies on the host: the same tree of each.

    Attributes:
    step: updates done so far, int32.
    params: role -> parameter tree.
    optimizer: role -> optimizer state, for the trained roles.
    healthy: False from the first update on that met a NaN or infinity; that update and all later ones change nothing.
    """

    step: Any
    params: dict[str, PyTree]
    optimizer: dict[str, PyTree]
    healthy: Any


def named_key(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """A key for a named purpose: fold_in with a hash of the name that is the same in every process and version."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def step_key(seed: int | Key[Array, ""], step: int | Int[Array, ""], stream: str) -> Key[Array, ""]:
    """fold_in(fold_in(seed, stream), step): no generator state to save, and no key is used twice."""
    root = jax.random.key(seed) if isinstance(seed, int) else seed
    return jax.random.fold_in(named_key(root, stream), step)


def initial_state(method: Method, seed: int, restored: Mapping[str, Any]) -> State:
    """Builds the state before the first update; traceable, so that shapes are known before anything is allocated.

    Args:
      method: the roles.
      seed: the run's seed.
      restored: role -> tree, for the roles with restore_from.
    """
    params: dict[str, PyTree] = {}
    key = named_key(jax.random.key(seed), "initial")

    def start(name: str) -> PyTree:
        if name not in params:
            role = method.roles[name]
            if role.copy_of is not None:
                # A real copy: two roles that shared a buffer could not both be donated to the next step.
                params[name] = jax.tree.map(jnp.copy, start(role.copy_of))
            elif name in restored:
                params[name] = restored[name]
            else:
                params[name] = role.init(named_key(key, name))
        return params[name]

    ordered = {name: start(name) for name in method.roles}
    optimizer = {name: role.tx.init(ordered[name]) for name, role in method.roles.items() if role.tx is not None}
    return State(jnp.zeros((), jnp.int32), ordered, optimizer, jnp.ones((), bool))


def parameter_count(tree: PyTree) -> int:
    """The number of scalars in a tree of arrays or of their shapes."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))

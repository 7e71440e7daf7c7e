r"""Parameters of a network for a larger one of the same family: a student of two times that starts as its teacher.

Three things can happen to a leaf of the larger network. It has the shape of the smaller one's: it is taken over. It is
longer along one axis, as the first kernel of an MLP that reads more features: the new part is zero, so that the new inputs
do nothing yet. The smaller network has no such leaf, as the embedding of a second time: it keeps its fresh value, and does
nothing either where its module ends in a layer that starts at zero. The larger network then gives what the smaller gave.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

Shapes = Mapping[str, tuple[int, ...]]


def shapes_by_path(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """The shape of every array of a tree (or of its shapes), by its path 'a/b/c'."""
    return {_name(path): leaf.shape for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def misfits(wanted: Shapes, found: Shapes) -> list[str]:
    """Why a network of the shapes `found` does not grow into one of the shapes `wanted`: nothing where it does."""
    problems = [f"{path}: there is no such parameter in the larger network" for path in found if path not in wanted]
    for path, shape in wanted.items():
        if path in found and not _fits(found[path], shape):
            problems.append(f"{path}: {found[path]} does not fit into {shape}")
    return problems


def grown(fresh: PyTree, tree: PyTree) -> PyTree:
    """The parameters `tree` in the shape of `fresh`.

    Args:
      fresh: newly drawn parameters of the larger network.
      tree: of the smaller one.
    """
    old = {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
    if problems := misfits(shapes_by_path(fresh), shapes_by_path(tree)):
        raise ValueError("The network cannot start from the other's parameters:\n  " + "\n  ".join(problems[:12]))

    def take(path, leaf):
        given = old.get(_name(path))
        if given is None:
            return leaf
        return jnp.pad(jnp.asarray(given), [(0, new - had) for new, had in zip(leaf.shape, given.shape)])

    return jax.tree_util.tree_map_with_path(take, fresh)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _fits(had: tuple[int, ...], new: tuple[int, ...]) -> bool:
    longer = [b - a for a, b in zip(had, new)]
    return len(had) == len(new) and min(longer, default=0) >= 0 and sum(gap > 0 for gap in longer) <= 1

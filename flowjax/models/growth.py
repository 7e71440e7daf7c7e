r"""Parameters of a network for a larger one of the same family: a student of two times that starts as its teacher.

Three things can happen to a leaf of the larger network. It has the shape of the smaller one's: it is taken over. It is
longer along one axis, as the first kernel of an MLP that reads more features: the new part is zero, so that the new inputs
do nothing yet. The smaller network has no such leaf, as the embedding of a second time: it keeps its fresh value, and does
nothing either where its module ends in a layer that starts at zero. The larger network then gives what the smaller gave.
"""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def grown(fresh: PyTree, tree: PyTree) -> PyTree:
    """The parameters `tree` in the shape of `fresh`.

    Args:
      fresh: newly drawn parameters of the larger network.
      tree: of the smaller one.
    """
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    old = {name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
    wanted = {name(path): leaf.shape for path, leaf in jax.tree_util.tree_flatten_with_path(fresh)[0]}
    problems = [f"{key}: there is no such parameter in the larger network" for key in old if key not in wanted]
    for key, shape in wanted.items():
        if key in old and not _fits(old[key].shape, shape):
            problems.append(f"{key}: {old[key].shape} does not fit into {shape}")
    if problems:
        raise ValueError("The network cannot start from the other's parameters:\n  " + "\n  ".join(problems[:12]))

    def take(path, leaf):
        given = old.get(name(path))
        if given is None:
            return leaf
        return jnp.pad(jnp.asarray(given), [(0, new - had) for new, had in zip(leaf.shape, given.shape)])

    return jax.tree_util.tree_map_with_path(take, fresh)


def _fits(had: tuple[int, ...], new: tuple[int, ...]) -> bool:
    longer = [b - a for a, b in zip(had, new)]
    return len(had) == len(new) and min(longer, default=0) >= 0 and sum(gap > 0 for gap in longer) <= 1

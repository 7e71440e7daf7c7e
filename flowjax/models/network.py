"""What every room above calls a network: four plain functions on parameter trees.

    init(key)                                   -> tree
    apply(tree, x, t, cond, s=None, keys=None)  -> array like x, float32
    drop(cond, dropped)                         -> cond with nulls in the conditions of the dropped examples

A method never sees a flax module, so an nnx model, a preconditioned network or a closed-form field can stand in the
same place. Nothing is closed over: the parameters are an argument, so a teacher, a target and a student are one network
with three trees.

There is no train flag. A network with dropout drops units when it is given one key for each example, and drops nothing
when it is given none; both branches of a consistency target share their dropout by being given the same keys.

A *condition* is an array of the batch that the network reads. It states the value that means "nothing is known", which
guidance and label dropout put in its place:

    label      int[b]        null: the index num_classes, one learned row more than there are classes
    text       float[b,l,c]  no null of its own: it is the mask that hides it
    text_mask  bool[b,l]     null: False everywhere; cross-attention always sees one learned token beside the text
    text_pooled float[b,c]   null: zeros; one vector for the whole text, where the data have one
    pixel_mask bool[b,h,w]   no null: it says where an example's image is, not what is in it
    observation float[b,...] no null: an action without what it answers to means nothing

A network of blocks also answers with what it thinks on the way: `hidden` returns the prediction and the tokens after
one block or several, all from one pass. Representation alignment compares them with the features of a frozen encoder, and
adversarial distillation judges samples by them.

What a network makes of its conditions alone, such as the encoding of a caption, `prepare` makes beforehand: a sampler
calls it once and not at every step. `apply` takes conditions prepared or not, with the same result.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from flowjax.arrays import batch_times, expand_to
from flowjax.contract import DataSpec

Conditions = Mapping[str, Array]
Tokens = Float[Array, "b _h _w _c"]  # of an image, as a grid; blocks may differ in grid and channels
TOKENS = "tokens"  # the flax collection in which modules record the tokens after each block


@dataclasses.dataclass(frozen=True)
class Condition:
    """An array of the batch that a network reads.

    Attributes:
      shape: the shape for one example, without the batch.
      dtype: its type.
      null: the value that means "nothing is known", or None when another condition (a mask) says so.
    """

    shape: tuple[int, ...]
    dtype: Any
    null: int | float | bool | None = None


def label_condition(num_classes: int) -> Condition:
    """Class labels 0 ... num_classes - 1, with the null label num_classes."""
    return Condition((), jnp.int32, num_classes)


def text_conditions(length: int, channels: int, pooled_channels: int = 0) -> dict[str, Condition]:
    """Token vectors `text` [b, length, channels] and `text_mask` [b, length], True where there is a token.

    With pooled_channels, `text_pooled` [b, pooled_channels] as well.
    """
    conditions = {
        "text": Condition((length, channels), jnp.float32),
        "text_mask": Condition((length,), jnp.bool_, False),
    }
    if pooled_channels:
        conditions["text_pooled"] = Condition((pooled_channels,), jnp.float32, 0.0)
    return conditions


def guidance_condition() -> dict[str, Condition]:
    """`guidance` [b], the scale of guidance that a network is to answer with in one evaluation (Meng et al. 2023)."""
    return {"guidance": Condition((), jnp.float32)}


def mask_condition(shape: tuple[int, ...]) -> Condition:
    """`pixel_mask` [b, height, width], True inside an example's image."""
    return Condition(tuple(shape), jnp.bool_)


def observation_condition(shape: tuple[int, ...]) -> dict[str, Condition]:
    """`observation` [b, ...], what is seen of a world in which an example is an action."""
    return {"observation": Condition(tuple(shape), jnp.float32)}


@runtime_checkable  # so that the annotations of Network can be checked
class Apply(Protocol):
    """How a network is called; see `Network.apply`."""

    def __call__(
        self,
        tree: PyTree,
        x: Float[Array, "b ..."],
        t: Float[Array, " b"],
        cond: Conditions,
        *,
        s: Float[Array, " b"] | None = None,
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b ..."]: ...


@runtime_checkable
class Hidden(Protocol):
    """How the tokens after a block are asked for; see `Network.hidden`."""

    def __call__(
        self,
        tree: PyTree,
        x: Float[Array, "b ..."],
        t: Float[Array, " b"],
        cond: Conditions,
        *,
        layer: int | tuple[int, ...],
        s: Float[Array, " b"] | None = None,
        keys: Key[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b ..."], Tokens | tuple[Tokens, ...]]: ...


@dataclasses.dataclass(frozen=True)
class Network:
    """A network as functions of its parameter tree.

    Attributes:
      init: key -> parameter tree, in float32.
      apply: (tree, x, t[b], cond, *, s=None, keys=None) -> array like x in float32. `cond` holds at least the arrays
        named in `conditions`; others are not read. `s` is the second time of a two-time network, None for the case
        s = t. `keys[b]` switches dropout on, example by example.
      drop: (cond, dropped bool[b]) -> cond with nulls in the conditions of the dropped examples.
      conditions: name -> Condition, what the network reads.
      two_times: whether it takes a second time.
      hidden: (tree, x, t, cond, *, layer, s=None, keys=None) -> (what apply returns, the image's tokens after block
        `layer` as a grid [b, h, w, c] in float32), computed in one pass. Blocks are counted from 1; of a tuple of blocks
        the tokens are a tuple. None for a network that has no blocks.
      layers: the number of blocks.
      prepare: (tree, cond) -> cond with what can be computed before x and t are known.
      output: where the last layer is in the tree, a path of names; () where nobody says.
    """

    init: Callable[[Key[Array, ""]], PyTree]
    apply: Apply
    drop: Callable[[Conditions, Bool[Array, " b"]], Conditions]
    conditions: Mapping[str, Condition] = dataclasses.field(default_factory=dict)
    two_times: bool = False
    hidden: Hidden | None = None
    layers: int = 0
    prepare: Callable[[PyTree, Conditions], Conditions] = lambda tree, cond: cond
    output: tuple[str, ...] = ()

    @property
    def droppable(self) -> bool:
        """Whether there is a condition with a null, which guidance needs."""
        return any(condition.null is not None for condition in self.conditions.values())

    def split_output(self, tree: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
        """The parameters of the last layer, and the whole tree as a function of them."""

        def split(tree, name, *deeper):
            if not deeper:
                return tree[name], lambda layer: {**tree, name: layer}
            layer, whole = split(tree[name], *deeper)
            return layer, lambda layer: {**tree, name: whole(layer)}

        return split(tree, *self.output)


def record_tokens(module: nn.Module, tokens: Float[Array, "b h w c"]) -> None:
    """Lets `Network.hidden` see the tokens after a block; called once a block, in order. Free when nobody asks."""
    module.sow(TOKENS, "tokens", tokens)


def from_module(
    module: nn.Module,
    data: DataSpec,
    conditions: Mapping[str, Condition] | None = None,
    two_times: bool = False,
    layers: int = 0,
) -> Network:
    """Makes a Network of a flax linen module called as `module(x, t, s, cond, keys)`.

    Args:
      module: takes x[b, ...], t[b], s[b] (None unless `two_times`), the conditions it named, and keys[b] or None for
        dropout; returns an array like x. It may hold parameters only, beside what `record_tokens` records. Its last
        layer is called 'output'.
      data: the shape of one example.
      conditions: what the module reads.
      two_times: whether the module takes s. It is then always given one: s = t where the caller leaves it out.
      layers: how many times the module calls `record_tokens`.
    """
    conditions = dict(conditions or {})

    def init(key: Key[Array, ""]) -> PyTree:
        x, t = jnp.zeros((1, *data.shape)), jnp.zeros((1,))
        cond = {name: jnp.zeros((1, *condition.shape), condition.dtype) for name, condition in conditions.items()}
        return module.init(key, x, t, t if two_times else None, cond, None)["params"]

    def arguments(x, t, cond, s, keys) -> tuple:
        missing = [name for name in conditions if name not in cond]
        given = ", ".join(sorted(cond)) or "none"
        if missing:
            raise ValueError(
                f"The network reads the condition(s) {', '.join(missing)}; it was given {given}."
                " Add them to the batch (any value will do where drop() then puts the null), or build it without them."
            )
        if s is not None and not two_times:
            raise ValueError("The network takes one time but was given a second, s. Build it with two_times=True.")
        t = batch_times(t, x)
        if two_times:
            s = t if s is None else batch_times(s, x)
        return x, t, s, {name: cond[name] for name in conditions}, keys

    def apply(
        tree: PyTree,
        x: Float[Array, "b ..."],
        t: Float[Array, "..."],
        cond: Conditions,
        *,
        s: Float[Array, "..."] | None = None,
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b ..."]:
        return module.apply({"params": tree}, *arguments(x, t, cond, s, keys)).astype(jnp.float32)

    def hidden(
        tree: PyTree,
        x: Float[Array, "b ..."],
        t: Float[Array, "..."],
        cond: Conditions,
        *,
        layer: int | tuple[int, ...],
        s: Float[Array, "..."] | None = None,
        keys: Key[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b ..."], Tokens | tuple[Tokens, ...]]:
        for one in layer if isinstance(layer, tuple) else (layer,):
            if not 1 <= one <= layers:
                raise ValueError(
                    f"The network has blocks 1 ... {layers}; there is no block {one}. Choose one of these."
                )
        output, recorded = module.apply({"params": tree}, *arguments(x, t, cond, s, keys), mutable=[TOKENS])
        # All blocks are recorded; what is not returned here, XLA does not keep.
        after = lambda block: recorded[TOKENS]["tokens"][block - 1].astype(jnp.float32)
        return output.astype(jnp.float32), tuple(map(after, layer)) if isinstance(layer, tuple) else after(layer)

    def drop(cond: Conditions, dropped: Bool[Array, " b"]) -> Conditions:
        return {
            name: _drop(array, conditions[name], dropped) if name in conditions else array
            for name, array in cond.items()
        }

    options = dict(two_times=two_times, hidden=hidden if layers else None, layers=layers, output=("output",))
    return Network(init, apply, drop, conditions, **options)


def _drop(array: Array, condition: Condition, dropped: Bool[Array, " b"]) -> Array:
    if condition.null is None:
        return array
    return jnp.where(expand_to(dropped, array), jnp.asarray(condition.null, array.dtype), array)


def parameter_counts(tree: PyTree) -> dict[str, int]:
    """The number of parameters at each path 'a/b/c' of a tree of arrays or of their shapes (jax.eval_shape)."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): int(leaf.size) for path, leaf in leaves}


def count_parameters(tree: PyTree, depth: int = 0) -> dict[str, int]:
    """The number of parameters below each path of `depth` steps; depth 0 gives the total under ''."""
    totals: dict[str, int] = {}
    for path, count in parameter_counts(tree).items():
        prefix = "/".join(path.split("/")[:depth])
        totals[prefix] = totals.get(prefix, 0) + count
    return totals

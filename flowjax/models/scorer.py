r"""Scorers: one number for an example and its conditions, to be learnt from comparisons (losses/comparisons.py).

| name     | examples            | what the head sees                                                                  |
| mlp      | points              | their coordinates, and a vector for the label where the data have classes           |
| joint    | pictures + captions | the averaged tokens of a network that reads both (models/trunks.py)                 |
| features | pictures + captions | the vector of a frozen image network beside one of the caption, and one of the label |

The head is dense layers of `widths` down to one number, published as 1024, 128, 64, 16 on a trunk of 768 (Xu et al. 2023),
with kernels N(0, 1 / (inputs + 1)^2) and biases of zero: all scores are then nearly zero, and a comparison is open. The last
layer has no bias, because comparisons say nothing about a constant. What a trunk gives is scaled to unit size first. Published
heads have activation 'none'; where picture and caption only meet in the head (`features`) it needs one, or the caption would
add the same to all that are compared.

Scores are known up to a constant for each group that was compared. What compares scores across groups, such as a threshold,
wants them standardised (rewards/learned.py).
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree

from flowjax.choices import Spec, build, choose
from flowjax.contract import DataSpec, Role
from flowjax.models.dense import Dense
from flowjax.models.mlp import ACTIVATIONS
from flowjax.models.network import Conditions
from flowjax.models.trunks import Trunk, make_trunk

HEAD_ACTIVATIONS = {**ACTIVATIONS, "none": lambda x: x}


@dataclasses.dataclass(frozen=True)
class Scorer:
    """A score as functions of its parameters.

    Attributes:
      init: key -> tree.
      score: (tree, the frozen trunk's tree or None, examples [b, ...], conditions) -> scores [b], float32.
      conditions: the names it reads.
      trunk: the role of a frozen trunk; None where there is none.
      load: key -> the tree that training starts from, where parts of it come from elsewhere; None where init says it all.
    """

    init: Callable[[Key[Array, ""]], PyTree]
    score: Callable[[PyTree, PyTree, Float[Array, "b ..."], Conditions], Float[Array, " b"]]
    conditions: tuple[str, ...] = ()
    trunk: Role | None = None
    load: Callable[[Key[Array, ""]], PyTree] | None = None


def published_start(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """A kernel [inputs, outputs] of standard deviation 1 / (inputs + 1)."""
    return jax.random.normal(key, shape, dtype) / (shape[0] + 1)


class Head(nn.Module):
    """Dense layers down to one number, behind a table of labels and an average over words where there are some.

    Attributes:
      widths: of the hidden layers.
      activation: between them.
      published: start all kernels as published, and scale what comes in; else the last kernel alone.
      classes: of labels that are read, None for none.
      vocabulary: of words that are read, 0 for none.
      text_width: of the vectors of words.
    """

    widths: tuple[int, ...]
    activation: str
    published: bool = True
    classes: int | None = None
    vocabulary: int = 0
    text_width: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, parts: list, cond: Conditions) -> Float[Array, " b"]:
        activation = HEAD_ACTIVATIONS[self.activation]
        if self.published:
            parts = [nn.LayerNorm(use_scale=False, use_bias=False)(part) for part in parts]
        if self.vocabulary:
            words = nn.Embed(self.vocabulary, self.text_width, dtype=self.dtype, name="words")(cond["tokens"])
            said = (cond["tokens"] != 0)[..., None]
            parts = [*parts, jnp.sum(words * said, axis=1) / jnp.maximum(jnp.sum(said, axis=1), 1)]
        if self.classes is not None:
            parts = [*parts, nn.Embed(self.classes + 1, self.text_width, dtype=self.dtype, name="label")(cond["label"])]
        hidden = jnp.concatenate(parts, axis=-1).astype(self.dtype)
        start = published_start if self.published else nn.initializers.lecun_normal()
        for index, width in enumerate(self.widths):
            hidden = activation(Dense(width, kernel_init=start, dtype=self.dtype, name=f"layer_{index}")(hidden))
        # Without a bias: comparisons say nothing about a constant.
        return (hidden.astype(jnp.float32) @ self.param("output", published_start, (hidden.shape[-1], 1)))[..., 0]


def mlp(
    data: DataSpec,
    dtype: str = "float32",
    widths: tuple = (128, 128),
    activation: str = "silu",
    label_width: int = 32,
    class_conditional: bool = True,
) -> Scorer:
    """Dense layers on points.

    Args:
      data: shape and number of classes.
      dtype: the type it computes in; parameters and scores are float32.
      widths: of the hidden layers.
      activation: silu, gelu, relu, tanh, softplus or none.
      label_width: of the vector for a label.
      class_conditional: read cond['label'] where the data have classes.
    """
    classes = data.num_classes if class_conditional else None
    head = _head(widths, activation, dtype, published=False, classes=classes, text_width=label_width)
    return _of_head(head, data, lambda examples, cond: [examples.reshape(len(examples), -1)])


def joint(
    data: DataSpec, trunk: Spec, dtype: str = "float32", widths: tuple = (128, 64, 16), activation: str = "silu"
) -> Scorer:
    """A head on the tokens of a network that reads examples and conditions together.

    Args:
      data: what is scored.
      trunk: spec of models/trunks.py: 'network' or 'run'.
      dtype: the type it computes in; parameters and scores are float32.
      widths: of the head's hidden layers.
      activation: between them, or 'none'.
    """
    seen = make_trunk(trunk, data, dtype)
    captions = {"tokens": data.vocabulary, "text": data.text_channels}
    unread = [name for name, there in captions.items() if there and name not in seen.conditions]
    if unread:
        raise ValueError(
            f"The data have captions ({unread[0]}), which the trunk does not read: it would score pictures alone. Give the "
            "trunk text=dict(name='transformer') and a network that reads text, or use scorer 'features'."
        )
    return _of_trunk(_head(widths, activation, dtype), seen, data)


def features(
    data: DataSpec,
    trunk: Spec,
    dtype: str = "float32",
    text_width: int = 64,
    widths: tuple = (128, 64, 16),
    activation: str = "silu",
) -> Scorer:
    """A head on the vector of a frozen network beside that of the caption.

    The caption is the mean of its encoded tokens where the data bring them encoded, or `text_pooled`; of token ids it is the
    mean of a table that is trained along.

    Args:
      data: what is scored.
      trunk: spec of models/trunks.py, such as dict(name='efficientnet_lite0').
      dtype: the type it computes in; parameters and scores are float32.
      text_width: of the vectors of words and labels.
      widths: of the head's hidden layers.
      activation: between them.
    """
    if activation == "none" and (data.text_length or data.num_classes):
        raise ValueError(
            "The scorer 'features' with activation='none' adds the same for a caption to all that are compared under it. Use "
            "activation='silu', or data without captions and labels."
        )
    head = _head(widths, activation, dtype, classes=data.num_classes, vocabulary=data.vocabulary, text_width=text_width)
    return _of_trunk(head, make_trunk(trunk, data, dtype), data)


SCORERS: dict[str, Callable[..., Scorer]] = {"mlp": mlp, "joint": joint, "features": features}


def make_scorer(spec: Spec, data: DataSpec, dtype: str = "float32") -> Scorer:
    """The scorer of a spec: see the module header.

    Args:
      spec: `name` and options.
      data: what is scored.
      dtype: the type it computes in.
    """
    if data.masked:
        raise ValueError(
            "Scorers read no masks, so they would score the padding of images of several sizes. Leave mask_multiple out of the "
            "data."
        )
    return build("scorer", spec, SCORERS, data=data, dtype=dtype)


def _head(widths: tuple, activation: str, dtype: str, **options) -> Head:
    choose("activation", activation, HEAD_ACTIVATIONS)
    if any(width < 1 for width in widths):
        raise ValueError(f"A scorer's widths are {tuple(widths)}; expected positive numbers.")
    return Head(tuple(widths), activation, dtype=jnp.dtype(dtype), **options)


def _read_by(head: Head, data: DataSpec) -> dict[str, tuple]:
    """Name -> shape and type of an example of what the head itself reads of the conditions."""
    wanted = {"tokens": ((data.text_length,), jnp.int32)} if head.vocabulary else {}
    return {**wanted, **({"label": ((), jnp.int32)} if head.classes is not None else {})}


def _of_head(head: Head, data: DataSpec, parts: Callable) -> Scorer:
    """A scorer without a trunk: (examples, conditions) -> what the head sees."""
    wanted = _read_by(head, data)
    example = {name: jnp.zeros((1, *shape), dtype) for name, (shape, dtype) in wanted.items()}

    def score(tree: PyTree, trunk: PyTree, examples: Float[Array, "b ..."], cond: Conditions) -> Float[Array, " b"]:
        return head.apply({"params": tree}, parts(examples, cond), cond)

    init = lambda key: head.init(key, parts(jnp.zeros((1, *data.shape)), example), example)["params"]
    return Scorer(init, score, tuple(wanted))


def _of_trunk(head: Head, trunk: Trunk, data: DataSpec) -> Scorer:
    """A scorer with a trunk: its tree is {'head': ...} with a frozen one, {'head': ..., 'trunk': ...} otherwise."""
    wanted = _read_by(head, data)
    beside = _encoded(data) if head.text_width else ()  # a joint trunk reads the caption itself
    sizes = [
        trunk.channels,
        *(data.pooled_channels if name == "text_pooled" else data.text_channels for name in beside),
    ]
    example = {name: jnp.zeros((1, *shape), dtype) for name, (shape, dtype) in wanted.items()}

    def score(tree: PyTree, frozen: PyTree, examples: Float[Array, "b ..."], cond: Conditions) -> Float[Array, " b"]:
        own = tree["trunk"] if trunk.frozen is None else frozen
        parts = [trunk.see(own, examples, cond), *(_caption(name, cond) for name in beside)]
        return head.apply({"params": tree["head"]}, parts, cond)

    def init(key: Key[Array, ""]) -> PyTree:
        trunk_key, head_key = jax.random.split(key)
        tree = {"head": head.init(head_key, [jnp.zeros((1, size)) for size in sizes], example)["params"]}
        return tree if trunk.frozen is not None else {**tree, "trunk": trunk.init(trunk_key)}

    load = None if trunk.load is None else lambda key: {**init(key), "trunk": trunk.load()}
    masks = ("text_mask",) if "text" in beside else ()
    reads = tuple(dict.fromkeys((*trunk.conditions, *wanted, *beside, *masks)))
    return Scorer(init, score, reads, trunk.frozen, load)


def _encoded(data: DataSpec) -> tuple[str, ...]:
    """Which of a batch's arrays says what an encoded caption is about."""
    if data.pooled_channels:
        return ("text_pooled",)
    return ("text",) if data.text_channels else ()


def _caption(name: str, cond: Conditions) -> Float[Array, "b c"]:
    if name == "text_pooled":
        return cond[name]
    said = cond["text_mask"][..., None]
    return jnp.sum(jnp.where(said, cond["text"], 0.0), axis=1) / jnp.maximum(jnp.sum(said, axis=1), 1)

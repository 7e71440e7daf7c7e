r"""A text encoder trained along with a network, as one network that reads token ids.

    tokens int[b,l]  --encoder-->  text float[b,l,c], text_mask bool[b,l]  --network-->  prediction

Both parameter trees are one, {'text': ..., 'network': ...}, so averages, optimizers, checkpoints and samplers see a
network like any other. Id 0 is padding; an absent caption is a row of zeros, whose mask is False everywhere: the inner
network then sees its own learned null text, and nothing the encoder does can leak into it. `prepare` encodes once, so
that a sampler with fifty steps does not encode fifty times; a network's own forward pass does it when nobody has.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from flowjax.arrays import expand_to
from flowjax.contract import DataSpec
from flowjax.models.network import Condition, Conditions, Network

ENCODED = ("text", "text_mask")


class NoText(ValueError):
    """An encoder was given to a network that reads no text."""


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """Token ids to vectors, as functions of a parameter tree.

    Attributes:
      init: key -> tree.
      apply: (tree, tokens int[b, l]) -> (text float32[b, l, channels], text_mask bool[b, l]); the vectors of padding,
        where the mask is False, are zero.
      channels: the size of a vector.
    """

    init: Callable[[Key[Array, ""]], PyTree]
    apply: Callable[[PyTree, Int[Array, "b l"]], tuple[Float[Array, "b l c"], Bool[Array, "b l"]]]
    channels: int


def encoded_spec(data: DataSpec, channels: int) -> DataSpec:
    """The spec of the same data when its captions have been encoded."""
    return dataclasses.replace(data, vocabulary=0, text_channels=channels)


def with_text(build_network: Callable[[DataSpec], Network], encoder: TextEncoder, data: DataSpec) -> Network:
    """A network that reads `tokens` through an encoder trained along.

    Args:
      build_network: the spec of data with encoded captions -> the network that reads them.
      encoder: from ids to vectors.
      data: its captions are token ids.
    """
    if not data.vocabulary:
        raise ValueError("A text encoder reads token ids, and these data have none (their vocabulary is 0).")
    inner = build_network(encoded_spec(data, encoder.channels))
    if "text" not in inner.conditions:
        raise NoText("The network does not read text, so its text encoder would learn nothing.")
    outer = {name: condition for name, condition in inner.conditions.items() if name not in ENCODED}
    conditions = {**outer, "tokens": Condition((data.text_length,), jnp.int32, 0)}

    def init(key: Key[Array, ""]) -> PyTree:
        text_key, network_key = jax.random.split(key)
        return {"text": encoder.init(text_key), "network": inner.init(network_key)}

    def prepare(tree: PyTree, cond: Conditions) -> Conditions:
        if "text" in cond:
            return cond
        if "tokens" not in cond:
            given = ", ".join(sorted(cond)) or "none"
            raise ValueError(f"The network reads the condition tokens; it was given {given}. Add them to the batch.")
        text, mask = encoder.apply(tree["text"], cond["tokens"])
        return inner.prepare(tree["network"], {**cond, "text": text, "text_mask": mask})

    def apply(tree: PyTree, x: Array, t: Array, cond: Conditions, **options: Any) -> Array:
        return inner.apply(tree["network"], x, t, prepare(tree, cond), **options)

    def hidden(tree: PyTree, x: Array, t: Array, cond: Conditions, **options: Any) -> tuple[Array, Any]:
        return inner.hidden(tree["network"], x, t, prepare(tree, cond), **options)

    def drop(cond: Conditions, dropped: Bool[Array, " b"]) -> Conditions:
        hide = lambda array: jnp.where(expand_to(dropped, array), jnp.zeros_like(array), array)
        return {
            name: hide(array) if name in ("tokens", "text") else array
            for name, array in inner.drop(cond, dropped).items()
        }

    return dataclasses.replace(
        inner,
        init=init,
        apply=apply,
        drop=drop,
        conditions=conditions,
        hidden=hidden if inner.hidden else None,
        prepare=prepare,
        output=inner.output and ("network", *inner.output),
    )

r"""What a scorer sees through: a network that gives one vector for an example and its conditions.

    dict(name="network", network=dict(name="dit", ...), text=dict(name="transformer"), layer=6)    trained from the start
    dict(name="run", restore_from="runs/shapes:ema", layer=6, frozen=True)                          of a finished flow
    dict(name="efficientnet_lite0", layer="pooled")                                                 a published network

A network of blocks (models/network.py) is asked at the clean end of its path, where the example itself is what it denoises, and
its tokens after a block are averaged over places. A flow that was trained with captions reads them: its tokens say how well
the two go together before any comparison is seen. Published networks see pictures alone.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Key, PyTree

from flowjax.choices import Spec, build, choose
from flowjax.contract import DataSpec, Role
from flowjax.models import NETWORKS, stored
from flowjax.models.features import EXTRACTORS, open_extractor
from flowjax.models.network import Conditions, Network
from flowjax.models.preconditioning import PRECONDITIONINGS
from flowjax.models.text import TEXT_ENCODERS, with_text
from flowjax.paths.path import PATHS, GaussianPath

LINEAR = {"name": "linear"}


@dataclasses.dataclass(frozen=True)
class Trunk:
    """One vector for each example, as functions of a parameter tree.

    Attributes:
      see: (tree, examples [b, ...], conditions) -> [b, channels].
      channels: of the vector.
      init: key -> tree.
      conditions: the names it reads.
      frozen: the role of its parameters where they are not trained; None where they are.
      load: () -> the parameters that training starts from, where they are not those of `init`.
      idle: which parameters of a network are left out, because what is seen does not depend on them.
    """

    see: Callable[[PyTree, Float[Array, "b ..."], Conditions], Float[Array, "b c"]]
    channels: int
    init: Callable[[Key[Array, ""]], PyTree]
    conditions: tuple[str, ...] = ()
    frozen: Role | None = None
    load: Callable[[], PyTree] | None = None
    idle: tuple[tuple[str, ...], ...] = ()


def make_trunk(spec: Spec, data: DataSpec, dtype: str = "float32") -> Trunk:
    """The trunk of a spec: see the module header.

    Args:
      spec: `name` and options; of a published network also `layer`, `weights` ('published', or 'random' for tests).
      data: what it sees.
      dtype: the type it computes in, where it has the choice.
    """
    if "name" not in spec:
        raise ValueError(f"The trunk spec {dict(spec)} has no 'name'. Known: {', '.join((*TRUNKS, *EXTRACTORS))}.")
    if choose("trunk", spec["name"], {**TRUNKS, **EXTRACTORS}) in EXTRACTORS.values():
        return published(spec, data)
    return build("trunk", spec, TRUNKS, data=data, dtype=dtype)


def network(data: DataSpec, network: Spec, text: Spec | None = None, layer: int = 0, dtype: str = "float32") -> Trunk:
    """A network of blocks, trained along.

    Args:
      data: what it sees.
      network: spec of models.NETWORKS, one with blocks.
      text: spec of a text encoder that is trained along, for captions that are token ids.
      layer: the block whose tokens are averaged, from 1; 0 for the last.
      dtype: the type it computes in.
    """
    config = dict(network=dict(network), text=dict(text or dict(name="none")), precision=dtype)
    made, path = open_network(config, data, "velocity")
    return _of_blocks(made, path, data, layer, f"The network '{network['name']}'")


def run(data: DataSpec, restore_from: str, layer: int = 0, frozen: bool = True, dtype: str = "float32") -> Trunk:
    """The network of a finished flow.

    Args:
      data: what it sees; of the shape that it was trained on.
      restore_from: RUN_DIRECTORY or RUN_DIRECTORY:role; the average `ema` where the run has one, else `student`.
      layer: the block whose tokens are averaged, from 1; 0 for the last.
      frozen: keep its parameters as they are, or train them on with the head.
      dtype: the type it computes in.
    """
    who = "The trunk of the scorer"
    config, reference = stored.config_of_run(restore_from, who), stored.reference_of_run(restore_from, who)
    prediction = config["method"].get("prediction", "velocity")
    made, path = open_network({**config, "precision": dtype}, data, prediction)
    stored.check_words(reference, made.conditions, data.words, who)
    trunk = _of_blocks(made, path, data, layer, f"The network of '{restore_from}'", whole=frozen)
    if frozen:
        return dataclasses.replace(trunk, frozen=Role(init=trunk.init, restore_from=reference))
    return dataclasses.replace(trunk, load=lambda: without(stored.read_reference(reference, who), trunk.idle))


def published(spec: Spec, data: DataSpec) -> Trunk:
    """One layer of a published image network, frozen; a map is averaged over its places.

    Args:
      spec: name and options of models.features.EXTRACTORS; `layer`, 'pooled' or the extractor's own unless told; `weights`.
      data: pictures.
    """
    options = dict(spec)
    name, layer = options.pop("name"), options.pop("layer", None)
    extractor, load = open_extractor(name, **options)
    layer = layer or ("pooled" if "pooled" in extractor.channels else extractor.layer)
    channels = choose(f"layer of {extractor.name}", layer, extractor.channels)
    if len(data.shape) != 3 or data.shape[-1] not in (1, 3):
        raise ValueError(
            f"The trunk '{extractor.name}' sees pictures with 1 or 3 channels; the data have shape {tuple(data.shape)}."
        )
    role = Role(init=extractor.init) if load is None else Role(load=load)
    see = lambda tree, examples, cond: extractor.vector(extractor.apply(tree, examples), layer)
    return Trunk(see, channels, extractor.init, (), role)


TRUNKS: dict[str, Callable[..., Trunk]] = {"network": network, "run": run}


def open_network(config: Mapping[str, Any], data: DataSpec, prediction: str) -> tuple[Network, GaussianPath]:
    """A network with its text encoder and preconditioning, and its path, from the entries of a config.

    Args:
      config: network, text, precision; path and preconditioning where they are not the usual ones.
      data: what it sees.
      prediction: what it outputs.
    """
    dtype = config["precision"]
    path = build("path", config.get("path", LINEAR), PATHS)
    encoder = build("text encoder", config["text"], TEXT_ENCODERS, data=data, dtype=dtype)
    bare = lambda seen: build("network", config["network"], NETWORKS, data=seen, dtype=dtype)
    made = bare(data) if encoder is None else with_text(bare, encoder, data)
    preconditioning = config.get("preconditioning", {"name": "none"})
    options = dict(network=made, path=path, prediction=prediction, data=data)
    return build("preconditioning", preconditioning, PRECONDITIONINGS, **options), path


def check_layer(network: Network, layer: int, who: str, option: str) -> None:
    """Refuses a network without blocks and a block that it does not have.

    Args:
      network: whose tokens are wanted.
      layer: after which block.
      who: the network in words, for the message.
      option: what to change.
    """
    if network.hidden is None:
        raise ValueError(f"{who} has no blocks whose tokens could be read. Use 'dit', 'mmdit' or 'unet'.")
    if not 1 <= layer <= network.layers:
        raise ValueError(f"{option} is {layer}, but {who[0].lower()}{who[1:]} has blocks 1 ... {network.layers}.")


def hidden_channels(network: Network, data: DataSpec, layer: int) -> int:
    """The channels of the tokens after a block; nothing is computed."""

    def tokens(key: Key[Array, ""]) -> Array:
        cond = {name: jnp.zeros((1, *c.shape), c.dtype) for name, c in network.conditions.items()}
        return network.hidden(network.init(key), jnp.zeros((1, *data.shape)), jnp.zeros(1), cond, layer=layer)[1]

    return jax.eval_shape(tokens, jax.random.key(0)).shape[-1]


def _of_blocks(
    network: Network, path: GaussianPath, data: DataSpec, layer: int, who: str, whole: bool = False
) -> Trunk:
    """The trunk of a network; unless it is to be `whole`, without the parameters that its tokens do not depend on."""
    layer = layer or network.layers
    check_layer(network, layer, who, "trunk.layer")

    def see(tree: PyTree, examples: Float[Array, "b ..."], cond: Conditions) -> Float[Array, "b c"]:
        t = jnp.full(len(examples), path.end, jnp.float32)
        seen = path.alpha(jnp.asarray(path.end, jnp.float32)) * examples
        return jnp.mean(network.hidden(tree, seen, t, cond, layer=layer)[1], axis=(1, 2))

    trunk = Trunk(see, hidden_channels(network, data, layer), network.init, tuple(network.conditions))
    if whole:
        return trunk
    shapes = flatten_dict(jax.eval_shape(network.init, jax.random.key(0)))
    example = jnp.zeros((1, *data.shape)), {n: jnp.zeros((1, *c.shape), c.dtype) for n, c in network.conditions.items()}
    read = leaves_read(lambda flat: see(unflatten_dict(flat), *example), shapes)
    idle = {path: leaf for path, leaf in shapes.items() if path not in read}

    def filled(tree: PyTree) -> PyTree:
        return unflatten_dict({**flatten_dict(tree), **{path: jnp.zeros(leaf.shape) for path, leaf in idle.items()}})

    return dataclasses.replace(
        trunk,
        init=lambda key: without(network.init(key), idle),
        see=lambda tree, examples, cond: see(filled(tree), examples, cond),
        idle=tuple(idle),
    )


def without(tree: PyTree, idle: Iterable[tuple[str, ...]]) -> PyTree:
    """A tree without some of its leaves, each named by the keys that lead to it."""
    gone = set(idle)
    return unflatten_dict({path: leaf for path, leaf in flatten_dict(tree).items() if path not in gone})


def leaves_read(function: Callable[[Mapping], Array], leaves: Mapping[tuple[str, ...], Any]) -> set[tuple[str, ...]]:
    """Which of the arrays of a flat dictionary a function's result depends on; nothing is computed.

    Args:
      function: of the dictionary.
      leaves: the shapes of the arrays.
    """
    traced = jax.make_jaxpr(function)(dict(leaves)).jaxpr
    wanted = {id(variable) for variable in traced.outvars}
    for equation in reversed(traced.eqns):
        if any(id(variable) in wanted for variable in equation.outvars):
            wanted |= {id(variable) for variable in equation.invars}
    names = jax.tree_util.tree_flatten_with_path(dict(leaves))[0]
    return {path[0].key for (path, _), variable in zip(names, traced.invars) if id(variable) in wanted}

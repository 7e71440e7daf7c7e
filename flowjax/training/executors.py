"""Where updates run: `jit` over a mesh with any sharding, or `pmap` with replicated parameters. Same update, same result.

One compiled program per (set of due phases, number of updates); the state is donated to each.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree
from ml_collections import ConfigDict

from flowjax.contract import Batch, Method, Metrics
from flowjax.training.sharding import BATCH, LEVELS, STACKED_BATCH, make_mesh, state_shardings, tree_shardings
from flowjax.training.state import State, initial_state
from flowjax.training.update import make_dispatch, make_update


class JitExecutor:
    """Runs updates under jax.jit, with the state laid out on a mesh by the rules of `sharding`."""

    def __init__(self, method: Method, config: ConfigDict, restored: Mapping[str, PyTree] | None = None):
        self.method, self.config, self._restored = method, config, restored or {}
        self.mesh = make_mesh(config.mesh, config.sharding)
        self.rules = config.partition_rules
        shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        check_divides(config.batch_size, shards, config.gradient_accumulation)
        shapes = jax.eval_shape(lambda: initial_state(method, config.seed, self._restored))
        self.shardings = state_shardings(shapes, self.mesh, config.sharding, self.rules)
        self.abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            self.shardings,
        )
        self.root = jax.random.key(config.seed)
        self._compiled: dict[tuple, Callable] = {}

    def start(self) -> State:
        """The initial state, made on the devices where it will live."""
        # restored trees are arguments, not constants of the program
        make = jax.jit(
            lambda restored: initial_state(self.method, self.config.seed, restored), out_shardings=self.shardings
        )
        return make(self._restored)

    def place(self, state: State) -> State:
        """A restored state as this executor runs it."""
        return state

    def logical(self, state: State) -> State:
        """The state as one tree of global arrays: what is saved, sampled from and hashed."""
        return state

    def put(self, batch: Mapping[str, np.ndarray], stacked: bool = True) -> Batch:
        """This process's rows of a (stacked) batch as global arrays, split over the data and fsdp axes."""
        shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        # A part of a batch that does not fall into equal shards is small: every device has all of it.
        whole = not stacked and any(len(value) % shards for value in batch.values())
        sharding = NamedSharding(self.mesh, STACKED_BATCH if stacked else PartitionSpec() if whole else BATCH)
        if self.mesh.size == 1:
            return jax.device_put(dict(batch), sharding)
        return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}

    def program(self, due: Sequence[str], size: int) -> Callable[..., tuple[State, Metrics]]:
        """The jitted program of up to `size` updates of the due phases; compiled at its first call, or by lower()."""
        key = (tuple(due), size)
        if key not in self._compiled:
            update = make_update(
                self.method,
                due,
                self.config.gradient_accumulation,
                constrain=self._constrain if LEVELS[self.config.sharding] >= 2 else None,
                guard=self.config.nan_guard,
            )
            self._compiled[key] = jax.jit(
                make_dispatch(update, size), donate_argnums=0, out_shardings=(self.shardings, None)
            )
        return self._compiled[key]

    def run(
        self, state: State, batches: Mapping[str, np.ndarray], due: Sequence[str], count: int
    ) -> tuple[State, Metrics]:
        """`count` updates on stacked host batches; metrics are stacked on a first axis, of which `count` entries count."""
        size = self.config.steps_per_dispatch
        return self.program(due, size)(state, self.put(pad_stack(batches, size)), np.int32(count), self.root)

    def _constrain(self, role: str, gradients: PyTree) -> PyTree:
        shardings = tree_shardings(gradients, self.mesh, True, self.rules, name=lambda path, shape: f"{role}/{path}")
        return jax.lax.with_sharding_constraint(gradients, shardings)


class PmapExecutor:
    """Runs the same updates under jax.pmap: a full copy of the state on every device, the batch split between them."""

    AXIS = "devices"

    def __init__(self, method: Method, config: ConfigDict, restored: Mapping[str, PyTree] | None = None):
        if jax.process_count() > 1:
            raise ValueError("parallel='pmap' works within one process. With several, use parallel='jit'.")
        self.method, self.config, self._restored = method, config, restored or {}
        self.devices = jax.local_devices()
        self.mesh = make_mesh(config.mesh, "replicated")
        check_divides(config.batch_size, jax.device_count(), config.gradient_accumulation)
        shapes = jax.eval_shape(lambda: initial_state(method, config.seed, self._restored))
        whole = NamedSharding(self.mesh, PartitionSpec())
        self.shardings = jax.tree.map(lambda _: whole, shapes)
        self.abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), shapes)
        self.root = jax.random.key(config.seed)
        self._roots = self._replicate(self.root)
        self._compiled: dict[tuple, Callable] = {}

    def start(self) -> State:
        """The initial state on every device."""
        make = jax.jit(lambda restored: initial_state(self.method, self.config.seed, restored))
        return self.place(make(self._restored))

    def place(self, state: State) -> State:
        """A restored state, copied to every device."""
        return self._replicate(state)

    def _replicate(self, tree: PyTree) -> PyTree:
        """Every leaf with a first axis of devices, one copy on each."""
        split = NamedSharding(Mesh(np.asarray(self.devices), (self.AXIS,)), PartitionSpec(self.AXIS))
        copies = lambda leaf: jnp.broadcast_to(leaf, (len(self.devices),) + leaf.shape)
        return jax.jit(lambda tree: jax.tree.map(copies, tree), out_shardings=split)(tree)

    def logical(self, state: State) -> State:
        """The first device's copy."""
        return jax.tree.map(lambda leaf: leaf[0], state)

    def put(self, batch: Mapping[str, np.ndarray], stacked: bool = True) -> Batch:
        """[n, b, ...] -> [devices, n, b / devices, ...]; a batch that is not stacked stays whole."""
        if not stacked:
            return {name: jnp.asarray(value) for name, value in batch.items()}
        count = len(self.devices)
        return {k: v.reshape((v.shape[0], count, -1) + v.shape[2:]).swapaxes(0, 1) for k, v in batch.items()}

    def program(self, due: Sequence[str], size: int) -> Callable[..., tuple[State, Metrics]]:
        """The pmapped program of up to `size` updates of the due phases."""
        key = (tuple(due), size)
        if key not in self._compiled:
            update = make_update(
                self.method, due, self.config.gradient_accumulation, axis=self.AXIS, guard=self.config.nan_guard
            )
            self._compiled[key] = jax.pmap(
                make_dispatch(update, size), axis_name=self.AXIS, in_axes=(0, 0, None, 0), donate_argnums=0
            )
        return self._compiled[key]

    def run(
        self, state: State, batches: Mapping[str, np.ndarray], due: Sequence[str], count: int
    ) -> tuple[State, Metrics]:
        """`count` updates on stacked host batches; the metrics are the same on every device, so the first's are returned."""
        size = self.config.steps_per_dispatch
        batches = self.put(pad_stack(batches, size))
        state, metrics = self.program(due, size)(state, batches, np.int32(count), self._roots)
        return state, jax.tree.map(lambda leaf: leaf[0], metrics)


def pad_stack(batches: Mapping[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """Repeats the last batch until `size` are stacked; the program does not look at the padding."""
    missing = size - len(next(iter(batches.values())))
    if not missing:
        return dict(batches)
    return {name: np.concatenate([value, np.repeat(value[-1:], missing, 0)]) for name, value in batches.items()}


EXECUTORS = {"jit": JitExecutor, "pmap": PmapExecutor}


def check_divides(batch_size: int, shards: int, accumulation: int, what: str = "batch_size={}") -> None:
    """Refuses a batch that does not fall into equal parts for every device and micro-batch.

    Args:
      batch_size: of a batch.
      shards: devices that it is split over.
      accumulation: micro-batches.
      what: it is, for the message, with {} for its size.
    """
    parts = shards * accumulation
    if batch_size % parts:
        below, above = batch_size // parts * parts, -(-batch_size // parts) * parts
        near = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"{what.format(batch_size)} does not divide into {shards} device shards x {accumulation} micro-batches. "
            f"Use {near}."
        )

"""`--mode=plan`: what a run will need, from shapes and the compiler alone; no parameter is allocated."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from flowjax.config import ConfigError
from flowjax.data.pipeline import make_iterator
from flowjax.training.executors import JitExecutor
from flowjax.training.operations import operations
from flowjax.training.run import Run
from flowjax.training.sharding import STACKED_BATCH
from flowjax.training.state import parameter_count
from flowjax.training.update import make_update


def batch_shares(run: Run) -> dict[tuple[int, ...], float]:
    """The shapes that examples come in, with their shares of the run's steps: one, or one for each bucket."""
    spec, source = run.source.spec, run.source
    if not spec.shapes:
        return {tuple(spec.shape): 1.0}
    shares = source.schedule.at(np.linspace(0, run.config.steps - 1, 101).astype(int)).mean(axis=0)
    found = dict.fromkeys(map(tuple, spec.shapes), 0.0)
    for child, share in zip(source.children, shares):
        found[tuple(child.spec.shape)] += float(share)
    return found


def abstract_batches(run: Run, mesh: Mesh, shape: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of one stacked batch of examples of a shape.

    One host batch is made to learn names and types; none goes to a device.
    """
    if run.method.collect is not None:
        raise ConfigError(
            "A method that collects makes its batches while it trains: there is nothing to plan them from."
        )
    coupling = None
    if run.config.coupling.name != "independent":
        coupling = lambda batch, _: {**batch, "noise": batch["data"]}
    iterator = make_iterator(run.source, run.config.batch_size, run.config.seed, coupling)
    batch = {name: value[0] for name, value in iterator.stack_batches(1).items()}
    iterator.close()
    sharding = NamedSharding(mesh, STACKED_BATCH)
    sides = {"data": shape, "noise": shape, "pixel_mask": shape[:2]}
    sized = lambda name, v: (len(v), *sides.get(name, v.shape[1:]))
    return {n: jax.ShapeDtypeStruct((1, *sized(n, v)), v.dtype, sharding=sharding) for n, v in batch.items()}


def program_shapes(run: Run, executor: JitExecutor, shape: tuple[int, ...]) -> tuple:
    """The arguments of a program of one update on examples of a shape, as shapes."""
    root = jax.eval_shape(lambda: jax.random.key(0))
    return executor.abstract, abstract_batches(run, executor.mesh, shape), jax.ShapeDtypeStruct((), jnp.int32), root


def update_flops(run: Run, executor: JitExecutor, due: Sequence[str]) -> float:
    """Floating-point operations of one update over all devices (operations.py).

    Where examples come in several shapes this is the mean over the run's steps.
    """
    update = make_update(run.method, due)

    def count(shape):
        state, batch, _, root = program_shapes(run, executor, shape)
        return operations(
            update, state, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batch), root
        )

    return sum(share * count(shape) for shape, share in batch_shares(run).items() if share)


def device_bytes(tree: PyTree) -> int:
    """Bytes of a tree of sharded shapes on one device."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        total += int(np.prod(shape)) * leaf.dtype.itemsize
    return total


def plan(run: Run) -> dict[str, Any]:
    """Compiles one update of every set of due phases on shapes, and adds up what the compiler says.

    Returns: `parameters` by role, `mesh`, bytes a device of parameters, optimizer state and (from the compiler's memory
    analysis) temporaries, and for each set of phases the floating-point operations of one update on one device. Where
    examples come in several shapes, memory is that of the largest.
    """
    executor = run.executor
    if not isinstance(executor, JitExecutor):  # pmap has no program to lower on shapes; its update is the same
        executor = JitExecutor(run.method, run.config, run.restored)
    abstract = executor.abstract
    report: dict[str, Any] = dict(
        devices=f"{executor.mesh.size} x {jax.devices()[0].device_kind}",
        mesh=dict(executor.mesh.shape),
        parameters={name: parameter_count(tree) for name, tree in abstract.params.items()},
        bytes_parameters=device_bytes(abstract.params),
        bytes_optimizer=device_bytes(abstract.optimizer),
        batches=batch_shares(run),
        updates={},
    )
    largest = max(report["batches"], key=math.prod)
    for due in sorted(run.method.due_sets()):
        if not due:
            continue
        memory = executor.program(due, 1).lower(*program_shapes(run, executor, largest)).compile().memory_analysis()
        entry = dict(flops=update_flops(run, executor, due) / executor.mesh.size)
        if memory is not None:
            entry |= dict(
                bytes_temporary=int(memory.temp_size_in_bytes),
                bytes_arguments=int(memory.argument_size_in_bytes),
                bytes_peak=int(
                    memory.argument_size_in_bytes
                    + memory.temp_size_in_bytes
                    + memory.output_size_in_bytes
                    - memory.alias_size_in_bytes
                ),
            )
        report["updates"]["+".join(due)] = entry
    return report


def lines(report: dict[str, Any]) -> list[str]:
    """The plan as a person reads it."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    text = [f"devices     {report['devices']}, mesh {mesh}"]
    text += [f"parameters  {count:>14,}  {role}" for role, count in report["parameters"].items()]
    text.append(
        f"bytes/device {_size(report['bytes_parameters'])} parameters, {_size(report['bytes_optimizer'])} optimizer state"
    )
    if len(report["batches"]) > 1:
        shares = [f"{' x '.join(map(str, shape))} {share:.0%}" for shape, share in report["batches"].items()]
        text.append(f"batches     {', '.join(shares)}: one program each; memory is that of the largest")
    for due, entry in report["updates"].items():
        text.append(f"update '{due}': {entry['flops']:.3g} floating-point operations a device")
        if "bytes_peak" in entry:
            text.append(
                f"  memory a device: {_size(entry['bytes_peak'])} in all, of which {_size(entry['bytes_temporary'])} temporary"
            )
    return text


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")

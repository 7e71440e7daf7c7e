"""The NaN guard on the host: stop at the first bad update, say what was bad, leave a dump that can be replayed.

The update itself refuses a loss or gradient that is not finite and leaves the state as it was (update.py), so the state
in hand is the one *before* the bad update, and the batch and key of that update reproduce it exactly.
"""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from flowjax import disk
from flowjax.contract import Batch, Method
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.sharding import path_name
from flowjax.training.state import State, step_key
from flowjax.training.update import apply_gradients, phase_gradients, with_step

KEY_PREFIX = "key "


class NotFinite(RuntimeError):
    """Training met a NaN or an infinity; the message names the step, the metric and the dump."""


def bad_metrics(metrics: Mapping[str, np.ndarray], index: int) -> list[str]:
    """'loss = nan'-like descriptions of the metrics of one update that are not finite."""
    found = []
    for name, values in metrics.items():
        value = np.asarray(values[index])
        if value.dtype.kind == "f" and not np.all(np.isfinite(value)):
            found.append(f"{name} = {value}" if value.ndim == 0 else name)
    return found


def stop(
    workdir: pathlib.Path,
    method: Method,
    step: int,
    state: State,
    recent: list[tuple[int, Batch]],
    config: Mapping[str, Any],
    metrics: list[str],
) -> NotFinite:
    """Writes the state before the bad update, the last batches and the keys of their phases; returns the error to raise."""
    folder = workdir / "failure"
    try:
        with disk.told(folder):
            if jax.process_index() == 0:  # of an earlier failure: Orbax would not write an older step beside it
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("failure folder")
            checkpoints = Checkpoints(folder / "checkpoints", keep_latest=1)
            checkpoints.save(step, state, {}, config)
            checkpoints.close()
            root = jax.random.key(config["seed"])
            for number, batch in recent:
                keys = {
                    KEY_PREFIX + name: np.asarray(jax.random.key_data(step_key(root, number, f"phase/{name}")))
                    for name in method.due(number)
                }
                np.savez(folder / f"batch_{number:08d}.{jax.process_index()}.npz", **keys, **batch)
            (folder / "failure.json").write_text(
                json.dumps(
                    dict(step=step, metrics=metrics, batches=[number for number, _ in recent], seed=config["seed"]),
                    indent=1,
                )
            )
        dump = (
            f"The state before that update, the last batches and their keys are in {folder}; --mode=replay with the same "
            "--config and --workdir says which numbers went bad."
        )
    except disk.DiskFull as error:
        dump = f"There is no dump of it. {error}"
    return NotFinite(
        f"Training stopped at step {step}: {', '.join(metrics) or 'a gradient is not finite'}. {dump} Usual causes: a learning "
        "rate that is too high, bad input, a time too close to where the loss is singular."
    )


def replay(workdir: pathlib.Path, method: Method, abstract: State) -> list[str]:
    """Repeats the update of a dump without the guard; returns lines that say where the first bad numbers are."""
    folder = workdir / "failure"
    if not (folder / "failure.json").is_file():
        raise FileNotFoundError(f"There is no dump in {folder}: no run in this workdir stopped at a NaN.")
    failure = json.loads((folder / "failure.json").read_text())
    step = failure["step"]
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    state, _ = checkpoints.restore(step, abstract)
    parts = [dict(np.load(file)) for file in sorted(folder.glob(f"batch_{step:08d}.*.npz"))]  # one of each process
    keys = {
        name.removeprefix(KEY_PREFIX): jax.random.wrap_key_data(jax.numpy.asarray(value))
        for name, value in parts[0].items()
        if name.startswith(KEY_PREFIX)
    }
    names = [name for name in parts[0] if not name.startswith(KEY_PREFIX)]
    batch = {name: jax.numpy.concatenate([part[name] for part in parts]) for name in names}
    lines = [f"replaying step {step}: {', '.join(failure['metrics'])}"]
    for name, value in batch.items():
        lines += _report(f"batch '{name}'", value)
    for role, tree in state.params.items():
        lines += [line for path, leaf in _leaves(tree) for line in _report(f"parameters {role}/{path}", leaf)]
    batch = with_step(batch, step)
    params, optimizer = dict(state.params), dict(state.optimizer)
    for name in method.due(step):
        phase, key = method.phases[name], keys[name]
        values, metrics = jax.jit(phase.loss)(params, batch, key)
        lines += _report(f"loss of phase '{name}', example", values)
        for metric, value in metrics.items():
            lines += _report(f"metric '{metric}' of phase '{name}'", value)
        _, gradients, _ = jax.jit(lambda p, b, k, phase=phase: phase_gradients(phase, p, b, k))(params, batch, key)
        lines += [line for path, leaf in _leaves(gradients) for line in _report(f"gradient {path}", leaf)]
        apply_gradients(method, phase, gradients, params, optimizer)  # the next phase starts from here
    if len(lines) == 1:
        lines.append("every number is finite in this replay: the failure depends on the hardware or on the precision.")
    return lines


def _leaves(tree: PyTree):
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _report(what: str, value: Any) -> list[str]:
    value = np.asarray(value)
    if value.dtype.kind != "f" or np.all(np.isfinite(value)):
        return []
    rows = np.unique(np.argwhere(~np.isfinite(value))[:, 0]) if value.ndim else []
    where = f" at indexes {', '.join(map(str, rows[:8]))}{' ...' if len(rows) > 8 else ''}" if value.ndim else ""
    return [f"{what}: {np.sum(~np.isfinite(value))} of {value.size} numbers are not finite{where}"]

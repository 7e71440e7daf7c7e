"""Parameters of finished runs: one role of a checkpoint, and the config that it was trained with.

A checkpoint folder is written by training/checkpoints.py, which alone knows how a run goes on from it. Here it is only
read, and only a role at a time, for whoever builds on a finished network: a role that starts from another run, latents of
a trained autoencoder, a reward model.
"""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from flowjax.choices import suggestion
from flowjax.models.lora import Adapter, is_adapter, merged

CAPTIONS = frozenset({"tokens", "text", "text_pooled"})  # conditions that are captions


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or does not fit; the message says what to do."""


def split_reference(reference: str, who: str) -> tuple[pathlib.Path, str | None]:
    """`RUN_DIRECTORY` or `RUN_DIRECTORY:role` as the folder of its checkpoints and the role, None where none is named.

    Args:
      reference: the text.
      who: what wants it, for the message ("Role 'teacher'").
    """
    directory, _, role = reference.partition(":")
    folder = pathlib.Path(directory) / "checkpoints"
    if not folder.is_dir():
        raise CheckpointError(f"{who} should start from '{reference}', but there is no folder {folder}.")
    return folder.absolute(), role or None


def stored_steps(folder: pathlib.Path) -> list[int]:
    """All complete checkpoints of a folder, in order."""
    manager = ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(create=False, read_only=True))
    try:
        return sorted(manager.all_steps())
    finally:
        manager.close()


def existing_step(folder: pathlib.Path, step: int | None, steps: Sequence[int] | None = None) -> int:
    """The step asked for, or the latest; a CheckpointError where there is none."""
    steps = stored_steps(folder) if steps is None else steps
    step = max(steps, default=None) if step is None else step
    if step is None or step not in steps:
        listed = ", ".join(map(str, sorted(steps))) or "none"
        raise CheckpointError(f"There is no checkpoint {'' if step is None else step} in {folder}. Steps: {listed}.")
    return step


def usual_role(folder: pathlib.Path, step: int, trained: str = "student") -> str:
    """The role that is meant where none is named: the average `ema` where a run has one, else what it trained."""
    return "ema" if "ema" in saved_tree(folder, step)["params"] else trained


def saved_tree(folder: pathlib.Path, step: int) -> Mapping[str, Any]:
    """What a checkpoint holds, as shapes."""
    try:
        with ocp.PyTreeCheckpointer() as reader:
            return reader.metadata(folder / str(step) / "state").item_metadata.tree
    except Exception as error:
        raise unreadable(folder, step, error) from error


def read_role(folder: pathlib.Path, role: str, step: int) -> PyTree:
    """One role's parameters, as arrays on the host's default device."""
    known = saved_tree(folder, step)["params"]
    if role not in known:
        raise CheckpointError(
            f"{folder} has no role '{role}'. Its roles: {', '.join(sorted(known))}.{suggestion(role, known)}"
        )
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), known[role])
    place = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(sharding=sharding), wanted)
    item = lambda leaf: {"params": {role: leaf}}
    args = ocp.args.PyTreeRestore(item(wanted), restore_args=item(place), partial_restore=True)
    try:
        with ocp.PyTreeCheckpointer() as reader:
            return reader.restore(folder / str(step) / "state", args=args)["params"][role]
    except Exception as error:
        raise unreadable(folder, step, error) from error


def read_network(folder: pathlib.Path, role: str, step: int) -> PyTree:
    """One role's parameters as a network's; of a role that holds a low-rank adapter, the sum with its base."""
    tree = read_role(folder, role, step)
    if not is_adapter(tree):
        return tree
    alpha = read_config(folder, step)["lora"]["alpha"] or None
    return merged(read_role(folder, "base", step), Adapter(tree, alpha))


def read_config(folder: pathlib.Path, step: int) -> dict[str, Any]:
    """The resolved config that a checkpoint was made with, as it comes back from JSON."""
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            return dict(reader.restore(folder / str(step) / "config"))
    except Exception as error:
        raise unreadable(folder, step, error) from error


def read_measured(folder: pathlib.Path, step: int) -> dict[str, float]:
    """What was measured of the parameters of a checkpoint: metric -> value; {} where nothing was."""
    if not (folder / str(step) / "measured").is_dir():
        return {}
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            return dict(reader.restore(folder / str(step) / "measured"))
    except Exception as error:
        raise unreadable(folder, step, error) from error


def read_words(folder: pathlib.Path, step: int) -> str:
    """DataSpec.words of what a checkpoint was trained on; '' where it does not say."""
    if not (folder / str(step) / "data").is_dir():
        return ""
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            return reader.restore(folder / str(step) / "data")["words"]
    except Exception as error:
        raise unreadable(folder, step, error) from error


def reads_other_words(reference: str, words: str, who: str) -> bool:
    """Whether a finished run has learnt to read other captions than these, as far as both are known.

    Args:
      reference: RUN_DIRECTORY or RUN_DIRECTORY:role.
      words: DataSpec.words of the captions.
      who: what wants to know, for messages.
    """
    folder, _ = split_reference(reference, who)
    known = read_words(folder, existing_step(folder, None)) if words else ""
    return bool(known) and known != words


def check_words(reference: str, conditions: Iterable[str], words: str, who: str) -> None:
    """Refuses a finished run that has learnt to read other captions than these and would take one word for another.

    Args:
      reference, words, who: of `reads_other_words`.
      conditions: what its network reads, captions perhaps among them.
    """
    if CAPTIONS & set(conditions) and reads_other_words(reference, words, who):
        run = reference.partition(":")[0]
        raise ValueError(
            f"{who} reads captions as '{run}' learnt to, whose ids or vectors of words are not those of these data: it would "
            f"take one word for another. Give both the same: tokenizer=dict(name='run', restore_from='{run}') in the data of "
            "the one that is trained later."
        )


def config_of_run(restore_from: str, who: str) -> dict[str, Any]:
    """The config that a run was trained with, lists as the tuples they were.

    Args:
      restore_from: RUN_DIRECTORY or RUN_DIRECTORY:role.
      who: what wants it, for messages ("The teacher").
    """
    folder, _ = split_reference(restore_from, who)
    return _as_tuples(read_config(folder, existing_step(folder, None)))


def reference_of_run(restore_from: str, who: str, trained: str = "student") -> str:
    """RUN_DIRECTORY:role; where none is named, the role whose samples people mean.

    Args:
      restore_from: RUN_DIRECTORY or RUN_DIRECTORY:role; the average `ema` where the run has one, else `trained`.
      who: what wants it, for messages ("The teacher").
      trained: the role that such a run trains.
    """
    folder, role = split_reference(restore_from, who)
    role = role or usual_role(folder, existing_step(folder, None), trained)
    return f"{restore_from.partition(':')[0].rstrip('/')}:{role}"


def read_reference(reference: str, who: str) -> PyTree:
    """The parameters of RUN_DIRECTORY:role, as NumPy arrays; of an adapter, the sum with its base.

    Args:
      reference: the text.
      who: what wants it, for messages ("The teacher").
    """
    folder, role = split_reference(reference, who)
    step = existing_step(folder, None)
    return jax.tree.map(np.asarray, read_network(folder, role or usual_role(folder, step), step))


def _as_tuples(value: Any) -> Any:
    """A config as it comes back from JSON, lists as the tuples they were."""
    if isinstance(value, Mapping):
        return {key: _as_tuples(entry) for key, entry in value.items()}
    return tuple(_as_tuples(entry) for entry in value) if isinstance(value, list) else value


def unreadable(folder: pathlib.Path, step: int, error: Exception) -> CheckpointError:
    """The message about a damaged checkpoint, with the way out."""
    older = [other for other in stored_steps(folder) if other < step]
    then = f"resume from step {older[-1]}" if older else "start again from step 0"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return CheckpointError(
        f"The checkpoint {folder / str(step)} cannot be read ({reason}). It is damaged: delete that folder to {then}."
    )

"""Checkpoints: asynchronous, sharded on disk, restorable onto any mesh, never half-written. Hides Orbax from the rest.

A checkpoint holds the whole `State` (every role and optimizer), the host's position (in the data, and the sums between
two log lines), the resolved config, what was measured of it at this step, and in which words the data have captions.
Orbax writes into a temporary directory and renames it when everything is on disk, so a kill leaves no half checkpoint
behind that a later run could pick up.
"""

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers

from flowjax import disk
from flowjax.models import stored
from flowjax.models.stored import CheckpointError
from flowjax.training.sharding import path_name
from flowjax.training.state import State

_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def _safe_to_donate(tree: PyTree) -> PyTree:
    """On accelerators Orbax copies to the host before save() returns; on the CPU it would read the buffers in place, while
    the next update already reuses them. There the tree is copied."""
    return _copy(tree) if jax.default_backend() == "cpu" else tree


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(
        self,
        directory: str | pathlib.Path,
        keep_latest: int = 2,
        keep_every_steps: int = 0,
        best_metric: str = "",
        best_mode: str = "min",
        read_only: bool = False,
    ):
        """Args:
        directory: where the steps' folders are.
        keep_latest: how many of the newest to keep.
        keep_every_steps: also keep every step that is a multiple of this; 0 for none.
        best_metric: also keep the best one by this evaluation metric; empty for none.
        best_mode: whether a `min` or a `max` is best.
        read_only: for reading another run.
        """
        self.directory = pathlib.Path(directory).absolute()
        policies: list = [checkpoint_managers.LatestN(max(keep_latest, 1))]
        if keep_every_steps:
            policies.append(checkpoint_managers.EveryNSteps(keep_every_steps))
        judged = {}
        if best_metric:
            worst = float("inf") if best_mode == "min" else float("-inf")
            best = lambda metrics: metrics.get(best_metric, worst)
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=best, reverse=best_mode == "min", n=1, keep_checkpoints_without_metrics=False
                )
            )
            # Orbax writes metrics to disk only where it is told this; without them a resumed run would not know its best.
            judged = dict(best_fn=best, best_mode=best_mode)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            **judged,
        )
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_is_news)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All complete checkpoints."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: State,
        position: Mapping[str, Any],
        config: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        words: str = "",
    ) -> None:
        """Starts writing a checkpoint; the state may be donated as soon as this returns."""
        if step in self._manager.all_steps():
            return
        self.wait()
        # Found out before Orbax begins: from its threads, errors come late and print tracebacks of their own.
        disk.require(self.directory, sum(leaf.nbytes for leaf in jax.tree.leaves(state)), "a checkpoint")
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_safe_to_donate(_as_tree(state))),
            position=ocp.args.JsonSave(dict(position)),
            config=ocp.args.JsonSave(dict(config)),
            measured=ocp.args.JsonSave(dict(metrics or {})),
            data=ocp.args.JsonSave(dict(words=words)),
        )
        with disk.told(self.directory):
            self._manager.save(step, args=args, metrics=dict(metrics or {}))

    def restore(self, step: int, abstract: State) -> tuple[State, dict[str, Any]]:
        """Reads a checkpoint onto the shardings of `abstract`; returns the state and the host's position."""
        self._check_keys(step, _as_tree(abstract))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_as_tree(abstract)), position=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=args)
        except Exception as error:
            raise stored.unreadable(self.directory, step, error) from error
        return State(**restored["state"]), dict(restored["position"])

    def read_role(self, role: str, step: int | None = None) -> PyTree:
        """One role's parameters from the latest (or a given) checkpoint, as arrays on the host's default device."""
        return stored.read_role(self.directory, role, self._existing(step))

    def config(self, step: int | None = None) -> dict[str, Any]:
        """The resolved config a checkpoint was made with."""
        return stored.read_config(self.directory, self._existing(step))

    def wait(self) -> None:
        """Returns when all that was saved is on disk; raises what went wrong."""
        with disk.told(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for writes under way."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _existing(self, step: int | None) -> int:
        return stored.existing_step(self.directory, step, self.steps())

    def _check_keys(self, step: int, wanted: PyTree) -> None:
        saved = dict(_shapes(stored.saved_tree(self.directory, step)))
        asked = dict(_shapes(wanted))
        problems = [f"missing in the checkpoint: {name}" for name in asked.keys() - saved.keys()]
        problems += [f"not in this run: {name}" for name in saved.keys() - asked.keys()]
        problems += [
            f"{name} is {saved[name]} in the checkpoint and {asked[name]} in this run"
            for name in asked.keys() & saved.keys()
            if asked[name] != saved[name]
        ]
        if problems:
            shown = "\n  ".join(sorted(problems)[:12]) + (
                f"\n  ... {len(problems) - 12} more" if len(problems) > 12 else ""
            )
            raise CheckpointError(
                f"The checkpoint {self.directory / str(step)} does not fit this config:\n  {shown}\n"
                "Use the config it was made with (config.json beside it), or another --workdir."
            )


def _is_news(record: logging.LogRecord) -> bool:
    """Orbax prints the tracebacks of a full disk, thread by thread, as well as raising it; the error is told once."""
    return not (record.exc_info and disk.is_full(record.exc_info[1]))


def _as_tree(state: State) -> dict[str, Any]:
    return dict(step=state.step, params=state.params, optimizer=state.optimizer, healthy=state.healthy)


def _shapes(tree: PyTree):
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield path_name(path), tuple(leaf.shape)

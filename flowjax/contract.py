"""The contract that carries every training algorithm: roles, phases, methods, batches.

A training algorithm is data, not a loop. It names parameter trees (roles), kinds of updates (phases), and how to draw
samples; the trainer turns any such description into compiled, sharded, checkpointed steps, and holds no algorithm's name.

    role    a parameter tree: trained (it has an optimizer), frozen (it has none), or tracked (it follows another role:
            EMA, consistency target, old policy, hand-over of progressive distillation)
    phase   a loss, the roles it trains, and how often it is due
    method  roles + phases (+ a collect step that makes batches by rollout, + samplers, + pre-flight checks)
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from flowjax.choices import suggestion

Params = Mapping[str, PyTree]  # role -> parameter tree
# A batch is a dictionary of arrays whose first axis is the example. Reserved names:
#   data   [b, ...]  clean examples (t = 1)
#   noise  [b, ...]  present when noise and data are coupled or stored in pairs; otherwise the loss draws it
#   mask   [b]       1 for an example, 0 for padding of a last, partial batch
#   row    [b]       the example's index in the global batch: the seed of everything drawn for it
#   any other name (label, text, size, ...) is a condition that the network may read.
Batch = Mapping[str, Array | np.ndarray]
RESERVED = ("data", "noise", "mask", "row")
Metrics = Mapping[str, Array]  # name -> one value per example, or one value; `t` feeds the loss-by-time curve
LossFn = Callable[[Params, Batch, Key[Array, ""]], tuple[Float[Array, "b"], Metrics]]
Rate = Callable[[Int[Array, ""]], Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Track:
    """After every step: role <- role + rate(step) (source - role). A rate of 1 copies, of 0 keeps."""

    source: str
    rate: Rate


@dataclasses.dataclass(frozen=True)
class Role:
    """One parameter tree: where it starts (exactly one of init, copy_of, restore_from) and how it changes.

    A restored role may have an init as well: it is not run, but every restored array is held against its shapes.

    Attributes:
      init: key -> tree.
      copy_of: the role whose initial values this one takes.
      restore_from: `RUN_DIRECTORY` or `RUN_DIRECTORY:role`, a role of a finished run's latest checkpoint.
      tx: the optimizer; None freezes the role.
      track: follow another role after each step; excludes `tx`.
      learning_rate: the schedule inside `tx`, for the logs.
    """

    init: Callable[[Key[Array, ""]], PyTree] | None = None
    copy_of: str | None = None
    restore_from: str | None = None
    tx: optax.GradientTransformation | None = None
    track: Track | None = None
    learning_rate: Callable | None = None


@dataclasses.dataclass(frozen=True)
class Phase:
    """One kind of optimizer update, due at the steps with step % every == offset."""

    loss: LossFn
    trains: tuple[str, ...]
    every: int = 1
    offset: int = 0

    def due(self, step: int) -> bool:
        """Whether this phase runs at a step."""
        return step % self.every == self.offset


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How to draw from the parameters, and what to write on the receipt about it.

    Attributes:
      draw: (params, conditions, keys[b]) -> samples [b, ...]. Sample i depends on keys[i] and condition i alone.
      role: the role it reads.
      description: plain values for receipts (sampler, steps, nfe, guidance_scale, ...).
      grid: the times it visits, for the check of the training density against it; None when there is no fixed grid.
    """

    draw: Callable[[Params, Mapping[str, Array], Key[Array, "b"]], Float[Array, "b ..."]]
    role: str
    description: Mapping[str, Any]
    grid: Sequence[float] | None = None


@dataclasses.dataclass(frozen=True)
class Collect:
    """Makes training batches by rollout: reinforcement learning, online pairs, self-play.

    Every `every` steps: rollout (compiled, on the device), score (on the host, any Python), batches (on the host).

    Attributes:
      rollout: (params, batch, key) -> arrays; compiled.
      score: rollout arrays as NumPy -> scores as NumPy. A JAX reward belongs in `rollout` and leaves this None.
      batches: (rollout arrays, scores, step) -> the batches of the next `every` steps, each with the reserved names.
      every: how many steps one collection feeds.
    """

    rollout: Callable[[Params, Batch, Key[Array, ""]], PyTree]
    batches: Callable[[PyTree, Any, int], Sequence[Batch]]
    every: int
    score: Callable[[PyTree], Any] | None = None


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """One line of the pre-flight doctor: what was checked, whether it holds, the figures, and what to do if not."""

    name: str
    passed: bool
    detail: str
    fix: str = ""


@dataclasses.dataclass(frozen=True)
class Method:
    """A whole training algorithm. Inconsistent roles and phases are refused here, before anything is compiled.

    Attributes:
      roles: name -> Role.
      phases: name -> Phase, run in this order when several are due at one step.
      samplers: name -> Sampler; the first is the default.
      collect: optional rollout that replaces the data batches.
      checks: name -> (params, batch, key) -> CheckResult, run by `--mode=check` beside the general ones.
    """

    roles: Mapping[str, Role]
    phases: Mapping[str, Phase]
    samplers: Mapping[str, Sampler] = dataclasses.field(default_factory=dict)
    collect: Collect | None = None
    checks: Mapping[str, Callable[[Params, Batch, Key[Array, ""]], CheckResult]] = dataclasses.field(
        default_factory=dict
    )

    def __post_init__(self):
        for name, role in self.roles.items():
            self._check_role(name, role)
        for name, phase in self.phases.items():
            self._check_phase(name, phase)
        if not self.phases:
            raise ValueError("The method has no phases: nothing would be trained. Add a Phase with a loss.")
        trained = {role for phase in self.phases.values() for role in phase.trains}
        for name, role in self.roles.items():
            if role.tx is not None and name not in trained:
                raise ValueError(
                    f"Role '{name}' has an optimizer but no phase trains it. Add it to a phase's `trains`, or give it "
                    "tx=None to freeze it."
                )
        for name, sampler in self.samplers.items():
            self._known(sampler.role, f"Sampler '{name}' reads")

    def _known(self, role: str, who: str) -> None:
        if role not in self.roles:
            listed = ", ".join(sorted(self.roles))
            raise ValueError(
                f"{who} role '{role}', which the method does not have. Roles: {listed}.{suggestion(role, self.roles)}"
            )

    def _check_role(self, name: str, role: Role) -> None:
        sources = [key for key in ("init", "copy_of", "restore_from") if getattr(role, key) is not None]
        if len(sources) != 1 and sources != ["init", "restore_from"]:
            raise ValueError(
                f"Role '{name}' must start from exactly one of init, copy_of and restore_from; it has "
                f"{', '.join(sources) or 'none'}."
            )
        if role.tx is not None and role.track is not None:
            raise ValueError(
                f"Role '{name}' has both an optimizer and a track: it can be trained or follow, not both. Drop one."
            )
        if role.copy_of is not None:
            self._known(role.copy_of, f"Role '{name}' copies")
            seen, current = {name}, role.copy_of
            while current is not None:
                if current in seen:
                    raise ValueError(
                        f"Role '{name}' copies itself through {' -> '.join(sorted(seen))}. Give one of them an init."
                    )
                seen.add(current)
                current = self.roles[current].copy_of if current in self.roles else None
        if role.track is not None:
            self._known(role.track.source, f"Role '{name}' tracks")

    def _check_phase(self, name: str, phase: Phase) -> None:
        if not phase.trains:
            raise ValueError(f"Phase '{name}' trains no role. Name at least one in `trains`.")
        for role in phase.trains:
            self._known(role, f"Phase '{name}' trains")
            if self.roles[role].tx is None:
                raise ValueError(
                    f"Phase '{name}' trains role '{role}', which is frozen (tx=None). Give it an optimizer or drop it from "
                    "`trains`."
                )
        if phase.every < 1 or not 0 <= phase.offset < phase.every:
            raise ValueError(
                f"Phase '{name}' has every={phase.every} and offset={phase.offset}, so it would never be due. "
                "Use every >= 1 and 0 <= offset < every."
            )

    def due(self, step: int) -> tuple[str, ...]:
        """The names of the phases that run at a step, in order."""
        return tuple(name for name, phase in self.phases.items() if phase.due(step))


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What a method needs to know of its data before seeing any.

    Attributes:
      shape: the shape of one example, without the batch.
      num_classes: the number of labels, or None when there are none.
      std: the standard deviation of the data, for preconditioning.
    """

    shape: tuple[int, ...]
    num_classes: int | None = None
    std: float = 1.0

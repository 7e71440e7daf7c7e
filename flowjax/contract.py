"""The contract that carries every training algorithm: roles, phases, methods, batches.

A training algorithm is data, not a loop. It names parameter trees (roles), kinds of updates (phases), and how to draw
samples; the trainer turns any such description into compiled, sharded, checkpointed steps, and holds no algorithm's name.

    role    a parameter tree: trained (it has an optimizer), frozen (it has none), or tracked (it follows another role:
            EMA, consistency target, old policy, hand-over of progressive distillation)
    phase   a loss, the roles it trains, and how often it is due
    method  roles + phases (+ a collect step that makes batches by rollout, + samplers, + pre-flight checks)
"""

import dataclasses
import math
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
#   pixel_mask [b, h, w]  True inside an example's image, where images are smaller than their arrays
#                    (DataSpec.visible_shape): a condition, and what losses count and samplers draw
#   features [b, h, w, c]  an encoder's features of the examples, where a source brings them (DataSpec.feature_shape)
#   step   [b]       updates done so far, put there by the update itself: for losses that change as training goes on
#   others   [b, k-1, ...]  what each example was compared with under its conditions (DataSpec.compared = k): a ranking has the
#                           best first, and
#   present  [b, k-1]       False behind the end of one of fewer than k; there where k is above 2
#   outcome  [b]            1 where the first is better, or the ranking holds; 0 for a tie, -1 where the other is better. Of an
#                           example that was judged by itself (k = 1, without `others`): 1 good, -1 bad
#   margin   [b]            by how much, where that is known
#   rollout_...      what a rollout leaves for its loss (Collect), and no condition either
#   any other name (label, text, size, ...) is a condition that the network may read.
Batch = Mapping[str, Array | np.ndarray]
COMPARED = ("others", "present", "outcome", "margin")
RESERVED = ("data", "noise", "mask", "row", "features", "step", *COMPARED)
ROLLOUT = "rollout_"  # what such names begin with
Metrics = Mapping[str, Array]  # name -> one value per example, or one value; `t` feeds the loss-by-time curve
LossFn = Callable[[Params, Batch, Key[Array, ""]], tuple[Float[Array, " b"], Metrics]]
Rate = Callable[[Int[Array, ""]], Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Track:
    """After every step: role <- role + rate(step) (source - role). A rate of 1 copies, of 0 keeps."""

    source: str
    rate: Rate


@dataclasses.dataclass(frozen=True)
class Role:
    """One parameter tree: where it starts (exactly one of init, copy_of, restore_from, load) and how it changes.

    A restored or loaded role may have an init as well: every array is held against its shapes. A restored role may be smaller
    than its init, which then says what the rest begins as (models/growth.py).

    Attributes:
      init: key -> tree.
      copy_of: the role whose initial values this one takes.
      restore_from: `RUN_DIRECTORY` or `RUN_DIRECTORY:role`, a role of a finished run's latest checkpoint.
      load: () -> tree of NumPy arrays, such as published weights; called once, on the host, when a run begins.
      tx: the optimizer; None freezes the role.
      track: follow another role after each step; excludes `tx`.
      learning_rate: the schedule inside `tx`, for the logs.
    """

    init: Callable[[Key[Array, ""]], PyTree] | None = None
    copy_of: str | None = None
    restore_from: str | None = None
    load: Callable[[], PyTree] | None = None
    tx: optax.GradientTransformation | None = None
    track: Track | None = None
    learning_rate: Callable | None = None


@dataclasses.dataclass(frozen=True)
class Phase:
    """One kind of optimizer update, due from `start` on at the steps with step % every == offset."""

    loss: LossFn
    trains: tuple[str, ...]
    every: int = 1
    offset: int = 0
    start: int = 0

    def due(self, step: int) -> bool:
        """Whether this phase runs at a step."""
        return step >= self.start and step % self.every == self.offset

    @property
    def first(self) -> int:
        """The first step at which this phase runs."""
        return self.start + (self.offset - self.start) % self.every

    def updates(self, steps: int) -> int:
        """At how many of the first `steps` steps this phase runs."""
        before = lambda count: max(0, -(-(count - self.offset) // self.every))
        return max(0, before(steps) - before(self.start))


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How to draw from the parameters, and what to write on the receipt about it.

    Attributes:
      draw: (params, conditions, keys[b]) -> samples [b, ...]. Sample i depends on keys[i] and condition i alone.
      role: the role it reads.
      also: further roles it reads (the weak model of autoguidance).
      reads: names of a batch's arrays that it takes from real, held-out examples, found among its conditions: `data` for
        a reconstruction. Empty for a sampler that draws from noise.
      description: plain values for receipts (sampler, steps, nfe, guidance_scale, ...).
      shape: of one sample, where it is not that of the data's examples.
      grid: the times it visits, for the check of the training density against it; None when there is no fixed grid.
      brings: roles that a method need not know, such as the reward model that chooses among draws: its method has them too.
    """

    draw: Callable[[Params, Mapping[str, Array], Key[Array, " b"]], Float[Array, "b ..."]]
    role: str
    description: Mapping[str, Any]
    grid: Sequence[float] | None = None
    also: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None
    brings: Mapping[str, Role] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Measure:
    """Figures of a state that no picture shows, taken when a run is evaluated: of samples of its own.

    Attributes:
      draw: (params, conditions, keys[b]) -> a tree of arrays whose first axis is the example; compiled. Example i depends on
        keys[i] and condition i alone.
      figures: (that tree as NumPy arrays, conditions) -> name -> number, on the host.
      count: how many examples.
      role: whose parameters are measured, for receipts.
      group_size: how many of the examples in turn share their conditions.
    """

    draw: Callable[[Params, Mapping[str, Array], Key[Array, " b"]], PyTree]
    figures: Callable[[PyTree, Mapping[str, np.ndarray]], Mapping[str, float]]
    count: int
    role: str
    group_size: int = 1


@dataclasses.dataclass(frozen=True)
class Collect:
    """Makes training batches by rollout: reinforcement learning, online pairs, self-play.

    Every `every` steps a data batch is cut into `chunks`. The device rolls out one chunk while the host scores the one
    before it; then the batches of the next `every` steps are made of all of them.

    Attributes:
      rollout: (params, batch, key) -> arrays whose first axis is joined over the chunks; compiled. The batch has a `step`.
      batches: (rollout arrays, scores, step) -> the batches of the next `every` steps, each with the reserved names.
      every: how many steps one collection feeds.
      score: rollout arrays of a chunk as NumPy -> scores, a tree of NumPy arrays joined likewise. A JAX reward belongs
        in `rollout` and leaves this None.
      chunks: into how many equal parts a data batch is cut. All get the same key, as the micro-batches of a loss do: draws
        that follow the rows (arrays.example_keys) do not depend on the number of chunks.
      metrics: (rollout arrays, scores) -> figures for the logs (mean reward, share of failures).
      drawn: how many examples one collection draws, where its batches share them out; None where each of the `every` batches
        has config.batch_size of them, new ones or once more.
      brings: roles that what draws the rollout reads (Sampler.brings): the method has them too.
      get_state: what the host remembers between collections (running means of rewards), as plain JSON values.
      set_state: takes what get_state gave, from a checkpoint.
    """

    rollout: Callable[[Params, Batch, Key[Array, ""]], PyTree]
    batches: Callable[[PyTree, Any, int], Sequence[Batch]]
    every: int
    score: Callable[[PyTree], PyTree] | None = None
    chunks: int = 1
    metrics: Callable[[PyTree, PyTree], Mapping[str, float]] | None = None
    drawn: int | None = None
    brings: Mapping[str, Role] = dataclasses.field(default_factory=dict)
    get_state: Callable[[], Any] | None = None
    set_state: Callable[[Any], None] | None = None

    def __post_init__(self):
        for name in ("every", "chunks"):
            if getattr(self, name) < 1:
                raise ValueError(f"Collect has {name}={getattr(self, name)}; it must be 1 or more.")
        if (self.get_state is None) != (self.set_state is None):
            raise ValueError(
                "Collect has only one of get_state and set_state: what the host remembers must be both saved and taken back, "
                "or a resumed run would differ. Give both, or neither."
            )


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
      measures: name -> Measure.
      watch: (step, averaged metrics of a log line and what was measured, where there are such) -> None, or the reason to
        end the run here, with a checkpoint. Started again, such a run goes on only where the same figures are no reason
        any more.
      readings: metric, or phase/metric -> what it is and how its curve looks when all is well: the report's captions.

    Tracked roles follow in the order of `roles`: one that tracks a tracked role sees it before or after its own move
    as they are listed.
    """

    roles: Mapping[str, Role]
    phases: Mapping[str, Phase]
    samplers: Mapping[str, Sampler] = dataclasses.field(default_factory=dict)
    collect: Collect | None = None
    checks: Mapping[str, Callable[[Params, Batch, Key[Array, ""]], CheckResult]] = dataclasses.field(
        default_factory=dict
    )
    measures: Mapping[str, Measure] = dataclasses.field(default_factory=dict)
    watch: Callable[[int, Mapping[str, float]], str | None] | None = None
    readings: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        bringing = [*self.samplers.values(), *([] if self.collect is None else [self.collect])]
        brought = {name: role for one in bringing for name, role in one.brings.items()}
        object.__setattr__(self, "roles", {**brought, **self.roles})
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
            for role in (sampler.role, *sampler.also):
                self._known(role, f"Sampler '{name}' reads")

    def _known(self, role: str, who: str) -> None:
        if role not in self.roles:
            listed = ", ".join(sorted(self.roles))
            raise ValueError(
                f"{who} role '{role}', which the method does not have. Roles: {listed}.{suggestion(role, self.roles)}"
            )

    def _check_role(self, name: str, role: Role) -> None:
        sources = [key for key in ("init", "copy_of", "restore_from", "load") if getattr(role, key) is not None]
        if len(sources) != 1 and sources not in (["init", "restore_from"], ["init", "load"]):
            raise ValueError(
                f"Role '{name}' must start from exactly one of init, copy_of, restore_from and load; it has "
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
        if phase.start < 0:
            raise ValueError(f"Phase '{name}' starts at step {phase.start}. Use 0, the first step, or a later one.")

    def check_length(self, steps: int) -> None:
        """Refuses a run of so many steps that would end before every phase has had its turn."""
        for name, phase in self.phases.items():
            if phase.first >= steps:
                raise ValueError(
                    f"Phase '{name}' would never run: it is first due at step {phase.first} (start={phase.start}, "
                    f"every={phase.every}, offset={phase.offset}), and the run has steps 0 to {steps - 1}. Use more than "
                    f"{phase.first} steps, or let the phase begin earlier: the method's options say when."
                )

    def due(self, step: int) -> tuple[str, ...]:
        """The names of the phases that run at a step, in order."""
        return tuple(name for name, phase in self.phases.items() if phase.due(step))

    def updates_of(self, role: str, steps: int) -> int:
        """How many optimizer updates a role has had after `steps` steps."""
        return sum(phase.updates(steps) for phase in self.phases.values() if role in phase.trains)

    def cycle(self, start: int | None = None) -> list[tuple[str, ...]]:
        """The due phases of each step of one period, from `start` on or, by default, from where all have started."""
        if start is None:
            start = max(phase.start for phase in self.phases.values())
        period = math.lcm(*(phase.every for phase in self.phases.values()))
        return [self.due(start + step) for step in range(period)]

    def due_sets(self) -> set[tuple[str, ...]]:
        """Every set of phases that is ever due together, which is one compiled program each."""
        return {due for phase in self.phases.values() for due in self.cycle(phase.start)}


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What a method needs to know of its data before seeing any.

    Attributes:
      shape: the shape of one example, without the batch.
      num_classes: the number of labels, or None when there are none.
      class_weights: how common each label is, adding up to one; () where all are alike.
      std: the standard deviation of the data, for preconditioning.
      text_length: the number of tokens of a caption, or 0 when there are no captions. A batch holds either
        `tokens` int[b, text_length], ids below `vocabulary` with 0 for padding, to be encoded by the model, or
        `text` [b, text_length, text_channels] and `text_mask` [b, text_length], encoded before.
      vocabulary: the number of token ids, 0 when captions come encoded.
      words: a hash of what turned captions into ids or vectors, whatever their length; '' where there are none, or it is not
        known. Networks that have learnt to read others do not understand these.
      text_channels: the channels of encoded captions, 0 when they come as ids.
      pooled_channels: the channels of `text_pooled` [b, pooled_channels], one vector for a whole encoded caption, or 0.
      feature_shape: of `features` [b, height, width, channels], what a frozen encoder sees in each example, where batches
        bring it along for representation alignment; () where they do not.
      shapes: every shape that a batch may have, `shape` among them, where the data come in buckets: each batch is of one
        of them, and each compiles a program. Empty when `shape` is the only one. Samplers draw at `shape`.
      visible_shape: where each example is an image of its own size in the top left corner of an array of `shape`, zero
        elsewhere: (height, width) of one that goes by no example, such as a picture of a prompt. Batches and conditions
        then hold `pixel_mask` bool[b, height, width], True inside an example's image. () where every example fills its
        array.
      visible_multiple: what divides the sides of those images.
      observation_shape: of `observation` [b, ...], what is seen of a world in which an example is an action; () where
        examples are none.
      compared: of how many examples each comparison is, where batches are comparisons (`others`, `outcome`); 1 where each
        example was judged by itself (`outcome` alone); 0 where nothing is said of them.
    """

    shape: tuple[int, ...]
    num_classes: int | None = None
    std: float = 1.0
    text_length: int = 0
    vocabulary: int = 0
    text_channels: int = 0
    pooled_channels: int = 0
    feature_shape: tuple[int, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    visible_shape: tuple[int, ...] = ()
    visible_multiple: int = 1
    class_weights: tuple[float, ...] = ()
    observation_shape: tuple[int, ...] = ()
    compared: int = 0
    words: str = ""

    @property
    def masked(self) -> bool:
        """Whether examples are images smaller than their arrays, with a `pixel_mask`."""
        return bool(self.visible_shape)

    @property
    def seen_shape(self) -> tuple[int, ...]:
        """The shape of what is to be seen in an example: all of it, unless the examples are masked."""
        return (*self.visible_shape, self.shape[-1]) if self.masked else tuple(self.shape)

    def __post_init__(self):
        if self.compared < 0:
            raise ValueError(
                f"The data spec has compared={self.compared}; expected the examples of a comparison, 1 for examples that were "
                "judged by themselves, or 0 for none."
            )
        if self.class_weights and (
            len(self.class_weights) != self.num_classes
            or min(self.class_weights) <= 0
            or abs(sum(self.class_weights) - 1) > 1e-6
        ):
            raise ValueError(
                f"The data spec has class_weights={self.class_weights} for num_classes={self.num_classes}; expected a positive "
                "share for each class, adding up to one, or () where all are alike."
            )
        if self.masked:
            sides = (*self.visible_shape, *self.shape[:2])
            fits = len(self.shape) == 3 and len(sides) == 4 and sides[0] <= sides[2] and sides[1] <= sides[3]
            if not fits or self.visible_multiple < 1 or any(side % self.visible_multiple for side in sides):
                raise ValueError(
                    f"The data spec has visible_shape={tuple(self.visible_shape)} and visible_multiple={self.visible_multiple} "
                    f"on arrays of shape {tuple(self.shape)}; expected images (height, width, channels), a height and width no "
                    "larger than theirs, and all four multiples of visible_multiple."
                )
        if self.shapes and tuple(self.shape) not in self.shapes:
            raise ValueError(
                f"The data spec's shape {tuple(self.shape)} is not among its shapes {self.shapes}. Add it: samplers draw at it."
            )

r"""Several sources as one, with weights that may change over the run: mixtures, curricula, and batches of several shapes.

    mix(sources=(dict(name="shapes", ...), dict(name="emoji", ...)), weights=(3, 1))
    mix(sources=(easy, hard), schedule=((0.0, (1, 0)), (0.3, (0.5, 0.5)), (1.0, (0, 1))))

Sources of one shape are mixed row by row, sources of several shapes step by step, so that every batch has one shape and
there is one compiled program for each. Whose turn it is is a function of (seed, step, row) (turns.py); what a source then
gives is the next of its own endless sequence of examples. Nothing has to be remembered, so a resume is exact, and every
process finds its own rows, and the shape of a step, by itself.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from flowjax.choices import Spec, build
from flowjax.contract import DataSpec
from flowjax.data import draws
from flowjax.data.fingerprints import plain_hash, source_fingerprint
from flowjax.data.sources import check_split, endless
from flowjax.data.turns import Turns, WeightSchedule, make_schedule

SHARED = ("num_classes", "text_length", "vocabulary", "text_channels", "pooled_channels", "masked")


def child_seed(seed: int, index: int) -> int:
    """The seed of a mixture's source: two sources of one kind must not draw the same examples."""
    return int(draws.generator(seed, draws.CHILD, index).integers(2**62))


@dataclasses.dataclass(frozen=True)
class MixedSource:
    """Sources by turns: row by row where they share one shape, otherwise step by step. Make one with `mixed`.

    Attributes:
      children: the sources.
      schedule: their weights over the steps.
      spec: of the mixture.
      hold: with several shapes, how many steps in a row share a source.
    """

    children: tuple[Any, ...]
    schedule: WeightSchedule
    spec: DataSpec
    hold: int = 1
    oracle: Any = None

    @property
    def size(self) -> int | None:
        """The training examples of all sources together, None where one has no end."""
        sizes = [child.size for child in self.children]
        return None if None in sizes else sum(sizes)

    @property
    def levels(self) -> int | None:
        """The grey levels of the raw data, where all sources have the same."""
        levels = {getattr(child, "levels", None) for child in self.children}
        return levels.pop() if len(levels) == 1 else None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that all captions share, if they have one."""
        return getattr(self.children[0], "tokenizer", None)

    @property
    def by_step(self) -> bool:
        """Whether whole steps take turns, because the shapes differ."""
        return bool(self.spec.shapes)

    def turns(self, seed: int, batch_size: int) -> Turns:
        """The table of turns of a run."""
        return Turns(self.schedule, seed, 1 if self.by_step else batch_size, self.hold if self.by_step else 1)

    def source_of_step(self, seed: int, step: int) -> int:
        """Which source gives the whole batch of a step, where the shapes differ."""
        return int(np.argmax(np.diff(self.turns(seed, 1).at(step)[0])))

    def dataset(self, seed: int, batch_size: int, start: int, stop: int) -> grain.MapDataset:
        """Item k: the rows start..stop of step k, each from the source whose turn it is."""
        seeds = [child_seed(seed, index) for index in range(len(self.children))]
        turns = self.turns(seed, batch_size)
        if self.by_step:
            datasets = [child.dataset(seeds[i], batch_size, start, stop) for i, child in enumerate(self.children)]

            def whole(step: int) -> dict[str, np.ndarray]:
                edges, before = turns.at(step)
                chosen = int(np.argmax(np.diff(edges)))
                return datasets[chosen][int(before[chosen])]

            return endless(whole)

        for child, share in zip(self.children, self.schedule.weights.max(0)):
            if child.size is not None and math.ceil(batch_size * share) > child.size:
                raise ValueError(
                    f"A batch of {batch_size} would hold up to {math.ceil(batch_size * share)} examples of a source of "
                    f"{child.size}, some of them twice. Use a smaller batch, or a smaller weight for it."
                )

        def rows(step: int) -> dict[str, np.ndarray]:
            edges, before = turns.at(step)
            parts = []
            for index, child in enumerate(self.children):
                low, high = max(int(edges[index]), start), min(int(edges[index + 1]), stop)
                if low < high:
                    place = int(before[index] - edges[index])
                    parts.append(child.dataset(seeds[index], 1, place + low, place + high)[0])
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

        return endless(rows)

    def fingerprint(self) -> str:
        """A hash of the sources and their weights."""
        return plain_hash(
            children=[source_fingerprint(child) for child in self.children],
            steps=self.schedule.steps,
            weights=self.schedule.weights,
            hold=self.hold,
        )

    def reference(self, split: str = "test", count: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
        """Real examples in the shares that hold at the end of the run, of the sources that have the base shape.

        Args:
          split: train, test or all.
          count: how many; 10,000 unless told, or fewer where the sources do not have so many.
          seed: which.
        """
        check_split(split)
        shares = self.schedule.weights[-1] * [child.spec.shape == self.spec.shape for child in self.children]
        if not shares.any():
            raise ValueError(
                f"No source of the base shape {self.spec.shape} has a weight at the end of the schedule, so there are no "
                "real examples to compare samples with. Choose another `base`."
            )
        shares = shares / shares.sum()
        if count is None:
            count = 10_000
            for child, share in zip(self.children, shares):
                if child.size is not None and share > 0:
                    count = min(count, int(_available(child, split) / share))
        edges = np.round(np.cumsum([0, *shares]) * count).astype(int)
        parts = [
            child.reference(split, int(number), seed) for child, number in zip(self.children, np.diff(edges)) if number
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _available(child: Any, split: str) -> int:
    """How many examples a split of a finite source has."""
    test = 0 if split == "train" else len(child.reference("test")["data"])
    return test + (0 if split == "test" else child.size)


def mixed(children: Sequence[Any], schedule: WeightSchedule, base: int | None = None, hold: int = 1) -> MixedSource:
    """A mixture of sources that exist, after checking that their batches fit together.

    Args:
      children: the sources.
      schedule: their weights over the steps (turns.make_schedule).
      base: with several shapes, the source whose shape samples are drawn at; by default the heaviest at the end.
      hold: with several shapes, how many steps in a row share a source.
    """
    if len(children) < 2:
        raise ValueError(f"A mixture has {len(children)} source(s). Name at least two, or use the source itself.")
    if any(isinstance(child, MixedSource) for child in children):
        raise ValueError("A mixture cannot be a source of a mixture: list all its sources in one, with their weights.")
    if hold < 1:
        raise ValueError(f"hold={hold}; a source keeps its turn for at least one step.")
    _check_alike(children)
    shapes = tuple(dict.fromkeys(tuple(child.spec.shape) for child in children))
    if hold > 1 and len(shapes) == 1:
        raise ValueError(f"hold={hold} is for sources of several shapes: those of one shape are mixed row by row.")
    last = schedule.weights[-1]
    if base is not None and not 0 <= base < len(children):
        raise ValueError(f"base={base} is not one of the {len(children)} sources (0 to {len(children) - 1}).")
    chosen = children[int(np.argmax(last)) if base is None else base]
    # Second moments mix; the means of image data are near enough to each other for what `std` is used for.
    std = math.sqrt(sum(weight * child.spec.std**2 for weight, child in zip(last, children)))
    spec = dataclasses.replace(chosen.spec, std=std, shapes=shapes if len(shapes) > 1 else ())
    return MixedSource(tuple(children), schedule, spec, hold)


def mix(
    sources: tuple,
    weights: tuple | None = None,
    schedule: tuple = (),
    base: int | None = None,
    hold: int = 1,
    total_steps: int | None = None,
    seed: int = 0,
) -> MixedSource:
    """A mixture of the sources of some specs.

    Args:
      sources: specs, as in `config.data`.
      weights: one for each source, in any unit; equal ones unless told.
      schedule: instead of `weights`, pairs (when, weights), linear between them: shares of the run where no `when` lies
        beyond 1, steps otherwise. With shares, a run that goes on with another `steps` has another schedule.
      base: with several shapes, the source whose shape samples are drawn at; by default the heaviest at the end.
      hold: with several shapes, how many steps in a row share a source; `steps_per_dispatch` is a good choice.
      total_steps: the length of the run.
      seed: of the run, for sources that take it.
    """
    from flowjax.data import SOURCES  # this source is one of them

    children = [_child(spec, SOURCES, seed, total_steps) for spec in sources]
    return mixed(children, make_schedule(len(children), weights, schedule, total_steps), base, hold)


def _child(spec: Spec, table: Any, seed: int, total_steps: int | None) -> Any:
    if not hasattr(spec, "keys"):
        raise ValueError(f"A mixture's source is {spec!r}; expected a spec, as in dict(name='digits').")
    return build("data source", spec, table, seed=seed, total_steps=total_steps)


def _check_alike(children: Sequence[Any]) -> None:
    """Refuses sources whose batches would not fit into one, or whose ids mean different things."""
    first = children[0]
    for index, child in enumerate(children[1:], 1):
        for name in SHARED:
            one, other = getattr(first.spec, name), getattr(child.spec, name)
            if one != other:
                raise ValueError(
                    f"The sources 0 and {index} of the mixture differ in {name} ({one} and {other}). One network reads both: "
                    "give them the same options (labels, caption length, tokenizer)."
                )
        one, other = (getattr(source, "tokenizer", None) for source in (first, child))
        if one is not None and other is not None and one.fingerprint() != other.fingerprint():
            raise ValueError(
                f"The sources 0 and {index} of the mixture have different tokenizers, so one id is two words. Build one "
                "tokenizer of all captions and give it to both."
            )
        entries = [
            {
                name: (value.dtype, value.shape[1:])
                for name, value in source.dataset(0, 1, 0, 1)[0].items()
                if name not in ("data", "pixel_mask")  # which follow the shape of their source
            }
            for source in (first, child)
        ]
        if entries[0] != entries[1]:
            raise ValueError(
                f"The sources 0 and {index} of the mixture give different conditions: {entries[0]} and {entries[1]}."
            )

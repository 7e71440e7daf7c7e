r"""Whose turn it is: which source gives each row of each step, as a pure function of (seed, step, row).

Weights w_0..w_{S-1} that sum to one cut [0, 1) at c_s = w_0 + ... + w_{s-1}. Systematic sampling draws one uniform u_k for
step k and gives row i of its B rows to the source whose interval holds (i + u_k) / B, so source s has the rows

    ceil(B c_s - u_k) <= i < ceil(B c_{s+1} - u_k):                                                             (1)

B w_s of them on average, never off by one or more, in one contiguous stretch that every process finds by itself. The same
with B = 1 gives a whole step to one source. The u_k are stratified over blocks of steps (a shuffled grid plus jitter), so
that a short run has its shares too.

How many rows source s gave before step k is a sum of (1) over the steps before. It is kept block by block, so a jump to any
step costs a vectorised pass over the steps before it (some milliseconds for a million), once. A source therefore goes
through its own examples in order, whatever its weight does: nothing is skipped, and a resume is exact.
"""

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from flowjax.data import draws

BLOCK = 1024  # steps whose uniforms are stratified together


@dataclasses.dataclass(frozen=True)
class WeightSchedule:
    """Weights over steps: linear between knots, constant before the first and after the last.

    Attributes:
      steps: the knots, ascending.
      weights: [knots, sources], each row summing to one.
    """

    steps: Float[np.ndarray, " k"]
    weights: Float[np.ndarray, "k s"]

    def at(self, steps: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n s"]:
        """The weights at some steps."""
        return np.stack([np.interp(steps, self.steps, column) for column in self.weights.T], axis=1)


def make_schedule(
    count: int, weights: Sequence[float] | None, schedule: Sequence[Any], total_steps: int | None
) -> WeightSchedule:
    """Reads `weights=(3, 1)` or `schedule=((0.0, (1, 0)), (0.3, (0.5, 0.5)), (1.0, (0, 1)))`.

    Args:
      count: how many sources there are.
      weights: one for each source, in any unit; None for equal ones.
      schedule: (when, weights) pairs. `when` is a share of the run where no knot lies beyond 1, a step otherwise.
      total_steps: the length of the run, which shares need.
    """
    if schedule and weights is not None:
        raise ValueError("A mixture has weights and a schedule of weights: give one of the two.")
    knots = list(schedule) if schedule else [(0, weights if weights is not None else (1,) * count)]
    for knot in knots:
        if not (isinstance(knot, (tuple, list)) and len(knot) == 2 and isinstance(knot[1], (tuple, list))):
            raise ValueError(f"The schedule has {knot!r}; expected pairs (when, weights), as in (0.3, (0.5, 0.5)).")
        if len(knot[1]) != count:
            raise ValueError(
                f"There are {count} sources, but {len(knot[1])} weights in {tuple(knot[1])}. Give one each."
            )
        if not all(np.isfinite(value) and value >= 0 for value in knot[1]) or not sum(knot[1]) > 0:
            raise ValueError(f"The weights are {tuple(knot[1])}; they must be at least 0, and one of them above.")
    when = np.array([float(knot[0]) for knot in knots])
    if when[0] < 0 or (np.diff(when) <= 0).any():
        raise ValueError(f"The schedule's times are {when.tolist()}; they must ascend, from 0 or later.")
    if when[-1] <= 1 and len(when) > 1:
        if total_steps is None:
            raise ValueError("The schedule is in shares of the run, whose length is not known here. Give it in steps.")
        when = when * total_steps
    rows = np.array([knot[1] for knot in knots], float)
    return WeightSchedule(when, rows / rows.sum(1, keepdims=True))


class Turns:
    """The table of turns of one seed.

    Args:
      schedule: the weights.
      seed: of the run.
      rows: the rows of a step, B; 1 to give whole steps to a source.
      hold: how many steps in a row share their draw (useful with whole steps and several updates a dispatch).
    """

    def __init__(self, schedule: WeightSchedule, seed: int, rows: int, hold: int = 1):
        self._schedule, self._seed, self._rows, self._hold = schedule, seed, rows, hold
        self._sources = schedule.weights.shape[1]
        self._given = [np.zeros(self._sources, np.int64)]  # by each source before each block, as far as it was asked
        self._tables: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # the last few blocks
        self._lock = threading.Lock()  # grain's threads ask at once

    def edges(self, first: int, last: int) -> Int[np.ndarray, "n edges"]:
        """Where each source's rows begin, for the draws first..last: equation (1)."""
        steps = np.arange(first, last)
        ends = np.cumsum(self._schedule.at(steps * self._hold), axis=1)
        uniforms = np.concatenate(
            [_uniforms(self._seed, block) for block in range(first // BLOCK, (last - 1) // BLOCK + 1)]
        )
        uniforms = uniforms[first - first // BLOCK * BLOCK :][: len(steps), None]
        inner = np.ceil(self._rows * ends - uniforms).clip(0, self._rows).astype(np.int64)
        # The weights sum to one up to rounding: sources after the last with a weight start and end at the last row.
        inner[ends >= 1 - 1e-12] = self._rows
        return np.concatenate([np.zeros((len(steps), 1), np.int64), inner], axis=1)

    def at(self, step: int) -> tuple[Int[np.ndarray, " edges"], Int[np.ndarray, " s"]]:
        """The edges of the sources' rows at a step, and how many rows each source gave before it."""
        draw, repeat = divmod(step, self._hold)
        block, offset = divmod(draw, BLOCK)
        edges, before = self._block(block)
        return edges[offset], self._hold * before[offset] + repeat * np.diff(edges[offset])

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            if block not in self._tables:
                while len(self._given) <= block:
                    number = len(self._given) - 1
                    edges = self.edges(number * BLOCK, (number + 1) * BLOCK)
                    self._given.append(self._given[-1] + np.diff(edges, axis=1).sum(0))
                edges = self.edges(block * BLOCK, (block + 1) * BLOCK)
                counts = np.diff(edges, axis=1)
                while len(self._tables) >= 4:  # threads may be on either side of a block's end
                    self._tables.pop(next(iter(self._tables)))
                self._tables[block] = edges, self._given[block] + np.cumsum(counts, axis=0) - counts
            return self._tables[block]


def _uniforms(seed: int, block: int) -> Float[np.ndarray, " n"]:
    """Stratified uniforms of a block of draws: each in [0, 1), one in each of BLOCK equal cells, in random order."""
    generator = draws.generator(seed, draws.TURN, block)
    return (generator.permutation(BLOCK) + generator.random(BLOCK)) / BLOCK

r"""Pairs (noise, sample) that a teacher's flow connects, made once and stored, for reflow and direct distillation.

    data = dict(name="pairs", folder="pairs/digits", source=dict(name="digits"), count=100_000,
                teacher=dict(name="run", restore_from="runs/digits", guidance_scale=2.0))
    coupling = dict(name="stored")

`python -m flowjax.main --mode=pairs --config=...` makes them (training/pairs.py), goes on where it was cut off, and does
nothing where they are there already. Conditions come from the source, and so do the real examples of the share `real`, which
go backwards to their noise; of the others the noise is a function of (seed, row) alone.

A set of pairs knows what made it: the teacher's parameters, network, path and guidance, the solver, the source and the seed.
With another teacher, or after more training of the same, it is refused, and the message names what differs. Samples are
judged against the real examples of the source, never against pairs.
"""

import dataclasses
import inspect
import pathlib
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np

from flowjax.choices import Spec, build
from flowjax.contract import DataSpec
from flowjax.data import draws
from flowjax.data.cached import Wide
from flowjax.data.caches import HEADER, CacheError, encoder_parts, open_cache
from flowjax.data.fingerprints import plain_hash, source_fingerprint
from flowjax.data.sources import ArraySource
from flowjax.models import stored

RUN_PARTS = ("network", "path", "preconditioning", "text")  # of a finished run: what its parameters mean


@dataclasses.dataclass(frozen=True)
class Origins:
    """What pairs are made from: row i is noise, or a real example, with its conditions.

    Attributes:
      source: of conditions and real examples.
      size: how many.
      seed: of the noise, and of which of the source's examples come.
      real: the share of real examples, spread evenly over the rows.
    """

    source: Any
    size: int
    seed: int
    real: float
    test_size: int = 0

    @property
    def spec(self) -> DataSpec:
        """Of the source."""
        return self.source.spec

    def examples(self, split: str, first: int, last: int) -> dict[str, np.ndarray]:
        """Rows first..last: `data` where `backwards`, otherwise noise in its place, and the conditions."""
        rows = dict(self.source.dataset(self.seed, 1, first, last)[0])
        shape = rows["data"].shape
        columns = 2 * -(-int(np.prod(shape[1:])) // 2)
        uniforms = draws.row_uniforms(self.seed, draws.PAIR, 0, first, last, columns)
        pairs = draws.normal_pairs(uniforms[:, 0::2].ravel(), uniforms[:, 1::2].ravel())
        noise = pairs.reshape(len(uniforms), columns)[:, : int(np.prod(shape[1:]))].reshape(shape).astype(np.float32)
        row = np.arange(first, last)
        backwards = np.floor((row + 1) * self.real) > np.floor(row * self.real)
        mixed = np.where(backwards.reshape((-1,) + (1,) * (len(shape) - 1)), rows["data"], noise)
        return {**rows, "data": mixed, "backwards": backwards}

    def fingerprint(self) -> str:
        """A hash of the source and of which rows are taken."""
        return plain_hash(source=source_fingerprint(self.source), size=self.size, seed=self.seed, real=self.real)


@dataclasses.dataclass(frozen=True)
class PairSource:
    """Stored pairs to train on, and the real examples of their source to be judged by. Make one with `pairs`.

    Attributes:
      source: the real examples.
      stored: the pairs: `data`, `noise` and conditions.
    """

    source: Any
    stored: ArraySource

    @property
    def spec(self) -> DataSpec:
        """Of the source."""
        return self.source.spec

    @property
    def size(self) -> int:
        """The number of pairs."""
        return self.stored.size

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("source", "stored", "examples"):
            raise AttributeError(name)
        return getattr(self.source, name)  # oracle, levels, tokenizer, decode, ...

    def dataset(self, seed: int, batch_size: int, start: int, stop: int) -> grain.MapDataset:
        """Item k: the pairs start..stop of step k."""
        return self.stored.dataset(seed, batch_size, start, stop)

    def fingerprint(self) -> str:
        """A hash of the pairs and of the source."""
        return plain_hash(source=source_fingerprint(self.source), pairs=self.stored.fingerprint())

    def reference(self, split: str = "test", count: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
        """Real examples."""
        return self.source.reference(split, count, seed)


@dataclasses.dataclass(frozen=True)
class PairPlan:
    """What a set of pairs is to be: see `pairs` for the options.

    Attributes:
      folder: where it lies.
      origins: what it is made from.
      teacher: spec of the teacher.
      path: spec of the teacher's path.
      solver, steps: how it is followed.
      float_type: how it is stored.
      parts: what the header must say.
    """

    folder: pathlib.Path
    origins: Origins
    teacher: Spec
    path: Spec
    solver: str
    steps: int
    float_type: str
    parts: Mapping[str, Any]


def plan_pairs(
    folder: str,
    source: Spec,
    teacher: Spec,
    count: int,
    path: Spec | None = None,
    solver: str = "midpoint",
    steps: int = 32,
    real: float = 0.0,
    pair_seed: int = 0,
    float_type: str = "float32",
    seed: int = 0,
    total_steps: int | None = None,
) -> PairPlan:
    """The plan of a set of pairs, with a fingerprint of everything it depends on.

    Args:
      folder: where it lies, or shall lie.
      source: spec of conditions and real examples.
      teacher: spec of methods/teacher.py.
      count: how many pairs.
      path: spec of the teacher's path; the linear one unless told.
      solver: of paths/ode.py.
      steps: of the solver.
      real: the share of pairs that begin with a real example.
      pair_seed: of the noise.
      float_type: float32, or float16 for half the room.
      seed: of the run, for sources that take it.
      total_steps: the length of the run, likewise.
    """
    from flowjax.data import SOURCES  # this source is one of them

    if count < 1 or steps < 1 or not 0 <= real <= 1:
        raise ValueError(
            f"Pairs have count={count}, steps={steps} and real={real}; expected at least 1, at least 1, and a share."
        )
    examples = build("data source", source, SOURCES, seed=seed, total_steps=total_steps)
    path = dict(path or dict(name="linear"))
    made = dict(teacher=teacher_parts(teacher), path=path, solver=solver, steps=steps)
    return PairPlan(
        pathlib.Path(folder).expanduser(),
        Origins(examples, count, pair_seed, float(real)),
        dict(teacher),
        path,
        solver,
        steps,
        float_type,
        encoder_parts("flow", **made),
    )


def teacher_parts(spec: Spec) -> dict[str, Any]:
    """What a teacher is: of a finished run the parameters and what they mean, wherever it lies; of an oracle its options."""
    parts = {"guidance_scale": 1.0, **dict(spec)}
    if parts["name"] != "run":
        return parts
    folder, role = stored.split_reference(parts.pop("restore_from"), "The teacher of the pairs")
    step = stored.existing_step(folder, None)
    role = role or stored.usual_role(folder, step)
    config = stored.read_config(folder, step)
    prediction = config["method"].get("prediction", "velocity")
    meaning = {name: config[name] for name in RUN_PARTS}
    run = encoder_parts("run", stored.read_network(folder, role, step), prediction=prediction, **meaning)
    return {**parts, **run}


def pairs(**options: Any) -> PairSource:
    """A stored set of pairs; one of another teacher, solver, source or seed is refused. See `plan_pairs` for the options."""
    plan = plan_pairs(**options)
    if not (plan.folder / HEADER).is_file():
        raise CacheError(f"There are no pairs at {plan.folder}. Make them with --mode=pairs and this config.")
    arrays = open_cache(plan.folder, plan.origins, plan.parts).arrays("train")
    rows = {name: Wide(value) for name, value in arrays.items()}
    return PairSource(plan.origins.source, ArraySource(rows, rows, plan.origins.spec))


# The signature is the list of options that configs are checked against: that of the plan.
pairs.__signature__ = inspect.signature(plan_pairs).replace(return_annotation=PairSource)

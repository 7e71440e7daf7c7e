"""Takes the measures of a method (contract.Measure): figures of a state from samples of its own."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from flowjax.arrays import example_keys
from flowjax.contract import Measure
from flowjax.data.pipeline import evaluation_batches
from flowjax.training.conditions import drawn_under
from flowjax.training.measured import receipt_of
from flowjax.training.run import Run
from flowjax.training.state import step_key


class Measuring:
    """The measures of a run, each with one compiled program; the same noise and conditions every time."""

    def __init__(self, run: Run):
        self.run = run

    @functools.cache  # noqa: B019 - lives as long as its run
    def _program(self, name: str):
        draw = self.run.method.measures[name].draw
        return jax.jit(lambda params, conditions, key, rows: draw(params, conditions, example_keys(key, rows)))

    def take(
        self, params: Mapping[str, PyTree], step: int, seconds: float
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """The figures of all measures, each named `measure_figure`, and a receipt for each.

        Args:
          params: role -> parameters.
          step: how many updates made them.
          seconds: how long that took.
        """
        values, receipts = {}, []
        for name, measure in self.run.method.measures.items():
            made, conditions = self._draw(params, name, measure)
            for figure, value in measure.figures(made, conditions).items():
                metric, about = f"{name}_{figure}", dict(sampler=name, nfe=None, guidance_scale=None, evaluator=name)
                values[metric] = float(value)
                receipts.append(
                    receipt_of(self.run, metric, value, step, seconds, ema=measure.role, samples=measure.count, **about)
                )
        return values, receipts

    def _draw(self, params: Mapping[str, PyTree], name: str, measure: Measure) -> tuple[PyTree, dict[str, np.ndarray]]:
        shared = drawn_under(self.run, self.run.default_sampler, measure.count // measure.group_size)
        conditions = {key: np.repeat(array, measure.group_size, axis=0) for key, array in shared.items()}
        key, pieces = step_key(self.run.config.seed, 0, f"measure/{name}"), []
        rows = {"row": np.arange(measure.count), **conditions}
        for batch in evaluation_batches(rows, min(self.run.config.evaluation.batch_size, measure.count)):
            chosen = {name: batch[name] for name in conditions}
            made = jax.tree.map(np.asarray, self._program(name)(params, chosen, key, batch["row"]))
            pieces.append(jax.tree.map(lambda leaf, kept=batch["mask"] > 0: leaf[kept], made))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *pieces), conditions

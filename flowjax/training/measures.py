"""Takes the measures of a method (contract.Measure): figures of a state from samples of its own."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from flowjax.arrays import example_keys
from flowjax.data.pipeline import evaluation_batches
from flowjax.evaluation import run_files
from flowjax.evaluation.receipts import make_receipt
from flowjax.training.conditions import drawn_under
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
    ) -> Iterator[tuple[dict[str, float], list[dict[str, Any]]]]:
        """Of each measure its figures, named `measure_figure`, and a receipt for each.

        Args:
          params: role -> parameters.
          step: how many updates made them.
          seconds: how long that took.
        """
        config = self.run.config
        for name, measure in self.run.method.measures.items():
            groups = measure.count // measure.group_size
            shared = drawn_under(self.run, self.run.default_sampler, groups)
            conditions = {key: np.repeat(array, measure.group_size, axis=0) for key, array in shared.items()}
            key, pieces = step_key(config.seed, 0, f"measure/{name}"), []
            rows = {"row": np.arange(measure.count), **conditions}
            for batch in evaluation_batches(rows, min(config.evaluation.batch_size, measure.count)):
                chosen = {name: batch[name] for name in conditions}
                made = jax.tree.map(np.asarray, self._program(name)(params, chosen, key, batch["row"]))
                pieces.append(jax.tree.map(lambda leaf, kept=batch["mask"] > 0: leaf[kept], made))
            joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *pieces)
            found = {f"{name}_{figure}": float(value) for figure, value in measure.figures(joined, conditions).items()}
            yield found, [self._receipt(name, measure.count, *item, step, seconds) for item in found.items()]

    def _receipt(self, name: str, count: int, metric: str, value: float, step: int, seconds: float) -> dict[str, Any]:
        config = self.run.config
        return make_receipt(
            metric=metric,
            value=value,
            config=config.to_dict(),
            config_path=run_files.CONFIG,
            seed=config.seed,
            images_seen=step * config.batch_size,
            seconds=seconds,
            sampler=name,
            nfe=None,
            guidance_scale=None,
            ema=str(config[name].get("role", "student")) if name in config else "student",
            evaluator=name,
            samples=count,
            step=step,
        )

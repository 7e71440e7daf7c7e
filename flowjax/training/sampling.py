"""Samples from a state: for pictures while training, for evaluation with receipts, for `--mode=sample`."""

import functools
import inspect
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

from flowjax.arrays import example_keys
from flowjax.choices import Spec, build, choose
from flowjax.config import ConfigError
from flowjax.data.pipeline import evaluation_batches
from flowjax.evaluation import EVALUATORS, pictures, run_files
from flowjax.evaluation.judging import BESIDE, receipt_fields
from flowjax.training.conditions import captions_of, drawn_under, pictured_under
from flowjax.training.measured import receipt_of
from flowjax.training.run import Run
from flowjax.training.sharding import BATCH
from flowjax.training.state import step_key


class Drawer:
    """Draws any number of samples in equal batches with one compiled program per sampler.

    Sample i depends on (seed, stream, i) alone: the same pictures come back at every step, batch size and mesh.
    """

    def __init__(self, run: Run):
        self.run = run

    @functools.cache  # noqa: B019 - a Drawer lives as long as its run
    def _program(self, sampler: str):
        draw = choose("sampler", sampler, self.run.method.samplers).draw
        return jax.jit(
            lambda params, conditions, key, rows: draw(params, conditions, example_keys(key, rows)),
            out_shardings=NamedSharding(self.run.executor.mesh, PartitionSpec()),
        )

    def check(self, sampler: str) -> None:
        """Traces a sampler on shapes: what is wrong with its network, guidance or grid is an error here."""
        config, chosen = self.run.config, self.run.method.samplers[sampler]
        if chosen.reads:  # are there enough real examples for the pictures and the measurements?
            measured = config.evaluation.count if config.evaluators and sampler == self.run.default_sampler else 0
            drawn_under(self.run, sampler, max(config.sample.count, measured))
        pictured_under(self.run, sampler, config.sample.count)  # is every word of the prompts known?
        conditions = {name: jnp.asarray(value) for name, value in drawn_under(self.run, sampler, 2).items()}
        keys = example_keys(jax.random.key(0), jnp.arange(2))
        jax.eval_shape(chosen.draw, self.run.executor.abstract.params, conditions, keys)

    def _put(self, value: np.ndarray) -> jax.Array:
        """The same array on every process, its rows split over the devices where they divide."""
        mesh = self.run.executor.mesh
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        sharding = NamedSharding(mesh, BATCH if len(value) % shards == 0 else PartitionSpec())
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    def draw(
        self,
        params: Mapping[str, PyTree],
        sampler: str,
        conditions: Mapping[str, np.ndarray],
        count: int,
        stream: str,
        batch_size: int,
    ) -> np.ndarray:
        """`count` samples under the conditions (arrays with `count` rows; may be empty).

        Where the data are codes of something else (latents), the source decodes what was drawn.
        """
        program = self._program(sampler)
        decode = getattr(self.run.source, "decode", None) or (lambda samples: samples)
        key = step_key(self.run.config.seed, 0, f"draw/{stream}")
        pieces = []
        for batch in evaluation_batches({"row": np.arange(count), **conditions}, min(batch_size, count)):
            chosen = {name: self._put(batch[name]) for name in conditions}
            samples = program(params, chosen, key, self._put(batch["row"]))
            pieces.append(decode(np.asarray(samples)[batch["mask"] > 0]))
        return np.concatenate(pieces)


def sample_picture(samples: np.ndarray, source: Any, conditions: Mapping[str, np.ndarray]) -> np.ndarray:
    """Samples as a person looks at them: images above their captions or in rows of a class, points beside true ones.

    A sample made from a real image stands to its right: a picture of reconstructions is one of pairs. Of images smaller
    than their arrays only what is visible is shown. Samples that are scores of compared images show those, the best first.
    """
    if "others" in conditions:
        return _ordered_picture(samples, conditions)
    if "pixel_mask" in conditions:
        samples = pictures.on_white(samples, conditions["pixel_mask"])
    if samples.ndim == 4 and "data" in conditions and conditions["data"].shape == samples.shape:
        pairs = np.stack([conditions["data"], samples], axis=1).reshape(-1, *samples.shape[1:])
        return pictures.grid(pairs, columns=2 * math.ceil(math.sqrt(len(samples) / 2)))
    captions = captions_of(source, conditions)
    if samples.ndim == 4 and captions is not None:
        return pictures.captioned_grid(samples, captions)
    if samples.ndim == 4:
        return pictures.grid(samples, labels=conditions.get("label"))
    if samples.ndim == 2 and samples.shape[1] == 2:
        return pictures.scatter(samples, source.reference(count=len(samples))["data"])
    raise ConfigError(
        f"There is no picture for samples of shape {samples.shape[1:]}: switch pictures off with when.sample, or use "
        "images [h, w, c] or points [2]."
    )


def _ordered_picture(scores: np.ndarray, conditions: Mapping[str, np.ndarray]) -> np.ndarray:
    """Compared images by their scores, a comparison beside the next, best first; white where a ranking is shorter."""
    compared = np.concatenate([conditions["data"][:, None], conditions["others"]], axis=1)
    if compared.ndim != 5:
        raise ConfigError("There is no picture of scores of points: switch pictures off with when.sample.")
    if "present" in conditions:
        there = np.concatenate([np.ones((len(scores), 1), bool), conditions["present"]], axis=1)
        scores, compared = np.where(there, scores, -np.inf), np.where(there[..., None, None, None], compared, 1.0)
    order = np.argsort(-scores, axis=1, kind="stable")[..., None, None, None]
    ordered = np.take_along_axis(compared, order, axis=1)
    columns = scores.shape[1] * max(1, round(math.sqrt(len(scores) / scores.shape[1])))
    return pictures.grid(ordered.reshape(-1, *compared.shape[2:]), columns=columns)


def visible(source: Any) -> Any:
    """The source whose examples are like drawn samples: of latents, the images that they are codes of."""
    return getattr(source, "decoded", source)


def make_evaluators(run: Run, split: str | None = None) -> dict[str, Any]:
    """The evaluators of a config; mistakes come out as ConfigError before training starts.

    Args:
      run: config and data.
      split: of the real examples, for evaluators that have a choice; None for what the config says.
    """

    def on_split(spec: Spec) -> Spec:
        if split is None or "split" not in inspect.signature(choose("evaluator", spec["name"], EVALUATORS)).parameters:
            return spec
        return {**spec, "split": split}

    try:
        return {
            name: build("evaluator", on_split(spec), EVALUATORS, source=visible(run.source), seed=run.config.seed)
            for name, spec in run.config.evaluators.items()
        }
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def evaluate(
    run: Run,
    drawer: Drawer,
    evaluators: Mapping[str, Any],
    params: Mapping[str, PyTree],
    step: int,
    sampler: str,
    seconds: float,
    average: str | None = None,
    conditions: Mapping[str, np.ndarray] | None = None,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Draws samples, measures them with every evaluator; returns the values by name and a receipt for each.

    Args:
      run: config, method, data.
      drawer: draws the samples.
      evaluators: what measures them.
      params: role -> parameters.
      step: how many updates made them.
      sampler: which sampler.
      seconds: how long training took.
      average: what the sampled parameters are, when they are not the sampler's role as it was trained.
      conditions: under which the samples are drawn; None for those of training/conditions.py.
    """
    config = run.config
    count = config.evaluation.count
    conditions = drawn_under(run, sampler, count) if conditions is None else conditions
    began = time.perf_counter()
    samples = drawer.draw(params, sampler, conditions, count, "evaluation", config.evaluation.batch_size)
    drawing = time.perf_counter() - began
    description = dict(run.method.samplers[sampler].description)
    role = run.method.samplers[sampler].role
    values, receipts = {}, []
    for name, evaluator in evaluators.items():
        measured = dict(evaluator(samples, conditions))
        used = int(measured.pop("count", count))
        picture = evaluator.picture(samples, conditions) if hasattr(evaluator, "picture") else None
        if picture is not None and run.workdir is not None and jax.process_index() == 0:
            pictures.save_png(run.workdir / run_files.SAMPLES / f"{step:08d}_{name}.png", picture)
        for metric, value in measured.items():
            # Two evaluators may have one metric (a distance on two networks): the second goes by its own name as well.
            values[f"{name}/{metric}" if metric in values else metric] = float(value)
            if metric.endswith(BESIDE):
                continue
            receipts.append(
                receipt_of(
                    run,
                    metric,
                    value,
                    step,
                    seconds,
                    sampler=description.get("sampler", sampler),
                    nfe=description.get("nfe"),
                    guidance_scale=None if description.get("guidance") == "none" else description.get("guidance_scale"),
                    ema=average or role,
                    evaluator=name,
                    samples=used,
                    **receipt_fields(evaluator, measured, metric),
                    sampling_seconds=drawing,
                    sampler_options=description,
                )
            )
    return values, receipts


def evaluate_samplers(run: Run) -> dict[str, list[dict[str, Any]]]:
    """The receipts of a finished run's last checkpoint at each of its samplers."""
    state, drawer, evaluators = run.latest_state(), Drawer(run), make_evaluators(run)
    step = int(state.step)
    seconds = run_files.seconds_until(run.workdir, step)
    return {
        name: evaluate(run, drawer, evaluators, state.params, step, name, seconds)[1] for name in run.method.samplers
    }

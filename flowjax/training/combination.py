"""A linear combination of a run's kept checkpoints, searched for what it measures (Liu et al. 2024, LCSC).

Keep snapshots with `checkpoint.keep_every_steps`, train, then

    --mode=combine --metric=sliced_w2      searches; writes combination.json and receipts
    --mode=sample --combined               and --mode=eval draw with it

The search fits the coefficients to the metric, so it must not be the judge. It sees its own noises, captions of training
examples and, where an evaluator has a choice, training examples to compare with; the judge draws the usual evaluation
noises under held-out captions and compares with held-out examples. It judges the combination and the latest checkpoint.
"""

import dataclasses
import json
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import PyTree

from flowjax.choices import choose
from flowjax.config import ConfigError
from flowjax.contract import Params
from flowjax.evaluation import run_files
from flowjax.evaluation.evolution import Coefficients, averages, evolve
from flowjax.evaluation.judging import BESIDE, HIGHER_IS_BETTER
from flowjax.evaluation.receipts import write_receipt
from flowjax.models.ema import combine
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.conditions import drawn_under
from flowjax.training.run import Run
from flowjax.training.sampling import Drawer, evaluate, make_evaluators


@dataclasses.dataclass(frozen=True)
class Snapshots:
    """One role at several steps of a run.

    Attributes:
      role: the trained one that a sampler reads, or whose average it reads.
      steps: of the checkpoints, rising.
      trees: the parameters.
    """

    role: str
    steps: tuple[int, ...]
    trees: tuple[PyTree, ...]


def snapshots(run: Run, checkpoints: Checkpoints, sampler: str, upto: int) -> Snapshots:
    """What there is to combine for a sampler, of the steps not after `upto`."""
    role = run.method.samplers[sampler].role
    while run.method.roles[role].track is not None:
        role = run.method.roles[role].track.source
    steps = tuple(step for step in checkpoints.steps() if step <= upto)
    if len(steps) < 2:
        raise ConfigError(
            f"There is {len(steps)} checkpoint in {checkpoints.directory}: a combination needs several. Train with, for "
            f"example, --config.checkpoint.keep_every_steps={max(run.config.steps // 10, 1)}, and save at those steps."
        )
    trees = tuple(jax.tree.map(np.asarray, checkpoints.read_role(role, step)) for step in steps)
    return Snapshots(role, steps, trees)


def search(
    run: Run, checkpoints: Checkpoints, params: Params, step: int, sampler: str, metric: str | None, trials: int
) -> list[str]:
    """Searches, judges, and writes combination.json and the judge's receipts; returns what to say about it.

    Args:
      run: config, method, data and folder.
      checkpoints: the kept ones.
      params: of the latest one, every role.
      step: its step.
      sampler: which draws.
      metric: what to improve, of the values of the config's evaluators; the first unless told.
      trials: how many combinations are measured after the averages that the search begins with.
    """
    kept, drawer, count = snapshots(run, checkpoints, sampler, step), Drawer(run), run.config.evaluation.count
    role, conditions = run.method.samplers[sampler].role, drawn_under(run, sampler, count, split="train")

    def draw(coefficients) -> np.ndarray:
        tried = {**params, role: combine(kept.trees, coefficients)}
        return drawer.draw(tried, sampler, conditions, count, "combination", run.config.evaluation.batch_size)

    starts = averages(len(kept.steps))
    evaluators = make_evaluators(run, split="train")
    offered = {}
    samples = draw(starts[0])
    for evaluator in evaluators.values():
        for name in evaluator(samples, conditions):
            if not name.endswith((*BESIDE, "_floor")) and name != "count":
                offered.setdefault(name, evaluator)
    if not offered:
        raise ConfigError("The config has no evaluators, so no combination can be preferred. Add config.evaluators.")
    metric = metric or next(iter(offered))
    try:
        evaluator = choose("metric", metric, offered)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    sign = -1.0 if metric in HIGHER_IS_BETTER else 1.0
    found = evolve(lambda c: sign * evaluator(draw(c), conditions)[metric], starts, trials, run.config.seed)
    judged = {}
    judges = make_evaluators(run, split="test")
    tried = {**params, role: combine(kept.trees, found.coefficients)}
    for name, tree, average in (("latest", params, None), ("combination", tried, f"combination of {len(kept.steps)}")):
        seconds = run_files.seconds_until(run.workdir, step)
        judged[name], receipts = evaluate(run, drawer, judges, tree, step, sampler, seconds, average)
        for receipt in receipts:
            write_receipt(run.workdir / run_files.RECEIPTS, {**receipt, "searched": metric})
    about = dict(metric=metric, value=sign * found.value, best_average=sign * found.start, trials=trials)
    _write(run, kept, sampler, found.coefficients, about)
    return [
        f"{metric:24} {'search':>12} {'judge':>12}",
        f"{'latest, as sampled':24} {'':>12} {judged['latest'][metric]:12.5g}",
        f"{'best average':24} {sign * found.start:12.5g}",
        f"{'combination':24} {sign * found.value:12.5g} {judged['combination'][metric]:12.5g}",
        f"coefficients of steps {kept.steps[0]} to {kept.steps[-1]}: {' '.join(f'{c:.3f}' for c in found.coefficients)}",
        f"{trials} trials; use it with --mode=sample --combined or --mode=eval --combined",
    ]


def combined(run: Run, checkpoints: Checkpoints, sampler: str) -> PyTree:
    """The parameters that combination.json describes, for the role of the sampler that it was searched with."""
    kept = run_files.read_json(run.workdir / run_files.COMBINATION)
    if kept is None:
        raise ConfigError(f"There is no {run_files.COMBINATION} in {run.workdir}. Search one with --mode=combine.")
    if kept["sampler"] != sampler:
        raise ConfigError(
            f"The combination was searched for sampler '{kept['sampler']}', not for '{sampler}'. Give --sampler="
            f"{kept['sampler']}, or search again with --mode=combine --sampler={sampler}."
        )
    if lacking := sorted(set(kept["steps"]) - set(checkpoints.steps())):
        raise ConfigError(
            f"{run_files.COMBINATION} combines step {lacking[0]}, which is no longer kept. Search again with --mode=combine."
        )
    trees = (jax.tree.map(np.asarray, checkpoints.read_role(kept["role"], step)) for step in kept["steps"])
    return combine(trees, np.array(kept["coefficients"]))


def _write(run: Run, kept: Snapshots, sampler: str, coefficients: Coefficients, about: Mapping) -> None:
    content = dict(role=kept.role, steps=kept.steps, coefficients=coefficients.tolist(), sampler=sampler, **about)
    run_files.write_atomically(run.workdir / run_files.COMBINATION, json.dumps(content, indent=1) + "\n")

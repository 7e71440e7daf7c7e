"""Every curve of a run has a caption that says what it is, and no caption is of a curve that there is not."""

import jax
import pytest

from flowjax.config import load, load_module
from flowjax.methods import METHODS, POLICY_GRADIENTS
from flowjax.training.run import Run

POINTS = "configs/distillation.py:tiny"
JUDGED = ["method.adversarial_weight=0.1", "method.penalty_weight=0.1"]
CASES = {
    **{name: (f"{POINTS},method={name}", []) for name in load_module("configs/distillation.py").STUDENTS},
    "adversarial_jumps": (f"{POINTS},method=trajectory_consistency", JUDGED),
    "adversarial_matching": (f"{POINTS},method=dmd2", JUDGED),
    "flow_matching": ("configs/points.py:tiny", []),
    "reward_model": ("configs/reward_model.py:tiny", []),
}


def metrics_of(run):
    """Phase -> the metrics that its loss reports, beside the loss."""
    batch = {key: jax.ShapeDtypeStruct(value.shape, value.dtype) for key, value in next(run.iterator()).items()}
    batch["step"] = jax.ShapeDtypeStruct(batch["row"].shape, "int32")
    reported = lambda phase: jax.eval_shape(phase.loss, run.executor.abstract.params, batch, jax.random.key(0))[1]
    return {name: {"loss", *reported(phase)} - {"t"} for name, phase in run.method.phases.items()}


@pytest.mark.parametrize("name", CASES)
def test_every_metric_has_a_reading(name):
    config, changes = CASES[name]
    run = Run(load(config, changes))
    for phase, metrics in metrics_of(run).items():
        lacking = {m for m in metrics - {"loss"} if not {m, f"{phase}/{m}"} & set(run.method.readings)}
        assert not lacking, (phase, lacking)


def test_every_reading_is_of_a_metric():
    seen, told = {}, {}
    for config, changes in CASES.values():
        run = Run(load(config, changes))
        found = {key for phase, names in metrics_of(run).items() for name in names for key in (name, f"{phase}/{name}")}
        seen.setdefault(run.config.method.name, set()).update(found)
        told[run.config.method.name] = set(run.method.readings)
    # Methods that share one dictionary of readings share its metrics.
    together = [{"dmd", "dmd2", "sid"}, {"ladd", "add"}]
    for method, readings in told.items():
        family = next((group for group in together if method in group), {method})
        assert readings <= set().union(*(seen[other] for other in family)), method
    # Those that learn from rewards: tests/methods/test_policy_gradient.py, test_preference_methods.py, test_reward_gradient.py,
    # test_reinflow_method.py.
    by_rewards = {*POLICY_GRADIENTS, "nft", "dpo", "kto", "best_of", "refl", "draft", "reinflow"}
    assert set(told) == set(METHODS) - {"autoencoder"} - by_rewards

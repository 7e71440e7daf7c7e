"""Makes the stored pairs that a config's data source `pairs` names: every row goes once along its teacher's flow."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from flowjax.choices import build
from flowjax.config import ConfigError
from flowjax.data.caches import Cache, CacheError, build_cache
from flowjax.data.pairs import plan_pairs
from flowjax.losses.trajectories import matched_pair
from flowjax.methods.endpoints import make_follow
from flowjax.methods.parts import make_setting
from flowjax.methods.teacher import make_teacher
from flowjax.models.stored import read_reference
from flowjax.samplers.field import last_time


def make_pairs(config: ConfigDict) -> Cache:
    """Builds the pairs of config.data, goes on where it was cut off, and opens what is there already.

    Args:
      config: of the student: its data, path, network and conditions.
    """
    if config.data.name != "pairs":
        raise ConfigError(
            f"--mode=pairs makes what the data source 'pairs' reads, and config.data is '{config.data.name}'. Set data="
            "dict(name='pairs', folder=..., source=..., teacher=..., count=...)."
        )
    try:
        plan = build("data source", config.data, {"pairs": plan_pairs}, seed=config.seed, total_steps=config.steps)
        if dict(plan.path) != config.path.to_dict():
            raise ValueError(
                f"data.path is {dict(plan.path)}, the config's {config.path.to_dict()}. Make them the same."
            )
        data = plan.origins.spec
        setting = make_setting(config, data, config.method.get("prediction", "velocity"))
        teacher = make_teacher(plan.teacher, data, setting)
        follow = make_follow(teacher, plan.steps, plan.solver)
        leaves = last_time(teacher.path, teacher.prediction)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    if teacher.finished is None:
        tree = teacher.role.init(jax.random.key(0))
    else:
        tree = read_reference(teacher.finished.reference, "The teacher of the pairs")
    size = config.evaluation.batch_size

    @jax.jit
    def connect(tree, x, backwards, cond):
        onward = lambda x, t, s: follow({"teacher": tree}, x, t, s, cond)
        return matched_pair(setting.path, onward, x, x, backwards, leaves)

    def encode(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = dict(rows)
        x, backwards = rows.pop("data"), rows.pop("backwards")
        count = len(x)
        filled = lambda value: jnp.asarray(np.concatenate([value, np.repeat(value[-1:], size - count, axis=0)]))
        cond = {name: filled(rows[name]) for name in teacher.network.conditions}
        noise, sample = connect(tree, filled(x), filled(backwards), cond)
        return {**rows, "noise": np.asarray(noise)[:count], "data": np.asarray(sample)[:count]}

    made = dict(splits=("train",), batch_size=size, float_type=plan.float_type)
    try:
        return build_cache(plan.folder, plan.origins, encode, plan.parts, **made)
    except CacheError as error:
        raise ConfigError(str(error)) from error

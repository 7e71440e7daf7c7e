"""Best of N: of each group of samples the best is kept, and learnt from as data are (Dong et al. 2023, RAFT).

With `policy='reference'` the frozen network of the start draws, and the student learns its best-of-N distribution: with a
continuous reward that lies at a divergence of log N - (N - 1) / N, and is what every other method has to beat. With
`policy='student'` the student draws for itself, which goes on for as long as training does.

Without `rewards` the data bring comparisons (data/comparisons.py), and what is learnt from is the better of two, the first of a
ranking, or what was found good by itself: tuning on the winners alone, which is what a method that learns from the losers too
has to beat.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from flowjax.arrays import expand_to
from flowjax.choices import Spec, choose
from flowjax.contract import Batch, DataSpec, Method, Metrics, Params, Phase, Role
from flowjax.methods import groups
from flowjax.methods.flow_matching import denoising_loss
from flowjax.methods.parts import (
    Setting,
    average_roles,
    joined,
    make_samplers,
    make_setting,
    refuse_unread,
    student_role,
)

POLICIES = ("student", "reference")
READINGS = {
    **groups.READINGS,
    "error": "The squared error of the prediction on the best samples. It falls a little, to the floor that noise sets.",
}


def best_of(
    config: ConfigDict,
    data: DataSpec,
    prediction: str = "velocity",
    rewards: Spec | None = None,
    rollout: Spec | None = None,
    group_size: int = 8,
    updates: int = 1,
    kept: int = 1,
    policy: str = "student",
    chunks: int = 0,
    failures: str = "stop",
) -> Method:
    """Flow matching on the best samples of groups, or of comparisons.

    Args:
      config: path, time, weight, noise, network, preconditioning, optimizer, ema, samplers, restore.
      data: shape and conditions; a batch lends its conditions to the rollout.
      prediction: what the network outputs.
      rewards: name -> spec of flowjax.rewards with a weight; None for comparisons that the data bring.
      rollout: spec of any sampler (samplers/build.py), without a role, where there are rewards.
      group_size: N; divides batch_size.
      updates: of the parameters with one rollout; divides the number of groups.
      kept: how many of each group are learnt from.
      policy: who draws, 'student' or 'reference'.
      chunks: a rollout is cut into, so that rewards on the host judge one while the device draws the next; 0 for as many as
        that takes.
      failures: of a reward, 'stop' or 'skip'.
    """
    name = config.method.name
    refuse_unread(config, ["coupling"], name)  # what is learnt from is noised anew
    choose("method.policy", policy, dict.fromkeys(POLICIES))
    setting = make_setting(config, data, prediction)
    of_rollouts = dict(
        group_size=group_size, updates=updates, kept=kept, policy=policy, chunks=chunks, failures=failures
    )
    if groups.of_data(name, best_of, rewards, rollout, **of_rollouts):
        return best_of_data(config, data, setting)
    grouped = groups.make_groups(config, data, rewards, group_size, updates, chunks, failures)
    if not 1 <= kept < group_size:
        raise ValueError(
            f"method.kept is {kept} of method.group_size={group_size}; expected at least one, and not all."
        )
    drawer = groups.make_policy(setting, rollout, policy)

    def batches(arrays: Mapping[str, np.ndarray], values: groups.Values, step: int) -> list[dict[str, np.ndarray]]:
        worth = grouped.worth(values)
        high, _, told = groups.bounds(worth, group_size)
        order = np.argsort(-high, axis=1, kind="stable")[:, :kept]
        best = (order + np.arange(len(high))[:, None] * group_size).reshape(-1)
        mask = np.zeros(worth.size, np.float32)
        mask[best] = np.repeat(told, kept) & np.isfinite(high.reshape(-1)[best])
        return groups.split_rows({**arrays, "mask": mask}, np.split(best, updates))

    def loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        return denoising_loss(setting, params["student"], batch, key)

    reference = {"reference": Role(copy_of="student")} if policy == "reference" else {}
    return Method(
        roles=joined(
            {"student": student_role(config, setting.network), **reference}, grouped.judge.roles, average_roles(config)
        ),
        phases={"best": Phase(loss, trains=("student",))},
        samplers=make_samplers(config, setting),
        collect=grouped.collect(grouped.rollout(drawer), batches, updates, drawer.brings),
        readings=READINGS,
    )


def best_of_data(config: ConfigDict, data: DataSpec, setting: Setting) -> Method:
    """Flow matching on what was found best in each comparison of the data; ties, and what was found bad, teach nothing.

    Args:
      config: as for `best_of`.
      data: of comparisons.
      setting: of the network.
    """
    if not data.compared:
        raise ValueError(
            f"The method '{config.method.name}' learns from examples that are compared, or judged by themselves, and these "
            "data compare nothing. Use a data source of comparisons, or set method.rewards and method.rollout to compare the "
            "model's own samples."
        )

    def loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        outcome, found = batch["outcome"], batch["data"]
        teaches = outcome != 0
        if data.compared == 2:
            found = jnp.where(expand_to(outcome < 0, found), batch["others"][:, 0], found)
        elif data.compared == 1:
            teaches = outcome > 0
        value, metrics = denoising_loss(setting, params["student"], {**batch, "data": found}, key)
        return jnp.where(teaches, value, 0.0), metrics

    return Method(
        roles=joined({"student": student_role(config, setting.network)}, average_roles(config)),
        phases={"best": Phase(loss, trains=("student",))},
        samplers=make_samplers(config, setting),
        readings={"error": READINGS["error"]},
    )

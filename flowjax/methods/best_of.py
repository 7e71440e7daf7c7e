"""Best of N: of each group of samples the best is kept, and learnt from as data are (Dong et al. 2023, RAFT).

With `policy='reference'` the frozen network of the start draws, and the student learns its best-of-N distribution: with a
continuous reward that lies at a divergence of log N - (N - 1) / N, and is what every other method has to beat. With
`policy='student'` the student draws for itself, which goes on for as long as training does.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from flowjax.choices import Spec, choose
from flowjax.contract import Batch, DataSpec, Method, Metrics, Params, Phase, Role
from flowjax.methods import groups
from flowjax.methods.flow_matching import denoising_loss
from flowjax.methods.parts import average_roles, joined, make_samplers, make_setting, refuse_unread, student_role

POLICIES = ("student", "reference")
READINGS = {
    **groups.READINGS,
    "error": "The squared error of the prediction on the best samples. It falls a little, to the floor that noise sets.",
}


def best_of(
    config: ConfigDict,
    data: DataSpec,
    rewards: Spec,
    rollout: Spec,
    prediction: str = "velocity",
    group_size: int = 8,
    updates: int = 1,
    kept: int = 1,
    policy: str = "student",
    chunks: int = 0,
    failures: str = "stop",
) -> Method:
    """Flow matching on the best samples of groups.

    Args:
      config: path, time, weight, noise, network, preconditioning, optimizer, ema, samplers, restore.
      data: shape and conditions; a batch lends its conditions to the rollout.
      rewards: name -> spec of flowjax.rewards with a weight.
      rollout: spec of any sampler (samplers/build.py), without a role.
      prediction: what the network outputs.
      group_size: N; divides batch_size.
      updates: of the parameters with one rollout; divides the number of groups.
      kept: how many of each group are learnt from.
      policy: who draws, 'student' or 'reference'.
      chunks: a rollout is cut into, so that rewards on the host judge one while the device draws the next; 0 for as many as
        that takes.
      failures: of a reward, 'stop' or 'skip'.
    """
    refuse_unread(config, ["coupling"], config.method.name)  # its own samples are noised anew
    choose("method.policy", policy, dict.fromkeys(POLICIES))
    setting = make_setting(config, data, prediction)
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

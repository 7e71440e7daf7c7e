r"""CTM: consistency trajectory models (Kim et al. 2024), a network of two times that learns a teacher's trajectories.

Two terms: soft consistency between jumps that begin at t and, after a stretch of the teacher's trajectory, at u
(losses/trajectory_consistency.py), and the field at s = t from the data. Samplers: `flow_map`, whose gamma adds noise.
The adversarial term of the original is left out.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from flowjax.arrays import example_keys, mean_per_example, uniform_rows
from flowjax.choices import Spec
from flowjax.contract import Batch, DataSpec, Method, Metrics, Params, Phase
from flowjax.losses.autoencoding import balanced
from flowjax.losses.trajectory_consistency import soft_consistency_loss
from flowjax.methods.endpoints import make_distance, make_follow
from flowjax.methods.parts import check_shares, draw, joined, make_samplers, refuse_unread
from flowjax.methods.students import make_student, target_role
from flowjax.paths.predictions import target

LAST_LAYER = "output"
SLOW = {"name": "constant", "decay": 0.999}  # the default judge


def trajectory_consistency(
    config: ConfigDict,
    data: DataSpec,
    teacher: Spec,
    prediction: str = "velocity",
    longest: float = 1.0,
    solver: str = "heun",
    solver_steps: int = 4,
    distance: Spec | None = None,
    judge: Spec = SLOW,
    denoising: float = 1.0,
    adaptive: bool = True,
    label_dropout: float = 0.1,
    start: str = "fresh",
) -> Method:
    """Trains jumps between any two times.

    Args:
      config: path, time (where jumps begin), noise, network (two_times=True), optimizer, ema, samplers ('flow_map').
      data: shape, classes and scale of the data.
      teacher: whose trajectories are learnt, with its own guidance_scale.
      prediction: what the network outputs.
      longest: stretch of the teacher's trajectory, as a share of the path; u is uniform in it and before s.
      solver, solver_steps: of the teacher on the way to u.
      distance: of the ends, a spec of methods/endpoints.py; the mean squared error unless told.
      judge: the average of the student that compares jumps at the clean end, a spec of models/ema.py.
      denoising: weight of the field at s = t; 0 for none.
      adaptive: make this weight relative: to the ratio of both gradients with respect to the last layer.
      label_dropout: how often conditions are replaced by their null.
      start: 'teacher' or 'fresh'.
    """
    refuse_unread(config, ["weight"], "trajectory_consistency")
    check_shares(label_dropout=label_dropout)
    if not 0 < longest <= 1 or denoising < 0:
        raise ValueError(
            f"method has longest={longest} and denoising={denoising}; expected a share above 0, and no negative weight."
        )
    student = make_student(config, data, "trajectory_consistency", prediction, teacher, start, two_times=True)
    setting, path = student.setting, student.setting.path
    measure = make_distance(distance)
    roles = joined(student.roles, measure.roles, target_role(judge, config))
    follow = make_follow(student.teacher, solver_steps, solver)
    adaptive = adaptive and denoising > 0
    if adaptive and LAST_LAYER not in jax.eval_shape(setting.network.init, jax.random.key(0)):
        raise ValueError(
            f"The network '{config.network.name}' has no layer '{LAST_LAYER}' whose gradients could be compared. Set "
            "method.adaptive=False and a weight method.denoising."
        )

    def loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        key_draw, key_end, key_stretch = jax.random.split(key, 3)
        drawn = draw(setting, batch, key_draw, label_dropout)
        uniform = lambda key: uniform_rows(example_keys(key, batch["row"]))
        t = drawn.t
        s = t + (path.end - t) * uniform(key_end)
        u = t + jnp.minimum(s - t, longest * (path.end - path.start)) * uniform(key_stretch)
        x = path.sample(drawn.noise, drawn.data, t)
        y = follow(params, x, t, u, drawn.cond)
        still, own = jax.lax.stop_gradient(params["student"]), params["student"]
        predict = lambda tree: lambda x, t, s: setting.network.apply(tree, x, t, drawn.cond, s=s, keys=drawn.keys)

        def consistency(tree):
            jumps = predict(tree), predict(still), predict(params["target"])
            compare = lambda one, other: measure.compare(params, one, other, batch["step"])
            return soft_consistency_loss(*jumps, path, prediction, x, t, y, u, s, compare)

        def field(tree):
            wanted = target(path, prediction, drawn.noise, drawn.data, t)
            return mean_per_example((predict(tree)(x, t, t) - wanted) ** 2)

        soft = consistency(own)
        if not denoising:
            return soft, {"t": t, "error": soft}
        plain, weight = field(own), jnp.float32(denoising)
        if adaptive:
            layer = own[LAST_LAYER]
            through = lambda loss: lambda layer: loss({**own, LAST_LAYER: layer})
            weight = weight * balanced(through(consistency), through(field), layer, batch["mask"])
        metrics = {"t": t, "error": soft, "denoising": plain, "denoising_weight": jnp.broadcast_to(weight, t.shape)}
        return soft + weight * plain, metrics

    return Method(
        roles=roles,
        phases={"trajectories": Phase(loss, trains=("student",))},
        samplers=make_samplers(config, setting),
    )

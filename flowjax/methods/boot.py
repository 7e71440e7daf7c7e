r"""BOOT (Gu et al. 2023): a student learns the whole of the teacher's trajectories from noise, without a single example.

The student, a network of two times, is asked for jumps from the noise end alone. Along each noise it learns to be where the
teacher goes from where it itself was a stride before (losses/boot.py), beginning with the teacher's field at the noise end.
Batches are read for their conditions; their data are not looked at. Such a student draws in one step.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from flowjax.choices import Spec
from flowjax.contract import Batch, DataSpec, Method, Metrics, Params, Phase
from flowjax.losses.boot import boot_loss, boundary_loss
from flowjax.methods.endpoints import check_start, make_follow
from flowjax.methods.parts import draw, make_samplers, refuse_unread
from flowjax.methods.students import make_student
from flowjax.paths.predictions import convert

READINGS = {
    "along": "How well neighbouring jumps agree. Falls by orders of magnitude.",
    "boundary": "The error at the noise end, where the map begins: the first to fall, and below the other from then on.",
}


def boot(
    config: ConfigDict,
    data: DataSpec,
    teacher: Spec,
    prediction: str = "velocity",
    start: str = "fresh",
    stride: float = 0.04,
    teacher_steps: int = 1,
    solver: str = "midpoint",
    boundary_weight: float = 0.5,
    label_dropout: float = 0.0,
) -> Method:
    """Trains a student on its teacher's trajectories from noise.

    Args:
      config: path, time (of s), noise, network (two_times=True), optimizer, ema, samplers ('flow_map' in one step).
      data: shape and classes.
      teacher: spec of methods/teacher.py.
      prediction: what the student's network outputs.
      start: 'teacher' or 'fresh'.
      stride: s - t, how far the teacher goes on from the student's point.
      teacher_steps: of the solver, over a stride.
      solver: euler (the publication's), midpoint, heun or rk4.
      boundary_weight: of the term at the noise end.
      label_dropout: how often conditions are replaced by their null.
    """
    refuse_unread(config, ("weight", "coupling"), "boot")
    student = make_student(config, data, "boot", prediction, teacher, start, two_times=True)
    setting, path, master = student.setting, student.setting.path, student.teacher
    check_start(setting)
    if not 0 < stride <= path.end - path.start or boundary_weight < 0:
        raise ValueError(
            f"method.stride is {stride} and boundary_weight {boundary_weight}; expected a stride inside the path, which is "
            f"{path.end - path.start:.4g} long, and a weight of at least 0."
        )
    follow = make_follow(student.teacher, teacher_steps, solver)

    def loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        drawn = draw(setting, batch, key, label_dropout)
        s = jnp.maximum(drawn.t, path.start + 1e-2 * stride)  # over no distance there is nothing to learn
        t = jnp.maximum(s - stride, path.start)
        noise = path.sigma(jnp.float32(path.start)) * drawn.noise
        predict = lambda x, t, s: setting.network.apply(params["student"], x, t, drawn.cond, s=s, keys=drawn.keys)
        onward = lambda x, t, s: follow(params, x, t, s, drawn.cond)
        along = boot_loss(predict, path, prediction, noise, t, s, onward)
        first = jnp.full_like(t, path.start)
        field = master.field(params["teacher"], drawn.cond)
        known = convert(path, field.prediction, prediction, field.evaluate(noise, first), noise, first)
        edge = boundary_loss(predict, path, noise, known)
        return along + boundary_weight * edge, {"t": s, "along": along, "boundary": edge}

    return Method(
        roles=student.roles,
        phases={"boot": Phase(loss, trains=("student",))},
        samplers=make_samplers(config, setting),
        readings=READINGS,
    )

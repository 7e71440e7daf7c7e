r"""Progressive distillation (Salimans & Ho 2022): stage after stage, a step of the student does what two of its teacher did.

    stage        0           1         2         ...    last
    teacher      teacher     student of the stage before
    its steps    2 N         N         N / 2     ...    2 n
    student's    N           N / 2     N / 4     ...    n

The loss is that of losses/progressive.py at a random point of the student's time grid, whose halvings are every second time
of the first teacher's. The hand-over is a tracked role: `previous` follows the student with a rate that is 1 after the last
update of a stage and 0 otherwise. The teacher itself, an oracle perhaps, or another network, or one with guidance, is asked in
stage 0 alone; what the student learnt from it, guidance included, it hands on. With every stage the student goes on from what
it knows while learning rate and averages begin anew.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from flowjax.arrays import example_keys, uniform_rows
from flowjax.choices import Spec
from flowjax.contract import Batch, DataSpec, Method, Metrics, Params, Phase, Role, Track
from flowjax.losses.progressive import jump_of, landing_loss, two_steps
from flowjax.methods.endpoints import check_start
from flowjax.methods.parts import draw, make_samplers, refuse_unread
from flowjax.methods.students import make_student
from flowjax.paths.weights import loss_weight
from flowjax.samplers.grids import make_grid

READINGS = {
    "error": "How far two of the teacher's steps in one are missed. It jumps where a stage begins and falls within it.",
    "student_steps": "Of the stage: halves from stage to stage, down to one.",
}


def stage_lengths(steps: int, first_steps: int, last_steps: int, shares: tuple = ()) -> tuple[int, ...]:
    """How many updates each stage has.

    Args:
      steps: of the run.
      first_steps: of the student in the first stage.
      last_steps: of the student in the last one: half, or a quarter, ... of first_steps.
      shares: the length of each stage in any unit; all are equal unless told.
    """
    count, steps_now = 1, first_steps
    while steps_now > last_steps and steps_now % 2 == 0:
        steps_now, count = steps_now // 2, count + 1
    if steps_now != last_steps or last_steps < 1:
        raise ValueError(
            f"method.first_steps={first_steps} halved again and again never is last_steps={last_steps}. Use, for example, 64 "
            "and 1."
        )
    shares = np.asarray(shares or (1,) * count, float)
    if len(shares) != count or (shares <= 0).any():
        raise ValueError(
            f"method.shares is {tuple(shares)}; expected {count} positive numbers, one for each stage from {first_steps} to "
            f"{last_steps} steps."
        )
    ends = np.round(np.cumsum(shares) / shares.sum() * steps).astype(int)
    lengths = np.diff([0, *ends])
    if (lengths < 1).any():
        raise ValueError(
            f"{steps} updates do not divide into {count} stages: stage lengths {tuple(lengths)}. Raise steps."
        )
    return tuple(int(length) for length in lengths)


def progressive(
    config: ConfigDict,
    data: DataSpec,
    teacher: Spec,
    prediction: str = "velocity",
    start: str = "fresh",
    first_steps: int = 64,
    last_steps: int = 1,
    shares: tuple = (),
    grid: Spec | None = None,
    label_dropout: float = 0.0,
) -> Method:
    """Trains a student of fewer and fewer steps.

    Args:
      config: path, weight, noise, network (of one time), optimizer, ema, samplers ('euler' or 'ddim' with last_steps).
      data: shape, classes and scale of the data.
      teacher: spec of methods/teacher.py; it takes 2 first_steps steps.
      prediction: what the student's network outputs.
      start: 'teacher' or 'fresh'.
      first_steps: of the student in the first stage.
      last_steps: of the student in the last stage.
      shares: how long the stages are relative to one another; equal unless told.
      grid: the law of the time grid, spec of samplers/grids.py without `steps`; uniform unless told.
      label_dropout: how often conditions are replaced by their null.
    """
    refuse_unread(config, ("time",), "progressive")
    stages = stage_lengths(config.steps, first_steps, last_steps, tuple(shares))
    student = make_student(config, data, "progressive", prediction, teacher, start, stages=stages)
    setting, path, master = student.setting, student.setting.path, student.teacher
    check_start(setting)
    times = make_grid(grid or dict(name="uniform"), path, steps=2 * first_steps, shape=setting.shape)
    ends = np.asarray(list(itertools.accumulate(stages))[:-1], np.int32)

    def hand_over(step: Int[Array, ""]) -> Float[Array, ""]:
        return jnp.any(step + 1 == ends).astype(jnp.float32)

    def loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        key_draw, key_place = jax.random.split(key)
        drawn = draw(setting, batch, key_draw, label_dropout)
        stage = jnp.sum(batch["step"][0] >= ends)
        stride, count = 2**stage, first_steps // 2**stage
        place = (uniform_rows(example_keys(key_place, batch["row"])) * count).astype(jnp.int32)
        t, middle, s = (jnp.asarray(times, jnp.float32)[stride * (2 * place + index)] for index in range(3))
        x = path.sample(drawn.noise, drawn.data, t)

        def by_teacher(x):
            field = master.field(params["teacher"], drawn.cond)
            return two_steps(jump_of(field.predict, path, field.prediction), x, t, middle, s)

        def by_previous(x):
            predict = lambda x, t: setting.network.apply(params["previous"], x, t, drawn.cond)
            return two_steps(jump_of(predict, path, prediction), x, t, middle, s)

        landed = jax.lax.stop_gradient(jax.lax.cond(stage == 0, by_teacher, by_previous, x))
        predict = lambda x, t: setting.network.apply(params["student"], x, t, drawn.cond, keys=drawn.keys)
        error = landing_loss(predict, path, prediction, x, t, landed, s)
        value = error * loss_weight(setting.weight, path, prediction, t)
        return value, {"t": t, "error": error, "student_steps": jnp.full(t.shape, count, jnp.float32)}

    previous = Role(copy_of="student", track=Track("student", hand_over))
    return Method(
        roles={**student.roles, "previous": previous},
        phases={"landing": Phase(loss, trains=("student",))},
        samplers=make_samplers(config, setting),
        readings=READINGS,
    )

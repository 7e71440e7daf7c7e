r"""Direct distillation: a student is regressed on where the teacher's many small steps lead (Luhman & Luhman 2021).

    loss = distance(X_{t->s}(x_t; student), stop_gradient(X_{t->s}(x_t; teacher)))

A network of one time learns the whole way alone, from noise to data in one evaluation: t and s are the ends of the path. A
network of two times learns every stretch of the flow map, which it can then go in any number of steps; a share `whole` of its
examples is the whole way.

The teacher is solved anew for every example: no pair is ever seen twice, and none has to be stored. Without a teacher the
pairs are those of the batch (coupling 'stored', data source `pairs`). The second half of InstaFlow (Liu et al. 2023) is this
method with a reflowed teacher, from which the student starts, and a perceptual distance after a start on squared errors.

For small students of a teacher that is nearly straight SlimFlow (Zhu et al. 2024) adds a term in two steps. The student goes
from fresh noise e to a random time t on its own, and the teacher the rest of the way in one step:

    guided_weight * distance(X_{0->1}(e; student), stop_gradient(X_{t->1}(X_{0->t}(e; student); teacher))).

It costs one evaluation of the teacher, where the first term takes `teacher_steps`; where the teacher is curved, it is biased.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from flowjax.arrays import example_keys, expand_to, uniform_rows
from flowjax.choices import Spec
from flowjax.contract import Batch, DataSpec, Method, Metrics, Params, Phase
from flowjax.methods.endpoints import check_start, make_distance, make_follow
from flowjax.methods.parts import draw, fresh_noise, make_samplers, refuse_unread
from flowjax.methods.students import make_student, second_times
from flowjax.paths.flow_maps import flow_jump

READINGS = {
    "loss": "How far the student lands from its teacher. Falls towards zero as far as the student's size lets it.",
}


def direct(
    config: ConfigDict,
    data: DataSpec,
    prediction: str = "velocity",
    teacher: Spec | None = None,
    start: str = "fresh",
    teacher_steps: int = 32,
    solver: str = "midpoint",
    distance: Spec | None = None,
    whole: float = 0.25,
    guided_weight: float = 0.0,
    guided_times: tuple = (0.2, 0.8),
    label_dropout: float = 0.0,
) -> Method:
    """Trains a student to jump to where its teacher's trajectories lead.

    Args:
      config: path, noise, network (of one time or two), optimizer, ema, samplers; with two times also `time`.
      data: shape, classes and scale of the data.
      prediction: what the student's network outputs.
      teacher: spec of methods/teacher.py; None for stored pairs.
      start: 'teacher' or 'fresh'.
      teacher_steps: of the solver, from t to s.
      solver: euler, midpoint, heun or rk4.
      distance: spec of methods/endpoints.py; squared unless told.
      whole: of a network of two times: the share of examples that go from noise to data.
      guided_weight: of SlimFlow's term, for a network of one time; 0 for none.
      guided_times: between which shares of the path its t lies.
      label_dropout: how often conditions are replaced by their null.
    """
    two_times = bool(config.network.get("two_times", False))
    if not 0 <= whole <= 1 or not 0 <= label_dropout <= 1:
        raise ValueError(f"method.whole is {whole} and label_dropout {label_dropout}; expected shares between 0 and 1.")
    stored = config.coupling.name == "stored"
    if stored == (teacher is not None):
        raise ValueError(
            "The method 'direct' regresses on a teacher or on the pairs of the batch: set method.teacher and leave "
            "coupling=dict(name='independent'), or leave the teacher out and set coupling=dict(name='stored')."
        )
    if stored and two_times:
        raise ValueError(
            "Stored pairs know the ends of a trajectory alone. Set network.two_times=False, or give a teacher."
        )
    low, high = guided_times
    if guided_weight < 0 or not 0 <= low < high < 1:
        raise ValueError(
            f"method.guided_weight is {guided_weight} and guided_times {tuple(guided_times)}; expected a weight of at least 0 "
            "and two rising shares of the path, below 1."
        )
    if guided_weight and (stored or two_times):
        raise ValueError("method.guided_weight needs a teacher to ask and a network of one time. Leave it at 0.")
    refuse_unread(config, ("weight",) if two_times else ("weight", "time"), "direct")
    student = make_student(config, data, "direct", prediction, teacher, start, two_times=two_times)
    setting, path = student.setting, student.setting.path
    check_start(setting)
    follow = None if stored else make_follow(student.teacher, teacher_steps, solver)
    measure = make_distance(distance)

    def loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        key_draw, key_times, key_whole, key_guided = jax.random.split(key, 4)
        drawn = draw(setting, batch, key_draw, label_dropout)
        first, last = jnp.full_like(drawn.t, path.start), jnp.full_like(drawn.t, path.end)
        noise = path.sigma(first[0]) * drawn.noise
        t, s, x, second = first, last, noise, {}
        if two_times:
            t, s = second_times(setting, drawn.t, batch, key_times, 0.0)
            all_the_way = uniform_rows(example_keys(key_whole, batch["row"])) < whole
            x = jnp.where(expand_to(all_the_way, noise), noise, path.sample(drawn.noise, drawn.data, t))
            t, s = jnp.where(all_the_way, first, t), jnp.where(all_the_way, last, s)
            second = {"s": s}
        value = setting.network.apply(params["student"], x, t, drawn.cond, keys=drawn.keys, **second)
        landed = flow_jump(path, prediction, value, x, t, s)
        target = drawn.data if stored else follow(params, x, t, s, drawn.cond)
        compare = lambda landed, target: measure.compare(params, landed, target, batch["step"])
        if not guided_weight:
            return compare(landed, target), {"t": t}
        return compare(landed, target) + guided_weight * compare(*guided(params, batch, drawn, key_guided)), {"t": t}

    def guided(params, batch, drawn, key):
        key_noise, key_time = jax.random.split(key)
        first, last = jnp.full_like(drawn.t, path.start), jnp.full_like(drawn.t, path.end)
        x = path.sigma(first[0]) * fresh_noise(setting, batch, key_noise)
        t = first + (low + (high - low) * uniform_rows(example_keys(key_time, batch["row"]))) * (last - first)
        value = setting.network.apply(params["student"], x, first, drawn.cond, keys=drawn.keys)
        field = student.teacher.field(params["teacher"], drawn.cond)
        reached = flow_jump(path, prediction, value, x, first, t)
        target = flow_jump(path, field.prediction, field.evaluate(reached, t), reached, t, last)
        return flow_jump(path, prediction, value, x, first, last), jax.lax.stop_gradient(target)

    return Method(
        roles={**student.roles, **measure.roles},
        phases={"endpoint": Phase(loss, trains=("student",))},
        samplers=make_samplers(config, setting),
        readings=READINGS,
    )

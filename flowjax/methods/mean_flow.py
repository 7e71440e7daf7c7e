r"""MeanFlow: a network of two times that learns its own flow map, from data alone or from a teacher's velocity.

The student predicts the jump from t to s. Where s = t it is fitted by flow matching, and elsewhere by the condition that the
end of a trajectory does not depend on where on it one starts (losses/flow_maps.py). On the linear path with a velocity
this is MeanFlow (Geng et al. 2025); other paths and predictions have the same condition in their own terms.

Guidance in training (Geng et al. 2025, eq. 19): with v = x1 - x0 the velocity of the pair is replaced by

    omega v + (1 - omega - kappa) p(x, t, t | null) + kappa p(x, t, t | cond),

whose fixed point is guidance at the scale omega / (1 - kappa). Samples then need no second evaluation.

Improved MeanFlow (Geng et al. 2025b) differentiates the network along its own velocity p(x, t, t), direction='own'. Its
guidance v + (1 - 1 / w) (p(cond) - p(null)) is omega = 1 and kappa = 1 - 1 / w. With `scales` w is drawn for each example,
and the network told.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from flowjax.arrays import expand_to
from flowjax.choices import Spec, choose
from flowjax.contract import Batch, DataSpec, Method, Metrics, Params, Phase
from flowjax.losses.flow_maps import flow_map_loss
from flowjax.methods.parts import check_shares, draw, make_samplers
from flowjax.methods.students import check_scales, drawn_scales, make_student, second_times
from flowjax.paths.predictions import convert

READINGS = {
    "error": "Of the average velocity. From data alone it ends above zero, as a flow's does; a teacher takes that floor away.",
    "loss": "With an adaptive weight (power > 0) it says little: every example counts by its own size. Look at the error.",
}


DIRECTIONS = ("velocity", "own")


def mean_flow(
    config: ConfigDict,
    data: DataSpec,
    prediction: str = "velocity",
    equal_times: float = 0.75,
    power: float = 1.0,
    floor: float = 1e-2,
    direction: str = "velocity",
    label_dropout: float = 0.1,
    omega: float = 1.0,
    kappa: float = 0.0,
    scales: tuple = (),
    teacher: Spec | None = None,
    start: str = "fresh",
) -> Method:
    """Trains a flow map by the identity of average velocities.

    Args:
      config: path, time, noise, network (two_times=True), optimizer, ema, samplers ('flow_map').
      data: shape, classes and scale of the data.
      prediction: what the network outputs.
      equal_times: the share of examples with s = t.
      power: of the adaptive weight, 0 for a plain squared error.
      floor: of the adaptive weight.
      direction: along which the network is differentiated: 'velocity', of the pair or the teacher, or 'own', the network's
        own velocity (improved MeanFlow; one evaluation more).
      label_dropout: how often conditions are replaced by their null; such examples get no guidance.
      omega: weight of the pair's velocity under guidance; 1 with kappa = 0 is none.
      kappa: weight of the network's own conditional velocity.
      scales: lowest and highest scale w of guidance, a teacher's or by kappa = 1 - 1 / w, told to the network
        (guidance_conditional=True); () for one scale, that of omega and kappa or the teacher's.
      teacher: whose velocity takes the place of x1 - x0, with its own guidance_scale; None for data alone.
      start: 'teacher' or 'fresh'.
    """
    check_shares(equal_times=equal_times, label_dropout=label_dropout)
    if not 0 <= kappa < 1 or omega <= 0:
        raise ValueError(f"method.omega={omega} and kappa={kappa}: expected omega > 0 and 0 <= kappa < 1.")
    choose("direction of the derivative", direction, dict.fromkeys(DIRECTIONS))
    guided = (omega, kappa) != (1.0, 0.0)
    if scales and (guided or (teacher is not None and teacher.get("guidance_scale", 1.0) != 1)):
        raise ValueError(
            "method.scales draws the scale of guidance: leave omega, kappa and teacher.guidance_scale alone."
        )
    if guided and teacher is not None:
        raise ValueError(
            "A teacher brings its own guidance: leave omega at 1 and kappa at 0, and set teacher.guidance_scale."
        )
    student = make_student(config, data, "mean_flow", prediction, teacher, start, two_times=True)
    setting, path = student.setting, student.setting.path
    check_scales(scales, student.network)
    if (guided or scales) and not student.network.droppable:
        raise ValueError(
            "Guidance needs a condition to drop, and the network has none. Leave omega at 1, kappa at 0 and scales at ()."
        )

    def loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        key_draw, key_times, key_scale = jax.random.split(key, 3)
        drawn = draw(setting, batch, key_draw, label_dropout)
        t, s = second_times(setting, drawn.t, batch, key_times, equal_times)
        scale = drawn_scales(scales, batch, key_scale)
        cond = drawn.cond if scale is None else {**drawn.cond, "guidance": scale}
        x = path.sample(drawn.noise, drawn.data, t)
        predict = lambda cond: (
            lambda x, t, s: setting.network.apply(params["student"], x, t, cond, s=s, keys=drawn.keys)
        )
        if student.teacher is not None:
            velocity = student.teacher.field(params["teacher"], drawn.cond, scale).velocity(x, t)
        else:
            velocity = path.velocity(drawn.noise, drawn.data, t)
        own = lambda cond: convert(path, prediction, "velocity", predict(cond)(x, t, t), x, t)
        along = own(cond) if direction == "own" else None
        if guided or (scales and student.teacher is None):
            null = setting.network.drop(cond, jnp.ones(len(x), bool))
            share = kappa if scale is None else expand_to(1.0 - 1.0 / scale, x)
            mixed = omega * velocity + (1.0 - omega - share) * own(null) + share * own(cond)
            velocity = jnp.where(expand_to(drawn.dropped, x), velocity, mixed)
        value, metrics = flow_map_loss(predict(cond), path, prediction, x, t, s, velocity, power, floor, along)
        return value, {"t": t, **metrics}

    return Method(
        roles=student.roles,
        phases={"flow_map": Phase(loss, trains=("student",))},
        samplers=make_samplers(config, setting),
        readings=READINGS,
    )

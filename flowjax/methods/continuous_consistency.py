r"""sCM: continuous-time consistency models (Lu & Song 2025), from a teacher (sCD) or from data alone (sCT).

The student is the consistency function of methods/consistency.py in the limit of pairs of times that are one: a tangent
takes the place of the difference (losses/continuous_consistency.py). The original runs on the path 'trigonometric' with
time=dict(name='trigonometric_log_normal') and data of the noise's standard deviation; every path will do.

The tangent is computed in float32 whatever config.precision is: it is the difference of large terms, and of bfloat16
nothing would be left. The forward pass that is trained follows config.precision.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from flowjax.choices import Spec
from flowjax.contract import Batch, DataSpec, Method, Metrics, Params, Phase, Role
from flowjax.losses.continuous_consistency import normalised_tangent, tangent_loss
from flowjax.losses.flow_maps import flow_map_tangent
from flowjax.methods.optimizers import make_optimizer
from flowjax.methods.parts import check_shares, draw, joined, make_samplers, make_setting, refuse_unread
from flowjax.methods.students import make_student
from flowjax.models.uncertainty import LogVariance

READINGS = {
    "error": "The squared size of the normalised tangent: below one, and less where tangents are small beside `constant`.",
    "loss": "Has the logarithm of the expected error in it, so it may be negative. Samples are judged by measures, not by it.",
}


PREDICTIONS = ("velocity", "v")  # of those whose jump to the end has |b| falling to 0 on every path


def continuous_consistency(
    config: ConfigDict,
    data: DataSpec,
    prediction: str = "velocity",
    warmup_steps: int = 10_000,
    constant: float = 0.1,
    adaptive: bool = True,
    label_dropout: float = 0.1,
    teacher: Spec | None = None,
    start: str = "fresh",
) -> Method:
    """Trains a consistency model by its tangent.

    Args:
      config: path, time, noise, network, optimizer (of u(t) too), ema, samplers ('consistency').
      data: shape, classes and scale of the data.
      prediction: what the network outputs, velocity or v.
      warmup_steps: over which the share of the network's own derivative grows from 0, where the loss is flow matching.
      constant: of the tangent's normalisation.
      adaptive: weigh times by a learnt u(t), the role `uncertainty`.
      label_dropout: how often conditions are replaced by their null.
      teacher: whose velocity takes the place of x1 - x0, with its own guidance_scale; None for data alone.
      start: 'teacher' or 'fresh'.
    """
    refuse_unread(config, ["weight"], "continuous_consistency")
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"method.prediction is '{prediction}': its jump to the clean end does not keep the end in place by itself. Use "
            "'velocity', or 'v' on a variance-preserving path."
        )
    check_shares(label_dropout=label_dropout)
    if warmup_steps < 0 or constant < 0:
        raise ValueError(
            f"method has warmup_steps={warmup_steps} and constant={constant}; expected no negative number."
        )
    student = make_student(config, data, "continuous_consistency", prediction, teacher, start)
    setting, path = student.setting, student.setting.path
    exact = config.copy_and_resolve_references()
    exact.precision = "float32"
    exact = make_setting(exact, data, prediction).network
    roles, log_variance = student.roles, LogVariance()
    if adaptive:
        optimizer = make_optimizer(config.optimizer, config.steps)
        init = lambda key: log_variance.init(key, jnp.zeros(1))["params"]
        role = Role(init=init, tx=optimizer.tx, learning_rate=optimizer.learning_rate)
        roles = joined(roles, {"uncertainty": role})

    def loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        drawn = draw(setting, batch, key, label_dropout)
        t = drawn.t
        x = path.sample(drawn.noise, drawn.data, t)
        velocity = path.velocity(drawn.noise, drawn.data, t)
        if student.teacher is not None:
            velocity = student.teacher.field(params["teacher"], drawn.cond).velocity(x, t)
        predict = lambda network: lambda x, t, s: network.apply(params["student"], x, t, drawn.cond, keys=drawn.keys)
        end = jnp.full_like(t, path.end)
        share = jnp.minimum(1.0, batch["step"] / warmup_steps) if warmup_steps else 1.0
        tangent = flow_map_tangent(predict(exact), path, prediction, x, t, end, velocity, share)
        step = normalised_tangent(tangent, constant)
        u = log_variance.apply({"params": params["uncertainty"]}, t) if adaptive else None
        value, metrics = tangent_loss(predict(setting.network)(x, t, end), step, u)
        return value, {"t": t, **metrics}

    return Method(
        roles=roles,
        phases={"consistency": Phase(loss, trains=("student", "uncertainty") if adaptive else ("student",))},
        samplers=make_samplers(config, setting),
        readings=READINGS,
    )

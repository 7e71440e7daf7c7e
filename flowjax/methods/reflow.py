r"""Reflow and its relatives: a student is fitted on the pairs of noise and data that a flow makes itself.

| name                | what is set                                                                    | reference          |
| reflow (2-RF)       | nothing                                                                        | Liu et al. 2022    |
| InstaFlow           | start='teacher', guidance of the teacher; then the method `direct`             | Liu et al. 2023    |
| 2-rectified flow++  | times 'u_shaped', weight 'ramp', distance 'pseudo_huber', `perceptual`, `real` | Lee et al. 2024    |
| rectified diffusion | the teacher's own path and prediction, loss='data', distance 'pseudo_huber'    | Wang et al. 2024   |
| SlimFlow, first half | `annealing`, start='fresh' with a smaller network                              | Zhu et al. 2024    |

With a teacher the pairs are made anew in every step: noise goes forwards to a sample or, for the share `real` of the examples,
data go backwards to their noise. Without one they are those of the batch (coupling 'stored', data source `pairs`). Either way
a pair is matched: no two of them cross, and the student's field becomes straight. What the student starts from is up to it.

The logged `curvature` is the mean over pairs of |v(x_t, t) - (x1 - x0)|^2 per element on the linear path, 0 for a straight
flow; on others, of the velocity error.
"""

import jax
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from flowjax.arrays import example_keys, uniform_rows
from flowjax.choices import Spec, choose
from flowjax.contract import Batch, DataSpec, Method, Metrics, Params, Phase
from flowjax.losses.reflow import annealed, make_annealing, pair_loss
from flowjax.losses.trajectories import matched_pair, squared_distance
from flowjax.methods.endpoints import make_distance, make_follow
from flowjax.methods.parts import check_shares, draw, fresh_noise, joined, make_samplers
from flowjax.methods.students import make_student
from flowjax.paths.predictions import PREDICTIONS, convert, target
from flowjax.paths.weights import loss_weight
from flowjax.samplers.field import last_time

READINGS = {
    "curvature": "How far the predicted velocity is from the straight line of each pair: zero for a flow of straight lines.",
    "loss": "With matched pairs it falls towards zero; with annealing it begins as a flow's and falls as pairs take over.",
}


def reflow(
    config: ConfigDict,
    data: DataSpec,
    prediction: str = "velocity",
    loss: str | None = None,
    teacher: Spec | None = None,
    start: str = "fresh",
    teacher_steps: int = 32,
    solver: str = "midpoint",
    real: float = 0.0,
    distance: Spec | None = None,
    perceptual: Spec | None = None,
    perceptual_weight: float = 1.0,
    annealing: Spec | None = None,
    label_dropout: float = 0.0,
) -> Method:
    """Trains a student by flow matching on matched pairs.

    Args:
      config: path, time, weight, noise, network (of one time), optimizer, ema, samplers.
      data: shape, classes and scale of the data.
      prediction: what the student's network outputs.
      loss: the prediction in whose space the error is measured; the student's own unless told.
      teacher: spec of methods/teacher.py; None for stored pairs.
      start: 'teacher' or 'fresh'.
      teacher_steps: of the solver, from one end of the path to the other.
      solver: euler, midpoint, heun or rk4.
      real: the share of pairs that are a real example and the noise that the teacher takes it back to.
      distance: of the prediction from the pair's: spec of methods/endpoints.py; squared unless told.
      perceptual: a distance of the data that the prediction points to, such as dict(name='perceptual', network=...), which is
        added with weight perceptual_weight / sigma(t); None for none.
      perceptual_weight: see there.
      annealing: from independent noise to the pair's: spec of losses/reflow.py; None for the pair's from the start.
      label_dropout: how often conditions are replaced by their null.
    """
    loss = loss or prediction
    for name in (prediction, loss):
        choose("prediction", name, dict.fromkeys(PREDICTIONS))
    check_shares(real=real, label_dropout=label_dropout)
    if perceptual_weight < 0:
        raise ValueError(f"method.perceptual_weight is {perceptual_weight}; it must be at least 0.")
    if perceptual is None and perceptual_weight != 1.0:
        raise ValueError(f"method.perceptual_weight is {perceptual_weight}, but method.perceptual names no distance.")
    stored = config.coupling.name == "stored"
    if stored == (teacher is not None) or (stored and real):
        raise ValueError(
            "The method 'reflow' makes pairs with a teacher or takes those of the batch: set method.teacher and leave "
            "coupling=dict(name='independent'), or leave teacher and real out and set coupling=dict(name='stored')."
        )
    if (distance or {}).get("name") == "perceptual":
        raise ValueError(
            "method.distance compares predictions, not pictures. Set method.perceptual to that distance instead."
        )
    student = make_student(config, data, "reflow", prediction, teacher, start)
    setting, path = student.setting, student.setting.path
    if setting.weight.space not in (None, loss) and (distance or {"name": "squared"})["name"] != "squared":
        raise ValueError(
            f"The weight '{setting.weight.name}' is stated for a squared error of '{setting.weight.space}', and the distance "
            f"is a '{distance['name']}' one of '{loss}'. Set method.loss='{setting.weight.space}', or another weight."
        )
    follow = leaves = None
    if not stored:
        follow = make_follow(student.teacher, teacher_steps, solver)
        leaves = last_time(student.teacher.path, student.teacher.prediction)
    measure, seen = make_distance(distance), make_distance(perceptual)
    anneal = None if annealing is None else make_annealing(annealing)

    def pair(
        params: Params, batch: Batch, drawn, key: Key[Array, ""]
    ) -> tuple[Float[Array, "b ..."], Float[Array, "b ..."]]:
        if stored:
            return drawn.noise, drawn.data
        backwards = uniform_rows(example_keys(key, batch["row"])) < real
        onward = lambda x, t, s: follow(params, x, t, s, drawn.cond)
        return matched_pair(path, onward, drawn.noise, drawn.data, backwards, leaves)

    def objective(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        key_draw, key_side, key_fresh = jax.random.split(key, 3)
        drawn = draw(setting, batch, key_draw, label_dropout)
        noise, sample = pair(params, batch, drawn, key_side)
        if anneal is not None:
            noise = annealed(noise, fresh_noise(setting, batch, key_fresh), anneal(batch["step"]))
        predict = lambda x, t: setting.network.apply(params["student"], x, t, drawn.cond, keys=drawn.keys)
        compare = lambda p, q: measure.compare(params, p, q, batch["step"])
        value, x, predicted = pair_loss(predict, path, prediction, noise, sample, drawn.t, compare, loss)
        value = value * loss_weight(setting.weight, path, loss, drawn.t)
        if perceptual is not None:
            pointed = convert(path, prediction, "data", predicted, x, drawn.t)
            value += perceptual_weight / path.sigma(drawn.t) * seen.compare(params, pointed, sample, batch["step"])
        velocity = convert(path, prediction, "velocity", predicted, x, drawn.t)
        curvature = squared_distance(velocity, target(path, "velocity", noise, sample, drawn.t))
        return value, {"t": drawn.t, "curvature": curvature}

    return Method(
        roles=joined(student.roles, measure.roles, seen.roles),
        phases={"pairs": Phase(objective, trains=("student",))},
        samplers=make_samplers(config, setting),
        readings=READINGS,
    )

r"""Consistency models on pairs of neighbouring times: distillation (CD), training (CT), iCT and ECT.

The student sends every point of a trajectory to its end, and is compared with itself between two neighbouring times
(losses/consistency.py, paths/pairs.py). What the literature calls different methods are choices:

|     | point at s            | pairs                                | target   | distance | weight    | reference            |
| --- | --------------------- | ------------------------------------ | -------- | -------- | --------- | -------------------- |
| CD  | a step of the teacher | grid of 18 to 40 levels              | average  | L2       | uniform   | Song et al. 2023     |
| CT  | the pair's own        | grid, square_root levels             | `levels` | L2       | uniform   | Song et al. 2023     |
| iCT | the pair's own        | grid, doubling levels, cells='times' | itself   | Huber    | noise_gap | Song & Dhariwal 2023 |
| ECT | the pair's own        | ratio                                | itself   | Huber    | noise_gap | Geng et al. 2024     |
| LCM | a step of the teacher | grid of 50 levels                    | average  | Huber    | uniform   | Luo et al. 2023      |

The distance of images is LPIPS in the first two. LCM's teacher is guided, at a scale w drawn from `scales`, and its student
reads w as a condition (network.guidance_conditional=True): its samplers say conditions=dict(guidance=4.0).

They are students for the sampler `consistency`, whose first time should be one that training saw: on a Karras grid
grid=dict(name='karras').
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from flowjax.choices import Spec, build, choose
from flowjax.contract import Batch, DataSpec, Method, Metrics, Params, Phase, Rate
from flowjax.losses.consistency import GAPS, consistency_loss
from flowjax.methods.endpoints import make_distance, make_follow
from flowjax.methods.parts import check_shares, draw, joined, make_samplers, refuse_unread
from flowjax.methods.students import check_scales, drawn_scales, make_student, target_role
from flowjax.models.ema import EMAS
from flowjax.paths.pairs import PAIRS, Pairs
from flowjax.samplers.field import determined

READINGS = {
    "error": "The distance of the two ends of a pair. It falls where pairs come closer too, so compare it at equal gaps only.",
    "gap": "The time between the points of a pair: constant on a fixed grid, falling with a schedule.",
    "loss": "With weights that grow as gaps shrink it may rise in a healthy run. Samples are judged by measures, not by it.",
}


GRID = {"name": "grid"}  # the default pairs


def consistency(
    config: ConfigDict,
    data: DataSpec,
    prediction: str = "velocity",
    pairs: Spec = GRID,
    target: Spec | None = None,
    distance: Spec | None = None,
    weight: str = "gap",
    label_dropout: float = 0.1,
    teacher: Spec | None = None,
    solver: str = "heun",
    solver_steps: int = 1,
    scales: tuple = (),
    start: str = "fresh",
) -> Method:
    """Trains a consistency model.

    Args:
      config: path, time (where `pairs` read it), noise, preconditioning, network, optimizer, ema, samplers ('consistency').
      data: shape, classes and scale of the data.
      prediction: what the network outputs.
      pairs: which times are compared, a spec of paths/pairs.py.
      target: who says where the cleaner point ends: None for the student itself; an average of it, a spec of models/ema.py;
        or dict(name='levels', decay=0.9), whose decay follows the number of levels (Song et al. 2023).
      distance: of the ends, a spec of methods/endpoints.py; the mean squared error unless told.
      weight: 'uniform', 'gap' or 'noise_gap'.
      label_dropout: how often conditions are replaced by their null.
      teacher: whose solver makes the cleaner point of the noisier one; None for the pair's own (training from data alone).
      solver: of the teacher.
      solver_steps: of the teacher between two times.
      scales: lowest and highest scale of the teacher's guidance, drawn evenly for each example and told to the student's
        network (guidance_conditional=True); () for the teacher's own.
      start: 'teacher' or 'fresh'.
    """
    choose("weight of a pair of times", weight, GAPS)
    refuse_unread(config, ["weight"], "consistency")
    check_shares(label_dropout=label_dropout)
    if teacher is None and (solver, solver_steps) != ("heun", 1):
        raise ValueError(
            "method.solver and solver_steps are the teacher's, and there is none. Leave them out, or set one."
        )
    student = make_student(config, data, "consistency", prediction, teacher, start)
    check_scales(scales, student.network)
    if scales and (
        student.teacher is None or student.teacher.guidance_scale != 1 or not student.teacher.network.droppable
    ):
        raise ValueError(
            "method.scales guide a teacher: it takes one with a condition to drop, whose own guidance_scale is left at 1."
        )
    path = student.setting.path
    chosen = build("pairs", pairs, PAIRS, path=path, times=student.setting.times, total_steps=config.steps)
    if not chosen.reads_times:
        refuse_unread(config, ["time"], "consistency with even cells")
    if not determined(path, prediction, chosen.times.support[0]):
        raise ValueError(
            f"A '{prediction}' prediction says nothing at the path's noisiest time, where jumps begin. Predict 'velocity' or "
            "'data', or let the pairs begin later (spacing=dict(name='karras'))."
        )
    setting = dataclasses.replace(student.setting, times=chosen.times)
    measure = make_distance(distance)
    roles, judge = joined(student.roles, measure.roles), "student"
    follow = None if student.teacher is None else make_follow(student.teacher, solver_steps, solver)
    if target is not None:
        rates = {**EMAS, "levels": partial(levels_rate, chosen)}
        roles, judge = joined(roles, target_role(target, config, rates)), "target"

    def loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        key_draw, key_scale = jax.random.split(key)
        drawn = draw(setting, batch, key_draw, label_dropout)
        scale = drawn_scales(scales, batch, key_scale)
        cond = drawn.cond if scale is None else {**drawn.cond, "guidance": scale}
        t, s = chosen.pair(drawn.t, batch["step"])
        x = path.sample(drawn.noise, drawn.data, t)
        if follow is None:
            y = path.sample(drawn.noise, drawn.data, s)
        else:
            y = follow(params, x, t, s, drawn.cond, scale)
        # The same dropout on both sides: what differs is the point alone.
        predict = lambda role: lambda x, t: setting.network.apply(params[role], x, t, cond, keys=drawn.keys)
        compare = lambda one, other: measure.compare(params, one, other, batch["step"])
        value, metrics = consistency_loss(
            predict("student"), predict(judge), path, prediction, x, t, y, s, weight, compare
        )
        return value, {"t": t, "gap": s - t, **metrics}

    return Method(
        roles=roles,
        phases={"consistency": Phase(loss, trains=("student",))},
        samplers=make_samplers(config, setting),
        readings=READINGS,
    )


def levels_rate(pairs: Pairs, decay: float = 0.9) -> Rate:
    """An average with decay exp(N(0) ln(decay) / (N(k) - 1)): it follows more slowly as the grid gets finer.

    Args:
      pairs: with levels.
      decay: mu_0 of Song et al. 2023.
    """
    if pairs.levels is None:
        raise ValueError(
            "The target 'levels' follows the number of levels of a grid. Use pairs=dict(name='grid', ...)."
        )
    if not 0 < decay < 1:
        raise ValueError(f"The target 'levels' has decay={decay}; expected a number between 0 and 1.")

    def rate(step):
        first, now = (pairs.levels(count).astype(jnp.float32) for count in (jnp.zeros_like(step), step))
        return -jnp.expm1(first * math.log(decay) / (now - 1.0))

    return rate

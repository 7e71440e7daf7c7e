r"""Shortcut models (Frans et al. 2024): a network of two times that doubles the length of its jumps.

A share of each batch is told to go from t to t + 2^-level of the path and regressed on two jumps of half the length
(losses/shortcuts.py); the others learn the field at s = t, from pairs or from a teacher. The halves are judged by an average
of the student. Samples may then take 1, 2, 4, ... 2^levels steps of the sampler `flow_map`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from flowjax.arrays import example_keys, expand_to, mean_per_example, uniform_rows
from flowjax.choices import Spec
from flowjax.contract import Batch, DataSpec, Method, Metrics, Params, Phase
from flowjax.losses.shortcuts import two_jumps
from flowjax.methods.parts import check_shares, draw, joined, make_samplers, refuse_unread
from flowjax.methods.students import make_student, target_role
from flowjax.paths.predictions import convert, target

READINGS = {
    "error": "Of jumps and of plain flow together. Like that of a flow it ends above zero.",
}


SLOW = {"name": "constant", "decay": 0.999}  # the default judge


def shortcut(
    config: ConfigDict,
    data: DataSpec,
    prediction: str = "velocity",
    levels: int = 7,
    share: float = 0.125,
    judge: Spec | None = SLOW,
    guidance_scale: float = 1.0,
    label_dropout: float = 0.1,
    teacher: Spec | None = None,
    start: str = "fresh",
) -> Method:
    """Trains jumps of lengths 1, 1/2, ... 2^(1 - levels) of the path.

    Args:
      config: path, time (of the field's examples), noise, network (two_times=True), optimizer, ema, samplers ('flow_map').
      data: shape, classes and scale of the data.
      prediction: what the network outputs.
      levels: how often the path is halved; halves of the shortest jumps are steps of the field.
      share: of a batch that is regressed on two jumps: its first rows.
      judge: the average of the student that makes these two jumps, a spec of models/ema.py; None for the student itself.
      guidance_scale: of the steps of the field that the shortest jumps are made of; longer jumps inherit it.
      label_dropout: how often conditions are replaced by their null.
      teacher: whose field takes the place of the pair's in flow matching, with its own guidance_scale; None for data alone.
      start: 'teacher' or 'fresh'.
    """
    refuse_unread(config, ["weight"], "shortcut")
    check_shares(share=share, label_dropout=label_dropout)
    if levels < 1:
        raise ValueError(f"method.levels is {levels}; expected at least 1.")
    student = make_student(config, data, "shortcut", prediction, teacher, start, two_times=True)
    setting, path = student.setting, student.setting.path
    if guidance_scale != 1 and (teacher is not None or not student.network.droppable):
        raise ValueError(
            f"method.guidance_scale is {guidance_scale}, but "
            + ("a teacher brings its own: set teacher.guidance_scale." if teacher else "there is no condition to drop.")
        )
    roles, judging = student.roles, "student"
    if judge is not None:
        roles, judging = joined(roles, target_role(judge, config)), "target"
    width = path.end - path.start

    def long_jumps(rows: Array, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """Where jumps begin, on multiples of their length, and end."""
        first, second = jax.random.split(key)
        level = jnp.floor(levels * uniform_rows(example_keys(first, rows)))
        count = 2.0**level
        place = jnp.floor(count * uniform_rows(example_keys(second, rows)))
        return path.start + width * place / count, path.start + width * (place + 1) / count

    def loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        key_draw, key_jump = jax.random.split(key)
        drawn = draw(setting, batch, key_draw, label_dropout)
        many = round(share * len(drawn.t))
        head = lambda tree: jax.tree.map(lambda leaf: leaf[:many], tree)
        begin, end = long_jumps(batch["row"][:many], key_jump)
        t = jnp.concatenate([begin, drawn.t[many:]])
        s = jnp.concatenate([end, drawn.t[many:]])
        x = path.sample(drawn.noise, drawn.data, t)
        if student.teacher is None:
            wanted = target(path, prediction, drawn.noise, drawn.data, t)
        else:
            velocity = student.teacher.field(params["teacher"], drawn.cond).velocity(x, t)
            wanted = convert(path, "velocity", prediction, velocity, x, t)
        if many:
            tree, keys, cond = params[judging], drawn.keys[:many], head(dict(drawn.cond))
            null = setting.network.drop(cond, jnp.ones(many, bool))

            def guided(x, t, s):
                value = setting.network.apply(tree, x, t, cond, s=s, keys=keys)
                if guidance_scale == 1:
                    return value
                left = setting.network.apply(tree, x, t, null, s=s, keys=keys)
                return jnp.where(expand_to(s == t, x), left + guidance_scale * (value - left), value)

            doubled = two_jumps(guided, path, prediction, x[:many], begin, end, width * 2.0**-levels)
            wanted = jnp.concatenate([doubled, wanted[many:]])
        value = setting.network.apply(params["student"], x, t, drawn.cond, s=s, keys=drawn.keys)
        error = mean_per_example((value - wanted) ** 2)
        return error, {"t": t, "error": error}

    return Method(
        roles=roles,
        phases={"shortcut": Phase(loss, trains=("student",))},
        samplers=make_samplers(config, setting),
        readings=READINGS,
    )

r"""CTM: consistency trajectory models (Kim et al. 2024), a network of two times that learns a teacher's trajectories.

Two terms: soft consistency between jumps that begin at t and, after a stretch of the teacher's trajectory, at u
(losses/trajectory_consistency.py), and the field at s = t, from the data as published or from the teacher. A guided teacher's
field is not that of the data, and short jumps would have to be both. Samplers: `flow_map`, whose gamma adds noise.

s is uniform between t and the clean end, which jumps then seldom reach: a student of one step is judged by the one that goes
the whole way. `to_end` is the share of jumps that end there.

With an adversary there is a second phase, due from `adversarial_start` on:

    phase          trains         loss
    trajectories   student        soft consistency + weight * field + weight * the game against the discriminator
    discriminator  discriminator  the game of data and the student's clean ends
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from flowjax.arrays import example_keys, mean_per_example, uniform_rows
from flowjax.choices import Spec, choose
from flowjax.contract import Batch, DataSpec, Method, Metrics, Params, Phase
from flowjax.losses.adversarial import GAMES
from flowjax.losses.autoencoding import balanced
from flowjax.losses.trajectory_consistency import soft_ends
from flowjax.methods import judges
from flowjax.methods.endpoints import make_distance, make_follow
from flowjax.methods.judges import JUDGE, Bout, make_judge
from flowjax.methods.parts import Draw, check_shares, draw, joined, make_samplers, refuse_unread
from flowjax.methods.students import make_student, target_role
from flowjax.paths.predictions import convert, target

READINGS = {
    "error": "Soft consistency: how far jumps that begin at t and at u end from each other. Falls, then stays.",
    "denoising": "The error of the field at s = t. From data it ends above zero, as in flow matching; from a teacher it falls.",
    "denoising_weight": "The ratio of gradients at the last layer. Steady within a factor of some tens.",
    "adversarial": judges.GENERATOR_READING,
    "adversarial_weight": "The ratio of gradients at the last layer, between 0.01 and 10 times the weight; 0 before the game.",
}


SLOW = {"name": "constant", "decay": 0.999}  # the default judge
ADVERSARY = (0.01, 10.0)  # between which its ratio is kept
FIELDS = ("data", "teacher")
Ends = Callable[[PyTree], tuple[Float[Array, "b ..."], Float[Array, "b ..."]]]
Short = Callable[[PyTree], Float[Array, " b"]]


def trajectory_consistency(
    config: ConfigDict,
    data: DataSpec,
    teacher: Spec,
    prediction: str = "velocity",
    longest: float = 1.0,
    to_end: float = 0.0,
    solver: str = "heun",
    solver_steps: int = 4,
    distance: Spec | None = None,
    judge: Spec = SLOW,
    denoising: float = 1.0,
    field: str = "data",
    adaptive: bool = True,
    adversarial_weight: float = 0.0,
    adversarial_start: int = 0,
    game: str = "hinge",
    discriminator: Spec | None = None,
    discriminator_optimizer: Spec | None = None,
    penalty_weight: float = 0.0,
    penalty_step: float = 0.0,
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
      to_end: the share of jumps that go to the clean end, whatever s was drawn.
      solver, solver_steps: of the teacher on the way to u.
      distance: of the ends, a spec of methods/endpoints.py; the mean squared error unless told.
      judge: the average of the student that compares jumps at the clean end, a spec of models/ema.py.
      denoising: weight of the field at s = t; 0 for none.
      field: what it is fitted to: 'data', the pairs' own predictions, or 'teacher'.
      adaptive: make this weight and the adversary's relative: to the ratio of their gradients and that of soft consistency
        with respect to the last layer; the adversary's ratio stays between 0.01 and 10.
      adversarial_weight: of the student's share in the game; 0 for no adversary.
      adversarial_start: the step from which on the adversary plays.
      game: one of losses.adversarial.GAMES.
      discriminator: spec of methods/judges.py for clean examples; dense layers for points, patches for images, unless told.
      discriminator_optimizer: None for one like config.optimizer.
      penalty_weight: of R1 on real examples.
      penalty_step: 0 for the exact R1, else the step of its approximation.
      label_dropout: how often conditions are replaced by their null.
      start: 'teacher' or 'fresh'.
    """
    refuse_unread(config, ["weight"], "trajectory_consistency")
    check_shares(label_dropout=label_dropout, to_end=to_end)
    choose("field of short jumps", field, dict.fromkeys(FIELDS))
    if not 0 < longest <= 1 or denoising < 0 or adversarial_weight < 0:
        raise ValueError(
            f"method has longest={longest}, denoising={denoising} and adversarial_weight={adversarial_weight}; expected a "
            "share above 0, and no negative weight."
        )
    named = discriminator or discriminator_optimizer or penalty_weight or penalty_step or adversarial_start
    if not adversarial_weight and (named or game != "hinge"):
        raise ValueError(
            "method.adversarial_weight is 0, so there is no discriminator: drop adversarial_start, game, discriminator, "
            "discriminator_optimizer, penalty_weight and penalty_step, or give it a weight."
        )
    student = make_student(config, data, "trajectory_consistency", prediction, teacher, start, two_times=True)
    setting, path, master = student.setting, student.setting.path, student.teacher
    if denoising and field == "data" and master.guidance_scale != 1:
        raise ValueError(
            f"The teacher's jumps are guided (guidance_scale={master.guidance_scale}), and method.field='data' would teach the "
            "shortest of them a field without guidance. Set method.field='teacher'."
        )
    measure = make_distance(distance)
    roles = joined(student.roles, measure.roles, target_role(judge, config))
    follow = make_follow(master, solver_steps, solver)
    adaptive = adaptive and (denoising > 0 or adversarial_weight > 0)
    if adaptive and not setting.network.output:
        raise ValueError(
            f"The network '{config.network.name}' does not say which layer is its last, whose gradients would be compared. "
            "Set method.adaptive=False and a weight method.denoising."
        )

    judging = None
    if adversarial_weight:
        spec = discriminator or dict(name="points" if len(data.shape) == 1 else "patch")
        judging = make_judge(spec, config, data, discriminator_optimizer, noised=False)
        bout = Bout(choose("game", game, GAMES), penalty_weight, penalty_step)
        roles = joined(roles, judging.roles)

    def situation(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Draw, Ends, Short]:
        """What is drawn; the clean ends and the error of the field at s = t as functions of the student."""
        key_draw, key_end, key_stretch, key_whole = jax.random.split(key, 4)
        drawn = draw(setting, batch, key_draw, label_dropout)
        uniform = lambda key: uniform_rows(example_keys(key, batch["row"]))
        t = drawn.t
        s = jnp.where(uniform(key_whole) < to_end, path.end, t + (path.end - t) * uniform(key_end))
        u = t + jnp.minimum(s - t, longest * (path.end - path.start)) * uniform(key_stretch)
        x = path.sample(drawn.noise, drawn.data, t)
        y = follow(params, x, t, u, drawn.cond)
        still = jax.lax.stop_gradient(params["student"])
        predict = lambda tree: lambda x, t, s: setting.network.apply(tree, x, t, drawn.cond, s=s, keys=drawn.keys)

        def ends(tree):
            jumps = predict(tree), predict(still), predict(params["target"])
            return soft_ends(*jumps, path, prediction, x, t, y, u, s)

        def short(tree):
            if field == "data":
                wanted = target(path, prediction, drawn.noise, drawn.data, t)
            else:
                known = master.field(params["teacher"], drawn.cond)
                wanted = convert(path, known.prediction, prediction, known.evaluate(x, t), x, t)
            return mean_per_example((predict(tree)(x, t, t) - jax.lax.stop_gradient(wanted)) ** 2)

        return drawn, ends, short

    def loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        drawn, ends, short = situation(params, batch, key)
        own = params["student"]

        def consistency(tree):
            return measure.compare(params, *ends(tree), batch["step"])

        def fooling(tree):
            return bout.game.generator(judging.frozen(params, ends(tree)[0], None, drawn.cond))

        def weighed(weight, term, lowest=0.0, highest=jnp.inf):
            if not adaptive:
                return jnp.full(drawn.t.shape, weight, jnp.float32)
            layer, whole = setting.network.split_output(own)
            through = lambda loss: lambda layer: loss(whole(layer))
            ratio = balanced(through(consistency), through(term), layer, batch["mask"])
            return jnp.broadcast_to(weight * jnp.clip(ratio, lowest, highest), drawn.t.shape)

        value = consistency(own)
        metrics = {"t": drawn.t, "error": value}
        if denoising:
            plain, weight = short(own), weighed(denoising, short)
            value, metrics = value + weight * plain, {**metrics, "denoising": plain, "denoising_weight": weight}
        if judging is not None:
            fooled, weight = fooling(own), weighed(adversarial_weight, fooling, *ADVERSARY)
            weight = jnp.where(batch["step"] >= adversarial_start, weight, 0.0)
            value, metrics = value + weight * fooled, {**metrics, "adversarial": fooled, "adversarial_weight": weight}
        return value, metrics

    def discriminator_loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        key_ends, key_penalty = jax.random.split(key)
        drawn, ends, _ = situation(params, batch, key_ends)
        score = lambda x: judging.logits(params, x, None, drawn.cond)
        found = jax.lax.stop_gradient(ends(params["student"])[0])
        value, metrics = bout.discriminator_loss(score, drawn.data, found, batch, key_penalty)
        return value, {"t": drawn.t, **metrics}

    phases = {"trajectories": Phase(loss, trains=("student",))}
    if judging is not None:
        phases["discriminator"] = Phase(discriminator_loss, trains=(JUDGE,), start=adversarial_start)
    return Method(roles, phases, make_samplers(config, setting), readings={**READINGS, **judges.READINGS})

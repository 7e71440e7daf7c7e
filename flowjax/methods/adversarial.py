r"""Adversarial distillation: a student of a few steps whose samples a discriminator cannot tell from data.

Roles: student, teacher (frozen), discriminator, the averages of config.ema; ADD with an image network that network as well.

    phase          trains         loss
    discriminator  discriminator  the game, and R1 on real examples
    student        student        the game's other side; ADD adds a distance to its teacher. Due every `student_every` steps

With x the student's clean data at noised real data (or at its own sampling, `simulated`) at one of its times:

ADD (Sauer et al. 2023). The discriminator sees x itself, through frozen features: those of an image network in the
publication, the teacher's own tokens of clean images where none is given; dense layers for points. The teacher sees x noised
to a time of config.time, and the student is drawn to what it denoises that to,

    L = G(D(x)) + distillation_weight * alpha(t) mean |x - stop_gradient(teacher's data at (alpha x + sigma e, t))|^2.   (1)

LADD (Sauer et al. 2024). Everything happens where the teacher lives: x is noised to a time of config.time and judged by heads
on the tokens that the frozen teacher has there, so the discriminator knows conditions and times as the teacher does, and the
law of the times says whether it looks at the whole (near noise) or at detail. No distillation term. An exact teacher has no
tokens: dense layers judge noised points in their place.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from flowjax.arrays import expand_to, mean_per_example
from flowjax.choices import Spec, choose
from flowjax.contract import Batch, DataSpec, Method, Metrics, Params, Phase
from flowjax.losses.adversarial import GAMES
from flowjax.methods import judges
from flowjax.methods.generators import Generator, make_generator
from flowjax.methods.judges import JUDGE, Bout, make_judge
from flowjax.methods.parts import conditions_of, draw, joined, make_samplers, refuse_unread
from flowjax.methods.students import Student, make_student

READINGS = {
    **judges.READINGS,
    "discriminator/loss": "0.69 (non-saturating) or 1 (hinge): it tells nothing apart. Near zero it has won.",
    "logits": "The discriminator's, of the student's samples as the student sees them.",
    "student/loss": judges.GENERATOR_READING,
    "distillation": "The distance to what the teacher makes of the noised sample. Falls, then stays.",
}


Points = Float[Array, "b ..."]
INPUTS: dict[str, Callable[[Generator], Any]] = {
    "data": lambda generator: lambda tree, batch, cond, key: generator.from_data(batch, key),
    "simulated": lambda generator: generator.simulated,
}


def make_players(
    config: ConfigDict,
    data: DataSpec,
    method: str,
    prediction: str,
    teacher: Spec,
    start: str,
    steps: int,
    student_every: int,
    inputs: str,
    unread: tuple[str, ...],
) -> tuple[Student, Callable[[Params, Batch, Key[Array, ""]], Points]]:
    """The student, and (params, batch, key) -> what it makes; the arguments are those of `ladd`."""
    refuse_unread(config, ("coupling", *unread), method)
    if student_every < 1:
        raise ValueError(f"method.student_every is {student_every}; expected at least 1.")
    updates = max(1, config.steps // student_every)
    student = make_student(config, data, method, prediction, teacher, start, updates=updates)
    generator = make_generator(student.setting, steps)
    points = choose("input of the student", inputs, INPUTS)(generator)

    def generate(params: Params, batch: Batch, key: Key[Array, ""]) -> Points:
        cond = conditions_of(batch)
        x, t = points(params["student"], batch, cond, key)
        return generator.data(params["student"], x, t, cond)

    return student, generate


def ladd(
    config: ConfigDict,
    data: DataSpec,
    teacher: Spec,
    start: str = "teacher",
    prediction: str = "velocity",
    steps: int = 4,
    inputs: str = "data",
    student_every: int = 1,
    game: str = "hinge",
    discriminator: Spec | None = None,
    discriminator_optimizer: Spec | None = None,
    penalty_weight: float = 0.0,
    penalty_step: float = 0.0,
) -> Method:
    """Latent adversarial diffusion distillation (Sauer et al. 2024).

    Args:
      config: path, time (of what the discriminator sees; theirs is logit-normal with mean -1), noise, network, optimizer, ema,
        samplers ('consistency').
      data: shape and classes.
      teacher: spec of methods/teacher.py.
      start: of the student: 'teacher' or 'fresh'.
      prediction: what the student outputs.
      steps: of the student, on a uniform grid.
      inputs: what the student is given in training: 'data', real data noised to one of its times, or 'simulated', its own
        sampling up to there.
      student_every: updates of the discriminator for one of the student.
      game: one of losses.adversarial.GAMES.
      discriminator: spec of methods/judges.py for noised examples; on the teacher's tokens where it has blocks, else dense
        layers.
      discriminator_optimizer: None for one like config.optimizer.
      penalty_weight: of R1 on real examples.
      penalty_step: 0 for the exact R1, else the step of its approximation.
    """
    student, generate = make_players(
        config, data, "ladd", prediction, teacher, start, steps, student_every, inputs, ("weight",)
    )
    setting, network = student.setting, student.teacher.network
    spec = discriminator or dict(name="points" if network.hidden is None else "tokens")
    judge = make_judge(spec, config, data, discriminator_optimizer, noised=True, backbone=(network, "teacher"))
    bout = Bout(choose("game", game, GAMES), penalty_weight, penalty_step)

    def student_loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        key_generate, key_draw = jax.random.split(key)
        drawn = draw(setting, batch, key_draw, 0.0)
        noised = setting.path.sample(drawn.noise, generate(params, batch, key_generate), drawn.t)
        logits = judge.frozen(params, noised, drawn.t, drawn.cond)
        return bout.game.generator(logits), {"t": drawn.t, "logits": mean_per_example(logits)}

    def discriminator_loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        key_generate, key_draw, key_real, key_penalty = jax.random.split(key, 4)
        made = jax.lax.stop_gradient(generate(params, batch, key_generate))
        drawn, other = draw(setting, batch, key_draw, 0.0), draw(setting, batch, key_real, 0.0)
        fake = setting.path.sample(drawn.noise, made, drawn.t)
        real = setting.path.sample(other.noise, batch["data"], drawn.t)
        score = lambda x: judge.logits(params, x, drawn.t, drawn.cond)
        value, metrics = bout.discriminator_loss(score, real, fake, batch, key_penalty)
        return value, {"t": drawn.t, **metrics}

    return _method(config, student, judge.roles, student_loss, discriminator_loss, student_every)


def add(
    config: ConfigDict,
    data: DataSpec,
    teacher: Spec,
    start: str = "teacher",
    prediction: str = "velocity",
    steps: int = 4,
    inputs: str = "data",
    student_every: int = 1,
    game: str = "hinge",
    discriminator: Spec | None = None,
    discriminator_optimizer: Spec | None = None,
    penalty_weight: float = 0.0,
    penalty_step: float = 0.0,
    adversarial_weight: float = 1.0,
    distillation_weight: float = 2.5,
) -> Method:
    """Adversarial diffusion distillation (Sauer et al. 2023); arguments that are not explained are those of `ladd`.

    Args:
      config: likewise, but time is the law of the times at which the teacher looks at the student's samples.
      data: likewise.
      teacher: likewise.
      start: likewise.
      prediction: likewise.
      steps: likewise.
      inputs: likewise.
      student_every: likewise.
      game: likewise.
      discriminator: spec of methods/judges.py for clean examples: 'tokens', 'features', 'patch' or 'points'. By default dense
        layers for points, the teacher's tokens for images, patches where it has none. Tokens know the conditions, dense layers
        the labels; the others are not told.
      discriminator_optimizer: likewise.
      penalty_weight: likewise; of the features' heads 1e-5 in the publication.
      penalty_step: likewise.
      adversarial_weight: of the game in equation (1).
      distillation_weight: of its second term.
    """
    weights = dict(adversarial_weight=adversarial_weight, distillation_weight=distillation_weight)
    for name, value in weights.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(
                f"method.{name} is {value}; it must be positive. Without the teacher this is method 'ladd'."
            )
    student, generate = make_players(
        config, data, "add", prediction, teacher, start, steps, student_every, inputs, ("weight",)
    )
    setting, path = student.setting, student.setting.path
    network = student.teacher.network
    usual = "points" if len(data.shape) == 1 else "patch" if network.hidden is None else "tokens"
    spec, backbone = discriminator or dict(name=usual), (network, "teacher")
    judge = make_judge(spec, config, data, discriminator_optimizer, noised=False, backbone=backbone, end=path.end)
    bout = Bout(choose("game", game, GAMES), penalty_weight, penalty_step)

    def student_loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        key_generate, key_draw = jax.random.split(key)
        made = generate(params, batch, key_generate)
        drawn = draw(setting, batch, key_draw, 0.0)
        logits = judge.frozen(params, made, None, drawn.cond)
        noised = jax.lax.stop_gradient(path.sample(drawn.noise, made, drawn.t))
        field = student.teacher.field(jax.lax.stop_gradient(params["teacher"]), drawn.cond)
        meant = jax.lax.stop_gradient(field.data(noised, drawn.t))
        gap = mean_per_example(expand_to(path.alpha(drawn.t), made) * (made - meant) ** 2)
        value = adversarial_weight * bout.game.generator(logits) + distillation_weight * gap
        return value, {"t": drawn.t, "logits": mean_per_example(logits), "distillation": gap}

    def discriminator_loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        key_generate, key_penalty = jax.random.split(key)
        made = jax.lax.stop_gradient(generate(params, batch, key_generate))
        score = lambda x: judge.logits(params, x, None, conditions_of(batch))
        return bout.discriminator_loss(score, batch["data"], made, batch, key_penalty)

    return _method(config, student, judge.roles, student_loss, discriminator_loss, student_every)


def _method(config, student, roles, student_loss, discriminator_loss, every) -> Method:
    phases = {
        "discriminator": Phase(discriminator_loss, (JUDGE,)),
        "student": Phase(student_loss, ("student",), every=every),
    }
    return Method(joined(student.roles, roles), phases, make_samplers(config, student.setting), readings=READINGS)

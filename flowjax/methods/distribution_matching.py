r"""Distillation by matching distributions: DMD, DMD2 and SiD. A student need not follow its teacher's trajectories.

Roles: student, teacher (frozen), fake (a denoiser of what the student makes), the averages of config.ema; with an adversary
also discriminator.

    phase    trains                  loss
    fake     fake, discriminator     denoising of the student's samples; the discriminator's game where there is one
    student  student                 see below; due every `student_every` steps, from step `fake_warmup` on

| method | student's loss (losses/distribution_matching.py)                                  | reference          |
| dmd    | distribution matching + distance to where the teacher's ODE leads from the noise  | Yin et al. 2023    |
| dmd2   | distribution matching + an adversary; several steps by backward simulation        | Yin et al. 2024    |
| sid    | score identity                                                                    | Zhou et al. 2024   |

The fake denoiser must be right about a student that moves: hence several updates of it for one of the student (two time
scales). It starts as the teacher where that is a network; beside an exact teacher it is like the student's network and starts
fresh, and `fake_warmup` lets it learn before anyone listens. Both denoise at times of config.time; the student is compared at
those between `low` and `high`, as at the very ends two denoisers agree or are both wrong.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from flowjax.arrays import mean_per_example
from flowjax.choices import Spec, choose
from flowjax.contract import Batch, DataSpec, LossFn, Method, Metrics, Params, Phase, Role
from flowjax.losses.adversarial import GAMES
from flowjax.losses.denoising import prediction_loss
from flowjax.losses.distribution_matching import (
    DIVERGENCES,
    divergence_weight,
    matching_loss,
    posterior_scale,
    score_identity_loss,
)
from flowjax.methods import judges
from flowjax.methods.endpoints import make_distance, make_follow
from flowjax.methods.generators import Generator, make_generator
from flowjax.methods.judges import JUDGE, Bout, make_judge
from flowjax.methods.optimizers import make_optimizer
from flowjax.methods.parts import Draw, Setting, conditions_of, draw, joined, make_samplers, refuse_unread
from flowjax.methods.students import Student, make_student
from flowjax.methods.teacher import Teacher
from flowjax.models.network import Conditions, Network
from flowjax.paths.times import truncated
from flowjax.paths.weights import loss_weight
from flowjax.samplers.field import Field

READINGS = {
    **judges.READINGS,
    "fake/error": "Of the denoiser that follows the student's samples: like a flow's, with a floor. It must not run off.",
    "gap": "The mean difference of the two denoisers, along which the student is sent. It shrinks, not to zero.",
    "student/loss": "Not a distance: only its gradient has a meaning. Look at the gap, and at the samples.",
    "regression": "The distance to the teacher's ends from the same noise. Falls, then stays.",
    "adversarial": judges.GENERATOR_READING,
    "critic": "The discriminator's loss: 0.69 where it tells nothing apart.",
}


FAKE = "fake"  # the role
Points = Float[Array, "b ..."]


@dataclasses.dataclass(frozen=True)
class Matching:
    """What the three methods share.

    Attributes:
      student: with its roles, `fake` among them.
      generator: how it makes samples.
      fake: the network of the fake denoiser.
      fake_prediction: what that returns.
      compared: the student's setting with the times at which it is compared.
      updates: of the student.
      every, start: when the student is due.
      data_std: for the scale of Gaussian data; None for that of each sample.
    """

    student: Student
    generator: Generator
    fake: Network
    fake_prediction: str
    compared: Setting
    updates: int
    every: int
    start: int
    data_std: float | None

    def scale(self, t: Float[Array, " b"]) -> Float[Array, " b"] | None:
        """What differences of the two denoisers are divided by; None for mean |x - r| of each sample."""
        return None if self.data_std is None else posterior_scale(self.setting.path, t, self.data_std)

    @property
    def setting(self) -> Setting:
        """The student's."""
        return self.student.setting

    @property
    def teacher(self) -> Teacher:
        """The student's."""
        return self.student.teacher

    def generate(self, params: Params, batch: Batch, key: Key[Array, ""]) -> Points:
        """Samples of the student, with the gradient of their last step."""
        cond = conditions_of(batch)  # none dropped: a student has its teacher's guidance in it
        x, t = self.generator.simulated(params["student"], batch, cond, key)
        return self.generator.data(params["student"], x, t, cond)

    def fields(self, params: Params, cond: Conditions) -> tuple[Field, Field]:
        """The fake denoiser and the teacher, both frozen."""
        frozen = jax.lax.stop_gradient({name: params[name] for name in (FAKE, "teacher")})
        fake = lambda x, t: self.fake.apply(frozen[FAKE], x, t, cond)
        return Field(fake, self.fake_prediction, self.setting.path), self.teacher.field(frozen["teacher"], cond)

    def fake_loss(
        self, params: Params, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, " b"], Metrics, Points, Draw]:
        """Denoising of the student's samples; also the samples, and the draw they were noised with."""
        key_generate, key_draw = jax.random.split(key)
        made = jax.lax.stop_gradient(self.generate(params, batch, key_generate))
        drawn = draw(self.setting, batch, key_draw, 0.0)
        setting, prediction = self.setting, self.fake_prediction
        value, metrics = prediction_loss(
            lambda x, t: self.fake.apply(params[FAKE], x, t, drawn.cond, keys=drawn.keys),
            setting.path,
            prediction,
            drawn.noise,
            made,
            drawn.t,
            weight=loss_weight(setting.weight, setting.path, prediction, drawn.t),
        )
        return value, metrics, made, drawn

    def method(
        self, config: ConfigDict, student_loss: LossFn, roles: Mapping[str, Role], fake_loss: LossFn | None = None
    ) -> Method:
        """The method of a student's loss, with further roles; `fake_loss` where that is more than denoising."""
        trains = (FAKE, JUDGE) if JUDGE in roles else (FAKE,)
        phases = {
            "fake": Phase(fake_loss or (lambda *a: self.fake_loss(*a)[:2]), trains),
            "student": Phase(student_loss, ("student",), every=self.every, start=self.start),
        }
        return Method(joined(self.student.roles, roles), phases, make_samplers(config, self.setting), readings=READINGS)


def make_matching(
    config: ConfigDict,
    data: DataSpec,
    method: str,
    prediction: str,
    teacher: Spec,
    start: str,
    steps: int,
    student_every: int,
    fake_warmup: int,
    fake_optimizer: Spec | None,
    low: float,
    high: float,
    scale: str,
) -> Matching:
    """Builds the student, its teacher, its generator and the fake denoiser; the arguments are those of `dmd2`."""
    refuse_unread(config, ("coupling",), method)
    if student_every < 1 or not 0 <= fake_warmup < config.steps:
        raise ValueError(
            f"method.student_every={student_every} and fake_warmup={fake_warmup}: expected at least 1, and a step of the run "
            f"(0 to {config.steps - 1})."
        )
    updates = max(1, (config.steps - fake_warmup) // student_every)
    student = make_student(config, data, method, prediction, teacher, start, updates=updates)
    setting, finished = student.setting, student.teacher.finished
    if finished is None:
        network, kind, begins = setting.network, prediction, {"init": setting.network.init}
    else:
        network, kind = student.teacher.network, student.teacher.prediction
        begins = {"init": network.init, "restore_from": finished.reference}
    rule = make_optimizer(fake_optimizer or config.optimizer, config.steps)
    fake = Role(**begins, tx=rule.tx, learning_rate=rule.learning_rate)
    student = dataclasses.replace(student, roles=joined(student.roles, {FAKE: fake}))
    compared = dataclasses.replace(setting, times=truncated(setting.times, low, high))
    data_std = choose("scale of the comparison", scale, {"sample": None, "gaussian": data.std})
    return Matching(
        student, make_generator(setting, steps), network, kind, compared, updates, student_every, fake_warmup, data_std
    )


def dmd2(
    config: ConfigDict,
    data: DataSpec,
    teacher: Spec,
    start: str = "teacher",
    prediction: str = "velocity",
    steps: int = 1,
    student_every: int = 5,
    fake_warmup: int = 0,
    fake_optimizer: Spec | None = None,
    low: float = 0.02,
    high: float = 0.98,
    scale: str = "sample",
    adversarial_weight: float = 0.0,
    critic_weight: float = 1e-2,
    discriminator: Spec | None = None,
    discriminator_optimizer: Spec | None = None,
    penalty_weight: float = 0.0,
    penalty_step: float = 0.0,
    divergence: str = "reverse_kl",
) -> Method:
    """Improved distribution matching (Yin et al. 2024).

    Args:
      config: path, time, weight, noise, network, optimizer, ema, samplers ('consistency').
      data: shape and classes; with an adversary real examples as well.
      teacher: spec of methods/teacher.py.
      start: of the student: 'teacher' or 'fresh'.
      prediction: what the student outputs.
      steps: of the student, as many as its sampler has. The fake denoiser is one for the samples of all steps together: it is
        their mixture that is matched, which asks more of a network than one step does.
      student_every: updates of the fake denoiser for one of the student.
      fake_warmup: the step of the student's first update.
      fake_optimizer: of the fake denoiser; None for one like config.optimizer.
      low, high: the times between which student and teacher are compared.
      scale: what the difference of the denoisers is divided by: 'sample', mean |x - r| of each sample, or 'gaussian', a
        function of t alone, for points.
      adversarial_weight: of the student's share in the non-saturating game; 0 for no adversary (3e-3 in the publication).
      critic_weight: of the discriminator's share beside denoising, which matters where its features are the fake denoiser's.
      discriminator: spec of methods/judges.py for noised examples; on the fake denoiser's tokens where it has blocks, else
        dense layers.
      discriminator_optimizer: None for one like config.optimizer.
      penalty_weight: of R1 on real examples.
      penalty_step: 0 for the exact R1, else the step of its approximation.
      divergence: 'reverse_kl', or with an adversary another of losses.distribution_matching.DIVERGENCES.
    """
    parts = make_matching(
        config,
        data,
        "dmd2",
        prediction,
        teacher,
        start,
        steps,
        student_every,
        fake_warmup,
        fake_optimizer,
        low,
        high,
        scale,
    )
    choose("divergence", divergence, DIVERGENCES)
    if adversarial_weight < 0 or critic_weight <= 0:
        raise ValueError(
            f"method.adversarial_weight={adversarial_weight} and critic_weight={critic_weight}: expected at least 0, and more "
            "than 0."
        )
    judge, bout = None, None
    if adversarial_weight:
        spec = discriminator or dict(name="points" if parts.fake.hidden is None else "tokens")
        behind = (parts.fake, FAKE)
        judge = make_judge(spec, config, data, discriminator_optimizer, noised=True, backbone=behind)
        bout = Bout(GAMES["non_saturating"], penalty_weight, penalty_step)
    elif discriminator or discriminator_optimizer or penalty_weight or penalty_step or divergence != "reverse_kl":
        raise ValueError(
            "method.adversarial_weight is 0, so there is no discriminator: drop discriminator, discriminator_optimizer, "
            "penalty_weight, penalty_step and divergence, or give it a weight."
        )

    def student_loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        key_generate, key_draw = jax.random.split(key)
        made = parts.generate(params, batch, key_generate)
        drawn = draw(parts.compared, batch, key_draw, 0.0)
        noised = parts.setting.path.sample(drawn.noise, made, drawn.t)
        fake, real = (field.data(jax.lax.stop_gradient(noised), drawn.t) for field in parts.fields(params, drawn.cond))
        spread = parts.scale(drawn.t)
        if judge is None:
            value, metrics = matching_loss(made, fake, real, spread)
            return value, {"t": drawn.t, **metrics}
        logits = judge.frozen(params, noised, drawn.t, drawn.cond)
        weight = None if divergence == "reverse_kl" else divergence_weight(divergence, mean_per_example(logits))
        value, metrics = matching_loss(made, fake, real, spread, weight)
        fooling = bout.game.generator(logits)
        return value + adversarial_weight * fooling, {"t": drawn.t, **metrics, "adversarial": fooling}

    def fake_loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        key_fake, key_real, key_penalty = jax.random.split(key, 3)
        value, metrics, made, drawn = parts.fake_loss(params, batch, key_fake)
        path = parts.setting.path
        real = path.sample(parts.generator.noise(batch, key_real), batch["data"], drawn.t)
        score = lambda x: judge.logits(params, x, drawn.t, drawn.cond)
        noised = path.sample(drawn.noise, made, drawn.t)
        game, figures = bout.discriminator_loss(score, real, noised, batch, key_penalty)
        return value + critic_weight * game, {"t": drawn.t, **metrics, **figures, "critic": game}

    if judge is None:
        return parts.method(config, student_loss, {})
    return parts.method(config, student_loss, judge.roles, fake_loss)


def dmd(
    config: ConfigDict,
    data: DataSpec,
    teacher: Spec,
    start: str = "teacher",
    prediction: str = "velocity",
    student_every: int = 1,
    fake_warmup: int = 0,
    fake_optimizer: Spec | None = None,
    low: float = 0.02,
    high: float = 0.98,
    scale: str = "sample",
    regression_weight: float = 0.25,
    teacher_steps: int = 20,
    teacher_solver: str = "midpoint",
    distance: Spec | None = None,
) -> Method:
    """Distribution matching with a regression on the teacher's own pairs of noise and sample (Yin et al. 2023), one step.

    The pairs are made as they are needed, by following the teacher's ODE from the student's noise. All else is as in `dmd2`.

    Args:
      config: see `dmd2`.
      data: likewise.
      teacher: likewise.
      start: likewise.
      prediction: likewise.
      student_every: likewise.
      fake_warmup: likewise.
      fake_optimizer: likewise.
      low: likewise.
      high: likewise.
      scale: likewise.
      regression_weight: of the distance.
      teacher_steps: along the teacher's ODE.
      teacher_solver: one of paths.ode.SOLVERS.
      distance: a spec of methods/endpoints.py (LPIPS in the publication); the mean squared one unless told.
    """
    if not (math.isfinite(regression_weight) and regression_weight > 0):
        raise ValueError(
            f"method.regression_weight is {regression_weight}; it must be positive. Without regression this is method 'dmd2'."
        )
    parts = make_matching(
        config, data, "dmd", prediction, teacher, start, 1, student_every, fake_warmup, fake_optimizer, low, high, scale
    )
    path, measure = parts.setting.path, make_distance(distance)
    follow = make_follow(parts.teacher, teacher_steps, teacher_solver)

    def student_loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        key_start, key_draw = jax.random.split(key)
        drawn = draw(parts.compared, batch, key_draw, 0.0)
        begin = parts.generator.start(batch, key_start)
        made = parts.generator.data(params["student"], begin, path.start, drawn.cond)
        noised = jax.lax.stop_gradient(path.sample(drawn.noise, made, drawn.t))
        fake, real = parts.fields(params, drawn.cond)
        value, metrics = matching_loss(
            made, fake.data(noised, drawn.t), real.data(noised, drawn.t), parts.scale(drawn.t)
        )
        led = follow(params, begin, path.start, path.end, drawn.cond)
        away = measure.compare(params, made, led, batch["step"])
        return value + regression_weight * away, {"t": drawn.t, **metrics, "regression": away}

    return parts.method(config, student_loss, measure.roles)


def sid(
    config: ConfigDict,
    data: DataSpec,
    teacher: Spec,
    start: str = "teacher",
    prediction: str = "velocity",
    steps: int = 1,
    student_every: int = 1,
    fake_warmup: int = 0,
    fake_optimizer: Spec | None = None,
    low: float = 0.02,
    high: float = 0.98,
    scale: str = "sample",
    alpha: float = 1.2,
) -> Method:
    """Score identity distillation (Zhou et al. 2024): the student's gradient flows through both denoisers.

    A negative loss is right for alpha above 1: it rises to 0.

    Args:
      config: see `dmd2`.
      data: likewise.
      teacher: likewise.
      start: likewise.
      prediction: likewise.
      steps: likewise.
      student_every: likewise.
      fake_warmup: likewise.
      fake_optimizer: likewise.
      low: likewise.
      high: likewise.
      scale: likewise.
      alpha: a of equation (6).
    """
    parts = make_matching(
        config,
        data,
        "sid",
        prediction,
        teacher,
        start,
        steps,
        student_every,
        fake_warmup,
        fake_optimizer,
        low,
        high,
        scale,
    )

    def student_loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        key_generate, key_draw = jax.random.split(key)
        made = parts.generate(params, batch, key_generate)
        drawn = draw(parts.compared, batch, key_draw, 0.0)
        noised = parts.setting.path.sample(drawn.noise, made, drawn.t)
        fake, real = (field.data(noised, drawn.t) for field in parts.fields(params, drawn.cond))
        value, metrics = score_identity_loss(made, fake, real, alpha, parts.scale(drawn.t))
        return value, {"t": drawn.t, **metrics}

    return parts.method(config, student_loss, {})

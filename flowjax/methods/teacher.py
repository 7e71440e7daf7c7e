r"""Teachers: frozen fields that students learn to shorten.

    dict(name="run", restore_from="runs/teacher", guidance_scale=2.0)      a finished run
    dict(name="mixture", modes=8, weights="uneven")                        the exact velocity of the data source `mixture`

A teacher answers with velocities. Guidance is part of it: with a scale w other than 1 its velocity is u + w (c - u), c
under an example's conditions and u under their nulls, and what the student learns needs no guidance any more.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from flowjax.arrays import batch_times, expand_to
from flowjax.choices import Spec, build, choose
from flowjax.contract import DataSpec, Role
from flowjax.methods.finished import Finished, open_finished
from flowjax.methods.parts import Setting
from flowjax.models.network import Conditions, Network, label_condition
from flowjax.paths.oracles import GaussianMixture, ring
from flowjax.paths.path import GaussianPath
from flowjax.samplers.field import Field

Scale = float | Float[Array, " b"]


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen field.

    Attributes:
      role: its parameters.
      network: called as every network is.
      prediction: what the network returns.
      path: the path it was trained on.
      guidance_scale: w; 1 asks for the conditional prediction alone.
      finished: the run it comes from, None for an oracle.
    """

    role: Role
    network: Network
    prediction: str
    path: GaussianPath
    guidance_scale: float = 1.0
    finished: Finished | None = None

    def field(self, tree: PyTree, cond: Conditions, scale: Scale | None = None) -> Field:
        """The guided field under conditions; `scale`, one or one for each example, replaces the teacher's own."""
        scale = self.guidance_scale if scale is None else scale
        guided = not (isinstance(scale, (int, float)) and scale == 1)

        def predict(x, t):
            if not guided:
                return self.network.apply(tree, x, t, cond)
            null = self.network.drop(cond, jnp.ones(len(x), bool))
            both = jax.tree.map(lambda c, u: jnp.concatenate([c, u]), dict(cond), dict(null))
            value = self.network.apply(tree, jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
            followed, left = jnp.split(value, 2)
            return left + expand_to(jnp.broadcast_to(jnp.asarray(scale), t.shape), x) * (followed - left)

        return Field(predict, self.prediction, self.path)


def make_teacher(spec: Spec, data: DataSpec, setting: Setting) -> Teacher:
    """The teacher of a spec; one that does not fit the student is refused.

    Args:
      spec: see the module header.
      data: of the student.
      setting: of the student: its path, network and conditions.
    """
    teacher = build("teacher", spec, TEACHERS, data=data, path=setting.path)
    _check_path(teacher.path, setting.path)
    for name in teacher.network.conditions:
        if name not in setting.network.conditions:
            raise ValueError(
                f"The teacher reads the condition '{name}' and the student does not: it could not follow. Give the student's "
                "network the same conditions (class_conditional, text_conditional), or take a teacher without it."
            )
    if teacher.guidance_scale != 1 and not teacher.network.droppable:
        raise ValueError(
            f"teacher.guidance_scale is {teacher.guidance_scale}, but the teacher has no condition to drop. Leave it at 1."
        )
    return teacher


def _check_path(theirs: GaussianPath, ours: GaussianPath) -> None:
    """Refuses paths that differ anywhere; two of one name may differ in their options."""
    with jax.ensure_compile_time_eval():
        t = jnp.linspace(max(theirs.start, ours.start), min(theirs.end, ours.end), 33)
        same = lambda one, other: bool(jnp.allclose(one(t), other(t), rtol=1e-4, atol=1e-5))
        if not (same(theirs.alpha, ours.alpha) and same(theirs.sigma, ours.sigma)):
            raise ValueError(
                f"The teacher was trained on the path '{theirs.name}' and the student is to learn on '{ours.name}', which is "
                "another. Set the student's path to the teacher's, with the same options."
            )


def run(data: DataSpec, path: GaussianPath, restore_from: str, guidance_scale: float = 1.0) -> Teacher:
    """A finished run.

    Args:
      data: what student and teacher see.
      path: of the student; the teacher has its own.
      restore_from: RUN_DIRECTORY or RUN_DIRECTORY:role; the average `ema` where the run has one, else `student`.
      guidance_scale: w of classifier-free guidance.
    """
    finished = open_finished(restore_from, data, "The teacher")
    theirs = finished.setting
    return Teacher(finished.role, theirs.network, theirs.prediction, theirs.path, guidance_scale, finished)


def mixture(
    data: DataSpec,
    path: GaussianPath,
    modes: int = 8,
    radius: float = 2.0,
    std: float = 0.15,
    weights: str = "even",
    guidance_scale: float = 1.0,
) -> Teacher:
    """The exact velocity of a mixture of Gaussians on a ring, with its modes for classes where the data have labels.

    Args:
      data: points, with labels or without.
      path: of the student.
      modes, radius, std, weights: of the data source `mixture`.
      guidance_scale: w of classifier-free guidance.
    """
    exact = ring(modes, radius, std, weights)
    arrays = {"weights": exact.weights, "means": exact.means, "stds": exact.stds}
    labels = data.num_classes is not None
    conditions = {"label": label_condition(modes)} if labels else {}

    def apply(
        tree: PyTree,
        x: Float[Array, "b d"],
        t: Float[Array, "..."],
        cond: Conditions,
        *,
        s: Float[Array, "..."] | None = None,
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b d"]:
        known = GaussianMixture(**tree, classes=jnp.arange(modes))
        return known.prediction(path, "velocity", x, batch_times(t, x), cond["label"] if labels else None)

    def drop(cond: Conditions, dropped: Array) -> Conditions:
        return {**cond, "label": jnp.where(dropped, modes, cond["label"])} if labels else dict(cond)

    network = Network(lambda key: arrays, apply, drop, conditions)
    return Teacher(Role(init=network.init), network, "velocity", path, guidance_scale)


TEACHERS: dict[str, Callable[..., Teacher]] = {"run": run, "mixture": mixture}
STARTS = ("teacher", "fresh")


def student_start(start: str, teacher: Teacher, setting: Setting) -> dict[str, Callable | str]:
    """How a student's role begins, as arguments of Role: as its teacher, or with fresh parameters.

    A student with more inputs than its teacher, such as a second time, starts as the teacher too.

    Args:
      start: 'teacher' or 'fresh'.
      teacher: of the student.
      setting: the student's.
    """
    choose("start of a student", start, dict.fromkeys(STARTS))
    if start == "fresh":
        return {"init": setting.network.init}
    finished = teacher.finished
    if finished is None:
        raise ValueError("An oracle has no parameters that a student could start from. Set method.start='fresh'.")
    if teacher.prediction != setting.prediction:
        raise ValueError(
            f"The student predicts '{setting.prediction}' and is to start as its teacher, which predicts "
            f"'{teacher.prediction}': the same parameters mean something else. Set method.prediction='{teacher.prediction}', "
            "or method.start='fresh'."
        )
    return {"init": setting.network.init, "restore_from": finished.reference}

r"""What methods share that regress a student on where its teacher's trajectories lead: the way there, and a distance.

dict(name="squared")                                      mean squared error
dict(name="pseudo_huber", width=0.03)                     losses/trajectories.py: outliers pull no harder than others
dict(name="perceptual", network=dict(name="efficientnet_lite0"), squared_until=1000)
                                                          features of a frozen network, after a start on squared errors
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flowjax.choices import Spec, build
from flowjax.contract import Params, Role
from flowjax.losses.trajectories import pseudo_huber, squared_distance
from flowjax.methods.parts import Setting
from flowjax.methods.teacher import Scale, Teacher
from flowjax.models.network import Conditions
from flowjax.models.perceptual import make_perceptual
from flowjax.paths.ode import REACH_THE_END, solve
from flowjax.samplers.field import determined

EYE = "perceptual"  # the role of a distance's network
Points = Float[Array, "b ..."]
Time = Float[Array, "..."] | float
Follow = Callable[
    ..., Points
]  # (params, x, t, s, cond, and a scale of guidance in place of the teacher's) -> points at s
Compare = Callable[[Params, Points, Points, Int[Array, " b"]], Float[Array, " b"]]  # (params, x, y, step) -> distance


def make_follow(teacher: Teacher, steps: int, solver: str) -> Follow:
    """Follows a teacher's guided field, whose parameters are the role `teacher`; nothing is differentiated.

    Args:
      teacher: of the student.
      steps: of the solver, over the stretch from t to s.
      solver: one of paths.ode.SOLVERS.
    """
    if steps < 1:
        raise ValueError(f"The teacher is followed by {steps} steps of its solver; expected at least 1.")
    ends = {"start": teacher.path.start} | ({"end": teacher.path.end} if solver in REACH_THE_END else {})
    for place, t in ends.items():
        if not determined(teacher.path, teacher.prediction, t):
            raise ValueError(
                f"The teacher's '{teacher.prediction}' prediction determines no velocity at the {place} of the path "
                f"'{teacher.path.name}', which solver '{solver}' asks for. "
                + ("Use the solver 'midpoint'." if place == "end" else "Use a teacher that predicts velocity or data.")
            )

    def follow(params: Params, x: Points, t: Time, s: Time, cond: Conditions, scale: Scale | None = None) -> Points:
        velocity = teacher.field(params["teacher"], cond, scale).velocity
        return jax.lax.stop_gradient(solve(velocity, x, t, s, steps, solver))

    return follow


def check_start(setting: Setting) -> None:
    """Refuses a prediction with which nothing can leave the noise end of the path."""
    if not determined(setting.path, setting.prediction, setting.path.start):
        raise ValueError(
            f"A '{setting.prediction}' prediction moves nothing at the start of the path '{setting.path.name}', where students "
            "of this method jump off. Set method.prediction to 'velocity' or 'data'."
        )


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far a student's point is from the one it should reach.

    Attributes:
      compare: (params, x, y, step[b]) -> one value for each example.
      roles: what it reads beside the points.
    """

    compare: Compare
    roles: Mapping[str, Role] = dataclasses.field(default_factory=dict)


def squared() -> Distance:
    """The mean squared error."""
    return Distance(lambda params, x, y, step: squared_distance(x, y))


def huber(width: float = 0.00054) -> Distance:
    """The pseudo-Huber distance.

    Args:
      width: the error of an element below which it is a squared error, above an absolute one.
    """
    if width <= 0:
        raise ValueError(f"distance.width is {width}; expected a positive number.")
    return Distance(lambda params, x, y, step: pseudo_huber(x, y, width))


def perceptual(network: Spec, squared_weight: float = 0.0, squared_until: int = 0) -> Distance:
    """The distance of two images as a frozen network sees them, after a start on squared errors (Liu et al. 2023).

    Args:
      network: spec of models/perceptual.py.
      squared_weight: of a squared error that is added.
      squared_until: the step before which there is nothing but the squared error.
    """
    if squared_weight < 0 or squared_until < 0:
        raise ValueError(
            f"distance.squared_weight is {squared_weight} and squared_until {squared_until}; they must be at least 0."
        )
    eye = make_perceptual(network)

    def compare(params: Params, x: Points, y: Points, step: Int[Array, " b"]) -> Float[Array, " b"]:
        plain = squared_distance(x, y)
        seen = eye.distance(jax.lax.stop_gradient(params[EYE]), x, y) + squared_weight * plain
        return jnp.where(step < squared_until, plain, seen)

    return Distance(compare, {EYE: eye.role})


DISTANCES: dict[str, Callable[..., Distance]] = {"squared": squared, "pseudo_huber": huber, "perceptual": perceptual}


def make_distance(spec: Spec | None) -> Distance:
    """The distance of a spec; the squared one where there is none."""
    return build("distance", spec or dict(name="squared"), DISTANCES)

"""What methods that shorten sampling share: a student with its setting, its teacher and its averages, and draws of times."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from flowjax.arrays import example_keys, uniform_rows
from flowjax.choices import Spec, build
from flowjax.contract import Batch, DataSpec, Rate, Role, Track
from flowjax.methods.optimizers import make_optimizer
from flowjax.methods.parts import Setting, average_roles, joined, make_setting
from flowjax.methods.teacher import Teacher, make_teacher, student_start
from flowjax.models.ema import EMAS
from flowjax.models.network import Network


@dataclasses.dataclass(frozen=True)
class Student:
    """A student, ready to be trained.

    Attributes:
      setting: path, noise, times, network and prediction.
      teacher: None where it learns from data alone.
      roles: student, teacher (where there is one) and the averages of config.ema.
    """

    setting: Setting
    teacher: Teacher | None
    roles: dict[str, Role]

    @property
    def network(self) -> Network:
        """The student's."""
        return self.setting.network


def make_student(
    config: ConfigDict,
    data: DataSpec,
    method: str,
    prediction: str,
    teacher: Spec | None = None,
    start: str = "fresh",
    two_times: bool = False,
    stages: tuple[int, ...] = (),
    updates: int | None = None,
) -> Student:
    """Builds what a distillation method begins with.

    Args:
      config: path, time, noise, preconditioning, network, optimizer, ema.
      data: shape, classes and scale of the data.
      method: its name, for messages.
      prediction: what the student's network outputs.
      teacher: spec of methods/teacher.py, or None.
      start: 'teacher' or 'fresh'.
      two_times: whether the method needs a network of two times.
      stages: how many steps each stage of the run has, where it has several: learning rate and averages begin anew with each.
      updates: how many the student will have, where that is not one a step: the decay of its learning rate ends there.
    """
    setting = make_setting(config, data, prediction)
    if setting.network.two_times != two_times:
        raise ValueError(
            f"The method '{method}' trains a network of {'two times' if two_times else 'one time'}. Set "
            f"network.two_times={two_times}."
        )
    master = None if teacher is None else make_teacher(teacher, data, setting)
    if master is None and start == "teacher":
        raise ValueError(f"method.start is 'teacher', but the method '{method}' was given none. Set method.teacher.")
    origin = {"init": setting.network.init}
    if master is not None:
        origin = student_start(start, master, setting)
    optimizer = make_optimizer(config.optimizer, stages or updates or config.steps)
    begins = (0, *itertools.accumulate(stages[:-1]))
    roles = {"student": Role(**origin, tx=optimizer.tx, learning_rate=optimizer.learning_rate)}
    if master is not None:
        roles["teacher"] = master.role
    return Student(setting, master, joined(roles, average_roles(config, begins=begins)))


def second_times(
    setting: Setting, t: Float[Array, " b"], batch: Batch, key: Key[Array, ""], equal: float
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Two times from one law, the earlier first; with probability `equal` both are the given one.

    Args:
      setting: its law of times.
      t: a draw of it.
      batch: with `row`.
      key: of this draw alone.
      equal: the share of examples with one time.
    """
    first, second = jax.random.split(key)
    other = setting.times.quantile(uniform_rows(example_keys(first, batch["row"])))
    same = uniform_rows(example_keys(second, batch["row"])) < equal
    return jnp.where(same, t, jnp.minimum(t, other)), jnp.where(same, t, jnp.maximum(t, other))


def target_role(spec: Spec, config: ConfigDict, rates: Mapping[str, Callable[..., Rate]] = EMAS) -> dict[str, Role]:
    """The role `target`, an average of the student that judges it.

    Args:
      spec: how it follows, one of `rates`.
      config: batch_size.
      rates: spec of models/ema.py, or a table with more.
    """
    rate = build("target", spec, rates, batch_size=config.batch_size)
    return {"target": Role(copy_of="student", track=Track("student", rate))}


def check_scales(scales: tuple, network: Network) -> None:
    """Refuses scales of guidance that the network would not hear, and a network that would wait for them."""
    told = "guidance" in network.conditions
    if bool(scales) != told:
        raise ValueError(
            "The scale of guidance is drawn from method.scales and read by a network with guidance_conditional=True: it takes "
            f"both or neither. scales is {tuple(scales)}, and the network {'reads' if told else 'does not read'} it."
        )
    if scales and (len(scales) != 2 or not 0 < scales[0] <= scales[1]):
        raise ValueError(f"method.scales is {tuple(scales)}; expected (lowest, highest), above 0.")


def drawn_scales(scales: tuple, batch: Batch, key: Key[Array, ""]) -> Float[Array, " b"] | None:
    """A scale of guidance for each example, even between the two of `scales`; None where there are none.

    Args:
      scales: (lowest, highest), or ().
      batch: with `row`.
      key: of this draw alone.
    """
    if not scales:
        return None
    low, high = scales
    return low + (high - low) * uniform_rows(example_keys(key, batch["row"]))

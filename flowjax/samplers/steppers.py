r"""One step of a sampler, and the one-step ODE solvers.

Every sampler is a `Stepper`: it moves a batch from time t to t_next, reading a `Field`, and may remember things between
steps. The loop in `flowjax.samplers.loop` knows nothing else. Euler, Heun, the midpoint rule and RK4 are the steps of
`flowjax.paths.ode`. Where the prediction fixes no velocity at the end (a data prediction on the linear path at t = 1, see
`flowjax.samplers.field.determined`) the last step of those that evaluate there is an Euler step; this is decided before
compilation.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from flowjax.paths import ode
from flowjax.paths.path import GaussianPath
from flowjax.samplers.field import Field, determined


class Place(NamedTuple):
    """Where a step stands in the grid: its index, whether it is the first, and how many steps there are."""

    index: Any
    first: Any
    count: int


@runtime_checkable  # so that annotations can be checked
class Stepper(Protocol):
    """What the loop asks of a sampler.

    `stages` are the places in [t, t_next], as fractions, at which one step evaluates the field: its length is the
    number of function evaluations of a step.
    """

    stages: tuple[float, ...]

    def init(self, x: Float[Array, "b ..."]) -> PyTree:
        """The memory before the first step; () for one-step methods."""
        ...

    def step(
        self, field: Field, x: Float[Array, "b ..."], t: Float[Array, ""], t_next: Float[Array, ""], memory: PyTree,
        keys: Key[Array, " b"], place: Place,
    ) -> tuple[Float[Array, "b ..."], PyTree]:  # fmt: skip
        """Moves x from t to t_next. Stochastic steppers also have transition(field, x, t, t_next) -> Transition."""
        ...

    def finish(self, field: Field, end: float) -> "Stepper":
        """The stepper of the last step of a grid that ends at `end`; itself when the last step is like any other."""
        ...


@dataclasses.dataclass(frozen=True)
class OneStep:
    """The parts that steppers without memory share."""

    def init(self, x: Float[Array, "b ..."]) -> PyTree:
        """No memory."""
        return ()

    def finish(self, field: Any, end: float) -> Stepper:
        """The last step is like any other."""
        return self


def ends_in_euler(stepper: Stepper, field: Any, end: float) -> Stepper:
    """The finish of steppers that evaluate at t_next: Euler where no velocity is determined at the end."""
    kinds = {field.prediction, field.network or field.prediction}  # both are converted there, one after the other
    return stepper if all(determined(field.path, kind, end) for kind in kinds) else Euler()


@dataclasses.dataclass(frozen=True)
class Euler(OneStep):
    """x + h v: order 1, one evaluation."""

    stages = (0.0,)

    def step(self, field, x, t, t_next, memory, keys, place):
        """One Euler step."""
        return ode.euler(field.velocity, x, t, t_next), memory


@dataclasses.dataclass(frozen=True)
class Heun(OneStep):
    """The explicit trapezoidal rule: order 2, two evaluations."""

    stages = (0.0, 1.0)

    def step(self, field, x, t, t_next, memory, keys, place):
        """One Heun step."""
        return ode.heun(field.velocity, x, t, t_next), memory

    def finish(self, field: Any, end: float) -> Stepper:
        """Euler where no velocity is determined at the end."""
        return ends_in_euler(self, field, end)


@dataclasses.dataclass(frozen=True)
class Midpoint(OneStep):
    """The explicit midpoint rule: order 2, two evaluations, never one at t_next."""

    stages = (0.0, 0.5)

    def step(self, field, x, t, t_next, memory, keys, place):
        """One midpoint step."""
        return ode.midpoint(field.velocity, x, t, t_next), memory


@dataclasses.dataclass(frozen=True)
class RungeKutta4(OneStep):
    """The classical Runge-Kutta method: order 4, four evaluations."""

    stages = (0.0, 0.5, 0.5, 1.0)

    def step(self, field, x, t, t_next, memory, keys, place):
        """One RK4 step."""
        return ode.rk4(field.velocity, x, t, t_next), memory

    def finish(self, field: Any, end: float) -> Stepper:
        """Euler where no velocity is determined at the end."""
        return ends_in_euler(self, field, end)


def jump(path: GaussianPath, t: Float[Array, ""], t_next: Float[Array, ""]) -> tuple[Any, Any]:
    r"""Coefficients (keep, gain) of the exact jump x' = keep x + gain x1 for a constant data estimate x1.

    keep = sigma'/sigma and gain = alpha' - keep alpha. In log-SNR terms gain = -alpha' expm1(-h), but written this way
    it also holds where alpha = 0 (pure noise, h infinite) and where sigma' = 0.
    """
    keep = path.sigma(t_next) / path.sigma(t)
    return keep, path.alpha(t_next) - keep * path.alpha(t)


def half_log_snr(path: GaussianPath, t: Float[Array, ""]) -> Float[Array, ""]:
    """lambda = log(alpha / sigma): -inf at pure noise, +inf at clean data."""
    return jnp.log(path.alpha(t)) - jnp.log(path.sigma(t))

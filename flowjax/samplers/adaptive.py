r"""Adaptive ODE solvers through diffrax: step sizes chosen from an error estimate, for each sample on its own.

Each example is solved by itself under vmap, so that its steps, its result and its number of evaluations do not depend
on the batch it is in. Conditions are therefore passed to the solver, which hands each example its own.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from flowjax.samplers.field import Field


def solve(
    settings: "Adaptive", derivative: Callable[[Any, PyTree], PyTree], state: PyTree, start: Any, end: Any
) -> tuple[PyTree, Int[Array, ""]]:
    """Integrates d state / dt = derivative(t, state) from start to end (either direction) with step-size control.

    Returns:
      The state at the end, and the number of evaluations: each attempted step takes the stages of the solver's
      tableau but one, which is the last of the step before (first same as last), and the start takes one.
    """
    import diffrax

    method = getattr(diffrax, settings.solver)()
    dtype = jax.tree.leaves(state)[0].dtype
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: derivative(t, y)),
        method,
        t0=jnp.asarray(start, dtype),
        t1=jnp.asarray(end, dtype),
        dt0=None,
        y0=state,
        stepsize_controller=diffrax.PIDController(rtol=settings.rtol, atol=settings.atol),
        saveat=diffrax.SaveAt(t1=True),
        max_steps=settings.max_steps,
    )
    evaluations = solution.stats["num_steps"] * (method.tableau.num_stages - 1) + 1
    return jax.tree.map(lambda leaf: leaf[0], solution.ys), evaluations


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """An adaptive Runge-Kutta solver of the probability-flow ODE."""

    solver: str
    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 4096

    def solve(
        self,
        field_of: Callable[[PyTree], Field],
        x: Float[Array, "b ..."],
        start: float,
        end: float,
        conditions: PyTree = None,
    ) -> tuple[Float[Array, "b ..."], Int[Array, " b"]]:
        """Moves x from start to end; returns it and the number of evaluations of each example.

        Args:
          field_of: conditions of one example (each array with a leading axis of 1) -> its field.
          x: the points at `start`.
          start, end: the times; falling times integrate backwards.
          conditions: a tree of arrays [b, ...].
        """

        def one(x, conditions):
            field = field_of(jax.tree.map(lambda c: c[None], conditions))
            return solve(self, lambda t, y: field.velocity(y[None], t)[0], x, start, end)

        return jax.vmap(one)(x, {} if conditions is None else conditions)


def dopri5(rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 4096) -> Adaptive:
    """Dormand & Prince 5(4)."""
    return Adaptive("Dopri5", rtol, atol, max_steps)


def tsit5(rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 4096) -> Adaptive:
    """Tsitouras 5(4)."""
    return Adaptive("Tsit5", rtol, atol, max_steps)


def dopri8(rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 4096) -> Adaptive:
    """Dormand & Prince 8(7): for high accuracy."""
    return Adaptive("Dopri8", rtol, atol, max_steps)


ADAPTIVE: dict[str, Callable[..., Adaptive]] = {"dopri5": dopri5, "tsit5": tsit5, "dopri8": dopri8}

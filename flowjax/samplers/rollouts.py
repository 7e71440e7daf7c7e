r"""Rollouts: sampling that keeps what a policy loss needs, and the densities of the same steps under other parameters.

A stochastic sampler's step from t to t' draws x' from a Gaussian (samplers/transition.py), an action whose density is known.
`roll_out` samples, remembers (x, x') and log p(x') of the steps that are to be learnt from, and the estimate of the clean data
at the last evaluation; `step_transitions` is the Gaussian of the same steps under any field, that of changed parameters or of a
reference. Both evaluate the same formula at the same points: with unchanged parameters the densities are equal.

Only the steps of a window may be drawn (Li et al. 2025, MixGRPO): the others are steps of Euler's method on the same
prediction, so that samples differ by what is learnt from alone. A last step without noise is no action: it is the stepper's
own, with a window as without.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from flowjax.paths.path import GaussianPath
from flowjax.samplers.field import Field, MemoryField
from flowjax.samplers.steppers import Euler, Place, Stepper
from flowjax.samplers.stochastic import GaussianStepper
from flowjax.samplers.transition import Transition


class Rollout(NamedTuple):
    """Samples with the k steps that led to them.

    Attributes:
      samples: at the end of the grid.
      clean: the estimate of the data at the last evaluation.
      x: where each step began.
      x_next: where it ended.
      log_prob: of that, under the field that was sampled.
    """

    samples: Float[Array, "b ..."]
    clean: Float[Array, "b ..."]
    x: Float[Array, "b k ..."]
    x_next: Float[Array, "b k ..."]
    log_prob: Float[Array, "b k"]


def actions(stepper: Stepper, grid: np.ndarray) -> int:
    """How many steps of a grid are drawn: all, or all but a last one without noise."""
    _check_stepper(stepper)
    return len(grid) - 1 - (stepper.last_step != "noise")


def check_drawn(stepper: Stepper, grid: np.ndarray, path: GaussianPath, prediction: str) -> None:
    """Refuses a rollout of which a step that is to be scored has no noise, and so no density.

    Args:
      stepper: a stochastic one.
      grid: the times.
      path: on which it moves.
      prediction: of the network.
    """
    still = Field(lambda x, t: jnp.zeros_like(x), prediction, path)
    x = jnp.zeros((1, 1))
    for index in range(actions(stepper, grid)):
        step = stepper.transition(still, x, *(jnp.asarray(t, x.dtype) for t in grid[index : index + 2]))
        if not float(jnp.min(jnp.asarray(step.std))) > 0:
            fix = "Set last_step='mean'" if index == len(grid) - 2 else "Use another sampler, or another grid"
            raise ValueError(
                f"Step {index + 1} of the {len(grid) - 1} of the rollout, from t = {grid[index]:.4g} to {grid[index + 1]:.4g}, "
                f"has no noise: nothing says how likely it was. {fix}."
            )


def roll_out(
    stepper: Stepper,
    field: Field | MemoryField,
    grid: np.ndarray,
    x: Float[Array, "b ..."],
    keys: Key[Array, " b"],
    window: tuple[Int[Array, ""] | int, int] | None = None,
    reduction: str = "sum",
) -> Rollout:
    """Moves x along the grid and remembers the steps of the window.

    Args:
      stepper: a stochastic one.
      field: the prediction; a guidance that remembers evaluations has no density, and is refused.
      grid: the times.
      x: the points at grid[0].
      keys: one for each example; step i uses fold_in(key, i), as `samplers.loop.integrate` does.
      window: (first step, how many); all that are drawn unless told.
      reduction: of the log-probability over elements, 'sum' or 'mean'.
    """
    _check(stepper, field)
    count, drawn = len(grid) - 1, actions(stepper, grid)
    times = jnp.asarray(grid, x.dtype)
    first, size = (0, drawn) if window is None else window
    if not 1 <= size <= drawn:
        raise ValueError(f"A window of {size} steps does not lie within the {drawn} steps that are drawn.")
    last = stepper.finish(field, float(grid[-1]))

    def evaluated(x, t):
        value = field.evaluate(x, t)
        return dataclasses.replace(field, predict=lambda *_: value)

    def advance(x, step):
        index, t, t_next = step
        known = evaluated(x, t)
        transition = stepper.transition(known, x, t, t_next)
        x_next = transition.sample(_at(keys, index))
        if window is not None:
            inside = (index >= first) & (index < first + size)
            even, _ = Euler().step(known, x, t, t_next, (), keys, Place(index, index == 0, count))
            x_next = jnp.where(inside, x_next, even)
        return x_next, (x, x_next, transition.log_prob(x_next, reduction), known.data(x, t))

    steps = (jnp.arange(drawn), times[:drawn], times[1 : drawn + 1])
    x, (begun, ended, log_prob, clean) = jax.lax.scan(advance, x, steps)
    clean = clean[-1]
    if drawn < count:
        t, t_next = times[-2], times[-1]
        known = evaluated(x, t)
        clean = known.data(x, t)
        x, _ = last.step(known, x, t, t_next, (), _at(keys, drawn), Place(drawn, drawn == 0, count))
    kept = lambda array: jnp.moveaxis(jax.lax.dynamic_slice_in_dim(array, first, size), 0, 1)
    return Rollout(x, clean, kept(begun), kept(ended), kept(log_prob))


def step_transitions(
    stepper: Stepper,
    field: Field | MemoryField,
    grid: np.ndarray,
    x: Float[Array, "b k ..."],
    first: Int[Array, ""] | int = 0,
) -> Transition:
    """The Gaussians from which k steps in turn are drawn, for points x of a rollout.

    One step after the other, as they were drawn: the same sums in the same order, and memory for one step alone, whose
    activations are computed again for the gradient.

    Args:
      stepper: of the rollout.
      field: under which.
      grid: of the rollout.
      x: where each step begins.
      first: which step x begins with.

    Returns:
      A transition whose mean is [k, b, ...] and whose std is [k].
    """
    _check(stepper, field)
    size = x.shape[1]
    times = jnp.asarray(grid, x.dtype)
    t, t_next = (jax.lax.dynamic_slice_in_dim(array, first, size) for array in (times[:-1], times[1:]))

    @jax.checkpoint
    def one(step):
        x, t, t_next = step
        return dataclasses.astuple(stepper.transition(field, x, t, t_next))

    return Transition(*jax.lax.map(one, (jnp.moveaxis(x, 1, 0), t, t_next)))


def step_log_probs(
    transition: Transition, x_next: Float[Array, "b k ..."], reduction: str = "sum"
) -> Float[Array, "b k"]:
    """log p(x_next) of every step under `step_transitions`."""
    one = lambda mean, std, point: Transition(mean, std).log_prob(point, reduction)
    return jax.vmap(one, out_axes=1)(transition.mean, transition.std, jnp.moveaxis(x_next, 1, 0))


def step_divergences(transition: Transition, other: Transition, reduction: str = "sum") -> Float[Array, "b k"]:
    """KL(transition, other) of every step."""
    one = lambda *parts: Transition(*parts[:2]).kl(Transition(*parts[2:]), reduction)
    return jax.vmap(one, out_axes=1)(transition.mean, transition.std, other.mean, other.std)


def _at(keys: Key[Array, " b"], index: Int[Array, ""] | int) -> Key[Array, " b"]:
    return jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)


def _check_stepper(stepper: Stepper) -> None:
    if not isinstance(stepper, GaussianStepper) or getattr(stepper, "eta", None) == 0:
        raise ValueError(
            f"A rollout draws its steps from Gaussians, and {type(stepper).__name__} does not. Use 'flow_grpo', 'dance_grpo', "
            "'sde', 'ddim' with eta above 0, or 'ancestral'."
        )


def _check(stepper: Stepper, field: Field | MemoryField) -> None:
    _check_stepper(stepper)
    if not isinstance(field, Field):
        raise ValueError("A rollout cannot follow a guidance that remembers evaluations. Use 'cfg', or none.")

r"""Inversion: the noise that a deterministic sampler would turn into given data.

The probability flow is an ODE and runs both ways. Any deterministic stepper walks the same grid in falling order; the
round trip data -> noise -> data then closes to the order of the stepper. Editing starts from this noise.
"""

import jax
import numpy as np
from jaxtyping import Array, Float

from flowjax.samplers.field import Field, determined
from flowjax.samplers.loop import integrate
from flowjax.samplers.steppers import Stepper


def invert(stepper: Stepper, field: Field, grid: np.ndarray, x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """The points at grid[0] whose flow passes through x at grid[-1].

    Args:
      stepper: a deterministic one (euler, heun, midpoint, rk4). Solvers in log-SNR divide by sigma(t), so with them the
        grid must end before clean data.
      field: the prediction; it must determine the velocity at grid[-1].
      grid: rising times, as for sampling.
      x: the points at grid[-1].
    """
    grid = np.asarray(grid)
    kinds = {field.prediction, field.network or field.prediction}
    if not all(determined(field.path, kind, float(grid[-1])) for kind in kinds):
        raise ValueError(
            f"A {field.prediction} prediction determines no velocity at t = {grid[-1]:.6g} on the path "
            f"'{field.path.name}', where inversion starts. End the grid a little earlier, for example with end=0.999."
        )
    # Deterministic steppers draw nothing, but the loop derives keys for every stepper alike.
    keys = jax.random.split(jax.random.key(0), x.shape[0])
    return integrate(stepper, field, grid[::-1].copy(), x, keys)

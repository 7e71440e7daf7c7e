"""One compiled loop for every sampler: a scan over the grid.

It carries the point, the stepper's memory and the guidance's. A field with memory (guidance with momentum) is evaluated
through a `_Recorder` that lives for one step of the trace: it hands the carried memory to each evaluation, keeps what
comes back, and remembers the first evaluation of the step, which is where a trajectory's data estimates come from at
no cost.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from flowjax.samplers.field import Field, MemoryField
from flowjax.samplers.steppers import Place, Stepper


class _Recorder:
    """Threads the guidance memory through the evaluations of one step; created and read within one trace."""

    def __init__(self, field: Field | MemoryField, memory: Any):
        self.field, self.memory, self.first = field, memory, None

    def __call__(self, x, t, *to):
        if isinstance(self.field, MemoryField):
            value, self.memory = self.field.predict(x, t, self.memory, *to)
        else:
            value = self.field.predict(x, t, *to)
        if self.first is None:
            self.first = (value, x, t)
        return value


def integrate(
    stepper: Stepper,
    field: Field | MemoryField,
    grid: Sequence[float] | np.ndarray | Float[Array, " n"],
    x: Float[Array, "b ..."],
    keys: Key[Array, " b"],
    outputs: bool = False,
    denoise: bool = False,
) -> Any:
    """Moves x along the grid.

    Args:
      stepper: one step.
      field: the prediction.
      grid: the times, n + 1 of them for n steps; a concrete array. Falling times integrate backwards (inversion).
      x: the points at grid[0].
      keys: one key for each example; step i uses fold_in(key, i).
      outputs: also return the trajectory.
      denoise: return E[x1 | x] at the end of the grid instead of x, for one more evaluation: for paths that end at
        some noise.

    Returns:
      The points at grid[-1]; with outputs, also the trajectory, a dict of t [n+1], x [n+1, b, ...], the points at the
      grid (of UniPC: before correction), and data [n, b, ...], the estimate E[x1 | x] at the first evaluation of each
      step.
    """
    grid = np.asarray(grid)
    count = len(grid) - 1
    times = jnp.asarray(grid, x.dtype)
    interior, last = stepper, stepper.finish(field, float(grid[-1]))
    guidance_memory = field.init(x) if isinstance(field, MemoryField) else ()

    def advance(stepper, carry, inputs):
        x, memory, guidance_memory = carry
        index, t, t_next = inputs
        recorder = _Recorder(field, guidance_memory)
        seen = Field(recorder, field.prediction, field.path)
        step_keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
        place = Place(index, index == 0, count)
        x_next, memory = stepper.step(seen, x, t, t_next, memory, step_keys, place)
        output = None
        if outputs:
            value, point, time = recorder.first
            output = (x_next, seen.convert(value, point, time, "data"))
        return (x_next, memory, recorder.memory), output

    steps = (jnp.arange(count), times[:-1], times[1:])
    carry = (x, stepper.init(x), guidance_memory)
    if last is interior:
        carry, trajectory = jax.lax.scan(lambda c, i: advance(interior, c, i), carry, steps)
    else:
        # The last step is another formula, so it follows the scan and takes no evaluation that it does not need.
        head = jax.tree.map(lambda array: array[:-1], steps)
        carry, trajectory = jax.lax.scan(lambda c, i: advance(interior, c, i), carry, head)
        carry, output = advance(last, carry, jax.tree.map(lambda array: array[-1], steps))
        trajectory = jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), trajectory, output)
    final, _, guidance_memory = carry
    if denoise:
        final = Field(_Recorder(field, guidance_memory), field.prediction, field.path).data(final, times[-1])
    if not outputs:
        return final
    points, data = trajectory
    return final, {"t": times, "x": jnp.concatenate([x[None], points]), "data": data}

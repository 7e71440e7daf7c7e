r"""Students that make samples in one step or a few: where they are evaluated in training, and what they then see.

A student of one time predicts clean data at any (x_t, t). With the times t_0 < t_1 < ... of a grid it samples as the sampler
`consistency` does: from noise at t_0, and from step to step

    x_{t_k+1} = alpha(t_k+1) data(x_{t_k}, t_k) + sigma(t_k+1) fresh noise.                                        (1)

Which x_{t_k} to train on:

    simulated   (1) up to step k, from noise, with the student itself and without gradient: what it will see when it samples
                (backward simulation, Yin et al. 2024)
    from data   alpha(t_k) x1 + sigma(t_k) x0 of real data (Sauer et al. 2023)

The gradient flows through the last evaluation alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from flowjax.arrays import example_keys, uniform_rows
from flowjax.contract import Batch
from flowjax.methods.endpoints import check_start
from flowjax.methods.parts import Setting, fresh_noise
from flowjax.models.network import Conditions
from flowjax.samplers.field import Field
from flowjax.samplers.grids import make_grid


@dataclasses.dataclass(frozen=True)
class Generator:
    """A student with the times at which it makes its steps.

    Attributes:
      setting: its path, noise, network and prediction.
      times: t_0, t_1, ..., one for each step.
    """

    setting: Setting
    times: tuple[float, ...]

    def data(
        self, tree: PyTree, x: Float[Array, "b ..."], t: Float[Array, "..."] | float, cond: Conditions
    ) -> Float[Array, "b ..."]:
        """The student's clean data at (x, t)."""
        predict = lambda x, t: self.setting.network.apply(tree, x, t, cond)
        return Field(predict, self.setting.prediction, self.setting.path).data(x, t)

    def start(self, batch: Batch, key: Key[Array, ""]) -> Float[Array, "b ..."]:
        """Points at t_0: noise, as a sampler begins."""
        unit = self.noise(batch, key)
        return self.setting.path.sigma(jnp.asarray(self.times[0], unit.dtype)) * unit

    def noise(self, batch: Batch, key: Key[Array, ""]) -> Float[Array, "b ..."]:
        """Unit noise for each example."""
        return fresh_noise(self.setting, batch, key)

    def simulated(
        self, tree: PyTree, batch: Batch, cond: Conditions, key: Key[Array, ""]
    ) -> tuple[Float[Array, "b ..."], Float[Array, " b"]]:
        """(x, t): points of the student's own sampling at one of its steps, the same step for the whole batch.

        A step is drawn of the key alone, so that the steps after it need not be computed for anyone.
        """
        key_start, key_step, key_again = jax.random.split(key, 3)
        x, times = self.start(batch, key_start), jnp.asarray(self.times, jnp.float32)
        step = jnp.zeros((), jnp.int32)
        if len(self.times) > 1:
            path, frozen = self.setting.path, jax.lax.stop_gradient(tree)
            prepared = self.setting.network.prepare(frozen, cond)
            step = jax.random.randint(key_step, (), 0, len(self.times))

            def advance(index: Int[Array, ""], x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
                clean = self.data(frozen, x, times[index], prepared)
                after = times[index + 1]
                return path.alpha(after) * clean + path.sigma(after) * self.noise(
                    batch, jax.random.fold_in(key_again, index)
                )

            x = jax.lax.fori_loop(0, step, advance, x)
        return x, jnp.broadcast_to(times[step], x.shape[:1])

    def from_data(self, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, "b ..."], Float[Array, " b"]]:
        """(x, t): noised real data at one of the student's times, drawn for each example."""
        key_noise, key_step = jax.random.split(key)
        share = uniform_rows(example_keys(key_step, batch["row"]))
        t = jnp.asarray(self.times, jnp.float32)[(share * len(self.times)).astype(jnp.int32)]
        return self.setting.path.sample(self.noise(batch, key_noise), batch["data"], t), t


def make_generator(setting: Setting, steps: int) -> Generator:
    """A generator on the uniform grid of so many steps; the sampler `consistency` with that grid visits the same times.

    Args:
      setting: of the student.
      steps: at least 1.
    """
    if steps < 1:
        raise ValueError(f"method.steps is {steps}; a generator makes at least 1.")
    path = setting.path
    check_start(setting)
    grid = make_grid({"name": "uniform"}, path, steps=steps, shape=setting.shape)
    return Generator(setting, tuple(float(t) for t in grid[:-1]))

"""Sampling taken apart into its steps, so that a method can say which parameters each of them is taken with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from flowjax.arrays import example_keys
from flowjax.choices import Spec
from flowjax.contract import Batch, DataSpec, Params
from flowjax.methods.parts import Setting, conditions_of, make_setting, null_conditions
from flowjax.models.network import Conditions
from flowjax.samplers.adaptive import Adaptive
from flowjax.samplers.build import SamplerParts, make_branches, make_field, make_parts, split_keys
from flowjax.samplers.field import Field
from flowjax.samplers.steppers import Place

STUDENT = "student"


@dataclasses.dataclass(frozen=True)
class Unrolled:
    """A sampler whose steps remember nothing of each other.

    Attributes:
      setting: of the network.
      parts: stepper, grid and guidance.
    """

    setting: Setting
    parts: SamplerParts

    @property
    def grid(self) -> np.ndarray:
        """The times."""
        return self.parts.grid

    @property
    def count(self) -> int:
        """How many steps there are."""
        return len(self.parts.grid) - 1

    def begin(self, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, "b ..."], Key[Array, " b"], Conditions]:
        """Noise for the rows of a batch, the keys of what their steps draw, and their conditions."""
        noise_keys, step_keys = split_keys(example_keys(key, batch["row"]))
        start = self.setting.path.sigma(jnp.asarray(self.grid[0], jnp.float32))
        return start * self.setting.noise.sample(noise_keys, self.setting.shape), step_keys, conditions_of(batch)

    def field(self, params: Params, tree: PyTree, cond: Conditions) -> Field:
        """The guided field of one tree in the student's place."""
        network, params = self.setting.network, {**params, STUDENT: tree}
        branches = make_branches(self.parts, null_conditions(network), network.prepare, params, cond)
        return make_field(self.parts, network.apply, self.setting.prediction, self.setting.path, params, branches)

    def step(
        self, field: Field, x: Float[Array, "b ..."], index: Int[Array, ""] | int, keys: Key[Array, " b"]
    ) -> Float[Array, "b ..."]:
        """One step of the grid.

        Args:
          field: of `field`.
          x: where it begins.
          index: which one; that of the last must be a Python number, for it may be another formula.
          keys: of `begin`.
        """
        parts, times = self.parts, jnp.asarray(self.grid, x.dtype)
        last = isinstance(index, int) and index == self.count - 1
        stepper = parts.stepper.finish(field, float(self.grid[-1])) if last else parts.stepper
        own = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
        place = Place(index, jnp.asarray(index) == 0, self.count)
        return stepper.step(field, x, times[index], times[index + 1], stepper.init(x), own, place)[0]


def make_unrolled(config: ConfigDict, data: DataSpec, prediction: str, rollout: Spec, name: str) -> Unrolled:
    """The sampler of a spec, drawn with the student; one that cannot be taken apart is refused.

    Args:
      config: path, noise, network, preconditioning.
      data: what is drawn.
      prediction: what the network outputs.
      rollout: spec of samplers/build.py, without a role.
      name: of the method, for messages.
    """
    setting = make_setting(config, data, prediction)
    plain = ConfigDict(dict(rollout)).to_dict()
    if "role" in plain:
        raise ValueError(f"method.rollout has role='{plain['role']}', but '{name}' draws with the student. Drop it.")
    parts = make_parts({**plain, "role": STUDENT}, prediction, setting.path, setting.shape, setting.seen_shape)
    memory = None if isinstance(parts.stepper, Adaptive) else parts.stepper.init(jnp.zeros((1, 1)))
    if memory is None or jax.tree.leaves(memory) or parts.guidance.init is not None or parts.guidance.needs == "weak":
        raise ValueError(
            f"The rollout of '{name}' is taken apart into steps, and sampler '{plain['name']}' with guidance "
            f"'{parts.spec['guidance']['name']}' is adaptive, remembers steps, or reads another role. Use 'euler', 'heun', "
            "'ddim' or an SDE, with guidance 'cfg' or none."
        )
    if parts.guidance.needs is not None and not setting.network.droppable:
        raise ValueError("method.rollout is guided, and the network has no condition to drop. Leave its guidance out.")
    return Unrolled(setting, parts)

"""Sampling taken apart into its steps, so that a method can say which parameters each of them is taken with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from flowjax.arrays import example_keys
from flowjax.choices import Spec
from flowjax.contract import Batch, Params
from flowjax.methods.parts import Setting, conditions_of, null_conditions
from flowjax.models.network import Conditions
from flowjax.samplers.adaptive import Adaptive
from flowjax.samplers.build import SamplerParts, make_branches, make_field, make_parts, split_keys
from flowjax.samplers.field import Field
from flowjax.samplers.steppers import Place


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

    def noise(self, keys: Key[Array, " b"]) -> Float[Array, "b ..."]:
        """What sampling begins with."""
        start = self.setting.path.sigma(jnp.asarray(self.grid[0], jnp.float32))
        return start * self.setting.noise.sample(keys, self.setting.shape)

    def begin(self, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, "b ..."], Key[Array, " b"], Conditions]:
        """Noise for the rows of a batch, the keys of what their steps draw, and their conditions."""
        noise_keys, step_keys = split_keys(example_keys(key, batch["row"]))
        return self.noise(noise_keys), step_keys, conditions_of(batch)

    def field(self, params: Params, tree: PyTree, cond: Conditions) -> Field:
        """The guided field of one tree in the place of the role that draws."""
        network, params = self.setting.network, {**params, self.parts.role: tree}
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


def make_unrolled(setting: Setting, spec: Spec, role: str, who: str) -> Unrolled:
    """The sampler of a spec; one that cannot be taken apart is refused.

    Args:
      setting: of the network.
      spec: of samplers/build.py, without a role.
      role: whose parameters draw.
      who: takes it apart, for messages ("method.rollout").
    """
    plain = ConfigDict(dict(spec)).to_dict()
    if "role" in plain:
        raise ValueError(f"{who} has role='{plain['role']}', but whose parameters draw is decided already. Drop it.")
    for name in ("conditions", "shape", "denoise"):
        if plain.get(name):
            raise ValueError(f"{who} has {name}={plain[name]!r}, which is of whole samplers. Leave it out.")
    if setting.data.masked:
        raise ValueError(
            f"{who} would draw noise outside images that are smaller than their arrays. Use data without masks."
        )
    parts = make_parts({**plain, "role": role}, setting.prediction, setting.path, setting.shape, setting.seen_shape)
    memory = None if isinstance(parts.stepper, Adaptive) else parts.stepper.init(jnp.zeros((1, 1)))
    if memory is None or jax.tree.leaves(memory) or parts.guidance.init is not None or parts.guidance.needs == "weak":
        raise ValueError(
            f"{who} is taken apart into steps, and sampler '{plain['name']}' with guidance "
            f"'{parts.spec['guidance']['name']}' is adaptive, remembers steps, or reads another role. Use 'euler', 'heun', "
            "'ddim' or an SDE, with guidance 'cfg' or none."
        )
    if parts.guidance.needs is not None and not setting.network.droppable:
        raise ValueError(f"{who} is guided, and the network has no condition to drop. Leave its guidance out.")
    return Unrolled(setting, parts)

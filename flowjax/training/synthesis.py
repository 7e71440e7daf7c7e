"""An average of any length after training, from the power-function averages in a run's kept checkpoints.

Give `config.ema` one or, better, two `power` averages (std 0.05 and 0.10) and keep snapshots with
`checkpoint.keep_every_steps`. Then `--mode=sample` and `--mode=eval` take `--ema_std=0.08`: the weights of the stored
averages come from flowjax.models.ema (Karras et al. 2024, section 3.2).
"""

import jax
import numpy as np
from jaxtyping import PyTree

from flowjax.config import ConfigError
from flowjax.models.ema import Profile, combine, synthesis_weights
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.run import Run


def synthesise(run: Run, checkpoints: Checkpoints, std: float, step: int) -> PyTree:
    """The power-function average of relative width `std` at `step`, from every checkpoint up to it.

    Args:
      run: whose config says which roles are power averages.
      checkpoints: the kept ones.
      std: the wanted width.
      step: the wanted time, a kept step.
    """
    stored = {name: spec.get("std", 0.1) for name, spec in run.config.ema.items() if spec.name == "power"}
    if not stored:
        raise ConfigError(
            "--ema_std makes an average from stored power-function averages, and this config has none. Train with, for "
            "example, config.ema = dict(short=dict(name='power', std=0.05), long=dict(name='power', std=0.1))."
        )
    found = [(name, at) for at in checkpoints.steps() if at <= step for name in stored]
    profiles = [Profile(stored[name], float(at)) for name, at in found]
    try:
        weights = synthesis_weights(profiles, Profile(std, float(step)))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    trees = (jax.tree.map(np.asarray, checkpoints.read_role(name, at)) for name, at in found)
    return combine(trees, weights)

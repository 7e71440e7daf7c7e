"""A finished run as a part of another method: its network, path and prediction, and the role that holds its parameters."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from flowjax.contract import DataSpec, Role
from flowjax.methods.parts import Setting, make_setting
from flowjax.models import stored

ADOPTED = (
    *("data", "text", "network", "path", "noise", "preconditioning", "precision", "seed"),
    *("batch_size", "steps_per_dispatch", "sample", "evaluation", "evaluators"),
)


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run that is over.

    Attributes:
      config: the one it was trained with.
      setting: network, path, prediction and the rest, built from that config.
      reference: RUN_DIRECTORY:role.
    """

    config: ConfigDict
    setting: Setting
    reference: str

    @property
    def role(self) -> Role:
        """Its parameters, frozen."""
        return Role(init=self.setting.network.init, restore_from=self.reference)


def config_of_run(restore_from: str, who: str) -> ConfigDict:
    """The config that a run was trained with.

    Args:
      restore_from: RUN_DIRECTORY or RUN_DIRECTORY:role.
      who: what wants it, for messages ("The teacher").
    """
    folder, _ = stored.split_reference(restore_from, who)
    return ConfigDict(_as_tuples(stored.read_config(folder, stored.existing_step(folder, None))))


def reference_of_run(restore_from: str, who: str) -> str:
    """RUN_DIRECTORY:role; where none is named, the role whose samples people mean.

    Args:
      restore_from: RUN_DIRECTORY or RUN_DIRECTORY:role; the average `ema` where the run has one, else `student`.
      who: what wants it, for messages ("The teacher").
    """
    folder, role = stored.split_reference(restore_from, who)
    role = role or stored.usual_role(folder, stored.existing_step(folder, None))
    return f"{restore_from.partition(':')[0].rstrip('/')}:{role}"


def adopt(config: ConfigDict, run: str, who: str) -> ConfigDict:
    """Gives a config the data, network, path, precision, seed and measures of a finished run; returns the run's config.

    Args:
      config: what is to go on from it, or learn from it.
      run: RUN_DIRECTORY or RUN_DIRECTORY:role.
      who: what it is there, for messages ("The teacher").
    """
    theirs = config_of_run(run, who)
    for name in ADOPTED:
        config[name] = theirs[name]
    return theirs


def open_finished(restore_from: str, data: DataSpec, who: str) -> Finished:
    """Reads the config of a run and builds what it trained.

    Args:
      restore_from: as `reference_of_run` takes it.
      data: what the network is to see.
      who: what wants it, for messages ("The teacher").
    """
    config, reference = config_of_run(restore_from, who), reference_of_run(restore_from, who)
    setting = make_setting(config, data, config.method.get("prediction", "velocity"))
    return Finished(config, setting, reference)


def _as_tuples(value: Any) -> Any:
    """A config as it comes back from JSON, lists as the tuples they were."""
    if isinstance(value, Mapping):
        return {key: _as_tuples(entry) for key, entry in value.items()}
    return tuple(_as_tuples(entry) for entry in value) if isinstance(value, list) else value

"""A finished run as a part of another method: its network, path and prediction, and the role that holds its parameters."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from flowjax.contract import DataSpec, Role
from flowjax.methods.parts import Setting, make_setting
from flowjax.models import stored
from flowjax.models.stored import reference_of_run

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
    return ConfigDict(stored.config_of_run(restore_from, who))


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


def like_run(theirs: ConfigDict, run: str) -> dict[str, Any]:
    """What a source of other pictures is told, so that they are as large as a finished run's, and captions in its words.

    Args:
      theirs: the run's config.
      run: its folder.

    Returns:
      The options `size`, and `tokenizer` where the run reads captions.
    """
    data = theirs.data.source if theirs.data.name == "encoded" else theirs.data
    size = data.get("resolution") or data.get("size")
    if not size:
        raise ValueError(
            f"Data of source '{data.name}', which '{run}' was trained on, name no size that other pictures could be brought "
            "to. Give --config.data a source of your own."
        )
    captioned = theirs.text.name != "none" or theirs.data.name == "encoded"
    return dict(size=size, **(dict(tokenizer=dict(name="run", restore_from=run)) if captioned else {}))


def open_finished(restore_from: str, data: DataSpec, who: str) -> Finished:
    """Reads the config of a run and builds what it trained.

    Args:
      restore_from: as `reference_of_run` takes it.
      data: what the network is to see.
      who: what wants it, for messages ("The teacher").
    """
    config, reference = config_of_run(restore_from, who), reference_of_run(restore_from, who)
    setting = make_setting(config, data, config.method.get("prediction", "velocity"))
    stored.check_words(reference, setting.network.conditions, data.words, who)
    return Finished(config, setting, reference)

"""From a config to everything a mode of the command line needs: data, method, executor, checkpoints, restored roles."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from flowjax.choices import build, suggestion
from flowjax.config import ConfigError, refuse_another_run
from flowjax.contract import Method, Role
from flowjax.data import SOURCES
from flowjax.data.pipeline import BatchIterator, make_iterator
from flowjax.methods import METHODS
from flowjax.methods.lora import with_lora
from flowjax.methods.watchdog import with_watchdog
from flowjax.models import stored
from flowjax.models.growth import grown, misfits, shapes_by_path
from flowjax.paths.couplings import COUPLINGS
from flowjax.samplers.build import default_name
from flowjax.training.checkpoints import CheckpointError, Checkpoints
from flowjax.training.executors import EXECUTORS
from flowjax.training.state import State


def build_method(config: ConfigDict, source: Any) -> Method:
    """The method a config asks for; configuration mistakes come out as ConfigError."""
    try:
        method = build("method", config.method, METHODS, config=config, data=source.spec)
        method = with_watchdog(with_restored(method, config.restore.to_dict()), config, source.spec)
        method.check_length(config.steps)
        return with_lora(method, config.lora)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def with_restored(method: Method, restore: Mapping[str, str]) -> Method:
    """The method with roles that start from a finished run: at another resolution, on other data, with another method.

    Args:
      method: any.
      restore: role -> RUN_DIRECTORY or RUN_DIRECTORY:role; without a role, the one of the same name. Roles that copy it,
        such as averages, start from the same arrays.
    """
    roles = dict(method.roles)
    for name, reference in restore.items():
        if name not in roles:
            raise ValueError(
                f"restore.{name}: the method has no role '{name}'. Roles: {', '.join(roles)}.{suggestion(name, roles)}"
            )
        if roles[name].init is None:
            source = f"as a copy of '{roles[name].copy_of}': restore that" if roles[name].copy_of else "elsewhere"
            raise ValueError(f"restore.{name}: the role starts {source}. Leave this entry out.")
        if roles[name].restore_from or roles[name].load:
            raise ValueError(f"restore.{name}: the method itself says where this role starts. Leave this entry out.")
        roles[name] = dataclasses.replace(roles[name], restore_from=reference)
    return dataclasses.replace(method, roles=roles)


@dataclasses.dataclass
class Run:
    """A config with its data, method and executor; parts are built when first asked for."""

    config: ConfigDict
    workdir: pathlib.Path | None = None

    @functools.cached_property
    def source(self) -> Any:
        """The data."""
        try:
            return build("data source", self.config.data, SOURCES, seed=self.config.seed, total_steps=self.config.steps)
        except (ValueError, TypeError) as error:
            raise ConfigError(str(error)) from error

    @functools.cached_property
    def method(self) -> Method:
        """Roles, phases, samplers."""
        return build_method(self.config, self.source)

    @functools.cached_property
    def executor(self):
        """Where updates run."""
        try:
            return EXECUTORS[self.config.parallel](self.method, self.config, self.restored)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @functools.cached_property
    def restored(self) -> dict[str, PyTree]:
        """The roles that start from another run or from loaded weights; once this run has a checkpoint, from that."""
        wanted = {name: role for name, role in self.method.roles.items() if role.restore_from or role.load}
        if not wanted:
            return {}
        if self.workdir is not None and (self.workdir / "checkpoints").is_dir():
            own = self.checkpoints(read_only=True)
            if own.latest() is not None:
                return {name: jax.tree.map(np.asarray, own.read_role(name)) for name in wanted}
        self._tell_of_other_words(wanted)
        # on the host, so that every process can lay it out as its executor wants
        return {
            name: jax.tree.map(np.asarray, read_role(name, role, self.config.seed)) for name, role in wanted.items()
        }

    def _tell_of_other_words(self, wanted: Mapping[str, Role]) -> None:
        """Says of each role that is trained on, and has learnt to read other captions, that it has to learn these anew."""
        spec = self.source.spec
        words = spec.words if self.config.text.name != "none" or spec.text_channels else ""
        for name, role in wanted.items():
            origin = role.restore_from if role.tx is not None else None
            if origin and stored.reads_other_words(origin, words, f"Role '{name}'") and jax.process_index() == 0:
                print(
                    f"Role '{name}' starts from '{origin}', which has learnt to read captions in other words: it learns to "
                    f"read anew. To keep what it knows, give the data tokenizer=dict(name='run', restore_from="
                    f"'{origin.partition(':')[0]}')."
                )

    def images(self, steps: int) -> int:
        """How many examples so many updates learn from, repetitions counted: of a rollout those that were drawn for them."""
        collect = self.method.collect
        if collect is None or collect.drawn is None:
            return steps * self.config.batch_size
        return steps * collect.drawn // collect.every

    def iterator(self) -> BatchIterator:
        """This process's training batches, coupled, from the first step on."""
        config = self.config
        try:
            coupling = build("coupling", config.coupling, COUPLINGS)
            return make_iterator(
                self.source,
                config.batch_size,
                config.seed,
                coupling,
                jax.process_index(),
                jax.process_count(),
                threads=config.loader.threads,
                prefetch=config.loader.prefetch,
            )
        except (ValueError, TypeError) as error:
            raise ConfigError(str(error)) from error

    def checkpoints(self, read_only: bool = False) -> Checkpoints:
        """The run's own checkpoints."""
        options = self.config.checkpoint.to_dict()
        return Checkpoints(self.workdir / "checkpoints", read_only=read_only, **options)

    def start_or_resume(self, checkpoints: Checkpoints) -> tuple[State, dict[str, Any] | None]:
        """The latest checkpoint as the executor runs it, with the data position; or the initial state and None."""
        step = checkpoints.latest()
        if step is None:
            return self.executor.start(), None
        refuse_another_run(self.config, checkpoints.config(step), step)
        state, data = checkpoints.restore(step, self.executor.abstract)
        return self.executor.place(state), data

    def latest_state(self) -> State:
        """The state of the newest checkpoint, for reading."""
        checkpoints = self.checkpoints(read_only=True)
        step = checkpoints.latest()
        if step is None:
            raise FileNotFoundError(f"There is no complete checkpoint in {checkpoints.directory}. Train first.")
        state, _ = checkpoints.restore(step, self.executor.abstract)
        checkpoints.close()
        return state

    @property
    def default_sampler(self) -> str:
        """`default` if the method has a sampler of that name, else its first."""
        names = list(self.method.samplers)
        if not names:
            raise ConfigError(
                "The config has no samplers, so nothing can be drawn or measured. Add one to config.samplers."
            )
        return default_name(names)


def read_role(name: str, role: Role, seed: int) -> PyTree:
    """Loads a role, or reads it from another run's checkpoint, grown where its init has more; checks every array.

    Args:
      name: of the role.
      role: with `load` or `restore_from`.
      seed: of the run, for what a smaller network does not have.
    """
    if role.load is not None:
        origin, tree = "the weights it loads", role.load()
    else:
        origin = f"'{role.restore_from}'"
        folder, other = stored.split_reference(role.restore_from, f"Role '{name}'")
        tree = stored.read_network(folder, other or name, stored.existing_step(folder, None))
    if role.init is None:
        return tree
    wanted, found = shapes_by_path(jax.eval_shape(role.init, jax.random.key(0))), shapes_by_path(tree)
    if wanted == found:
        return tree
    wrong = sorted(path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path))
    if role.load is None and not misfits(wanted, found):
        if jax.process_index() == 0:
            print(f"Role '{name}' starts from {origin}, whose network is smaller. New or longer: {', '.join(wrong)}.")
        return grown(role.init(jax.random.key(seed)), tree)
    lines = [f"{path}: wanted {wanted.get(path)}, found {found.get(path)}" for path in wrong[:12]]
    raise CheckpointError(f"Role '{name}' cannot start from {origin}:\n  " + "\n  ".join(lines))

"""Configs: the defaults, config files and their arguments, overrides, validation, schedules.

A config file is a small delta over `defaults()`:

    def get_config(argument: str = ""):
        options = parse_argument(argument, tiny=False)
        config = defaults()
        config.data = dict(name="digits")
        ...
        return config

A *spec* is an entry with a `name`: it picks a factory, and its other entries are that factory's arguments, checked against
its signature when it is built. Everything else is closed: an unknown key or a wrong type is refused with a suggestion.
"""

import ast
import importlib.util
import json
import pathlib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from flowjax.choices import check_type, suggestion

SPECS = (
    "data", "coupling", "text", "network", "method", "path", "time", "weight", "noise", "preconditioning", "optimizer",
    "watchdog",
)  # fmt: skip
OPEN = ("restore", "writers")  # groups with names of one's own, checked entry by entry
SPEC_MAPS = ("ema", "samplers", "evaluators")  # a name of one's own -> spec
LEAST = {
    "seed": 0,
    "steps": 1,
    "batch_size": 1,
    "gradient_accumulation": 1,
    "steps_per_dispatch": 1,
    "lora.rank": 0,
    "lora.alpha": 0,
    "peak_flops": 0,
    "sample.count": 1,
    "evaluation.count": 2,
    "evaluation.batch_size": 1,
    "loader.threads": 0,
    "loader.prefetch": 1,
    "checkpoint.keep_latest": 1,
    "checkpoint.keep_every_steps": 0,
    **{f"mesh.{axis}": 0 for axis in ("data", "fsdp", "tensor")},
    **{
        f"when.{event}.every_{unit}": 0
        for event in ("log", "sample", "evaluate", "checkpoint")
        for unit in ("steps", "epochs")
    },
}
# What a run may change when it goes on: how it is watched, measured, stored and laid out, but not what it computes.
CHANGEABLE = (
    "name", "steps", "steps_per_dispatch", "gradient_accumulation", "loader", "samplers", "sample", "evaluation", "evaluators",
    "when", "checkpoint", "writers", "nan_guard", "peak_flops", "parallel", "sharding", "mesh",
    "partition_rules",
)  # fmt: skip
# So begin the entries that may change as well: when a watched run has to end. All else of a watchdog is part of the state.
LIMITS = ("watchdog.largest_", "watchdog.least_")


class ConfigError(ValueError):
    """A config that cannot be run; the message says which key, what was expected and how to fix it."""


def schedule(every_steps: int = 0, every_epochs: float = 0.0, at_percent: Sequence[float] = ()) -> dict:
    """When something periodic happens: the union of the three; zero or empty means never.

    Args:
      every_steps: after every so many steps.
      every_epochs: after every so many passes over the data, rounded to a step.
      at_percent: at these percentages of all steps; 100 is the end.
    """
    return dict(every_steps=every_steps, every_epochs=float(every_epochs), at_percent=tuple(at_percent))


def defaults() -> ConfigDict:
    """Every setting there is, with a value that works on two-dimensional points."""
    config = ConfigDict()
    config.name = "flow"
    config.seed = 0
    config.steps = 5_000
    config.batch_size = 256
    config.gradient_accumulation = 1  # micro-batches of one update; the result is the same up to rounding
    config.steps_per_dispatch = 1  # updates per call of the device: more is faster for small models
    config.precision = "float32"  # of the network's arithmetic: float32 or bfloat16; the state is always float32

    config.data = dict(name="mixture")
    config.coupling = dict(name="independent")
    config.text = dict(name="none")  # the text encoder trained along with the network, for captions that are token ids
    config.network = dict(name="mlp")
    config.method = dict(name="flow_matching")
    config.path = dict(name="linear")
    config.time = dict(name="uniform")
    config.weight = dict(name="uniform")
    config.noise = dict(name="gaussian")
    config.preconditioning = dict(name="none")
    config.optimizer = dict(name="adam", learning_rate=1e-3)
    config.ema = dict(ema=dict(name="warmup", decay=0.999))
    # low-rank adapters in place of the named trained roles (methods/lora.py): rank 0 for none; alpha 0 for the rank
    config.lora = dict(rank=0, alpha=0.0, pattern="kernel$", roles=("student",))
    # role -> RUN_DIRECTORY or RUN_DIRECTORY:role of a finished run to start from: restore=dict(student="runs/small:ema")
    config.restore = dict()
    config.watchdog = dict(name="none")  # what holds a tuned model against the one it began as (methods/watchdog.py)
    config.samplers = dict(
        default=dict(name="heun", steps=20, grid=dict(name="uniform"), guidance=dict(name="none"), role="ema")
    )

    config.when = dict(
        log=schedule(every_steps=100),
        sample=schedule(at_percent=(10, 25, 50, 100)),
        evaluate=schedule(at_percent=(100,)),
        checkpoint=schedule(every_steps=1_000, at_percent=(100,)),
    )
    # of the pictures (a point set shows more); prompts are drawn instead of held-out captions, count in all
    config.sample = dict(count=64, prompts=())
    config.evaluation = dict(count=2_000, batch_size=500)
    config.evaluators = dict()
    config.loader = dict(threads=0, prefetch=8)  # threads that make batches ahead, for files to read or slow couplings
    config.checkpoint = dict(keep_latest=2, keep_every_steps=0, best_metric="", best_mode="min")
    config.writers = dict(tensorboard=True, wandb=False, clu=False)  # on, off, or a group of that writer's options
    config.nan_guard = True
    config.peak_flops = (
        0.0  # operations a second of one device, for MFU; 0 for the listed ones, and no figure for others
    )

    config.parallel = "jit"  # jit (any sharding) or pmap (replicated parameters only)
    config.sharding = "replicated"  # replicated, zero1 (optimizer), zero2 (+ gradients), zero3 (+ parameters)
    config.mesh = dict(data=0, fsdp=0, tensor=1)  # devices on each axis; 0 takes what is left
    config.partition_rules = ()  # (regular expression on 'role/path', axis of each dimension), for the tensor axis
    return config


def parse_argument(argument: str | None, **known: Any) -> ConfigDict:
    """Reads what follows the colon of `--config=file.py:tiny,preset=edm` against the options a config file knows.

    Args:
      argument: comma-separated `key=value`, or a bare `key` for a flag that is False by default.
      **known: the options and their defaults, which also fix their types.
    """
    options = ConfigDict(known)
    for item in filter(None, (argument or "").split(",")):
        key, equals, text = (part.strip() for part in item.partition("="))
        if key not in known:
            raise ConfigError(f"Unknown config argument '{key}'. Known: {', '.join(known)}.{suggestion(key, known)}")
        value = _literal(text) if equals else True
        if isinstance(known[key], str):
            value = text
        try:
            check_type(f"config argument '{key}'", value, type(known[key]))
        except TypeError as error:
            raise ConfigError(str(error)) from None
        options[key] = value
    return options


def load(path_and_argument: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Loads `file.py` or `file.py:argument`, applies overrides, validates and locks the result."""
    path, _, argument = path_and_argument.partition(":")
    file = pathlib.Path(path)
    if not file.is_file():
        near = sorted(str(item) for item in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise ConfigError(f"No config file at '{path}'.{suggestion(path, near)} Give a Python file with get_config().")
    try:
        config = load_module(file).get_config(argument)
    except ConfigError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame.lineno for frame in frames if pathlib.Path(frame.filename) == file.absolute()]
        line = getattr(error, "lineno", None) or (own[-1] if own else "?")
        raise ConfigError(f"The config file '{path}' fails at line {line}: {type(error).__name__}: {error}") from error
    apply_overrides(config, overrides)
    validate(config)
    return config.lock()


def load_module(file: str | pathlib.Path):
    """Imports a config file, which must define get_config(argument)."""
    spec = importlib.util.spec_from_file_location(f"flowjax_config_{pathlib.Path(file).stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(
            f"The config file '{file}' has no function get_config(argument). Add one that returns a config."
        )
    return module


def apply_overrides(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Applies `key.path=value` strings in place. Inside a spec new options may be added; elsewhere keys must exist."""
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"The override '{override}' has no value. Write it as key=value.")
        set_value(config, path, _literal(text))


def set_value(config: ConfigDict, path: str, value: Any) -> None:
    """Sets one entry by its dotted path, with the type of the value it replaces."""
    *parents, last = path.split(".")
    node, open_node, seen = config, False, ""
    for depth, key in enumerate(parents):
        if not isinstance(node, ConfigDict) or key not in node:
            raise _unknown_key(seen + key, key, node)
        if seen == "writers." and isinstance(node[key], bool):  # options switch a writer on
            with node.ignore_type():
                node[key] = ConfigDict()
        seen += key + "."
        node = node[key]
        open_node = open_node or (depth == 0 and key in (*SPECS, *SPEC_MAPS, *OPEN))
    if not isinstance(node, ConfigDict):
        raise ConfigError(f"'{seen.rstrip('.')}' is a value, not a group: '{path}' cannot be set.")
    if last not in node and not open_node:
        raise _unknown_key(path, last, node)
    if last in node and isinstance(node[last], ConfigDict) and not isinstance(value, dict):
        entries = ", ".join(f"{path}.{key}" for key in node[last])
        raise ConfigError(f"'{path}' is a group of entries, not one value. Set one of: {entries}.")
    if last in node and node[last] is not None and not open_node:
        value = _as_type_of(path, node[last], value)
    with node.ignore_type():
        node[last] = value


def _as_type_of(path: str, old: Any, value: Any) -> Any:
    if isinstance(old, ConfigDict):
        return value
    if isinstance(old, tuple) and isinstance(value, (int, float, str)):
        value = (value,)
    try:
        check_type(f"config entry '{path}'", value, type(old))
    except TypeError as error:
        raise ConfigError(str(error)) from None
    return type(old)(value)


def _unknown_key(path: str, key: str, node: Any) -> ConfigError:
    known = list(node) if isinstance(node, ConfigDict) else []
    return ConfigError(f"Unknown config key '{path}'. Known here: {', '.join(known)}.{suggestion(key, known)}")


class _Specs(ast.NodeTransformer):
    """dict(name='x', ...) as {'name': 'x', ...}: a spec may be written on the command line as it is in a file."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        named = all(keyword.arg for keyword in node.keywords)
        if not (isinstance(node.func, ast.Name) and node.func.id == "dict" and named and not node.args):
            return node
        keys = [ast.Constant(keyword.arg) for keyword in node.keywords]
        return ast.Dict(keys, [keyword.value for keyword in node.keywords])


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(_Specs().visit(ast.parse(text.strip(), mode="eval")))
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def validate(config: ConfigDict) -> None:
    """Refuses unknown keys, wrong types and impossible combinations, before anything is built or compiled."""
    standard = reference = defaults()
    _validate_keys(config, reference, "")
    for name in SPECS:
        if "name" not in config[name]:
            raise ConfigError(f"The config entry '{name}' needs a 'name', for example {name}=dict(name=...).")
    for group in SPEC_MAPS:
        for name, spec in config[group].items():
            if not isinstance(spec, ConfigDict) or "name" not in spec:
                raise ConfigError(f"The config entry '{group}.{name}' must be a spec: dict(name=..., options).")
    for path, least in LEAST.items():
        value = _get(config, path)
        if value < least:
            raise ConfigError(f"The config entry '{path}' is {value}; it must be at least {least}.")
    for name, options in config.writers.items():
        if name not in reference.writers:
            raise _unknown_key(f"writers.{name}", name, reference.writers)
        if not isinstance(options, (bool, ConfigDict)):
            raise ConfigError(
                f"The config entry 'writers.{name}' is {options!r}; expected True, False or a group of options."
            )
    for role, reference in config.restore.items():
        if not (isinstance(reference, str) and reference):
            raise ConfigError(
                f"The config entry 'restore.{role}' is {reference!r}; expected 'RUN_DIRECTORY' or 'RUN_DIRECTORY:role'."
            )
    for rule in config.partition_rules:
        if not (isinstance(rule, (tuple, list)) and len(rule) == 2 and isinstance(rule[0], str)):
            raise ConfigError(
                f"partition_rules has {rule!r}; expected pairs (regular expression, axis of each dimension), as in "
                "(('student/.*/kernel', (None, 'tensor')),)."
            )
    if not config.lora.rank and config.lora.to_dict() != standard.lora.to_dict():
        raise ConfigError(
            "lora.rank is 0, so no other entry of lora does anything. Set a rank, or leave them as they are."
        )
    if config.checkpoint.best_metric and not config.evaluators:
        raise ConfigError("checkpoint.best_metric is set, but the config has no evaluators to measure it. Add one.")
    if config.evaluators and not config.samplers:
        raise ConfigError(
            "The config has evaluators but no samplers to draw what they measure. Add one to config.samplers."
        )
    if config.batch_size % config.gradient_accumulation:
        raise ConfigError(
            f"batch_size={config.batch_size} does not divide into gradient_accumulation={config.gradient_accumulation} equal "
            f"micro-batches. Use a multiple of {config.gradient_accumulation}."
        )
    for prompt in config.sample.prompts:
        if not isinstance(prompt, str):
            raise ConfigError(f"sample.prompts has {prompt!r}; expected texts, as in ('a red circle', 'two dogs').")
    if len(config.sample.prompts) > config.sample.count:
        raise ConfigError(
            f"sample.prompts has {len(config.sample.prompts)} texts, more than sample.count={config.sample.count}, the "
            "number of pictures to draw. Raise sample.count."
        )
    _one_of(config, "precision", ("float32", "bfloat16"))
    _one_of(config, "parallel", ("jit", "pmap"))
    _one_of(config, "sharding", ("replicated", "zero1", "zero2", "zero3"))
    _one_of(config, "checkpoint.best_mode", ("min", "max"))
    if config.parallel == "pmap" and config.sharding != "replicated":
        raise ConfigError(
            f"parallel='pmap' keeps a full copy on every device and cannot do sharding='{config.sharding}'. "
            "Use parallel='jit', or sharding='replicated'."
        )
    if config.parallel == "pmap" and config.mesh.tensor > 1:
        raise ConfigError("parallel='pmap' has no tensor axis. Use parallel='jit', or mesh.tensor=1.")
    for name, when in config.when.items():
        for percent in when.at_percent:
            if not 0 <= percent <= 100:
                raise ConfigError(f"when.{name}.at_percent has {percent}; percentages go from 0 to 100.")
    if "student" in config.ema:
        raise ConfigError("ema.student: 'student' is the name of the trained role. Give the average another name.")
    roles = {"student", *config.ema}
    for name, sampler in config.samplers.items():
        if config.method.name == "flow_matching" and sampler.get("role", "student") not in roles:
            raise ConfigError(
                f"samplers.{name}.role is '{sampler.role}'. Roles: {', '.join(sorted(roles))}.{suggestion(sampler.role, roles)}"
            )


def _get(config: ConfigDict, path: str) -> Any:
    for key in path.split("."):
        config = config[key]
    return config


def _one_of(config: ConfigDict, path: str, allowed: tuple[str, ...]) -> None:
    value = _get(config, path)
    if value not in allowed:
        raise ConfigError(
            f"The config entry '{path}' is '{value}'; expected one of {', '.join(allowed)}.{suggestion(value, allowed)}"
        )


def _validate_keys(config: ConfigDict, reference: ConfigDict, prefix: str) -> None:
    for key in config:
        if key not in reference:
            raise _unknown_key(prefix + key, key, reference)
        if isinstance(reference[key], ConfigDict):
            if not isinstance(config[key], ConfigDict):
                raise ConfigError(f"The config entry '{prefix + key}' is {config[key]!r}; expected a group of entries.")
            if prefix or key not in (*SPECS, *SPEC_MAPS, *OPEN):
                _validate_keys(config[key], reference[key], prefix + key + ".")
        else:
            _as_type_of(prefix + key, reference[key], config[key])
    missing = [prefix + key for key in reference if key not in config]
    if missing:
        raise ConfigError(f"The config lacks {', '.join(missing)}. Start from flowjax.config.defaults().")


def flatten(config: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted path, value) for every leaf of a nested config."""
    for key in sorted(config):
        value = config[key]
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def difference(config: ConfigDict) -> list[str]:
    """The lines `key = value (default: ...)` in which a config differs from the defaults."""
    standard = dict(flatten(defaults().to_dict()))
    chosen = dict(flatten(config.to_dict()))
    lines = []
    for path in sorted(chosen.keys() | standard.keys()):
        if path not in standard:
            lines.append(f"{path} = {chosen[path]!r}")
        elif path not in chosen:
            lines.append(f"{path} is left out (default: {standard[path]!r})")
        elif chosen[path] != standard[path]:
            lines.append(f"{path} = {chosen[path]!r} (default: {standard[path]!r})")
    return lines


def refuse_another_run(config: ConfigDict, saved: Mapping[str, Any], step: int) -> None:
    """Refuses to go on from a checkpoint of another config, or beyond which there is nothing to do.

    Args:
      config: what is asked for now.
      saved: what the checkpoint was made with, as it came back from JSON.
      step: the checkpoint's step.
    """
    plain = lambda mapping: dict(flatten(json.loads(json.dumps(mapping))))
    # An entry that there was not when the run began has its default, which is what the run has done.
    now, then = plain(config.to_dict()), plain({**defaults().to_dict(), **saved})
    changed = [
        f"{path}: {then.get(path, 'not there')!r} then, {now.get(path, 'not there')!r} now"
        for path in sorted(now.keys() | then.keys())
        if path.split(".")[0] not in CHANGEABLE and not path.startswith(LIMITS) and now.get(path) != then.get(path)
    ]
    if changed:
        shown = "; ".join(changed[:6]) + (f"; and {len(changed) - 6} more" if len(changed) > 6 else "")
        raise ConfigError(
            f"The checkpoint at step {step} in this workdir is of another run ({shown}). Give another --workdir, or undo the "
            "change; to start from its parameters, restore a role from it."
        )


class Schedule:
    """Answers whether something periodic is due after `done` finished steps."""

    def __init__(self, when: Mapping[str, Any] | ConfigDict, total_steps: int, steps_per_epoch: float | None = None):
        """Args:
        when: every_steps, every_epochs, at_percent (see `schedule`).
        total_steps: the length of the run.
        steps_per_epoch: batches in one pass over the data; None when the data has no end.
        """
        if when["every_epochs"] and steps_per_epoch is None:
            raise ConfigError("every_epochs is set, but this data set has no end. Use every_steps or at_percent.")
        self._every = when["every_steps"]
        self._epoch = when["every_epochs"] * (steps_per_epoch or 0.0)
        self._marks = {max(1, round(total_steps * percent / 100)) for percent in when["at_percent"]}

    def due(self, done: int) -> bool:
        """Whether the event happens after `done` steps; never before the first."""
        if done < 1:
            return False
        by_epoch = self._epoch > 0 and int(done / self._epoch) > int((done - 1) / self._epoch)
        return done in self._marks or (self._every > 0 and done % self._every == 0) or by_epoch

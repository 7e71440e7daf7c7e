"""What every method builds from a config: the setting (path, times, weight, noise, network), roles and samplers."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key
from ml_collections import ConfigDict

from flowjax.arrays import example_keys, keep_visible, uniform_rows
from flowjax.choices import Spec, build
from flowjax.config import defaults
from flowjax.contract import RESERVED, ROLLOUT, Batch, DataSpec, Method, Rate, Role, Sampler, Track
from flowjax.methods.optimizers import make_optimizer
from flowjax.models import NETWORKS
from flowjax.models.ema import EMAS
from flowjax.models.network import Conditions, Network
from flowjax.models.preconditioning import PRECONDITIONINGS
from flowjax.models.text import TEXT_ENCODERS, NoText, with_text
from flowjax.paths.noises import NOISES, Noise
from flowjax.paths.path import PATHS, GaussianPath
from flowjax.paths.times import TIMES, TimeDistribution, sample_times, truncated
from flowjax.paths.weights import WEIGHTS, Weight, over_times
from flowjax.rewards import REWARDS, make_rewards
from flowjax.rewards.selection import best_draw
from flowjax.samplers.build import make_sampler

READS_TEXT = "Use network 'dit', 'unet' or 'mmdit', with text_conditional left at True where it is an option."


@dataclasses.dataclass(frozen=True)
class Setting:
    """The parts of a config that say what is denoised and how a network reads it.

    Attributes:
      path, noise: what x_t is made of.
      times: the law of t, inside the path's interval.
      weight: the loss weight and the space it is stated in.
      network: with its preconditioning.
      prediction: what the network outputs.
      shape: of one example.
      seen_shape: of what is to be seen of it (DataSpec.seen_shape).
      batch_size: of the global batch.
      data: what the examples are.
    """

    path: GaussianPath
    noise: Noise
    times: TimeDistribution
    weight: Weight
    network: Network
    prediction: str
    shape: tuple[int, ...]
    seen_shape: tuple[int, ...]
    batch_size: int
    data: DataSpec


@dataclasses.dataclass(frozen=True)
class Draw:
    """Everything random in a denoising loss.

    Attributes:
      noise, data: the pair.
      t: its time.
      cond: the conditions after label dropout.
      dropped: whose conditions were dropped.
      keys: of the network's dropout.
    """

    noise: Float[Array, "b ..."]
    data: Float[Array, "b ..."]
    t: Float[Array, " b"]
    cond: Conditions
    dropped: Bool[Array, " b"]
    keys: Key[Array, " b"]


def make_setting(config: ConfigDict, data: DataSpec, prediction: str) -> Setting:
    """Builds every part from its spec, and refuses combinations that would silently ignore one of them."""
    if config.noise.name != "gaussian" and config.coupling.name not in ("independent", "stored"):
        raise ValueError(
            f"coupling '{config.coupling.name}' draws Gaussian noise for the whole batch, so noise "
            f"'{config.noise.name}' would be ignored. Use coupling=dict(name='independent') with it."
        )
    path = build("path", config.path, PATHS)
    network = build(
        "preconditioning",
        config.preconditioning,
        PRECONDITIONINGS,
        network=make_network(config, data),
        path=path,
        prediction=prediction,
        data=data,
    )
    times = truncated(build("time distribution", config.time, TIMES, shape=data.seen_shape), path.start, path.end)
    return Setting(
        path=path,
        noise=build("noise", config.noise, NOISES),
        times=times,
        weight=over_times(make_weight(config.weight, data), times),
        network=network,
        prediction=prediction,
        shape=tuple(data.shape),
        seen_shape=data.seen_shape,
        batch_size=config.batch_size,
        data=data,
    )


def make_network(config: ConfigDict, data: DataSpec) -> Network:
    """The config's network, with its text encoder around it; captions that no one would read are refused."""
    name = config.network.name
    build_network = lambda data: build("network", config.network, NETWORKS, data=data, dtype=config.precision)
    encoder = build("text encoder", config.text, TEXT_ENCODERS, data=data, dtype=config.precision)
    if encoder is None:
        ignored = config.network.get("text_conditional", True) is False  # the config says so itself
        if data.vocabulary and not ignored:
            raise ValueError(
                "The data have captions as token ids, which no one would read. Set text=dict(name='transformer') to train an "
                "encoder along, or network.text_conditional=False to do without captions."
            )
        network = build_network(data)
        if data.text_channels and not ignored and "text" not in network.conditions:
            raise ValueError(f"The data have captions, which the network '{name}' does not read. {READS_TEXT}")
        if data.pooled_channels and not ignored and "text_pooled" not in network.conditions:
            raise ValueError(
                f"The data have a vector for each whole caption (text_pooled), which the network '{name}' does not read. "
                "Leave out `pooled` where captions are encoded, or use network 'mmdit'."
            )
        return check_read(network, name, data)
    if not data.vocabulary:
        reason = "come encoded" if data.text_channels else "are not there"
        raise ValueError(
            f"text='{config.text.name}' encodes captions, but those of these data {reason}. Set text=dict(name='none')."
        )
    try:
        return check_read(with_text(build_network, encoder, data), name, data)
    except NoText as error:
        raise ValueError(
            f"The network '{name}', as configured, does not read the text that text='{config.text.name}' encodes. {READS_TEXT}"
        ) from error


def check_read(network: Network, name: str, data: DataSpec) -> Network:
    """The network, unless it and the data disagree about masks, or it would not read the data's observations.

    Args:
      network: with its text encoder.
      name: of it, in the config.
      data: what it is to learn.
    """
    if data.observation_shape and "observation" not in network.conditions:
        raise ValueError(
            f"The data are actions that answer to observations, which the network '{name}' does not read. Use network 'mlp'."
        )
    reads = "pixel_mask" in network.conditions
    if data.masked and not reads:
        raise ValueError(
            f"The data are images of several sizes on one canvas, with masks that the network '{name}' does not read: it "
            "would learn the padding. Set network.masked=True with 'dit' or a preset of it, or leave mask_multiple out of the "
            "data."
        )
    if reads and not data.masked:
        raise ValueError(
            f"The network '{name}' reads a mask of each image's pixels (masked=True), and these data have none. Set "
            "mask_multiple in the data (sources records, folder, webdataset, tfds), or network.masked=False."
        )
    return network


def make_weight(spec: Spec, data: DataSpec) -> Weight:
    """A loss weight; one that has the data's standard deviation takes it from the data unless the spec states it."""
    given = {} if "data_std" in spec else {"data_std": data.std}
    return build("weight", spec, WEIGHTS, **given)


def draw(setting: Setting, batch: Batch, key: Key[Array, ""], label_dropout: float) -> Draw:
    """Draws for each example from (key, row) alone, so that sharding and accumulation change nothing.

    Args:
      setting: the laws.
      batch: data, row and conditions; `noise` where a coupling or a store has chosen it.
      key: the step's key.
      label_dropout: the probability of replacing an example's conditions by their nulls.
    """
    key_time, key_strata, key_noise, key_label, key_dropout = jax.random.split(key, 5)
    rows = batch["row"]
    t = sample_times(setting.times, example_keys(key_time, rows), rows, setting.batch_size, key_strata)
    stored = batch.get("noise")
    visible = batch.get("pixel_mask")
    noise = fresh_noise(setting, batch, key_noise) if stored is None else keep_visible(stored, visible)
    cond = conditions_of(batch)
    dropped = uniform_rows(example_keys(key_label, rows)) < label_dropout
    cond = setting.network.drop(cond, dropped)
    return Draw(noise, batch["data"], t, cond, dropped, example_keys(key_dropout, rows))


def fresh_noise(setting: Setting, batch: Batch, key: Key[Array, ""]) -> Float[Array, "b ..."]:
    """Noise for each example of a batch, by (key, row) alone.

    Outside an image it is zero, and so is all else there: points, targets and what a masked network predicts, and so the error
    of any loss.
    """
    noise = setting.noise.sample(example_keys(key, batch["row"]), batch["data"].shape[1:])
    return keep_visible(noise, batch.get("pixel_mask"))


def student_role(config: ConfigDict, network: Network) -> Role:
    """The trained network with the config's optimizer."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    return Role(init=network.init, tx=optimizer.tx, learning_rate=optimizer.learning_rate)


def refuse_unread(config: ConfigDict, names: Sequence[str], method: str) -> None:
    """Refuses entries that a method does not read and that differ from their defaults: they would do nothing."""
    standard = defaults()
    for name in names:
        if config[name].to_dict() != standard[name].to_dict():
            raise ValueError(
                f"The config entry '{name}' is {config[name].to_dict()}, but the method '{method}' does not read it. Leave it "
                f"at {standard[name].to_dict()}."
            )


def refuse_idle(method: Callable[..., Method], reason: str, **options: Any) -> None:
    """Refuses options of a method that differ from their defaults where they would do nothing.

    Args:
      method: whose defaults.
      reason: why they would do nothing.
      **options: name -> value.
    """
    parameters = inspect.signature(method).parameters
    for name, value in options.items():
        default = parameters[name].default
        if value != default:
            raise ValueError(f"method.{name}={value!r} would do nothing: {reason}. Leave it at {default!r}.")


def preset(method: Callable[..., Method], **defaults: Any) -> Callable[..., Method]:
    """A method with other defaults, by a name of its own."""

    @functools.wraps(method)
    def named(config: ConfigDict, data: DataSpec, **options: Any) -> Method:
        return method(config, data, **{**defaults, **options})

    # What has a default need not be given: the signature is what configs are checked against.
    signature = inspect.signature(method)
    own = [p.replace(default=defaults.get(name, p.default)) for name, p in signature.parameters.items()]
    named.__signature__ = signature.replace(
        parameters=[p.replace(kind=p.KEYWORD_ONLY) if p.name not in ("config", "data") else p for p in own]
    )
    return named


def joined(roles: Mapping[str, Role], *more: Mapping[str, Role]) -> dict[str, Role]:
    """Roles of several origins together; two of one name, such as an average named like a role, are refused."""
    found = dict(roles)
    for others in more:
        for name in others:
            if name in found:
                raise ValueError(f"ema.{name} has the name of a role of the method. Give the average another name.")
        found |= others
    return found


def conditions_of(batch: Batch) -> Conditions:
    """What of a batch is a condition."""
    return {name: array for name, array in batch.items() if name not in RESERVED and not name.startswith(ROLLOUT)}


def check_shares(**shares: float) -> None:
    """Refuses options of a method that are no shares."""
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"method.{name} is {value}; expected a share between 0 and 1.")


def average_roles(config: ConfigDict, source: str = "student", begins: Sequence[int] = (0,)) -> dict[str, Role]:
    """One tracked role for each entry of config.ema: it starts as a copy of the source and follows it.

    Args:
      config: ema, batch_size.
      source: the role that is averaged.
      begins: the steps at which the averages begin anew, as if the run began there: those of stages with other targets.
    """
    roles = {}
    for name, spec in config.ema.items():
        rate = build("ema", spec, EMAS, batch_size=config.batch_size)
        roles[name] = Role(copy_of=source, track=Track(source, rate if len(begins) == 1 else _anew(rate, begins)))
    return roles


def _anew(rate: Rate, begins: Sequence[int]) -> Rate:
    """A rate whose step counts from the last of `begins`."""
    begins = jnp.asarray(begins, jnp.int32)
    return lambda step: rate(step - jnp.max(jnp.where(begins <= step, begins, 0)))


def null_conditions(network: Network) -> Callable[[Conditions], Conditions] | None:
    """What puts nulls in place of conditions; None where a network has none to drop."""

    def null(cond: Conditions) -> Conditions:
        count = len(next(iter(cond.values()))) if cond else 0
        return network.drop(cond, jnp.ones(count, bool))

    return null if network.droppable else None


def sampler_of(spec: Spec, setting: Setting) -> Sampler:
    """A sampler of samplers/build.py around the setting's network.

    Its spec may also have best_of=dict(count=16, rewards=dict(bright=dict(name='brightness')), failures='stop'): of so many
    draws under one condition, the one that is worth most (rewards/selection.py).
    """
    spec, network = dict(spec), setting.network
    chosen = spec.pop("best_of", None)
    sampler = make_sampler(
        spec,
        predict=network.apply,
        null=null_conditions(network),
        prediction=setting.prediction,
        path=setting.path,
        noise=setting.noise,
        shape=setting.shape,
        prepare=network.prepare,
        seen=setting.seen_shape,
        settable={name: item.dtype for name, item in network.conditions.items() if item.shape == ()},
    )
    if chosen is None:
        return sampler
    named = {"best_of": _best_of}
    return build("choice among draws", {**chosen, "name": "best_of"}, named, sampler=sampler, data=setting.data)


def _best_of(sampler: Sampler, data: DataSpec, count: int, rewards: Spec, failures: str = "stop") -> Sampler:
    return best_draw(sampler, make_rewards(rewards, REWARDS, failures=failures, data=data), count)


def make_samplers(config: ConfigDict, setting: Setting) -> dict[str, Sampler]:
    """The samplers of config.samplers around the setting's network."""
    return {name: sampler_of(spec, setting) for name, spec in config.samplers.to_dict().items()}

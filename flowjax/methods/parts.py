"""What every method builds from a config: the setting (path, times, weight, noise, network), roles and samplers."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from flowjax.arrays import example_keys, uniform_rows
from flowjax.choices import Spec, build
from flowjax.contract import RESERVED, Batch, DataSpec, Role, Sampler, Track
from flowjax.methods.optimizers import make_optimizer
from flowjax.models import NETWORKS
from flowjax.models.ema import EMAS
from flowjax.models.network import Conditions, Network
from flowjax.models.preconditioning import PRECONDITIONINGS
from flowjax.paths.noises import NOISES, Noise
from flowjax.paths.path import PATHS, GaussianPath
from flowjax.paths.times import TIMES, TimeDistribution, sample_times, truncated
from flowjax.paths.weights import WEIGHTS, Weight
from flowjax.samplers.build import make_sampler


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
      batch_size: of the global batch.
    """

    path: GaussianPath
    noise: Noise
    times: TimeDistribution
    weight: Weight
    network: Network
    prediction: str
    shape: tuple[int, ...]
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Draw:
    """Everything random in a denoising loss: the pair, its time, the conditions after label dropout, dropout keys."""

    noise: Float[Array, "b ..."]
    data: Float[Array, "b ..."]
    t: Float[Array, "b"]
    cond: Conditions
    keys: Key[Array, "b"]


def make_setting(config: ConfigDict, data: DataSpec, prediction: str) -> Setting:
    """Builds every part from its spec, and refuses combinations that would silently ignore one of them."""
    if config.noise.name != "gaussian" and config.coupling.name not in ("independent", "stored"):
        raise ValueError(
            f"coupling '{config.coupling.name}' draws Gaussian noise for the whole batch, so noise "
            f"'{config.noise.name}' would be ignored. Use coupling=dict(name='independent') with it."
        )
    path = build("path", config.path, PATHS)
    network = build("network", config.network, NETWORKS, data=data, dtype=config.precision)
    network = build(
        "preconditioning",
        config.preconditioning,
        PRECONDITIONINGS,
        network=network,
        path=path,
        prediction=prediction,
        data=data,
    )
    return Setting(
        path=path,
        noise=build("noise", config.noise, NOISES),
        times=truncated(build("time distribution", config.time, TIMES), path.start, path.end),
        weight=make_weight(config.weight, data),
        network=network,
        prediction=prediction,
        shape=tuple(data.shape),
        batch_size=config.batch_size,
    )


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
    noise = batch.get("noise")
    if noise is None:
        noise = setting.noise.sample(example_keys(key_noise, rows), batch["data"].shape[1:])
    cond = {name: array for name, array in batch.items() if name not in RESERVED}
    dropped = uniform_rows(example_keys(key_label, rows)) < label_dropout
    cond = setting.network.drop(cond, dropped)
    return Draw(noise, batch["data"], t, cond, example_keys(key_dropout, rows))


def student_role(config: ConfigDict, network: Network) -> Role:
    """The trained network with the config's optimizer."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    return Role(init=network.init, tx=optimizer.tx, learning_rate=optimizer.learning_rate)


def average_roles(config: ConfigDict, source: str = "student") -> dict[str, Role]:
    """One tracked role for each entry of config.ema: it starts as a copy of the source and follows it."""
    roles = {}
    for name, spec in config.ema.items():
        rate = build("ema", spec, EMAS, batch_size=config.batch_size)
        roles[name] = Role(copy_of=source, track=Track(source, rate))
    return roles


def make_samplers(config: ConfigDict, setting: Setting) -> dict[str, Sampler]:
    """The samplers of config.samplers around the setting's network."""

    def null(cond: Conditions) -> Conditions:
        count = len(next(iter(cond.values()))) if cond else 0
        return setting.network.drop(cond, jnp.ones(count, bool))

    droppable = any(condition.null is not None for condition in setting.network.conditions.values())
    return {
        name: make_sampler(
            spec,
            predict=setting.network.apply,
            null=null if droppable else None,
            prediction=setting.prediction,
            path=setting.path,
            noise=setting.noise,
            shape=setting.shape,
        )
        for name, spec in config.samplers.to_dict().items()
    }

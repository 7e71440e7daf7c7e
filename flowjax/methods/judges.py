r"""Discriminators of distillation, each with the roles it brings.

    points     dense layers on points, clean or noised
    patch      PatchGAN on clean images
    tokens     heads on the tokens that a network has of noised images: a frozen teacher's (LADD) or the fake denoiser's (DMD2);
               or of clean ones, at the end of the path (ADD where no image network is named)
    features   heads on the features that a frozen image network has of clean images (ADD)

The role `discriminator` is what is trained; the network behind `tokens` is a role that the method has anyway.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from flowjax.arrays import example_keys, mean_per_example, normal_rows
from flowjax.choices import Spec, build, choose
from flowjax.contract import Batch, DataSpec, Params, Role
from flowjax.losses.adversarial import Game, gradient_penalty, perturbed_penalty
from flowjax.methods.encoders import check_layer, hidden_channels
from flowjax.methods.optimizers import make_optimizer
from flowjax.models.discriminator import patch, points
from flowjax.models.features import open_extractor
from flowjax.models.heads import heads
from flowjax.models.network import Conditions, Network

READINGS = {
    "logits_real": "The discriminator's, of real examples: above those of generated ones while it can tell them apart.",
    "logits_fake": "Of generated examples. A gap to the real ones that grows without end: the discriminator has won.",
    "penalty": "The squared gradient of the discriminator at real examples, before its weight.",
}
GENERATOR_READING = "The generator's share of the game. It moves with the discriminator and need not fall."


JUDGE, FEATURES = "discriminator", "features"  # roles
Logits = Float[Array, "b ..."]


@dataclasses.dataclass(frozen=True)
class Judge:
    """A discriminator.

    Attributes:
      roles: `discriminator`, trained, and what it stands on where that is its own.
      logits: (params, x, t, cond) -> logits; one that judges clean examples does not look at t.
    """

    roles: Mapping[str, Role]
    logits: Callable[[Params, Float[Array, "b ..."], Float[Array, " b"] | None, Conditions], Logits]

    def frozen(
        self, params: Params, x: Float[Array, "b ..."], t: Float[Array, " b"] | None, cond: Conditions
    ) -> Logits:
        """The logits, with a gradient by x alone."""
        return self.logits(jax.lax.stop_gradient(dict(params)), x, t, cond)


@dataclasses.dataclass(frozen=True)
class Bout:
    """What a discriminator is trained by: the game and the penalty.

    Attributes:
      game: its two losses.
      penalty_weight: of R1 on real examples.
      penalty_step: 0 for the exact R1, else the step of its approximation.
    """

    game: Game
    penalty_weight: float = 0.0
    penalty_step: float = 0.0

    def __post_init__(self):
        if self.penalty_weight < 0 or self.penalty_step < 0:
            raise ValueError(
                f"method.penalty_weight={self.penalty_weight} and penalty_step={self.penalty_step}: both must be at least 0."
            )
        if self.penalty_step and not self.penalty_weight:
            raise ValueError(
                f"method.penalty_step={self.penalty_step} belongs to a penalty, and penalty_weight is 0. Drop it."
            )

    def discriminator_loss(
        self,
        score: Callable[[Float[Array, "b ..."]], Logits],
        real: Float[Array, "b ..."],
        fake: Float[Array, "b ..."],
        batch: Batch,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, " b"], dict[str, Array]]:
        """The game, and the penalty where it has a weight.

        Args:
          score: examples -> logits.
          real: real examples.
          fake: generated ones; no gradient flows to them.
          batch: with `row`.
          key: of the penalty's own noise.
        """
        of_real, of_fake = score(real), score(jax.lax.stop_gradient(fake))
        value = self.game.discriminator(of_real, of_fake)
        metrics = {"logits_real": mean_per_example(of_real), "logits_fake": mean_per_example(of_fake)}
        if self.penalty_weight:
            if self.penalty_step:
                noise = normal_rows(example_keys(key, batch["row"]), real.shape[1:])
                penalty = perturbed_penalty(score, of_real, real, noise, self.penalty_step)
            else:
                penalty = gradient_penalty(score, real)
            value, metrics = value + self.penalty_weight * penalty, {**metrics, "penalty": penalty}
        return value, metrics


def judge_points(
    config: ConfigDict,
    data: DataSpec,
    noised: bool,
    width: int = 128,
    depth: int = 3,
    octaves: int = 4,
    class_conditional: bool = True,
) -> Any:
    """Dense layers: models.discriminator.points, with its options."""
    network = points(data, config.precision, width, depth, octaves, class_conditional, noised)
    return network.init, lambda params, x, t, cond: network.apply(params[JUDGE], x, t, cond), {}


def judge_patches(config: ConfigDict, data: DataSpec, channels: int = 64, layers: int = 3) -> Any:
    """PatchGAN: models.discriminator.patch, with its options."""
    network = patch(data, config.precision, channels, layers)
    return network.init, lambda params, x, t, cond: network.apply(params[JUDGE], x), {}


def judge_tokens(
    config: ConfigDict, data: DataSpec, backbone: tuple[Network, str], end: float, layers: tuple = (), width: int = 64
) -> Any:
    """Heads on the tokens of a network.

    Args:
      config: for the precision.
      data: what the network sees.
      backbone: the network, and the role of its parameters.
      end: the time of clean examples.
      layers: the blocks, counted from 1; the one in the middle unless told.
      width: of a head.
    """
    network, role = backbone
    layers = tuple(layers) or ((network.layers + 1) // 2,)
    for layer in layers:
        check_layer(network, layer, f"The network of the role '{role}'", "method.discriminator.layers")
    top = heads([hidden_channels(network, data, layer) for layer in layers], width, config.precision)

    def logits(params: Params, x: Array, t: Array | None, cond: Conditions) -> Logits:
        t = jnp.full(len(x), end) if t is None else t
        return top.apply(params[JUDGE], network.hidden(params[role], x, t, cond, layer=layers)[1])

    return top.init, logits, {}


def judge_features(
    config: ConfigDict,
    data: DataSpec,
    extractor: str = "efficientnet_lite0",
    layers: tuple = (),
    weights: str = "published",
    input_size: int | None = None,
    width: int = 64,
) -> Any:
    """Heads on the features of an image network.

    Args:
      config: for the precision.
      data: images, with 1 or 3 channels.
      extractor: one of models.features.EXTRACTORS.
      layers: its maps; the one that distances are measured on unless told.
      weights: 'published', which must be on this machine, or 'random', for tests.
      input_size: the side that images are resized to; the extractor's own unless told.
      width: of a head.
    """
    network, load = open_extractor(extractor, weights, input_size)
    layers = tuple(layers) or (network.layer,)
    top = heads([choose(f"layer of {network.name}", layer, network.maps) for layer in layers], width, config.precision)
    role = Role(init=network.init) if load is None else Role(load=load)

    def logits(params: Params, x: Array, t: Array | None, cond: Conditions) -> Logits:
        found = network.apply(params[FEATURES], x)
        return top.apply(params[JUDGE], [found[layer] for layer in layers])

    return top.init, logits, {FEATURES: role}


NOISED = {"points": judge_points, "tokens": judge_tokens}
CLEAN = {"points": judge_points, "patch": judge_patches, "tokens": judge_tokens, "features": judge_features}


def make_judge(
    spec: Spec,
    config: ConfigDict,
    data: DataSpec,
    optimizer: Spec | None,
    noised: bool,
    backbone: tuple[Network, str] | None = None,
    end: float = 1.0,
    updates: int | None = None,
) -> Judge:
    """The discriminator that a spec describes, with its roles.

    Args:
      spec: one of the table above, with its options.
      config: optimizer, precision, steps.
      data: the examples.
      optimizer: of the discriminator; config.optimizer unless given.
      noised: whether it judges noised examples, at a time, or clean ones.
      backbone: the network behind `tokens`, and its role.
      end: of the path: the time at which `tokens` sees clean examples.
      updates: how many it will have; one a step unless given.
    """
    known = NOISED if noised else CLEAN
    table = {name: judge for name, judge in known.items() if backbone is not None or name != "tokens"}
    given = dict(config=config, data=data, noised=noised, backbone=backbone, end=end)
    init, logits, roles = build("discriminator", spec, table, **given)
    rule = make_optimizer(optimizer or config.optimizer, updates or config.steps)
    own = Role(init=init, tx=rule.tx, learning_rate=rule.learning_rate)
    return Judge({**roles, JUDGE: own}, logits)

r"""Representation alignment (REPA, Yu et al. 2024) around any method: a network's tokens learn to say what an encoder sees.

    loss = the method's loss + weight * -mean over tokens of cos(projector(tokens after block `layer`), features)

The features are those of the clean picture under a frozen encoder (methods/encoders.py), brought onto the network's grid.
What the lower blocks would have to find out from the denoising loss alone they are told, and the blocks above are free.

It composes by wrapping: a method hands over its loss as a function of a network, and gets back a method with two more
roles, `encoder` (frozen) and `projector` (trained by the same phase). The student's tree is what it was, so averages,
samplers and other runs know nothing of it. The tokens come from the same pass as the prediction.

The encoder's view stops helping, and begins to limit, once the network sees more than it (Wang et al. 2025, HASTE): from
step `until` on the term is gone, and the encoder is not run any more.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Key, PyTree
from ml_collections import ConfigDict

from flowjax.choices import Spec, build
from flowjax.contract import Batch, CheckResult, DataSpec, LossFn, Method, Metrics, Params, Role
from flowjax.losses.alignment import alignment_loss, contrast, on_grid
from flowjax.methods.encoders import Encoder, check_layer, hidden_channels, make_encoder
from flowjax.methods.optimizers import make_optimizer
from flowjax.methods.parts import joined
from flowjax.models.network import Conditions, Network
from flowjax.models.projector import PROJECTORS, Projector

ALIGNMENT_READING = (
    "The mean cosine of the projected tokens and the encoder's. Rises from about 0 towards 1, and stays below."
)


ENCODER, PROJECTOR, STUDENT = "encoder", "projector", "student"  # roles
STREAM = 0xA116  # folded into a loss's key: the encoder's own draws
Tokens = Float[Array, "b h w c"]


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The parts of the term and its numbers; see `make_alignment`."""

    encoder: Encoder
    projector: Projector
    projector_role: Role
    layer: int
    weight: float
    until: int | None
    contrast: float

    def loss(self, params: Params, tokens: Tokens, batch: Batch, key: Key[Array, ""]) -> Float[Array, " b"]:
        """Minus the mean cosine of each example; nothing of it reaches the encoder or the picture."""
        tree = params.get(ENCODER)
        features = self.encoder.encode(tree, batch, jax.random.fold_in(key, STREAM))
        features = on_grid(features.astype(jnp.float32), *tokens.shape[1:3])
        if self.contrast:
            features = contrast(features, self.contrast)
        projected = self.projector.apply(params[PROJECTOR], tokens)
        visible = visible_cells(batch["pixel_mask"], *tokens.shape[1:3]) if "pixel_mask" in batch else None
        return alignment_loss(projected, jax.lax.stop_gradient(features), visible)


def make_alignment(spec: Spec, config: ConfigDict, data: DataSpec, network: Network) -> Alignment:
    """The alignment that a method's option `alignment` describes.

    Args:
      spec: the options of `alignment` below.
      config: optimizer and precision, of the projector too.
      data: what the network is trained on.
      network: whose tokens are aligned.
    """
    return build(
        "method option",
        {"name": "alignment", **dict(spec)},
        {"alignment": alignment},
        config=config,
        data=data,
        network=network,
    )


def alignment(
    config: ConfigDict,
    data: DataSpec,
    network: Network,
    encoder: Spec,
    layer: int,
    weight: float = 0.5,
    until: int | None = None,
    contrast: float = 0.0,
    projector: Spec | None = None,
) -> Alignment:
    """The options of `method.alignment`.

    Args:
      config: see make_alignment.
      data: likewise.
      network: likewise.
      encoder: the frozen encoder: methods/encoders.py.
      layer: the block whose tokens are aligned, from 1; about a third of the depth (8 of 28 in the publication).
      weight: of the term beside the method's loss; 0 leaves the method as it is, to the last bit.
      until: the step from which on the term is gone; None for never.
      contrast: how much of the features' mean over the picture is taken out, 0 to 1 (iREPA: 0.6); 0 leaves them.
      projector: from tokens to the encoder's channels: spec of models.projector.PROJECTORS, `mlp` unless told.
    """
    check_layer(network, layer, f"The network '{config.network.name}'", "method.alignment.layer")
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"method.alignment.weight is {weight}; it must be at least 0.")
    if until is not None and until < 1:
        raise ValueError(f"method.alignment.until is {until}; it is a step, at least 1, or None for never.")
    if not 0 <= contrast <= 1:
        raise ValueError(f"method.alignment.contrast is {contrast}; it is a share, from 0 to 1.")
    eye = make_encoder(encoder, data)
    bridge = build(
        "projector",
        projector or dict(name="mlp"),
        PROJECTORS,
        channels=hidden_channels(network, data, layer),
        features=eye.channels,
        dtype=config.precision,
    )
    optimizer = make_optimizer(config.optimizer, config.steps)
    role = Role(init=bridge.init, tx=optimizer.tx, learning_rate=optimizer.learning_rate)
    return Alignment(eye, bridge, role, layer, float(weight), until, float(contrast))


def with_alignment(
    method: Method, phase: str, loss_of: Callable[[Network], LossFn], network: Network, alignment: Alignment
) -> Method:
    """A method whose phase aligns tokens as well.

    Args:
      method: any; its role `student` is a tree of `network`.
      phase: the name of the phase.
      loss_of: the phase's loss as a function of the network that it calls, once and in no inner transformation.
      network: the network.
      alignment: what is compared and how.
    """
    term = alignment
    if not term.weight:
        return method

    def parts(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics, Tokens]:
        observed, seen = observe(network, term.layer)
        value, metrics = loss_of(observed)(params, batch, key)
        if len(seen) != 1:
            raise ValueError(
                f"A loss with alignment calls its network once; phase '{phase}' calls it {len(seen)} times."
            )
        return value, metrics, seen[0]

    def aligned_loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        value, metrics, tokens = parts(params, batch, key)
        metrics = {**metrics, f"{phase}_loss": value}
        look = lambda: term.loss(params, tokens, batch, key)
        if term.until is None:
            pull = look()
        else:
            early = jnp.max(batch["step"]) < term.until
            pull = jax.lax.cond(early, look, lambda: jnp.zeros_like(value))
            metrics["alignment_weight"] = term.weight * early
        return value + term.weight * pull, {**metrics, "alignment": -pull}

    def check(params: Params, batch: Batch, key: Key[Array, ""]) -> CheckResult:
        return _check_pull(term, parts, params, batch, key)

    encoder = {} if term.encoder.role is None else {ENCODER: term.encoder.role}
    old = method.phases[phase]
    phases = {**method.phases, phase: dataclasses.replace(old, loss=aligned_loss, trains=(*old.trains, PROJECTOR))}
    roles = joined(method.roles, encoder, {PROJECTOR: term.projector_role})
    readings = {**method.readings, "alignment": ALIGNMENT_READING, f"{phase}_loss": method.readings.get("loss", "")}
    checks = {**method.checks, "alignment": check}
    return dataclasses.replace(method, roles=roles, phases=phases, checks=checks, readings=readings)


def observe(network: Network, layer: int) -> tuple[Network, list[Tokens]]:
    """The same network, and a list to which each of its calls adds the tokens after a block.

    Args:
      network: with blocks.
      layer: after which one.
    """
    seen: list[Tokens] = []

    def apply(
        tree: PyTree, x: Float[Array, "b ..."], t: Float[Array, "..."], cond: Conditions, **options: Any
    ) -> Float[Array, "b ..."]:
        prediction, tokens = network.hidden(tree, x, t, cond, layer=layer, **options)
        seen.append(tokens)
        return prediction

    return dataclasses.replace(network, apply=apply), seen


def visible_cells(pixels: Bool[Array, "b height width"], rows: int, columns: int) -> Bool[Array, "b {rows} {columns}"]:
    """The cells of a grid that hold a visible pixel."""
    return rearrange(pixels, "b (h p) (w q) -> b h w (p q)", h=rows, w=columns).any(axis=-1)


def _check_pull(term: Alignment, parts: Callable, params: Params, batch: Batch, key: Key[Array, ""]) -> CheckResult:
    """How hard the term pulls at student and projector, beside the method's own loss, and how far tokens agree now."""
    mask = batch["mask"] / jnp.sum(batch["mask"])

    @jax.jit
    def measure(trained, rest, batch):
        def own(trained):
            return jnp.sum(mask * parts({**rest, **trained}, batch, key)[0])

        def pull(trained):
            full = {**rest, **trained}
            return jnp.sum(mask * term.loss(full, parts(full, batch, key)[2], batch, key))

        value, gradients = jax.value_and_grad(pull)(trained)
        size = lambda tree: jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))
        reached = sum(jnp.any(leaf != 0).astype(jnp.int32) for leaf in jax.tree.leaves(gradients[STUDENT]))
        return (
            -value,
            size(gradients[STUDENT]),
            size(gradients[PROJECTOR]),
            size(jax.grad(own)(trained)[STUDENT]),
            reached,
        )

    trained = {name: params[name] for name in (STUDENT, PROJECTOR)}
    rest = {name: tree for name, tree in params.items() if name not in trained}
    cosine, student, projector, own, reached = (float(value) for value in measure(trained, rest, batch))
    count = len(jax.tree.leaves(params[STUDENT]))
    return CheckResult(
        "alignment",
        math.isfinite(student + projector) and student > 0 and projector > 0,
        f"mean cosine {cosine:.3f}; gradient of the term: projector {projector:.3g}, student {student:.3g} (its own loss "
        f"{own:.3g}; weight {term.weight:g}), in {reached:.0f} of the student's {count} arrays",
        "The term reaches nothing: are the encoder's features all zero or not finite?",
    )

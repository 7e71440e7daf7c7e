"""Optimizers from a config spec: an optax chain (clip, update rule, schedule) and the schedule for the logs."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from flowjax.choices import Spec, build, choose


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optax transformation and its learning rate as a function of the update count."""

    tx: optax.GradientTransformation
    learning_rate: Callable


Steps = int | tuple[int, ...]  # of a run, or of each of its stages: the schedule begins anew with every stage


def _learning_rate(peak: float, warmup_steps: int, decay: str, total_steps: int, final_fraction: float) -> Callable:
    """Linear warm-up from 0, then `decay` down to final_fraction * peak at the end of the run.

    inverse_sqrt is peak / sqrt(max(step / warmup_steps, 1)), the rule of Karras et al. 2024 with warmup_steps as reference.
    """
    steps = max(total_steps - warmup_steps, 1)
    shapes = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, steps, final_fraction),
        "linear": lambda: optax.linear_schedule(peak, final_fraction * peak, steps),
        "inverse_sqrt": lambda: lambda step: peak / jnp.sqrt(1.0 + step / warmup_steps),
    }
    if peak <= 0 or warmup_steps < 0 or not 0 <= final_fraction <= 1:
        raise ValueError(
            f"An optimizer needs learning_rate > 0, warmup_steps >= 0 and final_fraction in [0, 1]; it has {peak}, "
            f"{warmup_steps} and {final_fraction}."
        )
    if final_fraction and decay not in ("cosine", "linear"):
        raise ValueError(
            f"The decay '{decay}' has no end to which final_fraction={final_fraction} could apply. Leave it out."
        )
    if decay == "inverse_sqrt" and not warmup_steps:
        raise ValueError("The decay 'inverse_sqrt' falls with step / warmup_steps: set warmup_steps.")
    after = choose("learning-rate decay", decay, shapes)()
    if warmup_steps == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), after], [warmup_steps])


def _assemble(rule, total_steps, learning_rate, warmup_steps, decay, final_fraction, clip_norm) -> Optimizer:
    if clip_norm is not None and clip_norm <= 0:
        raise ValueError(f"clip_norm is {clip_norm}; it must be positive, or None for no clipping.")
    stages = (total_steps,) if isinstance(total_steps, int) else total_steps
    schedules = [_learning_rate(learning_rate, warmup_steps, decay, steps, final_fraction) for steps in stages]
    schedule = (
        optax.join_schedules(schedules, list(itertools.accumulate(stages))[:-1]) if schedules[1:] else schedules[0]
    )
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    return Optimizer(optax.chain(*clip, rule(schedule)), schedule)


def adam(
    total_steps: Steps,
    learning_rate: float = 1e-3,
    warmup_steps: int = 0,
    decay: str = "constant",
    final_fraction: float = 0.0,
    clip_norm: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adam (Kingma & Ba 2014); with weight_decay > 0 AdamW (Loshchilov & Hutter 2017), which spares vectors and scalars."""

    def rule(schedule):
        if not weight_decay:
            return optax.adam(schedule, b1, b2, eps)
        return optax.adamw(schedule, b1, b2, eps, weight_decay=weight_decay, mask=_matrices)

    return _assemble(rule, total_steps, learning_rate, warmup_steps, decay, final_fraction, clip_norm)


def sgd(
    total_steps: Steps,
    learning_rate: float = 1e-2,
    warmup_steps: int = 0,
    decay: str = "constant",
    final_fraction: float = 0.0,
    clip_norm: float | None = None,
    momentum: float = 0.9,
) -> Optimizer:
    """Stochastic gradient descent with momentum."""
    rule = lambda schedule: optax.sgd(schedule, momentum or None)
    return _assemble(rule, total_steps, learning_rate, warmup_steps, decay, final_fraction, clip_norm)


def muon(
    total_steps: Steps,
    learning_rate: float = 1e-2,
    warmup_steps: int = 0,
    decay: str = "constant",
    final_fraction: float = 0.0,
    clip_norm: float | None = 1.0,
    momentum: float = 0.95,
    vector_rate: float = 0.2,
    b1: float = 0.9,
    b2: float = 0.99,
) -> Optimizer:
    """Muon (Jordan et al. 2024): each matrix moves by its momentum with all singular values made equal, about 1.

    A kernel of a convolution is a matrix from all its inputs to its outputs. Vectors and scalars follow Nadam, at
    `vector_rate` times the learning rate. The step of a matrix does not shrink with its gradient: let the rate decay.

    Args:
      total_steps: of the run, or of each of its stages, for the decay.
      learning_rate: of matrices; a step of a matrix has singular values of about this times sqrt(max(1, outputs / inputs)).
      warmup_steps: linear warm-up from 0.
      decay: constant, cosine, linear or inverse_sqrt.
      final_fraction: what is left of the rate at the end.
      clip_norm: of all gradients together; matters for vectors only.
      momentum: of matrices, with Nesterov's correction.
      vector_rate: Nadam's rate over learning_rate.
      b1, b2: of Nadam.
    """

    def rule(schedule):
        return optax.contrib.muon(
            schedule,
            beta=momentum,
            adam_b1=b1,
            adam_b2=b2,
            adam_learning_rate=lambda step: vector_rate * schedule(step),
            muon_weight_dimension_numbers=_as_matrices,
        )

    return _assemble(rule, total_steps, learning_rate, warmup_steps, decay, final_fraction, clip_norm)


def natural(
    total_steps: Steps,
    learning_rate: float = 1e-3,
    warmup_steps: int = 0,
    decay: str = "constant",
    final_fraction: float = 0.0,
    clip_norm: float | None = None,
    b1: float = 0.9,
    b2: float = 0.99,
    damping: float = 1e-4,
) -> Optimizer:
    r"""The diagonal natural gradient with steps of one length: for gradients that are nearly all noise, as a policy's are.

    With m and v the averages of gradients and of their squares,

        d = m / (v + damping mean(v)),        change = -learning_rate d / l,                                       (1)
        l^2 = sum(v d^2) * the average of (g . d')^2 / sum(v d'^2),                                               (2)

    g the gradients and d' the direction before they were seen. The gradients of a policy vary as Fisher's matrix, but for a
    factor: d is what gains most for the divergence that it costs, as far as a diagonal of that matrix tells (Amari 1998), and
    learning_rate^2 is that divergence, but for a factor (Schulman et al. 2015, trust regions). The length l is measured and
    not read off the diagonal, since gradients of a network vary together. Adam divides by the root of v: it goes far where
    gradients are noisy and the model easily changed. The step does not shrink with its gradient: let the rate decay.

    Args:
      total_steps: of the run, or of each of its stages, for the decay.
      learning_rate: the length of a step, as the deviation of what a gradient says that it gains.
      warmup_steps: linear warm-up from 0, while v becomes known.
      decay: constant, cosine, linear or inverse_sqrt.
      final_fraction: what is left of the rate at the end.
      clip_norm: of all gradients together.
      b1, b2: of the averages m and v.
      damping: what v is at least, as a share of its mean over all parameters.
    """
    if damping < 0:
        raise ValueError(f"The optimizer 'natural' has damping={damping}; expected a share of at least 0.")
    metric = resting(_in_fisher_metric(b1, b2, damping))  # a gradient of zero, as of equal rewards, tells no length
    rule = lambda schedule: optax.chain(metric, optax.scale_by_learning_rate(schedule))
    return _assemble(rule, total_steps, learning_rate, warmup_steps, decay, final_fraction, clip_norm)


class NaturalState(NamedTuple):
    """State of `natural`: updates so far, the averages m and v, and that of (g . d)^2 / sum(v d^2)."""

    count: jax.Array
    mu: optax.Updates
    nu: optax.Updates
    stretch: jax.Array


def _in_fisher_metric(b1: float, b2: float, damping: float) -> optax.GradientTransformation:
    """d over its length, equations (1) and (2) of `natural`."""
    tiny = jnp.finfo(jnp.float32).tiny
    inner = lambda one, other: optax.tree.sum(jax.tree.map(jnp.multiply, one, other))

    def direction(mu, nu, count):
        """d of unit length, as far as a diagonal tells."""
        mean, square = optax.tree.bias_correction(mu, b1, count), optax.tree.bias_correction(nu, b2, count)
        least = damping * optax.tree.sum(square) / optax.tree.size(square) + tiny
        found = jax.tree.map(lambda m, v: m / (v + least), mean, square)
        length = jnp.sqrt(optax.tree.sum(jax.tree.map(lambda d, v: v * d**2, found, square)))
        return jax.tree.map(lambda d: d / jnp.maximum(length, tiny), found)

    def init(params):
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)
        return NaturalState(jnp.zeros([], jnp.int32), zeros(), zeros(), jnp.zeros([]))

    def update(gradients, state, params=None):
        # The last direction knows nothing of these gradients: what they say of it is its true length.
        known = jnp.maximum(state.count, 1)
        seen = inner(gradients, direction(state.mu, state.nu, known)) ** 2
        stretch = jnp.where(state.count > 0, b2 * state.stretch + (1 - b2) * seen, 0.0)
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(gradients, state.mu, b1, 1)
        nu = optax.tree.update_moment(gradients, state.nu, b2, 2)
        most = optax.tree.size(nu)  # by the inequality of Cauchy and Schwarz: all that is known of the first step
        measured = stretch / jnp.maximum(1 - b2 ** state.count.astype(jnp.float32), tiny)
        # One is what a diagonal says: by chance alone is a direction shorter.
        length = jnp.sqrt(jnp.where(state.count > 0, jnp.maximum(measured, 1.0), most))
        step = jax.tree.map(lambda d: d / length, direction(mu, nu, count))
        return step, NaturalState(count, mu, nu, stretch)

    return optax.GradientTransformation(init, update)


def _as_matrices(tree):
    """How each leaf is a matrix: the last axis for outputs, the others for inputs; None for vectors and scalars."""
    axes = lambda leaf: optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)
    return jax.tree.map(lambda leaf: axes(leaf) if leaf.ndim >= 2 else None, tree)


def _matrices(tree):
    """Weight decay reaches only what has two axes or more: biases, gains and scalars are left alone."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, tree)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adam": adam, "muon": muon, "natural": natural, "sgd": sgd}


def resting(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer, which does nothing at all, momentum included, at a gradient that is zero everywhere.

    Args:
      tx: any.
    """

    def update(gradients, state, params=None):
        moves = jnp.stack([jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradients)]).any()
        changes, after = tx.update(gradients, state, params)
        changes = jax.tree.map(lambda leaf: jnp.where(moves, leaf, jnp.zeros_like(leaf)), changes)
        return changes, jax.tree.map(lambda new, old: jnp.where(moves, new, old), after, state)

    return optax.GradientTransformation(tx.init, update)


def make_optimizer(spec: Spec, total_steps: Steps) -> Optimizer:
    """Builds an optimizer from its spec, for example dict(name='adam', learning_rate=1e-3, decay='cosine').

    Args:
      spec: one of OPTIMIZERS and its options.
      total_steps: of the run, or of each of its stages: warm-up and decay then begin anew with every stage.
    """
    return build("optimizer", spec, OPTIMIZERS, total_steps=total_steps)

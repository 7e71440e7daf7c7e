r"""One update: the due phases' losses, gradients and optimizers, then the tracked roles, then the guard.

A loss returns one value per example. With mask m and the whole batch's total M = sum m, the objective of a phase is
sum_i m_i value_i / M, computed micro-batch by micro-batch: the sum over micro-batches of their gradients is exactly the
gradient of the whole, padded rows included. Under pmap the sums run over the devices as well. Where M = 0 a batch of a rollout
teaches nothing, and what is trained stays as it was, its optimizer too.

This function knows no algorithm: which phases are due is decided by the caller, on the host.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from flowjax.arrays import expand_to
from flowjax.contract import Batch, Method, Metrics, Params, Phase
from flowjax.training.state import State, step_key

TIME_BINS = 20
Constrain = Callable[[str, PyTree], PyTree]  # (role, gradients) -> gradients, with a sharding put on them


def make_update(
    method: Method,
    due: Sequence[str],
    accumulation: int = 1,
    axis: str | None = None,
    constrain: Constrain | None = None,
    guard: bool = True,
) -> Callable[[State, Batch, Key[Array, ""]], tuple[State, Metrics]]:
    """Builds update(state, batch, root key) -> (state, metrics) for one set of due phases.

    Args:
      method: roles and phases.
      due: the names of the phases to run, in order.
      accumulation: micro-batches per update.
      axis: the pmap axis over which the batch is split, if any.
      constrain: puts a sharding on the gradients of a role (ZeRO 2).
      guard: skip an update whose loss or gradient is not finite, and all after it.
    """

    def update(state: State, batch: Batch, root: Key[Array, ""]) -> tuple[State, Metrics]:
        params, optimizer = dict(state.params), dict(state.optimizer)
        batch = with_step(batch, state.step)
        # Rollouts can leave nothing to learn from, when every reward failed. Momentum and weight decay would still move what
        # is trained, on no data. Tracked roles go on: they follow one that stands still.
        told = _total(batch, axis) > 0 if method.collect is not None else None
        metrics: dict[str, Array] = {}
        finite = jnp.ones((), bool)
        for name in due:
            phase = method.phases[name]
            key = step_key(root, state.step, f"phase/{name}")
            loss, gradients, extra = phase_gradients(phase, params, batch, key, accumulation, axis, constrain)
            norm = optax.tree.norm(gradients)
            finite &= jnp.isfinite(loss) & jnp.isfinite(norm)
            before = dict(params), dict(optimizer)
            apply_gradients(method, phase, gradients, params, optimizer)
            if told is not None:
                params, optimizer = _chosen(told, (params, optimizer), before)
            prefix = f"{name}/" if len(method.phases) > 1 else ""
            metrics |= {prefix + key: value for key, value in dict(loss=loss, grad_norm=norm, **extra).items()}
        for name, role in method.roles.items():
            if role.track is not None:
                params[name] = follow(params[name], params[role.track.source], role.track.rate(state.step))
        new = State(state.step + 1, params, optimizer, state.healthy)
        if guard:
            healthy = state.healthy & finite
            new = _chosen(healthy, new, state).replace(healthy=healthy)
            metrics["healthy"] = healthy
        return new, metrics

    return update


def _total(batch: Batch, axis: str | None) -> Float[Array, ""]:
    """M = sum m of the whole batch, on every device."""
    total = jnp.sum(batch["mask"])
    return total if axis is None else jax.lax.psum(total, axis)


def _chosen(condition: Bool[Array, ""], fresh: PyTree, old: PyTree) -> PyTree:
    """One of two trees of the same shape, by a single number."""
    return jax.tree.map(lambda new, before: jnp.where(condition, new, before), fresh, old)


def with_step(batch: Batch, step: int | Int[Array, ""]) -> Batch:
    """The batch with its reserved entry `step`, one for each example so that micro-batches have it too."""
    return {**batch, "step": jnp.full(batch["mask"].shape, step, jnp.int32)}


def apply_gradients(
    method: Method, phase: Phase, gradients: Params, params: dict[str, PyTree], optimizer: dict[str, PyTree]
) -> None:
    """Moves the phase's roles in place of the two dictionaries, each by its own optimizer."""
    for role in phase.trains:
        changes, optimizer[role] = method.roles[role].tx.update(gradients[role], optimizer[role], params[role])
        params[role] = optax.apply_updates(params[role], changes)


def phase_gradients(
    phase: Phase,
    params: Params,
    batch: Batch,
    key: Key[Array, ""],
    accumulation: int = 1,
    axis: str | None = None,
    constrain: Constrain | None = None,
) -> tuple[Float[Array, ""], dict[str, PyTree], Metrics]:
    """The masked mean loss of a phase over the whole batch, its gradients by role, and its averaged metrics."""
    trained = {role: params[role] for role in phase.trains}
    rest = {role: tree for role, tree in params.items() if role not in trained}
    total = _total(batch, axis)
    # A batch of nothing but padding has no gradient; the maximum keeps it zero instead of 0/0.
    scale = 1.0 / jnp.maximum(total, 1.0)

    # What a masked row holds must not reach the gradient, where 0 times NaN is NaN.
    counts = batch["mask"] > 0
    clean = lambda value: jnp.where(jnp.isfinite(value) | expand_to(counts, value), value, jnp.zeros_like(value))
    real = lambda value: clean(value) if jnp.issubdtype(value.dtype, jnp.inexact) else value
    batch = {name: real(value) for name, value in batch.items()}

    def objective(trained, micro):
        values, metrics = phase.loss({**rest, **trained}, micro, key)
        if values.shape != micro["mask"].shape:
            raise ValueError(
                f"A loss must return one value per example: expected shape {micro['mask'].shape}, got {values.shape}. "
                "Average over the axes of an example, not over the batch."
            )
        # where, not a product: a padded row whose loss overflowed must not poison the sum.
        weighted = jnp.where(micro["mask"] > 0, micro["mask"] * values, 0.0) * scale
        return jnp.sum(weighted), _summary(values, metrics, micro["mask"], scale)

    def gradients_of(micro):
        (loss, summary), gradients = jax.value_and_grad(objective, has_aux=True)(trained, micro)
        if constrain is not None:
            gradients = {role: constrain(role, tree) for role, tree in gradients.items()}
        return loss, gradients, summary

    if accumulation == 1:
        result = gradients_of(batch)
    else:
        # Rows are dealt out in turn, so that each device keeps rows of its own in every micro-batch.
        micros = {k: v.reshape((-1, accumulation) + v.shape[1:]).swapaxes(0, 1) for k, v in batch.items()}
        first = jax.tree.map(lambda leaf: leaf[0], micros)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradients_of, first))
        add = lambda total, micro: (jax.tree.map(jnp.add, total, gradients_of(micro)), None)
        result, _ = jax.lax.scan(add, zeros, micros)
    return result if axis is None else jax.lax.psum(result, axis)


def _summary(
    values: Float[Array, " b"], metrics: Metrics, mask: Float[Array, " b"], scale: Float[Array, ""]
) -> Metrics:
    """Masked averages of the metrics; a metric `t` becomes a histogram of the loss and of the examples over time."""
    summary = {}
    for name, value in metrics.items():
        if name == "t":
            bins = jnp.clip((value * TIME_BINS).astype(jnp.int32), 0, TIME_BINS - 1)
            chosen = (bins[:, None] == jnp.arange(TIME_BINS)) * mask[:, None]
            summary["by_time/count"] = jnp.sum(chosen, axis=0)
            summary["by_time/loss"] = jnp.sum(jnp.where(chosen > 0, chosen * values[:, None], 0.0), axis=0)
        else:
            summary[name] = jnp.sum(jnp.where(mask > 0, mask * value, 0.0)) * scale
    return summary


def follow(tree: PyTree, source: PyTree, rate: Float[Array, ""]) -> PyTree:
    """tree + rate (source - tree), written so that a rate of 0 keeps and a rate of 1 copies to the last bit."""

    def move(leaf, target):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return target
        weight = jnp.asarray(rate, leaf.dtype)
        return (1 - weight) * leaf + weight * target

    return jax.tree.map(move, tree, source)


def make_dispatch(
    update: Callable, size: int
) -> Callable[[State, Batch, Int[Array, ""], Key[Array, ""]], tuple[State, Metrics]]:
    """Up to `size` updates in one call, on batches stacked on a first axis; metrics are stacked likewise.

    How many are done is an argument of the program, not part of it: a run that stops early to log, sample or save uses the
    same compiled code as one that does not, so the bits of a resumed run do not depend on where it was cut.
    """

    def dispatch(state: State, batches: Batch, count: Int[Array, ""], root: Key[Array, ""]) -> tuple[State, Metrics]:
        pick = lambda index: jax.tree.map(lambda leaf: leaf[index], batches)
        if size == 1:
            state, metrics = update(state, pick(0), root)
            return state, jax.tree.map(lambda leaf: leaf[None], metrics)

        def body(index, carry):
            state, stacked = carry
            state, metrics = update(state, pick(index), root)
            return state, jax.tree.map(lambda all, one: all.at[index].set(one), stacked, metrics)

        shapes = jax.eval_shape(lambda: update(state, pick(0), root)[1])
        stacked = jax.tree.map(lambda leaf: jnp.zeros((size,) + leaf.shape, leaf.dtype), shapes)
        return jax.lax.fori_loop(0, count, body, (state, stacked))

    return dispatch

r"""Any method with a student that is a low-rank adapter on a frozen network (models/lora.py).

    config.lora = dict(rank=8, alpha=0.0, pattern="kernel$", roles=("student",))

The parameters that a role started from become the frozen role `base`, and the role itself holds the adapter. Roles that copy
the role and follow it (averages, targets) hold adapters as well, on the same base. Losses, samplers, rollouts and checks
are handed the sums: they see the networks they have always seen, and know nothing of this.

Frozen roles that are the base's parameters, as the teacher of a student that starts as its teacher, or the reference that a
tuned policy is held to, are not stored again: they are the base. With more than one name in `roles` (the fake denoiser of
DMD2) all adapt the one base.

An average of adapters is an average of factors, not of their products: close to the average network while the adapter moves
little, as every practice of averaging adapters has it. A finished run with adapters serves as any other: whoever reads a role
of it (teachers, `restore`, latents) is given the sum.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from flowjax.choices import suggestion
from flowjax.contract import Method, Params, Phase, Role, Sampler
from flowjax.models.lora import Adapter, adapted_paths, lora_init, merged

BASE = "base"  # the role


def with_lora(method: Method, lora: ConfigDict) -> Method:
    """The method with adapters in place of the trained networks that config.lora names; itself where the rank is 0.

    Args:
      method: whose trained roles start from a finished network.
      lora: config.lora.
    """
    if not lora.rank:
        return method
    shared, base = _base_of(method, lora)
    frozen = {name: role for name, role in method.roles.items() if role.tx is None and role.track is None}
    # An adapter starts as zero, so a frozen copy of one is the base for good.
    twins = {name for name, role in frozen.items() if role.copy_of in lora.roles or _same_start(role, base)}
    shapes = jax.eval_shape(base.init, jax.random.key(0))
    adapted_paths(shapes, lora.pattern)  # refuses a pattern that adapts nothing, before anything is built
    roles = {BASE: base}
    for name, role in method.roles.items():
        if name in twins:
            continue
        roles[name] = _adapted(role, shapes, lora) if name in lora.roles else _following(name, role, shared, twins)
    adapters = set(lora.roles)
    while (more := {name for name, role in roles.items() if role.copy_of in adapters}) - adapters:
        adapters |= more
    for name, role in roles.items():
        if role.track is not None and (role.track.source in adapters) != (name in adapters):
            raise ValueError(
                f"Role '{name}' follows '{role.track.source}', and only one of the two is an adapter "
                f"(lora.roles={lora.roles}): they have other shapes. Let it start as a copy of what it follows, or "
                "set lora.rank=0."
            )
    alpha = lora.alpha or None
    full = lambda params: _full(params, adapters, twins, alpha)
    loss = lambda phase: lambda params, batch, key: phase.loss(full(params), batch, key)
    phases: dict[str, Phase] = {
        name: dataclasses.replace(phase, loss=loss(phase)) for name, phase in method.phases.items()
    }
    collect = method.collect
    on_sums = lambda run: lambda params, *rest: run(full(params), *rest)
    if collect is not None:
        collect = dataclasses.replace(collect, rollout=on_sums(collect.rollout))
    return dataclasses.replace(
        method,
        roles=roles,
        phases=phases,
        samplers={name: _sampler(sampler, full, twins) for name, sampler in method.samplers.items()},
        collect=collect,
        checks={name: on_sums(run) for name, run in method.checks.items()},
        measures={name: dataclasses.replace(one, draw=on_sums(one.draw)) for name, one in method.measures.items()},
    )


def _full(params: Params, adapters: set[str], twins: set[str], alpha: float | None) -> dict[str, PyTree]:
    """What losses and samplers are handed: sums in the place of adapters, and the base under the names of its twins."""
    sums = {name: merged(params[BASE], Adapter(params[name], alpha)) for name in adapters if name in params}
    return {**params, **dict.fromkeys(twins, params[BASE]), **sums}


def _base_of(method: Method, lora: ConfigDict) -> tuple[str, Role]:
    """The role that the adapted ones start from, and the frozen role that takes its parameters."""
    if BASE in method.roles:
        raise ValueError(f"The method has a role '{BASE}' already, which adapters need. Give that another name.")
    if not lora.roles:
        raise ValueError("lora.roles is empty, so nothing would be adapted. Name a trained role, or set lora.rank=0.")
    for name in lora.roles:
        if name not in method.roles or method.roles[name].tx is None:
            trained = [known for known, role in method.roles.items() if role.tx is not None]
            raise ValueError(
                f"lora.roles has '{name}', which is no trained role. Trained: {', '.join(trained)}.{suggestion(name, trained)}"
            )
    first = method.roles[lora.roles[0]]
    if first.init is None or not (first.restore_from or first.load):
        raise ValueError(
            f"Role '{lora.roles[0]}' starts with fresh parameters, and an adapter of a network that was never trained is of no "
            f"use. Set restore.{lora.roles[0]} to a finished run (or let a student start as its teacher), or set lora.rank=0."
        )
    base = Role(init=first.init, restore_from=first.restore_from, load=first.load)
    for name in lora.roles[1:]:
        if not _same_start(method.roles[name], base):
            raise ValueError(
                f"lora.roles={lora.roles}: '{name}' does not start from the parameters that '{lora.roles[0]}' starts from, and "
                "they share one base. Start both from the same run, or leave one out."
            )
    return lora.roles[0], base


def _same_start(role: Role, base: Role) -> bool:
    """Whether a role's first parameters are known to be the base's."""
    if role.restore_from is not None:
        return role.restore_from == base.restore_from and _shapes(role) == _shapes(base)
    return role.load is not None and role.load is base.load


def _shapes(role: Role) -> PyTree | None:
    return role.init and jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(role.init, jax.random.key(0)))


def _adapted(role: Role, shapes: PyTree, lora: ConfigDict) -> Role:
    init = lambda key: lora_init(shapes, key, lora.rank, lora.pattern)
    return dataclasses.replace(role, init=init, restore_from=None, load=None)


def _following(name: str, role: Role, shared: str, twins: set[str]) -> Role:
    """A role that is not adapted itself: one that starts as a twin of the base and follows it is a copy from now on."""
    if role.copy_of in twins:
        if role.track is not None:
            return dataclasses.replace(role, copy_of=shared)
        return dataclasses.replace(role, copy_of=BASE)
    return role


def _sampler(sampler: Sampler, full: Any, twins: set[str]) -> Sampler:
    def draw(params: Params, conditions: Mapping[str, Array], keys: Array) -> Array:
        return sampler.draw(full(params), conditions, keys)

    stored = lambda name: BASE if name in twins else name
    also = tuple(dict.fromkeys((*map(stored, sampler.also), BASE)))
    return dataclasses.replace(sampler, draw=draw, role=stored(sampler.role), also=also)

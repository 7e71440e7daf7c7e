"""`--mode=check`: the pre-flight doctor. Every line is a figure that was measured on this config's own data and network.

The general checks hold for any method; a method adds its own (Method.checks), such as the closed form of its first loss.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from flowjax.contract import Batch, CheckResult, Method
from flowjax.training.feed import make_feed
from flowjax.training.run import Run, build_method
from flowjax.training.sharding import path_name
from flowjax.training.state import State, named_key, parameter_count, step_key
from flowjax.training.update import phase_gradients, with_step

HEART_UPDATES, HEART_RATE, HEART_FRACTION = 200, 2e-3, 0.5
LEAST_SHARE = 1e-4  # of all training times: less in an interval of the sampling grid means it was hardly ever seen
LARGEST_GAP = 0.1  # between the bfloat16 and float32 gradients, relative to the latter


def check(run: Run, report: Callable[[str], None]) -> list[CheckResult]:
    """Runs every check, reports each as it ends, and writes check.json beside the run if its folder exists."""
    results = []
    for result in _checks(run):
        mark = "ok  " if result.passed else "FAIL"
        report(
            f"{mark} {result.name}: {result.detail}"
            + (f"\n     -> {result.fix}" if not result.passed and result.fix else "")
        )
        results.append(result)
    if run.workdir is not None and run.workdir.is_dir():
        rows = [dataclasses.asdict(result) for result in results]
        (run.workdir / "check.json").write_text(json.dumps(rows, indent=1))
    return results


def _checks(run: Run) -> Iterator[CheckResult]:
    iterator, state = run.iterator(), run.executor.start()
    fed = make_feed(iterator, run.method, run.executor).take(state, 0, 1)
    batch = with_step({name: jnp.asarray(value[0]) for name, value in fed.items()}, 0)
    iterator.close()
    state = run.executor.logical(state)
    yield _data(run, batch)
    yield _shapes(run, state)
    yield from _copies(run.method, state)
    # One host copy on one device: what follows is about numbers, not about where they live.
    state = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), state)
    key = jax.random.key(run.config.seed)
    for name in run.method.phases:
        yield _reach(run.method, name, state, batch, step_key(key, 0, "check/reach"))
        yield _precision(run, name, state, batch, step_key(key, 0, "check/precision"))
        yield _by_heart(run.method, name, state, batch, step_key(key, 0, "check/heart"))
        yield from _time_density(run, name, state, batch, key)
    for name, own in run.method.checks.items():
        yield own(state.params, batch, step_key(key, 0, f"check/{name}"))


def _data(run: Run, batch: Batch) -> CheckResult:
    seen = batch["pixel_mask"][..., None] if "pixel_mask" in batch else None
    std = float(jnp.std(batch["data"], where=seen))
    stated = run.source.spec.std
    passed = bool(jnp.all(jnp.isfinite(batch["data"]))) and 0.5 < std / stated < 2
    others = ", ".join(sorted(set(batch) - {"data", "step"}))
    detail = f"{batch['data'].shape} per batch, std {std:.3f}, stated {stated:.3f}, others: {others}"
    return CheckResult(
        "data", passed, detail, "The data is not finite or not scaled as its DataSpec says; fix the source."
    )


def _shapes(run: Run, state: State) -> CheckResult:
    """Every array lies where the rules say, and what the sharding level splits is really split."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    placed = jax.tree.leaves(run.executor.shardings)
    wrong = [
        path_name(path)
        for (path, leaf), wanted in zip(leaves, placed)
        if not leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
    ]
    split = sum(not leaf.sharding.is_fully_replicated for _, leaf in leaves)
    counts = ", ".join(f"{role} {parameter_count(tree):,}" for role, tree in state.params.items())
    where = f"{run.executor.mesh.size} device(s), sharding '{run.config.sharding}'"
    detail = f"{counts}; {split} of {len(leaves)} arrays split over {where}"
    return CheckResult("shapes and shardings", not wrong, detail, f"Misplaced: {', '.join(wrong[:5])}.")


def _copies(method: Method, state: State) -> Iterator[CheckResult]:
    for name, role in method.roles.items():
        if role.copy_of is not None:
            gaps = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), state.params[name], state.params[role.copy_of])
            gap = max(float(leaf) for leaf in jax.tree.leaves(gaps))
            detail = f"largest difference from '{role.copy_of}' at step 0 is {gap:.1g}"
            yield CheckResult(
                f"'{name}' starts as its source", gap == 0.0, detail, "The tracked role must copy its source."
            )


def _gradients(method: Method, phase: str, params, batch: Batch, key) -> dict[str, PyTree]:
    run = jax.jit(lambda params, batch, key: phase_gradients(method.phases[phase], params, batch, key)[1])
    return run(params, batch, key)


def _reach(method: Method, phase: str, state: State, batch: Batch, key) -> CheckResult:
    """Gradients at slightly shaken parameters: at the start, layers initialised at zero hide what is behind them."""
    key, noise_key = jax.random.split(key)

    def shake(path, leaf):
        return leaf + 0.02 * jax.random.normal(named_key(noise_key, path_name(path)), leaf.shape, leaf.dtype)

    trained = method.phases[phase].trains
    shaken = {
        role: jax.tree_util.tree_map_with_path(shake, tree) if role in trained else tree
        for role, tree in state.params.items()
    }
    gradients = _gradients(method, phase, shaken, batch, key)
    leaves = jax.tree_util.tree_flatten_with_path(gradients)[0]
    dead = [path_name(path) for path, leaf in leaves if not float(jnp.max(jnp.abs(leaf))) > 0]
    detail = f"{len(leaves) - len(dead)} of {len(leaves)} trained arrays receive a gradient"
    return CheckResult(
        f"gradient reaches every parameter of '{phase}'",
        not dead,
        detail,
        f"No gradient: {', '.join(dead[:5])}. Are they used?",
    )


def _precision(run: Run, phase: str, state: State, batch: Batch, key) -> CheckResult:
    """The gradient computed with bfloat16 arithmetic against float32, on the same parameters."""

    def at(precision: str):
        config = ConfigDict(run.config.to_dict())
        config.precision = precision
        gradients = _gradients(build_method(config, run.source), phase, state.params, batch, key)
        return jnp.concatenate([leaf.astype(jnp.float32).ravel() for leaf in jax.tree.leaves(gradients)])

    half, full = at("bfloat16"), at("float32")
    gap = float(jnp.linalg.norm(half - full) / jnp.maximum(jnp.linalg.norm(full), 1e-30))
    fix = "bfloat16 loses too much here: keep precision='float32', or look for large activations and small differences."
    passed = gap < LARGEST_GAP or run.config.precision == "float32"
    return CheckResult(
        f"bfloat16 against float32 gradient of '{phase}'",
        passed,
        f"relative gap {gap:.3g} (this run uses {run.config.precision})",
        fix,
    )


def _by_heart(method: Method, phase: str, state: State, batch: Batch, key) -> CheckResult:
    """Learns one batch, noise and times included: a network and a loss that cannot do that cannot do anything."""
    tx = optax.adam(HEART_RATE)
    trained = {role: state.params[role] for role in method.phases[phase].trains}
    rest = {role: tree for role, tree in state.params.items() if role not in trained}

    @jax.jit
    def learn(trained):
        def body(carry, _):
            trained, optimizer = carry
            loss, gradients, _ = phase_gradients(method.phases[phase], {**rest, **trained}, batch, key)
            changes, optimizer = tx.update(gradients, optimizer)
            return (optax.apply_updates(trained, changes), optimizer), loss

        return jax.lax.scan(body, (trained, tx.init(trained)), None, length=HEART_UPDATES)[1]

    losses = np.asarray(learn(trained))
    first, last = float(losses[0]), float(losses[-5:].mean())
    # A loss that may be negative (an adversarial one) has no floor at zero: then it only has to fall.
    passed = last < HEART_FRACTION * first if first > 0 else last < first
    detail = f"loss {first:.4g} -> {last:.4g} in {HEART_UPDATES} updates of Adam at {HEART_RATE}"
    return CheckResult(
        f"'{phase}' learns one batch by heart",
        passed,
        detail,
        "Look at the conditioning, the scale of the data, the network's size.",
    )


def _time_density(run: Run, phase: str, state: State, batch: Batch, key) -> Iterator[CheckResult]:
    """Times that training draws, counted in the intervals of each sampler's grid."""
    loss = jax.jit(run.method.phases[phase].loss)
    times = []
    for i in range(-(-16_384 // len(batch["mask"]))):
        _, metrics = loss(state.params, batch, step_key(key, i, "check/time"))
        if "t" not in metrics:
            return
        times.append(np.asarray(metrics["t"]))
    drawn = np.concatenate(times)
    for name, sampler in run.method.samplers.items():
        if sampler.grid is None:
            continue
        grid = np.asarray(sampler.grid)
        shares = np.histogram(drawn, grid)[0] / len(drawn)
        worst = int(np.argmin(shares))
        detail = (
            f"training times {drawn.min():.3f} to {drawn.max():.3f}, median {np.median(drawn):.3f}; rarest interval of the "
            f"grid [{grid[worst]:.3f}, {grid[worst + 1]:.3f}] has {100 * shares[worst]:.3g}% of them"
        )
        fix = "The sampler spends steps where training has hardly looked: change config.time, or the sampler's grid."
        yield CheckResult(
            f"training times against the grid of '{name}'", bool(shares[worst] >= LEAST_SHARE), detail, fix
        )

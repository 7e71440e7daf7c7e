r"""Watching a model that is tuned: what it gains, what it loses, and when to stop.

    config.watchdog = dict(name="reference", rewards=dict(held=dict(name="scene")), largest_divergence=20.0)

Whenever a run is evaluated the tuned model is held against the one it began as, under the same held-out conditions and from
the same noise. The figures, all of them named `watchdog_...`:

    divergence        of the tuned flow from the first, of whole samples (samplers/divergences.py): by 'likelihood', which is
                      exact, or along the 'path', which costs next to nothing
    reward_NAME       the mean of each reward of the method, and of those that the watchdog alone knows
    gain_NAME         what that is above the first model's
    spread            the mean distance of samples that share their conditions
    spread_kept       the share of the first model's spread that is left

Reward against divergence is the curve that a run has to be judged by, and the report draws it. A reward that is exploited
shows in a held-out one that falls while its own still rises, in a spread that goes to nothing, or in a divergence without end:
with a limit for any of these the run stops there, with a checkpoint, and says why.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree
from ml_collections import ConfigDict

from flowjax.choices import Spec, build, choose
from flowjax.contract import DataSpec, Measure, Method, Params, Role
from flowjax.methods.groups import mean_of_known, spread
from flowjax.methods.parts import make_setting, null_conditions
from flowjax.rewards import REWARDS, Rewards, make_rewards
from flowjax.samplers.build import make_branches, make_field, make_parts, split_keys
from flowjax.samplers.divergences import likelihood_divergence, path_divergence

NAME, REFERENCE = "watchdog", "watchdog_reference"
DIVERGENCES = ("auto", "likelihood", "path")
FEW, PROBES = 16, 4  # elements of an example whose divergence is exact; probes of Hutchinson's estimate for more
READINGS = {
    "divergence": "From the model that it began as, of whole samples. It grows with the reward; growing without it is drift.",
    "spread": "The mean distance of samples that share their conditions.",
    "spread_kept": "The share of the first model's spread that is left: towards zero all samples are alike.",
}


def with_watchdog(method: Method, config: ConfigDict, data: DataSpec) -> Method:
    """The method with config.watchdog; itself where that is 'none'."""
    return build("watchdog", config.watchdog, WATCHDOGS, method=method, config=config, data=data)


def none(method: Method) -> Method:
    """No watchdog."""
    return method


def reference(
    method: Method,
    config: ConfigDict,
    data: DataSpec,
    rewards: Spec | None = None,
    role: str = "ema",
    count: int = 256,
    group_size: int = 8,
    steps: int = 20,
    divergence: str = "auto",
    guidance: Spec | None = None,
    largest_divergence: float | None = None,
    least_spread: float | None = None,
    least_gain: float | None = None,
) -> Method:
    """Holds the tuned model against the one it began as.

    Args:
      method: with a role `student`.
      config: path, noise, network, method.
      data: what is drawn.
      rewards: held-out ones, name -> spec of flowjax.rewards; the weights are not used.
      role: which parameters are watched, the student's or an average.
      count: samples of each model.
      group_size: how many of them share their conditions.
      steps: of the midpoint rule, evenly spaced.
      divergence: 'likelihood', 'path', or 'auto': by likelihood where an example has at most sixteen elements.
      guidance: of both models, as in a sampler's spec; none unless told.
      largest_divergence: above which the run stops.
      least_spread: the share of the first model's spread below which it stops.
      least_gain: of each held-out reward, below which it stops: 0 for what the first model has.
    """
    if role not in method.roles:
        raise ValueError(
            f"watchdog.role is '{role}', which the method has not. Roles: {', '.join(method.roles)}. Name the tuned one."
        )
    if group_size < 2 or count % group_size or count < group_size or steps < 1:
        raise ValueError(
            f"watchdog.count={count}, group_size={group_size}, steps={steps}: expected whole groups of two or more, and steps."
        )
    if least_gain is not None and not rewards:
        raise ValueError("watchdog.least_gain is of held-out rewards, and watchdog.rewards names none.")
    choose("watchdog.divergence", divergence, dict.fromkeys(DIVERGENCES))
    elements = int(np.prod(data.shape))
    by_likelihood = divergence == "likelihood" or (divergence == "auto" and elements <= FEW)
    own = config.method.get("rewards")
    specs = {**_plain(own or {}), **_plain(rewards or {})}
    twice = set(_plain(own or {})) & set(_plain(rewards or {}))
    if twice:
        raise ValueError(f"watchdog.rewards has '{min(twice)}', which is a reward of the method. Give it another name.")
    # What is not known is left out of means: a reward that fails must not end a run that it does not teach.
    judge = make_rewards(specs, REWARDS, failures="skip", data=data) if specs else None
    setting = make_setting(config, data, config.method.get("prediction", "velocity"))
    spec = dict(name="midpoint", steps=steps, guidance=_plain(guidance or dict(name="none")), role=role)
    parts = make_parts(spec, setting.prediction, setting.path, setting.shape, setting.seen_shape)
    if parts.guidance.init is not None or parts.guidance.needs == "weak":
        raise ValueError("watchdog.guidance must not remember evaluations or read another role. Use 'cfg', or none.")
    network, null = setting.network, null_conditions(setting.network)
    if parts.guidance.needs is not None and null is None:
        raise ValueError(
            "The watchdog is guided, and the network has no condition to drop. Leave watchdog.guidance out."
        )

    def field_of(params: Params, name: str, cond: Mapping[str, Array]):
        params = {**params, role: params[name]}
        branches = make_branches(parts, null, network.prepare, params, cond)
        return make_field(parts, network.apply, setting.prediction, setting.path, params, branches)

    def draw(params: Params, cond: Mapping[str, Array], keys: Key[Array, " b"]) -> PyTree:
        noise_keys, probe_keys = split_keys(keys)
        x = setting.path.sigma(jnp.asarray(parts.grid[0], jnp.float32)) * setting.noise.sample(
            noise_keys, setting.shape
        )
        tuned, first = field_of(params, role, cond), field_of(params, REFERENCE, cond)
        samples, away = path_divergence(tuned, first, parts.grid, x)
        before, _ = path_divergence(first, first, parts.grid, x)
        if by_likelihood:
            probes = None if elements <= FEW else PROBES
            away = likelihood_divergence(tuned, first, parts.grid, samples, probe_keys, probes)
        worth = [judge.values(params, drawn, cond) if judge else {} for drawn in (samples, before)]
        return dict(samples=samples, before=before, divergence=away, worth=worth[0], worth_before=worth[1])

    def figures(made: Mapping[str, Any], cond: Mapping[str, np.ndarray]) -> dict[str, float]:
        spreads = [spread(made[name].reshape(-1, group_size, made[name][0].size)) for name in ("samples", "before")]
        found = dict(
            divergence=float(made["divergence"].mean()), spread=spreads[0], spread_kept=spreads[0] / spreads[1]
        )
        if judge is None:
            return found
        worth, before = (
            {name: mean_of_known(value) for name, value in _all(judge, made[kind], made[drawn], cond).items()}
            for kind, drawn in (("worth", "samples"), ("worth_before", "before"))
        )
        gains = {f"gain_{name}": worth[name] - before[name] for name in specs}
        return {**found, **{f"reward_{name}": worth[name] for name in specs}, **gains}

    def watch(step: int, seen: Mapping[str, float]) -> str | None:
        limits = [("divergence", largest_divergence, 1), ("spread_kept", least_spread, -1)]
        limits += [(f"gain_{name}", least_gain, -1) for name in rewards or {}]
        for name, limit, side in limits:
            value = seen.get(f"{NAME}_{name}")
            if limit is not None and value is not None and not side * value <= side * limit:
                return f"the watchdog's {name} is {value:.4g}, {'above' if side > 0 else 'below'} its limit {limit:g}"
        return method.watch(step, seen) if method.watch is not None else None

    words = {f"reward_{name}": "The mean of this reward." for name in specs}
    words |= {f"gain_{name}": "What it is above that of the model that this began as." for name in specs}
    shown = {f"eval/{NAME}_{name}": text for name, text in {**READINGS, **words}.items()}
    measure = Measure(draw, figures, count, group_size)
    return dataclasses.replace(
        method,
        roles={**method.roles, REFERENCE: Role(copy_of="student"), **(judge.roles if judge else {})},
        measures={**method.measures, NAME: measure},
        watch=watch,
        readings={**method.readings, **shown},
    )


def _all(
    judge: Rewards, worth: Mapping[str, np.ndarray], samples: np.ndarray, cond: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    return {**worth, **(judge.score(samples, cond) if judge.hosted else {})}


def _plain(spec: Any) -> dict[str, Any]:
    return ConfigDict(dict(spec)).to_dict()


WATCHDOGS: dict[str, Callable[..., Method]] = {"none": none, "reference": reference}

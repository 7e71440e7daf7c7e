r"""Watching a model that is tuned: what it gains, what it loses, and when to stop.

    config.watchdog = dict(name="reference", rewards=dict(held=dict(name="scene")), largest_divergence=20.0)

Whenever a run is evaluated the tuned model is held against the one it began as, under the same held-out conditions and from
the same noise. The figures, all of them named `watchdog_...`:

    divergence        of the tuned flow from the first, of whole samples (samplers/divergences.py): by 'likelihood', of what
                      the ODE draws, or along the 'path', which needs no derivative and bounds that of the SDE alone
    reward_NAME       the mean of each reward of the method, and of those that the watchdog alone knows
    gain_NAME         what that is above the first model's
    spread            the mean distance of samples that share their conditions
    spread_kept       the share of the first model's spread that is left

Samples are drawn by the midpoint rule. A student of few steps is no flow: it is watched by its own `sampler`, and has no
divergence. Where there is one, reward against divergence is the curve that a run has to be judged by, and the report draws
it. A reward that is exploited shows in a held-out one that falls while its own still rises, in a spread that goes to nothing,
or in a divergence without end. A policy whose steps are nearly all clipped moves too fast, one whose groups are nearly all flat
has nothing left to learn, and where many rewards fail, most samples teach nothing.
With a limit for any of these the run ends there, with a checkpoint, and says why; so it does, limits or not, where samples are
no numbers. Started again it says so once more and does not train, until the limit is widened: limits may change when a run goes
on (config.LIMITS).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from flowjax.choices import Spec, build, choose
from flowjax.contract import DataSpec, Measure, Method, Params, Role
from flowjax.methods.groups import make_policy, mean_of_known, spread
from flowjax.methods.parts import Setting, make_setting
from flowjax.methods.unrolled import make_unrolled
from flowjax.models.network import Conditions
from flowjax.rewards import REWARDS, Rewards, make_rewards
from flowjax.samplers.build import split_keys
from flowjax.samplers.divergences import likelihood_divergence, path_divergence
from flowjax.samplers.field import last_time
from flowjax.samplers.loop import integrate

NAME, REFERENCE = "watchdog", "watchdog_reference"
DIVERGENCES = ("auto", "likelihood", "path")
FAR, NATS = "far", 100.0  # that many nats, or one for each element of an example where it has more
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
    sampler: Spec | None = None,
    largest_divergence: float | str | None = None,
    least_spread: float | None = None,
    least_gain: float | None = None,
    largest_flat: float | None = None,
    largest_clipped: float | None = None,
    largest_failed: float | None = None,
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
      sampler: spec of any sampler (samplers/build.py), without a role, that both are drawn with in place of the midpoint rule.
      largest_divergence: above which the run stops; 'far' for a hundred nats, or one for each element of larger examples.
      least_spread: the share of the first model's spread below which it stops.
      least_gain: of each held-out reward, below which it stops: 0 for what the first model has.
      largest_flat: share of the groups of rollouts that teach nothing, above which it stops.
      largest_clipped: share of the steps of a policy that have moved as far as they may, above which it stops; they move
        between the updates of one rollout.
      largest_failed: share of the samples of a rollout whose worth is not known, of rewards that fail and are skipped, above
        which it stops.
    """
    if role not in method.roles:
        raise ValueError(
            f"watchdog.role is '{role}', which the method has not. Roles: {', '.join(method.roles)}. Name the tuned one."
        )
    if group_size < 2 or count % group_size or count < group_size or steps < 1:
        raise ValueError(
            f"watchdog.count={count}, group_size={group_size}, steps={steps}: expected whole groups of two or more, and steps."
        )
    for name, limit, metric in (
        ("largest_flat", largest_flat, "flat"),
        ("largest_clipped", largest_clipped, "clipped"),
    ):
        if limit is not None and not any(reading.rpartition("/")[2] == metric for reading in method.readings):
            raise ValueError(
                f"watchdog.{name} is {limit}, and '{config.method.name}' measures nothing of the kind. Drop it."
            )
    skips = config.method.get("failures", "stop") == "skip" and "collect/failed" in method.readings
    if largest_failed is not None and not skips:
        raise ValueError(
            f"watchdog.largest_failed is {largest_failed}, and here no sample is left out: the first reward that fails ends "
            "the run. Set method.failures='skip', in a method that learns from samples of its own, or drop the limit."
        )
    if least_gain is not None and not rewards:
        raise ValueError("watchdog.least_gain is of held-out rewards, and watchdog.rewards names none.")
    choose("watchdog.divergence", divergence, dict.fromkeys(DIVERGENCES))
    elements = int(np.prod(data.shape))
    if largest_divergence == FAR:
        largest_divergence = max(NATS, float(elements))
    elif isinstance(largest_divergence, str):
        raise ValueError(
            f"watchdog.largest_divergence is '{largest_divergence}'; expected a number of nats, '{FAR}', or None."
        )
    by_likelihood = divergence == "likelihood" or (divergence == "auto" and elements <= FEW)
    if sampler is not None and (divergence != "auto" or largest_divergence is not None or guidance is not None):
        raise ValueError(
            "watchdog.sampler is of students of few steps, which have no divergence, and brings its own guidance. Leave "
            "watchdog.divergence, largest_divergence and guidance out."
        )
    own = config.method.get("rewards")
    specs = {**_plain(own or {}), **_plain(rewards or {})}
    twice = set(_plain(own or {})) & set(_plain(rewards or {}))
    if twice:
        raise ValueError(f"watchdog.rewards has '{min(twice)}', which is a reward of the method. Give it another name.")
    # What is not known is left out of means: a reward that fails must not end a run that it does not teach.
    judge = make_rewards(specs, REWARDS, failures="skip", data=data) if specs else None
    setting = make_setting(config, data, config.method.get("prediction", "velocity"))
    brought: Mapping[str, Role] = {}
    if sampler is None:
        spec = dict(name="midpoint", steps=steps, guidance=_plain(guidance or dict(name="none")))
        both = _flows(setting, spec, role, by_likelihood)
    else:
        tuned, first = (make_policy(setting, sampler, name, "watchdog.sampler") for name in (role, REFERENCE))
        brought = tuned.brings  # the first model's are of the same names
        both = lambda params, cond, keys: {
            "samples": tuned.draw(params, cond, keys),
            "before": first.draw(params, cond, keys),
        }

    def draw(params: Params, cond: Mapping[str, Array], keys: Key[Array, " b"]) -> PyTree:
        made = both(params, cond, keys)
        worth = [judge.values(params, made[kind], cond) if judge else {} for kind in ("samples", "before")]
        return dict(made, worth=worth[0], worth_before=worth[1])

    def figures(made: Mapping[str, Any], cond: Mapping[str, np.ndarray]) -> dict[str, float]:
        spreads = [spread(made[name].reshape(-1, group_size, made[name][0].size)) for name in ("samples", "before")]
        found = dict(spread=spreads[0], spread_kept=spreads[0] / spreads[1])
        if "divergence" in made:
            away = made["divergence"]
            found["divergence"] = mean_log_ratio(away) if by_likelihood else float(away.mean())
        if judge is None:
            return found
        worth, before = (
            {name: mean_of_known(value) for name, value in _all(judge, made[kind], made[drawn], cond).items()}
            for kind, drawn in (("worth", "samples"), ("worth_before", "before"))
        )
        gains = {f"gain_{name}": worth[name] - before[name] for name in specs}
        return {**found, **{f"reward_{name}": worth[name] for name in specs}, **gains}

    def watch(step: int, seen: Mapping[str, float]) -> str | None:
        if np.isnan(seen.get(f"{NAME}_spread", 0.0)):  # a limit or none: nothing comes back from there
            return f"the watchdog saw {NAME}_spread nan: the samples of '{role}' are no numbers any more"
        further = "(to go on, widen --config.watchdog.{}, or set it to None)"
        limits = [
            (f"{NAME}_divergence", "largest_divergence", largest_divergence),
            (f"{NAME}_spread_kept", "least_spread", least_spread),
            *((f"{NAME}_gain_{name}", "least_gain", least_gain) for name in rewards or {}),
            ("collect/flat", "largest_flat", largest_flat),
            ("collect/failed", "largest_failed", largest_failed),
            *((name, "largest_clipped", largest_clipped) for name in seen if name.rpartition("/")[2] == "clipped"),
        ]
        for name, option, limit in limits:
            if limit is None or name not in seen:
                continue
            value, above = seen[name], option.startswith("largest")
            # A gain that is NaN is a reward that failed, and says nothing; any other is lost.
            lost = np.isnan(value) and option != "least_gain"
            if lost or (value > limit if above else value < limit):
                side = "above" if above else "below"
                return f"the watchdog saw {name} {value:.4g}, {side} its limit {limit:g} {further.format(option)}"
        return method.watch(step, seen) if method.watch is not None else None

    words = {f"reward_{name}": "The mean of this reward." for name in specs}
    words |= {f"gain_{name}": "What it is above that of the model that this began as." for name in specs}
    measured = {name: text for name, text in READINGS.items() if sampler is None or name != "divergence"}
    shown = {f"eval/{NAME}_{name}": text for name, text in {**measured, **words}.items()}
    measure = Measure(draw, figures, count, role, group_size)
    return dataclasses.replace(
        method,
        roles={**brought, **method.roles, REFERENCE: Role(copy_of="student"), **(judge.roles if judge else {})},
        measures={**method.measures, NAME: measure},
        watch=watch,
        readings={**method.readings, **shown},
    )


def _flows(
    setting: Setting, spec: Spec, role: str, by_likelihood: bool
) -> Callable[[Params, Conditions, Key[Array, " b"]], dict[str, Array]]:
    """Draws samples of both flows and the divergence at each, by likelihood or along its path."""
    unrolled = make_unrolled(setting, spec, role, "The watchdog")
    elements = int(np.prod(setting.shape))
    # A data prediction has no velocity where all is data: the likelihood is that of a little before.
    solved = np.asarray([*unrolled.grid[:-1], last_time(setting.path, setting.prediction)])

    def both(params: Params, cond: Conditions, keys: Key[Array, " b"]) -> dict[str, Array]:
        noise_keys, probe_keys = split_keys(keys)
        x, grid = unrolled.noise(noise_keys), unrolled.grid
        tuned, first = (unrolled.field(params, params[name], cond) for name in (role, REFERENCE))
        samples, away = path_divergence(tuned, first, grid, x)
        before = integrate(unrolled.parts.stepper, first, grid, x, probe_keys)
        if by_likelihood:
            probes = None if elements <= FEW else PROBES
            away = likelihood_divergence(tuned, first, solved, samples, probe_keys, probes, setting.noise)
        return dict(samples=samples, before=before, divergence=away)

    return both


def mean_log_ratio(ratio: Float[np.ndarray, " n"]) -> float:
    """The mean of l = log p(x) - log q(x) over samples x of p, with less noise than their average.

    E exp(-l) = 1 is known, so what its own average is off by is taken from that of l, as far as the two go together: of
    Gaussians KL = 0.4 apart the variance falls to a third. Their slope, -s^2 / (exp(s^2) - 1) of Gaussians with l of variance
    s^2, is between -1 and 0: the bound matters far apart, where no sample shows what exp(-l) is on average.

    Args:
      ratio: l of each sample.
    """
    ratio = np.asarray(ratio, np.float64)
    inverse = np.exp(-np.maximum(ratio, -30.0))
    varies = inverse.var()
    slope = np.mean((ratio - ratio.mean()) * (inverse - inverse.mean())) / varies if varies > 0 else 0.0
    slope = float(np.clip(slope, -1.0, 0.0))
    return float(ratio.mean() - slope * (inverse.mean() - 1.0))


def _all(
    judge: Rewards, worth: Mapping[str, np.ndarray], samples: np.ndarray, cond: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    return {**worth, **(judge.score(samples, cond) if judge.hosted else {})}


def _plain(spec: Any) -> dict[str, Any]:
    return ConfigDict(dict(spec)).to_dict()


WATCHDOGS: dict[str, Callable[..., Method]] = {"none": none, "reference": reference}

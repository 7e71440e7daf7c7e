r"""Time grids: the increasing times t_0 < ... < t_N at which a sampler stops, from noise to data.

A grid of N steps has N + 1 times in [path.start, path.end]. Where a grid is stated in noise levels it is stated in
sigma / alpha, the units of Karras et al. 2022 in which any two paths can be matched; the times follow by inverting
the path's `noise_to_signal`, which falls in t.

| grid     | times                                                                                                    |
| uniform  | equal steps in t (Euler-Maruyama of SiT: last=0.04 makes the last step of that size)                     |
| shifted  | u / (s - (s - 1) u) of uniform u: s > 1 spends more steps near noise (SD3, Flux)                          |
| karras   | sigma_i = (a + i/(n-1) (b - a))^rho, a = sigma_max^(1/rho), b = sigma_min^(1/rho); then clean data       |
| log_snr  | equal steps in lambda = log(alpha / sigma)                                                               |
| quantile | t_i = F^{-1}(i/N), F the distribution function of a training-time distribution                           |
| stored   | the times given                                                                                          |

Everything here runs on the host in float64 before compilation.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowjax import choices
from flowjax.paths.path import GaussianPath, time_at_noise_level
from flowjax.paths.shift import resolved_shift
from flowjax.paths.times import TIMES, truncated


def _host(function: Callable[[], Any]) -> np.ndarray:
    """Evaluates JAX mathematics on the host in float64, also while an outer function is being traced."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return np.array(function(), np.float64)


def _fractions(steps: int) -> np.ndarray:
    if steps < 1:
        raise ValueError(f"A time grid needs steps >= 1; got {steps}.")
    return np.linspace(0.0, 1.0, steps + 1)


def _ends(path: GaussianPath, start: float | None, end: float | None) -> tuple[float, float]:
    return path.start if start is None else start, path.end if end is None else end


def uniform(
    path: GaussianPath, steps: int, start: float | None = None, end: float | None = None, last: float | None = None
) -> np.ndarray:
    """Equal steps; with `last`, the last step has that size and the others share the rest equally."""
    start, end = _ends(path, start, end)
    if last is None:
        return start + (end - start) * _fractions(steps)
    if not 0.0 < last < end - start or steps < 2:
        raise ValueError(
            f"Grid 'uniform': last={last} must lie in (0, {end - start}) and needs steps >= 2; got {steps}."
        )
    return np.append(start + (end - last - start) * _fractions(steps - 1), end)


def shifted(
    path: GaussianPath,
    steps: int,
    shift: float | str = 3.0,
    base_shape: tuple = (),
    start: float | None = None,
    end: float | None = None,
    shape: tuple | None = None,
) -> np.ndarray:
    """The resolution-dependent shift of Esser et al. 2024, t' = t / (s - (s - 1) t); shift = 1 is uniform.

    With shift='resolution' it follows from the shape of a sample and base_shape=(height, width), at which it is 1.
    """
    shift = resolved_shift(shift, base_shape, shape)
    if shift <= 0:
        raise ValueError(f"Grid 'shifted': shift={shift} must be positive. shift > 1 spends more steps near noise.")
    start, end = _ends(path, start, end)
    u = _fractions(steps)
    return start + (end - start) * u / (shift - (shift - 1.0) * u)


def karras(
    path: GaussianPath, steps: int, rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> np.ndarray:
    """The grid of Karras et al. 2022 in sigma / alpha.

    On a path that reaches clean data it has `steps` noise levels and then t = end, as the reference has. On a path
    that stops at some noise it has steps + 1 levels. Levels that the path does not have are cut to those it has.
    """
    if not 0.0 < sigma_min < sigma_max:
        raise ValueError(f"Grid 'karras': expected 0 < sigma_min < sigma_max; got {sigma_min} and {sigma_max}.")
    low, high = _noise_levels(path)
    sigma_min, sigma_max = max(sigma_min, low), min(sigma_max, high)
    appended = low == 0.0
    u = _fractions(steps - 1 if appended and steps > 1 else steps)
    levels = (sigma_max ** (1 / rho) + u * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    if appended and steps == 1:
        levels = levels[:1]
    times = _host(lambda: time_at_noise_level(path, jnp.asarray(levels)))
    if sigma_max == high:
        times[0] = path.start
    return np.append(times, path.end) if appended else _with_end(times, path.end if sigma_min == low else None)


def log_snr(path: GaussianPath, steps: int, clip: float = 1e-3) -> np.ndarray:
    """Equal steps in log(alpha / sigma).

    Where it is infinite at an end of the path, the interior times run between the values `clip` inside, and the end
    itself stays in the grid.
    """
    low, high = _noise_levels(path)
    if high == np.inf:
        high = float(_host(lambda: path.noise_to_signal(jnp.asarray(path.start + clip))))
    if low == 0.0:
        low = float(_host(lambda: path.noise_to_signal(jnp.asarray(path.end - clip))))
    levels = np.exp(np.log(high) + _fractions(steps) * (np.log(low) - np.log(high)))
    times = _host(lambda: time_at_noise_level(path, jnp.asarray(levels)))
    times[0] = path.start
    return _with_end(times, path.end)


def stored(path: GaussianPath, times: tuple) -> np.ndarray:
    """The times given, for example those found by a search over schedules."""
    return np.asarray(times, np.float64)


def quantile(
    path: GaussianPath, steps: int, time: Mapping = {"name": "uniform"}, shape: tuple | None = None
) -> np.ndarray:
    """Quantiles of a distribution of training times (a spec of paths.times): steps where training looked most.

    The part of the distribution inside the path counts; its quantiles at 0 and 1 are the ends of the path.
    """
    distribution = choices.build("time distribution", time, TIMES, shape=shape)
    if (path.start, path.end) != (0.0, 1.0):
        distribution = truncated(distribution, path.start, path.end)
    inner = _host(lambda: distribution.quantile(jnp.asarray(_fractions(steps)[1:-1])))
    return np.concatenate([[path.start], inner, [path.end]])


GRIDS: dict[str, Callable[..., np.ndarray]] = {
    "uniform": uniform,
    "shifted": shifted,
    "karras": karras,
    "log_snr": log_snr,
    "quantile": quantile,
    "stored": stored,
}


def make_grid(spec: Mapping[str, Any], path: GaussianPath, **given: Any) -> np.ndarray:
    """Builds a grid from its spec and checks that it rises inside the path."""
    times = choices.build("grid", spec, GRIDS, path=path, **given)
    check_grid(times, path)
    return times


def check_grid(times: np.ndarray, path: GaussianPath) -> None:
    """Raises a ValueError unless the times rise strictly inside [path.start, path.end]."""
    times = np.asarray(times)
    if times.ndim != 1 or len(times) < 2 or not np.all(np.diff(times) > 0):
        raise ValueError(f"A time grid is two or more strictly increasing times, from noise to data; got {times}.")
    if times[0] < path.start - 1e-6 or times[-1] > path.end + 1e-6:
        raise ValueError(
            f"The time grid runs over [{times[0]:.6g}, {times[-1]:.6g}], outside the path '{path.name}', usable "
            f"in [{path.start:.6g}, {path.end:.6g}]. Change the grid's start, end or times."
        )


def _noise_levels(path: GaussianPath) -> tuple[float, float]:
    """(lowest, highest) sigma / alpha of the path; 0 and infinity at clean data and at pure noise."""
    ends = _host(lambda: path.noise_to_signal(jnp.asarray([path.end, path.start])))
    low, high = float(ends[0]), float(ends[1])
    return (0.0 if low < 1e-9 else low), (np.inf if high > 1e9 else high)


def _with_end(times: np.ndarray, end: float | None) -> np.ndarray:
    return times if end is None else np.append(times[:-1], end)

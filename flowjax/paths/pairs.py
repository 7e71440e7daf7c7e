r"""Pairs of neighbouring times t < s between which a consistency model compares itself, as training goes on.

A grid has N(k) levels at step k of K, at the places u_i = i / (N - 1) from noise (0) to data (1); an example belongs to one
of its N - 1 cells [t_i, t_{i+1}]. With the noise level n = sigma / alpha, the places mean

| spacing | time at u                                                                      |
| uniform | start + u (end - start)                                                        |
| karras  | n = (a + u (b - a))^rho, a = sigma_max^(1 / rho), b = sigma_min^(1 / rho)      |

The last level is the path's end in either case, where a consistency function is known.

| levels      | N(k)                                                                                  | reference            |
| constant    | N                                                                                     |                      |
| square_root | max(ceil(sqrt(k/K ((last + 1)^2 - first^2) + first^2) - 1), 1) + 1                    | Song et al. 2023     |
| doubling    | min(first 2^floor(k / K'), last) + 1, K' = floor(K / (floor(log2(last / first)) + 1)) | Song & Dhariwal 2023 |

Without a grid (Geng et al. 2024) t is any time, and with stage j = floor(stages k / K) the pair's cleaner noise level is

    n_s = n_t max(0, 1 - 2^{-(j + 1)} (1 + slope sigmoid(-n_t))),                                                  (1)

which is clean data at first wherever the noise is small: that is diffusion training.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flowjax.choices import Spec, build
from flowjax.paths.path import GaussianPath, time_at_noise_level
from flowjax.paths.times import TimeDistribution, truncated

Times = Float[Array, "..."]
Levels = Callable[[Int[Array, "..."]], Int[Array, "..."]]  # step -> N
CELLS = ("even", "times")
CONSTANT, UNIFORM = {"name": "constant"}, {"name": "uniform"}  # the defaults


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Neighbouring times.

    Attributes:
      times: the law of the times given to `pair`.
      pair: (t, step) -> (t, s), the pair that t belongs to; s may be the path's end.
      levels: step -> N, where there is a grid.
      reads_times: whether the law given to the factory decides anything.
    """

    times: TimeDistribution
    pair: Callable[[Times, Int[Array, "..."]], tuple[Times, Times]]
    levels: Levels | None = None
    reads_times: bool = True


def constant_levels(total_steps: int, count: int = 40) -> Levels:
    """The same number of levels at every step."""
    _check_levels(count, count)
    return lambda step: jnp.full(jnp.shape(step), count, jnp.int32)


def square_root_levels(total_steps: int, first: int = 2, last: int = 150) -> Levels:
    """From `first` to `last` + 1 levels, growing as a square root."""
    _check_levels(first, last)

    def levels(step):
        square = step / total_steps * ((last + 1.0) ** 2 - first**2) + first**2
        return jnp.maximum(jnp.ceil(jnp.sqrt(square) - 1.0), 1.0).astype(jnp.int32) + 1

    return levels


def doubling_levels(total_steps: int, first: int = 10, last: int = 1280) -> Levels:
    """From `first` + 1 to `last` + 1 levels, doubling at equal intervals."""
    _check_levels(first, last)
    interval = max(total_steps // (math.floor(math.log2(last / first)) + 1), 1)
    return lambda step: jnp.minimum(first * 2.0 ** (step // interval), last).astype(jnp.int32) + 1


LEVELS: dict[str, Callable[..., Levels]] = {
    "constant": constant_levels,
    "square_root": square_root_levels,
    "doubling": doubling_levels,
}


def _check_levels(first: int, last: int) -> None:
    if not 2 <= first <= last:
        raise ValueError(f"A grid grows from {first} to {last} levels; expected 2 <= first <= last.")


@dataclasses.dataclass(frozen=True)
class Spacing:
    """Where the levels of a grid lie.

    Attributes:
      time: place in [0, 1] -> time.
      place: the inverse.
    """

    time: Callable[[Times], Times]
    place: Callable[[Times], Times]


def uniform_spacing(path: GaussianPath) -> Spacing:
    """Equal steps in t."""
    width = path.end - path.start
    return Spacing(lambda u: path.start + u * width, lambda t: (t - path.start) / width)


def karras_spacing(path: GaussianPath, rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Spacing:
    """Equal steps in the noise level to the power 1 / rho (Karras et al. 2022)."""
    if not 0.0 < sigma_min < sigma_max:
        raise ValueError(f"The spacing 'karras' needs 0 < sigma_min < sigma_max; got {sigma_min} and {sigma_max}.")
    first, last = sigma_max ** (1.0 / rho), sigma_min ** (1.0 / rho)

    def time(u):
        return time_at_noise_level(path, jnp.maximum(first + u * (last - first), last) ** rho)

    return Spacing(time, lambda t: (path.noise_to_signal(t) ** (1.0 / rho) - first) / (last - first))


SPACINGS: dict[str, Callable[..., Spacing]] = {"uniform": uniform_spacing, "karras": karras_spacing}


def grid_pairs(
    path: GaussianPath,
    times: TimeDistribution,
    total_steps: int,
    levels: Spec = CONSTANT,
    spacing: Spec = UNIFORM,
    cells: str = "even",
) -> Pairs:
    """The cells of a grid.

    Args:
      path: of the times.
      times: a law of t, which decides between the cells where cells='times'.
      total_steps: K.
      levels: a spec of LEVELS.
      spacing: a spec of SPACINGS.
      cells: 'even' for equally likely cells; 'times' for cells as likely as the law makes their times.
    """
    if cells not in CELLS:
        raise ValueError(f"The grid's cells are '{cells}'; expected 'even' or 'times'.")
    places = build("spacing", spacing, SPACINGS, path=path)
    count = build("levels", levels, LEVELS, total_steps=total_steps)
    first = float(places.time(jnp.zeros(())))
    if cells == "times":
        law = truncated(times, first, path.end)
    else:
        law = dataclasses.replace(times, name="even cells", quantile=places.time, support=(first, path.end))

    def pair(t, step):
        last = count(step) - 1
        index = jnp.clip(jnp.floor(places.place(t) * last), 0, last - 1)
        after = index + 1
        return places.time(index / last), jnp.where(after >= last, path.end, places.time(after / last))

    return Pairs(law, pair, count, cells == "times")


def ratio_pairs(
    path: GaussianPath, times: TimeDistribution, total_steps: int, stages: int = 8, slope: float = 8.0
) -> Pairs:
    """Equation (1).

    Args:
      path: of the times.
      times: the law of t.
      total_steps: K.
      stages: how often the distance of a pair is halved, at equal intervals; at first it is half the noise level or more.
      slope: how much farther apart pairs of little noise are.
    """
    if stages < 1 or slope < 0:
        raise ValueError(f"The pairs 'ratio' need stages >= 1 and slope >= 0; got {stages} and {slope}.")

    def pair(t, step):
        stage = jnp.floor(stages * (step / total_steps))
        level = path.noise_to_signal(t)
        kept = jnp.maximum(0.0, 1.0 - 2.0 ** -(stage + 1.0) * (1.0 + slope * jax.nn.sigmoid(-level)))
        return t, jnp.where(kept > 0, time_at_noise_level(path, level * kept), path.end)

    return Pairs(times, pair)


PAIRS: dict[str, Callable[..., Pairs]] = {"grid": grid_pairs, "ratio": ratio_pairs}

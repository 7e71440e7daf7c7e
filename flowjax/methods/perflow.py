r"""PeRFlow (Yan et al. 2024): reflow window by window, from data, without a pair that has to be simulated from end to end.

The path is cut into K windows. Noised data at the beginning of a window is taken to its end by the teacher; the two points lie
on the line of one pair (paths/flow_maps.py), and the student is fitted at a random time between them by the loss of reflow.
Inside each window its field becomes straight: K steps of Euler, one for each window, then do what the teacher's many do. On
other paths than the linear one straight means along the line of a pair, which is what a step of DDIM follows.

The teacher may be guided, and the student is then drawn from without guidance; or its scale is 1, label_dropout=0.1, and the
guidance is the sampler's. Samplers take K steps on the grid of the windows, or a multiple of K.

The teacher is most of what an update costs, and the line it finds has many points: with `updates` above 1 one batch is
followed and feeds so many updates, each at times of its own. The field jumps from window to window, which a network of the
time alone has to blur; with `told` it takes a second time, the end of the window it is in. Samplers need not know: the time
they ask about says which window that is, at an edge the one that begins there. The published code has neither.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from flowjax.arrays import example_keys, uniform_rows
from flowjax.choices import Spec
from flowjax.contract import Batch, Collect, DataSpec, Method, Metrics, Params, Phase
from flowjax.losses.reflow import pair_loss
from flowjax.losses.trajectories import squared_distance
from flowjax.methods.endpoints import make_follow
from flowjax.methods.parts import check_shares, conditions_of, draw, make_samplers
from flowjax.methods.students import make_student
from flowjax.models.network import Conditions, Network
from flowjax.paths.flow_maps import pair_through
from flowjax.paths.weights import loss_weight
from flowjax.samplers.grids import make_grid

READINGS = {
    "error": "Along the straight line of a window. Falls to what is left of the trajectories' curvature within windows.",
}


def perflow(
    config: ConfigDict,
    data: DataSpec,
    teacher: Spec,
    prediction: str = "velocity",
    start: str = "fresh",
    windows: int = 4,
    grid: Spec | None = None,
    starts: float = 0.25,
    teacher_steps: int = 8,
    solver: str = "midpoint",
    updates: int = 1,
    told: bool = False,
    label_dropout: float = 0.0,
) -> Method:
    """Trains a student whose flow is straight in each of a few windows.

    Args:
      config: path, time (of the place in a window, from 0 to 1), weight, noise, network (of one time, or of two if `told`),
        optimizer, ema, samplers ('euler' or 'ddim').
      data: shape, classes and scale of the data.
      teacher: spec of methods/teacher.py.
      prediction: what the student's network outputs.
      start: 'teacher' or 'fresh'.
      windows: K.
      grid: where the windows lie, spec of samplers/grids.py without `steps`; of one length unless told.
      starts: the share of examples at the very beginning of a window, where its slope is asked for in sampling; the field
        jumps there, and a network that saw times around it alone would answer with the mean of two windows.
      teacher_steps: of the solver, over a window.
      solver: euler, midpoint, heun or rk4.
      updates: of the student with one batch that the teacher has followed.
      told: whether the network is told where the window ends.
      label_dropout: how often conditions are replaced by their null.
    """
    check_shares(starts=starts, label_dropout=label_dropout)
    if min(windows, updates) < 1:
        raise ValueError(f"method.windows is {windows} and updates {updates}; expected at least 1.")
    student = make_student(config, data, "perflow", prediction, teacher, start, two_times=told)
    setting, path = student.setting, student.setting.path
    follow = make_follow(student.teacher, teacher_steps, solver)
    edges = make_grid(grid or dict(name="uniform"), path, steps=windows, shape=setting.shape)

    def followed(params: Params, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """A window for each example, and the pair on whose line the teacher crosses it."""
        key_draw, key_window, _ = jax.random.split(key, 3)
        drawn = draw(setting, batch, key_draw, label_dropout)
        bounds = jnp.asarray(edges, jnp.float32)
        window = (uniform_rows(example_keys(key_window, batch["row"])) * windows).astype(jnp.int32)
        first, last = bounds[window], bounds[window + 1]
        x = path.sample(drawn.noise, drawn.data, first)
        noise, sample = pair_through(path, x, first, follow(params, x, first, last, drawn.cond), last)
        found = dict(noise=noise, sample=sample, first=first, last=last, dropped=drawn.dropped)
        return {f"rollout_{name}": array for name, array in found.items()}

    def loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
        key_draw, _, key_start = jax.random.split(key, 3)
        found = followed(params, batch, key) if updates == 1 else batch
        noise, sample, first, last, dropped = (
            found[f"rollout_{name}"] for name in ("noise", "sample", "first", "last", "dropped")
        )
        cond = setting.network.drop(conditions_of(batch), dropped)
        drawn = draw(setting, batch, key_draw, label_dropout)
        place = (drawn.t - path.start) / (path.end - path.start)
        place = jnp.where(uniform_rows(example_keys(key_start, batch["row"])) < starts, 0.0, place)
        t = first + place * (last - first)
        end = {"s": last} if told else {}
        predict = lambda x, t: setting.network.apply(params["student"], x, t, cond, **end, keys=drawn.keys)
        error, _, _ = pair_loss(predict, path, prediction, noise, sample, t, squared_distance)
        return error * loss_weight(setting.weight, path, prediction, t), {"t": t, "error": error}

    def rollout(params: Params, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        kept = {name: array for name, array in batch.items() if name != "step"}
        return kept | followed(params, batch, key)

    def batches(arrays: Mapping[str, np.ndarray], scores: Any, step: int) -> list[Mapping[str, np.ndarray]]:
        return [arrays] * updates

    drawn_from = dataclasses.replace(setting, network=_told(setting.network, edges)) if told else setting
    return Method(
        roles=student.roles,
        phases={"windows": Phase(loss, trains=("student",))},
        samplers=make_samplers(config, drawn_from),
        collect=None if updates == 1 else Collect(rollout, batches, updates),
        readings=READINGS,
    )


def _told(network: Network, edges: Float[np.ndarray, " k"]) -> Network:
    """A network of one time: the second is the end of the window in which that lies."""
    bounds, near = jnp.asarray(edges, jnp.float32), 1e-3 * np.diff(edges).min()  # for the rounding of a sampler's times

    def apply(
        tree: PyTree,
        x: Float[Array, "b ..."],
        t: Float[Array, " b"],
        cond: Conditions,
        *,
        s: Float[Array, " b"] | None = None,
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b ..."]:
        if s is not None:
            raise ValueError("A student that is told its window moves inside it: use the sampler 'euler' or 'ddim'.")
        window = jnp.searchsorted(bounds[1:-1], t + near, side="right")
        return network.apply(tree, x, t, cond, s=bounds[window + 1], keys=keys)

    return dataclasses.replace(network, apply=apply, two_times=False, hidden=None, layers=0)

"""From a sampler spec to a contract.Sampler.

A spec is dict(name='heun', steps=20, grid=dict(name='uniform'), guidance=dict(name='none'), role='ema', denoise=None,
shape=(), conditions={}); every other entry is an option of the sampler that `name` chooses. `shape` = (height, width) draws
images of another size or aspect ratio than that of the data's examples, such as that of another bucket. `conditions` sets those
that are one number for an example, over those that samples are drawn under: dict(guidance=4.0) for a student that was
trained to answer with any scale of guidance, dict(label=3) for one class.

Conditions with a `pixel_mask` bool[b, height, width] ask for images smaller than their arrays: a sample is zero outside
its mask, and nothing there counts in the norms of guidance.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from flowjax import choices
from flowjax.arrays import keep_visible
from flowjax.contract import Sampler
from flowjax.paths.path import GaussianPath
from flowjax.samplers.adaptive import ADAPTIVE, Adaptive
from flowjax.samplers.edm import EDMStochastic
from flowjax.samplers.field import Field, MemoryField, determined, last_time
from flowjax.samplers.grids import make_grid
from flowjax.samplers.guidance import Guidance, guide, make_guidance
from flowjax.samplers.jumps import Consistency, FlowMap
from flowjax.samplers.loop import integrate
from flowjax.samplers.multistep import DPMSolverPP2M, UniPC
from flowjax.samplers.steppers import Euler, Heun, Midpoint, RungeKutta4, Stepper
from flowjax.samplers.stochastic import DDIM, Ancestral, PredictorCorrector, dance_grpo, flow_grpo, sde

STEPPERS: dict[str, Callable[..., Stepper]] = {
    "euler": Euler,
    "heun": Heun,
    "midpoint": Midpoint,
    "rk4": RungeKutta4,
    "ddim": DDIM,
    "dpmpp_2m": DPMSolverPP2M,
    "unipc": UniPC,
    "edm_stochastic": EDMStochastic,
    "sde": sde,
    "flow_grpo": flow_grpo,
    "dance_grpo": dance_grpo,
    "ancestral": Ancestral,
    "predictor_corrector": PredictorCorrector,
    "flow_map": FlowMap,
    "consistency": Consistency,
}
SAMPLERS: dict[str, Callable[..., Any]] = {**STEPPERS, **ADAPTIVE}
COMMON = ("steps", "grid", "guidance", "role", "denoise", "shape", "conditions")
DEFAULTS = {
    "grid": {"name": "uniform"},
    "guidance": {"name": "none"},
    "role": "ema",
    "denoise": None,
    "shape": (),
    "conditions": {},
}


def default_name(names: Iterable[str]) -> str:
    """`default` where a sampler has that name, else the first."""
    names = list(names)
    return "default" if "default" in names else names[0]


Predict = Callable[..., Any]  # (tree, x, t[b], conditions), and s=s[b] for a network of two times -> prediction
# Where a prediction fixes nothing at pure noise (alpha = 0), samplers start here, near DDPM's smallest alpha.
LATER_START = 5e-3


@dataclasses.dataclass(frozen=True)
class SamplerParts:
    """A spec, resolved: for rollouts that take the steps themselves.

    Attributes:
      stepper: how to step (or an Adaptive solver).
      grid: the times; for an adaptive solver its two ends.
      guidance: the rule.
      role: the role to read.
      denoise: whether to return E[x1 | x] at the end of the grid.
      spec: the spec they came from.
      shape: of one sample.
    """

    stepper: Any
    grid: np.ndarray
    guidance: Guidance
    role: str
    denoise: bool
    spec: Mapping[str, Any]
    shape: tuple[int, ...] | None = None

    @property
    def nfe(self) -> int | None:
        """Network evaluations of one sample, guidance counted; None for adaptive solvers."""
        if isinstance(self.stepper, Adaptive):
            return None
        times = []
        field = Field(lambda x, t: x, self._prediction, self._path, self._network)
        last = self.stepper.finish(field, float(self.grid[-1]))
        for index, (t, t_next) in enumerate(zip(self.grid[:-1], self.grid[1:])):
            stepper = last if index == len(self.grid) - 2 else self.stepper
            times += [t + fraction * (t_next - t) for fraction in stepper.stages]
        times += [self.grid[-1]] * self.denoise
        doubled = self.guidance.needs is not None
        return sum(1 + int(doubled and self.guidance.active(t)) for t in times)

    _prediction: str = "velocity"
    _path: GaussianPath | None = None
    _network: str | None = None


def make_parts(
    spec: Mapping[str, Any],
    prediction: str,
    path: GaussianPath,
    shape: tuple[int, ...] | None = None,
    seen: tuple[int, ...] | None = None,
) -> SamplerParts:
    """Resolves a sampler spec: stepper, grid, guidance, role; unknown names and options fail with a suggestion.

    Args:
      spec: see the module header.
      prediction: what the network returns.
      path: the path it was trained on.
      shape: of one example of the data.
      seen: of what is to be seen of it, where that is less (DataSpec.seen_shape): grids that go by the size of a sample
        go by this.
    """
    spec = {**DEFAULTS, **spec}
    shape, seen = drawn_shape(spec, shape), drawn_shape(spec, seen or shape)
    options = {key: value for key, value in spec.items() if key not in COMMON}
    stepper = _build_stepper(options)
    usable = path
    if not determined(path, prediction, path.start):
        usable = dataclasses.replace(path, start=max(path.start, LATER_START))
    if isinstance(stepper, Adaptive):
        if "steps" in spec or spec["grid"] != {"name": "uniform"}:
            raise ValueError(f"Sampler '{spec['name']}' chooses its own steps: drop `steps` and `grid` from its spec.")
        grid = np.asarray([usable.start, last_time(path, prediction)])
        guidance = make_guidance(spec["guidance"])
        if guidance.init is not None:
            raise ValueError(
                f"Guidance '{spec['guidance']['name']}' remembers evaluations, and sampler '{spec['name']}' takes some "
                "of them back. Use a fixed-step sampler, such as 'heun'."
            )
    else:
        grid = _build_grid(spec, usable, seen)
        guidance = make_guidance(spec["guidance"], grid)
    denoise = spec["denoise"]
    if denoise is None:  # samples are to be clean: a grid that ends at some noise is followed by E[x1 | x]
        noise_left = float(path.sigma(jnp.asarray(grid[-1], jnp.float32))) > 1e-6
        denoise = noise_left and getattr(stepper, "last_step", None) != "tweedie"
    return SamplerParts(
        stepper, grid, guidance, spec["role"], denoise, spec, shape, guidance.space or prediction, path, prediction
    )


def drawn_shape(spec: Mapping[str, Any], data: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The shape of one sample: that of the data's examples, unless the spec names another height and width."""
    if not spec["shape"]:
        return data
    sides = tuple(spec["shape"])
    if data is None or len(data) != 3 or len(sides) != 2 or not all(isinstance(n, int) and n > 0 for n in sides):
        raise ValueError(
            f"Sampler '{spec['name']}' has shape={sides}; expected (height, width) in pixels, for data that are images "
            f"(height, width, channels). These have shape {data}: leave it at () to draw examples like them."
        )
    return (*sides, data[2])


def _build_stepper(options: Mapping[str, Any]) -> Any:
    name = options.get("name")
    for key in options:
        close = choices.suggestion(key, COMMON)
        if name in SAMPLERS and key != "name" and close:
            known = choices.inspect.signature(SAMPLERS[name]).parameters
            if key not in known:
                raise ValueError(f"The sampler '{name}' has no option '{key}'.{close}")
    return choices.build("sampler", options, SAMPLERS)


def _build_grid(spec: Mapping[str, Any], path: GaussianPath, shape: tuple[int, ...] | None) -> np.ndarray:
    steps = spec.get("steps")
    if spec["grid"].get("name") == "stored":
        grid = make_grid(spec["grid"], path)
        if steps not in (None, len(grid) - 1):
            raise ValueError(
                f"The sampler has steps={steps}, but its stored grid has {len(grid) - 1} steps. Drop `steps`."
            )
        return grid
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise ValueError(f"Sampler '{spec['name']}' needs `steps`, a whole number, in its spec; got {steps!r}.")
    return make_grid(spec["grid"], path, steps=steps, shape=shape)


def make_branches(
    parts: SamplerParts,
    null: Callable[[Mapping[str, Array]], Mapping[str, Array]] | None,
    prepare: Callable[[PyTree, Mapping[str, Array]], Mapping[str, Array]],
    params: Mapping[str, PyTree],
    conditions: Mapping[str, Array],
) -> dict[str, dict[str, Array]]:
    """The conditions of each prediction that guidance combines, `followed` and `left`, prepared once for all steps."""
    branches = {"followed": prepare(params[parts.role], conditions)}
    if parts.guidance.needs == "weak":
        branches["left"] = prepare(params[parts.guidance.role], conditions)
    elif parts.guidance.needs is not None:
        branches["left"] = prepare(params[parts.role], null(conditions))
    return {name: dict(branch) for name, branch in branches.items()}


def make_field(
    parts: SamplerParts,
    predict: Predict,
    prediction: str,
    path: GaussianPath,
    params: Mapping[str, PyTree],
    branches: Mapping[str, Mapping[str, Array]],
) -> Field | MemoryField:
    """The guided field of parameters and conditions (make_branches); both branches share one network call, and a gradient by
    the parameters flows through both.
    """
    tree = params[parts.role]

    def followed(x, t, *to):
        return predict(tree, x, t, branches["followed"], **_second(*to))

    def both(x, t, *to):
        if parts.guidance.needs == "weak":
            return followed(x, t, *to), predict(params[parts.guidance.role], x, t, branches["left"], **_second(*to))
        two = jax.tree.map(lambda c, u: jnp.concatenate([c, u]), branches["followed"], branches["left"])
        x, t, *to = (jnp.concatenate([array, array]) for array in (x, t, *to))
        return tuple(jnp.split(predict(tree, x, t, two, **_second(*to)), 2))

    field, visible = guide(parts.guidance, followed, both, prediction, path), branches["followed"].get("pixel_mask")
    if visible is None:
        return field
    # A network predicts zero outside an image. Conversions mix the point into that, so it has to be zero there as well.
    return dataclasses.replace(field, predict=lambda x, *more: field.predict(keep_visible(x, visible), *more))


def split_keys(keys: Key[Array, " b"]) -> tuple[Key[Array, " b"], Key[Array, " b"]]:
    """The keys of each sample's starting noise, and of what its steps draw."""
    noise_keys, step_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    return noise_keys, step_keys


def _second(s: Any = None) -> dict[str, Any]:
    """The second time as a network takes it."""
    return {} if s is None else {"s": s}


def make_sampler(
    spec: Mapping[str, Any],
    *,
    predict: Predict,
    null: Callable[[Mapping[str, Array]], Mapping[str, Array]] | None,
    prediction: str,
    path: GaussianPath,
    noise: Any,
    shape: tuple[int, ...],
    prepare: Callable[[PyTree, Mapping[str, Array]], Mapping[str, Array]] = lambda tree, conditions: conditions,
    seen: tuple[int, ...] | None = None,
    settable: Mapping[str, Any] = MappingProxyType({}),
) -> Sampler:
    """Builds a sampler that draws from the parameters of one role.

    Args:
      spec: see the module header.
      predict: (tree, x, t[b], conditions) -> the prediction.
      null: conditions -> null conditions, for guidance; None for a network that has no condition to drop.
      prediction: what `predict` returns.
      path: the path it was trained on.
      noise: the noise of the path, with sample(keys[b], shape) -> array of unit noise.
      shape: the shape of one example of the data.
      prepare: (tree, conditions) -> what `predict` takes in their place: computed once, before the first step.
      seen: see make_parts.
      settable: conditions that are one number for an example, with their types.

    Returns:
      A Sampler. It starts from sigma(t_0) noise, which neglects alpha(t_0) x1 at the noise end of the path.
    """
    parts = make_parts(spec, prediction, path, tuple(shape), seen)
    if null is None and parts.guidance.needs == "unconditional":
        raise ValueError(
            f"Guidance '{parts.spec['guidance']['name']}' leads away from the unconditional prediction, but the network "
            "has no condition to drop: both predictions would be the same. Give the data labels (data.labels=True) and "
            "the network a class condition (network.class_conditional=True), or set guidance=dict(name='none')."
        )
    adaptive = isinstance(parts.stepper, Adaptive)
    fixed = dict(parts.spec["conditions"])
    for name in fixed:
        if name not in settable:
            raise ValueError(
                f"Sampler '{spec['name']}' sets the condition '{name}', which is none of the network's that are one number for "
                f"an example: {', '.join(sorted(settable)) or 'it has none'}.{choices.suggestion(name, settable)}"
            )

    def field_of(params, branches):
        return make_field(parts, predict, prediction, path, params, branches)

    def draw(params, conditions, keys):
        noise_keys, step_keys = split_keys(keys)
        start = path.sigma(jnp.asarray(parts.grid[0], jnp.float32))
        visible = conditions.get("pixel_mask")
        x = keep_visible(start * noise.sample(noise_keys, parts.shape), visible)
        numbers = {name: jnp.full(len(x), value, settable[name]) for name, value in fixed.items()}
        conditions = {**conditions, **numbers}
        branches = make_branches(parts, null, prepare, params, conditions)
        if not adaptive:
            field = field_of(params, branches)
            x = integrate(parts.stepper, field, parts.grid, x, step_keys, denoise=parts.denoise)
            return keep_visible(x, visible)  # stochastic steppers draw noise everywhere
        x, _ = parts.stepper.solve(lambda one: field_of(params, one), x, parts.grid[0], parts.grid[1], branches)
        end = jnp.asarray(parts.grid[-1], x.dtype)
        return keep_visible(field_of(params, branches).data(x, end) if parts.denoise else x, visible)

    own_shape = parts.shape if parts.shape != tuple(shape) else None
    description = {
        "sampler": spec["name"],
        "steps": None if adaptive else len(parts.grid) - 1,
        "nfe": parts.nfe,
        "guidance": parts.spec["guidance"]["name"],
        "guidance_scale": parts.guidance.scale,
        "grid": "adaptive" if adaptive else parts.spec["grid"]["name"],
        "start": float(parts.grid[0]),
        "denoise": parts.denoise,
        "role": parts.role,
        **({"shape": own_shape} if own_shape else {}),
        **({"conditions": fixed} if fixed else {}),
        **{key: value for key, value in parts.spec.items() if key not in (*COMMON, "name")},
    }
    also = (parts.guidance.role,) if parts.guidance.needs == "weak" else ()
    grid = None if adaptive else tuple(float(t) for t in parts.grid)
    return Sampler(draw, parts.role, description, grid, also, shape=own_shape)

r"""Flow matching, diffusion and score matching: one method, five configs.

The student predicts some mix of noise and data at a random point of a path and is fitted by least squares,

    loss = weight(t) |network(x_t, t) - target|^2   measured in the space `loss`,      t from a stated law,

(losses/denoising.py). What the literature calls DDPM, denoising score matching, v-prediction, EDM and PFGM++ are
choices of path, prediction, loss space, weight, time law, noise and preconditioning: see presets.py.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from flowjax.arrays import expand_to, mean_per_example
from flowjax.choices import Spec, choose
from flowjax.contract import Batch, CheckResult, DataSpec, LossFn, Method, Metrics, Params, Phase
from flowjax.losses.denoising import prediction_loss
from flowjax.methods.alignment import make_alignment, with_alignment
from flowjax.methods.parts import Setting, average_roles, draw, make_samplers, make_setting, student_role
from flowjax.models.network import Network
from flowjax.paths.predictions import PREDICTIONS, error_ratio, prediction_row
from flowjax.paths.weights import loss_weight

READINGS = {
    "loss": "Falls fast, then slowly, to a floor above zero: what noise hides of the data, no network can predict.",
    "error": "The squared error of the prediction itself, before weights; it has such a floor too.",
}


QUANTILES = 1024  # times in the closed form of the first loss: the midpoint rule over the quantiles of t
REPEATS = 16  # draws of the first loss it is compared with
LARGEST_SPREAD = 1e6  # of the loss's factor between a time at the end and the median time


def flow_matching(
    config: ConfigDict,
    data: DataSpec,
    prediction: str = "velocity",
    loss: str = "velocity",
    label_dropout: float = 0.1,
    alignment: Spec | None = None,
) -> Method:
    """Trains a network to predict along a path.

    Args:
      config: path, time, weight, noise, preconditioning, network, optimizer, ema, samplers.
      data: shape, classes and scale of the data.
      prediction: what the network outputs: velocity, noise, data, score or v.
      loss: the prediction in whose space the squared error is taken.
      label_dropout: how often conditions are replaced by their null, which guidance needs; 0 for none.
      alignment: draws the network's tokens towards the features of a frozen encoder: options of methods/alignment.py,
        such as dict(encoder=dict(name='efficientnet_lite0', layer='b4'), layer=4). None for no such term.
    """
    for name in (prediction, loss):
        choose("prediction", name, dict.fromkeys(PREDICTIONS))
    if not 0 <= label_dropout < 1:
        raise ValueError(f"method.label_dropout is {label_dropout}; it is a probability, at least 0 and below 1.")
    setting = make_setting(config, data, prediction)
    if config.preconditioning.name == "none":
        _check_ends(setting, loss)

    def loss_of(network: Network) -> LossFn:
        own = dataclasses.replace(setting, network=network)

        def flow_loss(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, " b"], Metrics]:
            return denoising_loss(own, params["student"], batch, key, loss, label_dropout)

        return flow_loss

    flow_loss = loss_of(setting.network)

    def zero_check(params: Params, batch: Batch, key: Key[Array, ""]) -> CheckResult:
        return zero_network_check(setting, loss, flow_loss, params, batch, key)

    method = Method(
        roles={"student": student_role(config, setting.network), **average_roles(config)},
        phases={"flow": Phase(flow_loss, trains=("student",))},
        samplers=make_samplers(config, setting),
        checks={"zero_network_loss": zero_check},
        readings=READINGS,
    )
    if alignment is None:
        return method
    term = make_alignment(alignment, config, data, setting.network)
    return with_alignment(method, "flow", loss_of, setting.network, term)


def denoising_loss(
    setting: Setting,
    tree: PyTree,
    batch: Batch,
    key: Key[Array, ""],
    loss: str | None = None,
    label_dropout: float = 0.0,
) -> tuple[Float[Array, " b"], Metrics]:
    """The loss of a setting's network on a batch, at times and noise drawn for it.

    Args:
      setting: path, times, weight, noise, network and prediction.
      tree: the network's parameters.
      batch: data and conditions.
      key: of the draws.
      loss: the prediction in whose space the error is taken; the network's own unless told.
      label_dropout: how often conditions are replaced by their null.
    """
    space, drawn = loss or setting.prediction, draw(setting, batch, key, label_dropout)
    return prediction_loss(
        lambda x, t: setting.network.apply(tree, x, t, drawn.cond, keys=drawn.keys),
        setting.path,
        setting.prediction,
        drawn.noise,
        drawn.data,
        drawn.t,
        loss_space=space,
        weight=loss_weight(setting.weight, setting.path, space, drawn.t),
        visible=batch.get("pixel_mask"),
    )


def _factor(setting: Setting, loss: str, t: Float[Array, " n"]) -> Float[Array, " n"]:
    """What stands in front of the squared error of the network's own output."""
    weight = loss_weight(setting.weight, setting.path, loss, t)
    return weight * error_ratio(setting.path, setting.prediction, loss, t) ** 2


def _check_ends(setting: Setting, loss: str) -> None:
    """Refuses a loss whose factor explodes at an end of the times: a handful of examples would be all of it."""
    factor = jax.jit(lambda u: _factor(setting, loss, setting.times.quantile(u)))
    low, middle, high = factor(jnp.array([1e-6, 0.5, 1.0 - 1e-6])).tolist()
    for side, value in dict(low=low, high=high).items():
        if not math.isfinite(value) or value > LARGEST_SPREAD * middle:
            raise ValueError(
                f"A '{setting.prediction}' prediction with its loss in '{loss}' on the path '{setting.path.name}' is "
                f"multiplied by {value:.3g} at the {side} end of the times ({middle:.3g} at their median). Set "
                f"time.{side} away from the end (for example {'1e-3' if side == 'low' else '0.999'}), take the loss in "
                f"'{setting.prediction}', or use a preconditioning."
            )


def zero_network_check(
    setting: Setting, loss: str, loss_function: LossFn, params: Params, batch: Batch, key: Key[Array, ""]
) -> CheckResult:
    """The loss of a network whose parameters are all zero against its closed form.

    Such a network outputs k(t) x_t (k = 0 without preconditioning): its error is A x1 + B x0 with A = k alpha - a / c
    and B = k sigma - b / c. The expected loss is the mean over t of factor (A^2 E x1^2 + 2 A B E x1 x0 + B^2 E x0^2).
    """
    name = "zero_network_loss"
    zeros = {"student": jax.tree.map(jnp.zeros_like, params["student"])}
    mask = batch["mask"] / jnp.sum(batch["mask"])

    # The zeros are arguments of the programs. Captured as constants they gave rows of NaN on a CPU (jax 0.10, MLP on digits).
    @jax.jit
    def closed_form(zeros, batch):
        t = setting.times.quantile((jnp.arange(QUANTILES) + 0.5) / QUANTILES)
        # Two probes at a time, one time after the other: a whole batch of all times would not fit for large images.
        cond = {name: jnp.repeat(batch[name][:1], 2, axis=0) for name in setting.network.conditions}
        ramp = jnp.linspace(-1.0, 1.0, math.prod(setting.shape)).reshape(setting.shape)
        probes = jnp.stack([jnp.ones(setting.shape), ramp])
        apply = lambda time: setting.network.apply(zeros["student"], probes, jnp.full(2, time), cond)
        outputs = jax.lax.map(apply, t)
        gain = mean_per_example(outputs[:, 0])
        linear = jnp.allclose(outputs[:, 1], expand_to(gain, outputs[:, 1]) * ramp, rtol=1e-3, atol=1e-4)
        average = lambda product: jnp.sum(mask * mean_per_example(product, batch.get("pixel_mask")))
        square, cross, noise_square = average(batch["data"] ** 2), 0.0, setting.noise.variance
        if "noise" in batch:
            cross, noise_square = average(batch["data"] * batch["noise"]), average(batch["noise"] ** 2)
        a, b, c = prediction_row(setting.path, setting.prediction, t)
        on_data = gain * setting.path.alpha(t) - a / c
        on_noise = gain * setting.path.sigma(t) - b / c
        second_moment = on_data**2 * square + 2 * on_data * on_noise * cross + on_noise**2 * noise_square
        return linear, jnp.mean(_factor(setting, loss, t) * second_moment)

    linear, expected = closed_form(zeros, batch)
    if not linear:
        return CheckResult(name, True, "not applicable: with zero parameters the network is no multiple of its input")
    if not math.isfinite(expected):
        return CheckResult(name, True, "not applicable: the noise has no variance, so no expected loss")
    once = jax.jit(lambda zeros, batch, key: jnp.sum(mask * loss_function(zeros, batch, key)[0]))
    measured = np.array([float(once(zeros, batch, jax.random.fold_in(key, index))) for index in range(REPEATS)])
    error = measured.std(ddof=1) / math.sqrt(REPEATS)
    return CheckResult(
        name,
        bool(abs(measured.mean() - expected) <= 5 * error + 2e-3 * expected),
        f"measured {measured.mean():.5g} +- {error:.2g}, closed form {float(expected):.5g}",
        "The loss is not what the config says: check path, weight, time, and that the data is the batch's `data`.",
    )

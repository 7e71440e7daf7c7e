r"""The one loss of flow matching and diffusion: a squared error of a prediction at a random point of a path.

Draw a pair (noise x0, data x1) and a time t, form x_t, and compare a prediction p(x_t, t) with the value p* it takes on
the pair (predictions.py). Flow matching, DDPM, denoising score matching, v-prediction and EDM differ in three choices:

    loss = weight(t) * ratio(t)^2 * mean over elements of |p(x_t, t) - p*|^2,                             (1)

the path, the prediction, and the space in which the error is measured. At fixed x_t an error in p is an error in
another prediction q magnified by |dq / dp| (equation 3 of predictions.py), so `ratio` moves the loss to that space. It
does so without converting prediction and target, which would subtract large numbers where a conversion is nearly
singular.

Whatever the weight, the minimiser is E[p* | x_t]; the weight decides which times a network of limited capacity serves.
"""

from collections.abc import Callable

from jaxtyping import Array, Bool, Float

from flowjax.arrays import mean_per_example
from flowjax.paths.path import GaussianPath, edm_path, linear_path, vp_path
from flowjax.paths.predictions import error_ratio, target

Predict = Callable[[Float[Array, "b ..."], Float[Array, " b"]], Float[Array, "b ..."]]
Loss = tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]


def prediction_loss(
    predict: Predict,
    path: GaussianPath,
    prediction: str,
    noise: Float[Array, "b ..."],
    data: Float[Array, "b ..."],
    t: Float[Array, " b"],
    loss_space: str | None = None,
    weight: Float[Array, " b"] | None = None,
    visible: Bool[Array, "b ..."] | None = None,
) -> Loss:
    """Equation (1) for each example.

    Args:
      predict: (x, t) -> a prediction of the kind `prediction`.
      path: the path; t lies in [path.start, path.end].
      prediction: what `predict` returns, one of PREDICTIONS.
      noise: x0.
      data: x1.
      t: one time for each example.
      loss_space: the prediction in which the error is measured; by default the one predicted.
      weight: a factor for each example, on the error in `loss_space`; 1 by default.
      visible: the elements that count (the pixels of images smaller than the array), by its first axes; all by default.

    Returns:
      The loss of each example, and the metrics `t` and `error`, the mean squared error in the prediction's own space
      without weight.
    """
    error = predict(path.sample(noise, data, t), t) - target(path, prediction, noise, data, t)
    squared = mean_per_example(error**2, visible)
    value = squared
    if loss_space is not None and loss_space != prediction:
        value = value * error_ratio(path, prediction, loss_space, t) ** 2
    if weight is not None:
        value = value * weight
    return value, {"t": t, "error": squared}


def flow_matching_loss(
    velocity: Predict, noise: Float[Array, "b ..."], data: Float[Array, "b ..."], t: Float[Array, " b"]
) -> Loss:
    """mean |v(x_t, t) - (x1 - x0)|^2 with x_t = t x1 + (1 - t) x0 (Lipman et al. 2022, Liu et al. 2022)."""
    return prediction_loss(velocity, linear_path(), "velocity", noise, data, t)


def noise_loss(
    noise_prediction: Predict,
    noise: Float[Array, "b ..."],
    data: Float[Array, "b ..."],
    t: Float[Array, " b"],
    path: GaussianPath | None = None,
) -> Loss:
    """mean |noise_prediction(x_t, t) - x0|^2, the simple loss of Ho et al. 2020, by default on the VP path."""
    return prediction_loss(noise_prediction, path or vp_path(), "noise", noise, data, t)


def score_matching_loss(
    score: Predict,
    noise: Float[Array, "b ..."],
    data: Float[Array, "b ..."],
    t: Float[Array, " b"],
    path: GaussianPath | None = None,
) -> Loss:
    """mean |sigma score(x_t, t) + x0|^2: denoising score matching (Song et al. 2020), by default on the VP path."""
    return prediction_loss(score, path or vp_path(), "score", noise, data, t, loss_space="noise")


def v_loss(
    v: Predict,
    noise: Float[Array, "b ..."],
    data: Float[Array, "b ..."],
    t: Float[Array, " b"],
    path: GaussianPath | None = None,
) -> Loss:
    """mean |v(x_t, t) - (alpha x0 - sigma x1)|^2 (Salimans & Ho 2022), by default on the VP path."""
    return prediction_loss(v, path or vp_path(), "v", noise, data, t)


def edm_loss(
    denoise: Predict,
    noise: Float[Array, "b ..."],
    data: Float[Array, "b ..."],
    t: Float[Array, " b"],
    data_std: float = 0.5,
) -> Loss:
    """lambda(sigma) mean |D(x1 + sigma x0; sigma) - x1|^2 with lambda = (sigma^2 + s^2) / (sigma s)^2.

    Reference: Karras et al. 2022, s the standard deviation of the data. t = 1 / (1 + sigma).
    """
    path = edm_path()
    sigma = path.sigma(t)
    weight = (sigma**2 + data_std**2) / (sigma * data_std) ** 2
    return prediction_loss(denoise, path, "data", noise, data, t, weight=weight)

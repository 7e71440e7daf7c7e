"""EDM preconditioning: unit variances, unit loss at F = 0, Karras' own formulas, and the exact denoiser through it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.choices import build
from flowjax.contract import DataSpec
from flowjax.losses.denoising import prediction_loss
from flowjax.models import NETWORKS
from flowjax.models.network import Network
from flowjax.models.preconditioning import PRECONDITIONINGS, noise_condition
from flowjax.paths import oracles
from flowjax.paths.path import make_path

STD = 0.6


def function_network(function) -> Network:
    """A network without parameters."""
    return Network(
        init=lambda key: {},
        apply=lambda tree, x, t, cond, *, s=None, keys=None: function(x, t),
        drop=lambda cond, _: cond,
    )


def preconditioned(path, function, **options) -> Network:
    given = dict(network=function_network(function), path=path, prediction="data", data=DataSpec((2,), std=STD))
    return build("preconditioning", dict(name="edm", **options), PRECONDITIONINGS, **given)


@pytest.mark.parametrize("path_name", ["linear", "vp", "edm", "sub_vp"])
def test_input_and_target_have_unit_variance_and_the_weighted_loss_is_one(path_name: str):
    path, count = make_path(path_name), 20_000
    noise, data = (scale * jax.random.normal(jax.random.key(i), (count, 2)) for i, scale in enumerate((1.0, STD)))
    seen = []

    def zero(x, t):
        seen.append(x)
        return jnp.zeros_like(x)

    network = preconditioned(path, zero)
    for fraction in (0.05, 0.5, 0.95):
        t = jnp.full(count, path.start + (path.end - path.start) * fraction)
        sigma = path.noise_to_signal(t)
        weight = (sigma**2 + STD**2) / (sigma * STD) ** 2
        predict = lambda x, t: network.apply({}, x, t, {})
        value, _ = prediction_loss(predict, path, "data", noise, data, t, weight=weight)
        np.testing.assert_allclose(jnp.mean(value), 1.0, atol=0.03)
        np.testing.assert_allclose(jnp.std(seen[-1]), 1.0, atol=0.02)


def test_equals_the_formulas_of_karras_after_rescaling():
    """Path by path: D computed from x_t / alpha at the level sigma / alpha, in float64 from the paper's definitions."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 2))
    t = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    for name in ("linear", "vp", "trigonometric"):
        path = make_path(name)
        network = preconditioned(path, lambda x, t: jnp.tanh(x) + t[:, None])
        alpha = np.asarray(path.alpha(jnp.asarray(t, jnp.float32)), np.float64)[:, None]
        s = np.asarray(path.sigma(jnp.asarray(t, jnp.float32)), np.float64)[:, None] / alpha
        y = x / alpha
        output = np.tanh(y / np.sqrt(s**2 + STD**2)) + np.log(s) / 4
        expected = STD**2 / (s**2 + STD**2) * y + s * STD / np.sqrt(s**2 + STD**2) * output
        got = network.apply({}, jnp.asarray(x, jnp.float32), jnp.asarray(t, jnp.float32), {})
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)


def test_one_network_serves_two_paths():
    """The same F on the linear path and on the EDM path denoises matched points to the same data."""
    function = lambda x, t: jnp.sin(2 * x) + t[:, None]
    linear, karras = make_path("linear"), make_path("edm")
    x, t = jax.random.normal(jax.random.key(0), (7, 2)), jnp.linspace(0.1, 0.9, 7)
    on_linear = preconditioned(linear, function).apply({}, x, t, {})
    on_edm = preconditioned(karras, function).apply({}, x / t[:, None], t, {})  # t = 1 / (1 + sigma) on both
    np.testing.assert_allclose(on_linear, on_edm, rtol=1e-4, atol=1e-5)


def test_zero_network_is_the_exact_denoiser_of_its_gaussian():
    """For N(0, S^2) the posterior mean is c_skip x: F* has mean zero, at every time including both ends."""
    for name in ("linear", "vp", "edm"):
        path = make_path(name)
        x = jax.random.normal(jax.random.key(0), (5, 2))
        t = jnp.linspace(path.start, path.end, 5)
        got = preconditioned(path, lambda x, t: jnp.zeros_like(x)).apply({}, x, t, {})
        np.testing.assert_allclose(
            got, oracles.gaussian(0.0, STD, 2).prediction(path, "data", x, t), rtol=1e-5, atol=1e-6
        )


def test_ends_of_the_linear_path_are_finite():
    path = make_path("linear")
    ends = noise_condition(path, jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(ends, [np.log(1e4) / 4, 0.0, np.log(1e-4) / 4], rtol=1e-5, atol=1e-7)
    network = preconditioned(path, lambda x, t: jnp.tanh(x) + t[:, None], data_std=2.0)
    x = jnp.array([[0.5, -1.0], [0.5, -1.0]])
    got = network.apply({}, x, jnp.array([0.0, 1.0]), {})
    np.testing.assert_allclose(got[0], 2.0 * (np.tanh(x[0]) + ends[0]), rtol=1e-5)
    np.testing.assert_allclose(got[1], x[1], atol=1e-6)
    slope = jax.jvp(lambda t: network.apply({}, x, t, {}), (jnp.array([0.3, 0.6]),), (jnp.ones(2),))[1]
    assert bool(jnp.all(jnp.isfinite(slope)))


def test_it_refuses_other_predictions_and_standard_deviations():
    given = dict(network=function_network(lambda x, t: x), path=make_path("linear"), data=DataSpec((2,), std=STD))
    with pytest.raises(ValueError, match="method.prediction to 'data'"):
        build("preconditioning", dict(name="edm"), PRECONDITIONINGS, prediction="velocity", **given)
    with pytest.raises(ValueError, match="positive standard deviation"):
        build("preconditioning", dict(name="edm", data_std=0.0), PRECONDITIONINGS, prediction="data", **given)
    assert build("preconditioning", dict(name="none"), PRECONDITIONINGS, prediction="v", **given) is given["network"]


def test_tokens_pass_through():
    """The prediction of `hidden` is that of `apply`, and the tokens are those of F at what F is given."""
    path, x, t = make_path("linear"), jax.random.normal(jax.random.key(0), (4, 8, 8, 1)), jnp.linspace(0.1, 0.9, 4)
    data = DataSpec((8, 8, 1), std=STD)
    plain = NETWORKS["dit"](data, width=16, depth=2, heads=2, patch=4)
    network = build(
        "preconditioning", dict(name="edm"), PRECONDITIONINGS, network=plain, path=path, prediction="data", data=data
    )
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(plain.init, jax.random.key(0))
    tree = jax.tree.map(lambda leaf: jnp.asarray(0.3 * draw.normal(size=leaf.shape), jnp.float32), shapes)
    prediction, tokens = network.hidden(tree, x, t, {}, layer=1)
    np.testing.assert_allclose(prediction, network.apply(tree, x, t, {}), atol=1e-5)
    scale = jnp.sqrt((t * STD) ** 2 + (1 - t) ** 2)[:, None, None, None]
    _, expected = plain.hidden(tree, x / scale, noise_condition(path, t), {}, layer=1)
    np.testing.assert_allclose(tokens, expected, rtol=1e-4, atol=1e-4)
    assert preconditioned(path, lambda x, t: x).hidden is None

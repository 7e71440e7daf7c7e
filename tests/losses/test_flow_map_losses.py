"""The loss of flow maps: zero at the exact map on every path, MeanFlow's identity on the linear one, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.losses.flow_maps import flow_map_loss, flow_map_tangent
from flowjax.paths.closed_forms import average_velocity, flow_map
from flowjax.paths.flow_maps import flow_jump
from flowjax.paths.oracles import gaussian, three_modes_1d
from flowjax.paths.path import make_path
from flowjax.paths.predictions import convert

RNG = np.random.default_rng(0)


def points(path, count=12):
    """x, t, s with t < s, away from the ends, in float64."""
    low, high = path.start + 0.05 * (path.end - path.start), path.end - 0.05 * (path.end - path.start)
    ends = np.sort(RNG.uniform(low, high, (2, count)), axis=0)
    return jnp.asarray(RNG.normal(size=(count, 1))), jnp.asarray(ends[0]), jnp.asarray(ends[1])


def exact_prediction(mixture, path, prediction):
    """The value whose jump is the exact flow map: equation (2) of paths/flow_maps.py solved for p."""

    def predict(x, t, s):
        moved = flow_map(mixture, path, x, t, s)
        rest = flow_jump(path, prediction, jnp.zeros_like(x), x, t, s)
        per_unit = flow_jump(path, prediction, jnp.ones_like(x), jnp.zeros_like(x), t, s)
        return (moved - rest) / per_unit

    return predict


@pytest.mark.parametrize("prediction", ["velocity", "data", "noise"])
@pytest.mark.parametrize("path_name", ["linear", "trigonometric", "vp"])
def test_the_exact_map_stays_put(path_name, prediction):
    with jax.enable_x64(True):
        path, mixture = make_path(path_name), gaussian(0.7, 0.4)
        x, t, s = points(path)
        velocity = mixture.prediction(path, "velocity", x, t)
        predict = exact_prediction(mixture, path, prediction)
        tangent = flow_map_tangent(predict, path, prediction, x, t, s, velocity)
        scale = np.abs(tangent.slope).max()
        np.testing.assert_allclose(tangent.residual, 0, atol=1e-8 * max(1, scale))
        loss, _ = flow_map_loss(predict, path, prediction, x, t, s, velocity, power=0.0)
        np.testing.assert_allclose(loss, 0, atol=1e-12)
        off = lambda x, t, s: predict(x, t, s) + 0.1
        assert (np.asarray(flow_map_loss(off, path, prediction, x, t, s, velocity, power=0.0)[0]) > 1e-4).all()


def test_several_modes_on_the_line():
    path, mixture = make_path("linear"), three_modes_1d()
    x, t, s = (array.astype(jnp.float32) for array in points(path))
    velocity = mixture.prediction(path, "velocity", x, t)
    # Quantiles are found by bisection, which has no useful derivative: the tangent is a central difference in float64.
    with jax.enable_x64(True):
        x, t, s, velocity = (array.astype(jnp.float64) for array in (x, t, s, velocity))
        h = 1e-5
        moved = lambda sign: average_velocity(mixture, path, x + sign * h * velocity, t + sign * h, s)
        slope = (moved(1) - moved(-1)) / (2 * h)
        expected = velocity + (s - t)[:, None] * slope
        np.testing.assert_allclose(average_velocity(mixture, path, x, t, s), expected, atol=1e-5)


def network(tree, x, t, s):
    hidden = jnp.tanh(x @ tree["in"] + t[:, None] * tree["t"] + s[:, None] * tree["s"])
    return hidden @ tree["out"]


TREE = {name: jnp.asarray(RNG.normal(size=shape)) for name, shape in
        {"in": (2, 8), "t": (1, 8), "s": (1, 8), "out": (8, 2)}.items()}  # fmt: skip


def test_on_the_linear_path_it_is_mean_flow():
    x, velocity = jnp.asarray(RNG.normal(size=(2, 5, 2)), jnp.float32)
    t, s = jnp.linspace(0.1, 0.5, 5), jnp.linspace(0.9, 0.6, 5)
    predict = lambda x, t, s: network(TREE, x, t, s)
    ones = jnp.ones(5)
    value, slope = jax.jvp(predict, (x, t, s), (velocity, ones, 0 * ones))
    target = velocity + (s - t)[:, None] * slope
    expected = jnp.sum((value - target) ** 2, axis=1)
    found, metrics = flow_map_loss(predict, make_path("linear"), "velocity", x, t, s, velocity, power=0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["error"], expected / 2, rtol=1e-4)
    weighted, _ = flow_map_loss(predict, make_path("linear"), "velocity", x, t, s, velocity, power=1.0, floor=0.1)
    np.testing.assert_allclose(weighted, expected / (expected + 0.1), rtol=1e-4)


def test_with_equal_times_it_is_flow_matching_and_the_target_has_no_gradient():
    x, velocity = jnp.asarray(RNG.normal(size=(2, 5, 2)), jnp.float32)
    t, s = jnp.linspace(0.1, 0.5, 5), jnp.linspace(0.9, 0.6, 5)
    path = make_path("linear")
    loss = lambda tree, s: jnp.sum(
        flow_map_loss(lambda *a: network(tree, *a), path, "velocity", x, t, s, velocity, power=0.0)[0]
    )
    plain = lambda tree: jnp.sum((network(tree, x, t, t) - velocity) ** 2)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, jax.grad(loss)(TREE, t), jax.grad(plain)(TREE))
    # The target's own derivative is stopped: the gradient is that of a regression on numbers.
    predict = lambda x, t, s: network(TREE, x, t, s)
    value, slope = jax.jvp(predict, (x, t, s), (velocity, jnp.ones(5), jnp.zeros(5)))
    numbers = velocity + (s - t)[:, None] * slope
    regression = lambda tree: jnp.sum((network(tree, x, t, s) - numbers) ** 2)
    jax.tree.map(close, jax.grad(loss)(TREE, s), jax.grad(regression)(TREE))
    through = lambda v: jnp.sum(flow_map_loss(predict, path, "velocity", x, t, s, v, power=0.0)[0])
    np.testing.assert_array_equal(jax.grad(through)(velocity), 0)


@pytest.mark.parametrize("prediction", ["velocity", "data"])
@pytest.mark.parametrize("path_name", ["linear", "trigonometric", "vp"])
def test_a_share_of_nothing_is_flow_matching_and_of_all_the_whole_condition(path_name, prediction):
    with jax.enable_x64(True):
        path, mixture = make_path(path_name), gaussian(0.7, 0.4)
        x, t, s = points(path)
        velocity = mixture.prediction(path, "velocity", x, t)
        field = lambda x, t, s: mixture.prediction(path, prediction, x, t)  # right at s = t alone
        at = lambda predict, share: flow_map_tangent(predict, path, prediction, x, t, s, velocity, share).residual
        np.testing.assert_allclose(at(field, jnp.zeros(())), 0, atol=1e-9)
        assert np.abs(at(field, 1.0)).max() > 1e-2
        np.testing.assert_allclose(at(field, jnp.ones(len(x))), at(field, 1.0), atol=1e-9)
        # On the trigonometric path the split is that of Lu & Song 2025: sin(phi) x grows in together with dF/dphi.
        if (path_name, prediction) == ("trigonometric", "velocity"):
            end = jnp.ones_like(t)
            phi = 0.5 * np.pi * (1 - t)[:, None]
            value, slope = jax.jvp(field, (x, t, end), (velocity, end, 0 * t))
            to_angle = -2 / np.pi
            f, df, dx = to_angle * value, to_angle**2 * slope, to_angle * velocity
            expected = -(np.cos(phi) ** 2) * (f - dx) - 0.3 * np.cos(phi) * np.sin(phi) * (x + df)
            found = flow_map_tangent(field, path, prediction, x, t, end, velocity, 0.3)
            np.testing.assert_allclose(to_angle * -found.slope[:, None] * found.residual, expected, atol=1e-9)


@pytest.mark.parametrize("path_name", ["linear", "trigonometric", "vp"])
def test_what_a_network_predicts_does_not_change_its_gradient(path_name):
    """The same network read as another prediction; also at the clean end, where a data prediction is the jump."""
    with jax.enable_x64(True):
        path = make_path(path_name)
        x, t, s = points(path, 6)
        x, velocity = jnp.asarray(RNG.normal(size=(2, 6, 2)))
        s = s.at[:2].set(path.end - (1e-3 if path_name == "vp" else 0.0))

        def gradient(prediction):
            def loss(tree):
                of_velocity = lambda x, t, s: network(tree, x, t, s)
                predict = lambda x, t, s: convert(path, "velocity", prediction, of_velocity(x, t, s), x, t)
                return jnp.sum(flow_map_loss(predict, path, prediction, x, t, s, velocity, power=0.0)[0])

            return jax.grad(loss)({name: leaf.astype(jnp.float64) for name, leaf in TREE.items()})

        for prediction in ("data", "noise"):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), gradient(prediction), gradient("velocity")
            )


def test_the_direction_of_the_derivative_may_be_another():
    x, velocity, other = jnp.asarray(RNG.normal(size=(3, 5, 2)), jnp.float32)
    t, s = jnp.linspace(0.1, 0.5, 5), jnp.linspace(0.9, 0.6, 5)
    predict = lambda x, t, s: network(TREE, x, t, s)
    value, slope = jax.jvp(predict, (x, t, s), (other, jnp.ones(5), jnp.zeros(5)))
    expected = jnp.sum((value - (velocity + (s - t)[:, None] * slope)) ** 2, axis=1)  # V - v of improved MeanFlow
    path = make_path("linear")
    loss = lambda other: flow_map_loss(predict, path, "velocity", x, t, s, velocity, power=0.0, direction=other)[0]
    np.testing.assert_allclose(loss(other), expected, rtol=1e-4)
    np.testing.assert_array_equal(jax.grad(lambda other: jnp.sum(loss(other)))(other), 0)


def test_the_whole_trigonometric_path_has_a_finite_loss():
    path, x = make_path("trigonometric"), jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32)
    t, s = jnp.array([0.0, 0.0, 1.0]), jnp.array([1.0, 0.5, 1.0])  # b_t is 0 for the first

    def loss(tree):
        predict = lambda x, t, s: network(tree, x, t, s)
        return jnp.sum(flow_map_loss(predict, path, "velocity", x, t, s, x, power=0.5)[0])

    value, slope = jax.value_and_grad(loss)(TREE)
    assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))

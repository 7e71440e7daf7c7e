"""Images smaller than the array: only visible pixels count, in the loss and in the check of the method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.arrays import mean_per_example
from flowjax.config import defaults
from flowjax.contract import DataSpec
from flowjax.methods import METHODS

SHAPE, COUNT = (4, 4, 2), 6
MASK = np.random.default_rng(0).random((COUNT, 4, 4)) < 0.6


def test_the_mean_is_over_visible_elements_alone():
    x = np.random.default_rng(1).normal(size=(COUNT, *SHAPE)).astype(np.float32)
    expected = [image[mask].mean() for image, mask in zip(x, MASK)]
    hidden = np.where(MASK[..., None], x, np.nan)
    np.testing.assert_allclose(mean_per_example(jnp.asarray(hidden), jnp.asarray(MASK)), expected, rtol=1e-5)
    nothing = mean_per_example(jnp.asarray(x), jnp.zeros((COUNT, 4, 4), bool))
    np.testing.assert_array_equal(nothing, 0)


def test_flow_matching_counts_visible_pixels_and_its_check_agrees():
    config = defaults()
    config.batch_size, config.network = COUNT, dict(name="dit", width=16, depth=1, heads=2, masked=True)
    method = METHODS["flow_matching"](config, DataSpec(SHAPE, visible_shape=(4, 4), visible_multiple=2))
    params = {"student": method.roles["student"].init(jax.random.key(0))}
    data = 2.0 + np.random.default_rng(2).normal(size=(COUNT, *SHAPE)).astype(np.float32)
    batch = dict(data=jnp.asarray(data), pixel_mask=jnp.asarray(MASK), row=jnp.arange(COUNT), mask=jnp.ones(COUNT))
    loss = jax.jit(method.phases["flow"].loss)
    value, _ = loss(params, batch, jax.random.key(1))
    padded = batch | {"data": jnp.where(MASK[..., None], data, 100.0)}
    np.testing.assert_allclose(loss(params, padded, jax.random.key(1))[0], value, rtol=1e-5)
    whole, _ = loss(params, batch | {"pixel_mask": jnp.ones_like(batch["pixel_mask"])}, jax.random.key(1))
    assert float(jnp.abs(whole - value).max()) > 1e-2
    params = params | {"ema": params["student"]}
    # The closed form of the first loss has E x1^2 of visible pixels; padding of 100 would make it 10^4.
    result = method.checks["zero_network_loss"](params, padded, jax.random.key(2))
    assert result.passed and "closed form" in result.detail, result.detail


# A plain squared error: under the weight of MeanFlow every loss would be about one.
@pytest.mark.parametrize("name, plain", [("flow_matching", {}), ("mean_flow", {"power": 0.0})])
def test_an_image_on_a_canvas_has_the_loss_that_it_has_alone(name, plain):
    config = defaults()
    options = dict(width=16, depth=1, heads=2, position="rope", two_times=name == "mean_flow")
    draw = np.random.default_rng(3)
    image, noise = (draw.normal(size=(COUNT, 4, 6, 2)).astype(np.float32) for _ in range(2))
    place = lambda x, beside: np.pad(x, ((0, 0), (0, 4), (0, 2), (0, 0)), constant_values=beside)
    rows = dict(row=jnp.arange(COUNT), mask=jnp.ones(COUNT))
    mask = jnp.asarray(place(np.ones((COUNT, 4, 6, 1), bool), False)[..., 0])
    whole = dict(rows, data=place(image, 0), noise=place(noise, 7), pixel_mask=mask)  # noise is drawn everywhere
    values, params = [], None
    for data, batch, masked in (
        (DataSpec((4, 6, 2)), dict(rows, data=image, noise=noise), False),
        (DataSpec((8, 8, 2), visible_shape=(4, 6), visible_multiple=2), whole, True),
    ):
        config.batch_size, config.network = COUNT, dict(name="dit", masked=masked, **options)
        method = METHODS[name](config, data, **plain)
        params = params or shaken(method.roles["student"].init(jax.random.key(0)))
        loss = jax.jit(next(iter(method.phases.values())).loss)
        values.append(loss({"student": params}, batch, jax.random.key(1))[0])
    np.testing.assert_allclose(*values, rtol=2e-4)
    assert float(values[0].std()) > 1e-3


def shaken(tree):
    """Parameters with nothing at zero, where layers start: there a network predicts zero whatever it is."""
    leaves, structure = jax.tree.flatten(tree)
    draw = np.random.default_rng(4)
    return jax.tree.unflatten(structure, [x + 0.2 * draw.normal(size=x.shape).astype(np.float32) for x in leaves])

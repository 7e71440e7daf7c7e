"""Images smaller than the array: only visible pixels count, in the loss and in the check of the method."""

import jax
import jax.numpy as jnp
import numpy as np

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

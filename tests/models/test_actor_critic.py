"""The noise of a policy stays between its bounds, which narrow as they should; a critic begins at nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.contract import DataSpec
from flowjax.models.actor_critic import critic, noise_network

DATA = DataSpec((2, 3), observation_shape=(4,))
SEEN = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)


def test_noise_is_what_the_formula_says():
    network = noise_network(DATA, low=0.1, high=0.4, width=8, depth=1)
    tree = network.init(jax.random.key(0))
    np.testing.assert_allclose(network.apply(tree, SEEN, 0.25, 1.0), np.full((5, 2, 3), np.sqrt(0.1 * 0.4)), rtol=1e-5)
    bias = np.linspace(-2, 2, 6).astype(np.float32)
    tree["output"]["bias"] = jnp.asarray(bias)  # its kernel is zero, so this is u
    for share in (1.0, 0.5):
        low, high = np.log(0.1**2), np.log((0.1 + share * 0.3) ** 2)
        expected = np.exp(0.5 * (low + (high - low) * (np.tanh(bias) + 1) / 2)).reshape(2, 3)
        np.testing.assert_allclose(network.apply(tree, SEEN, 0.5, share)[0], expected, rtol=1e-5)
    np.testing.assert_allclose(network.apply(tree, SEEN, 0.5, 0.0), 0.1, rtol=1e-6)


def test_noise_depends_on_what_is_seen_and_on_the_time():
    network = noise_network(DATA, width=8, depth=1)
    tree = network.init(jax.random.key(0))
    tree["output"]["kernel"] = jax.random.normal(jax.random.key(1), (8, 6))
    one = network.apply(tree, SEEN, 0.0, 1.0)
    assert np.abs(one - network.apply(tree, SEEN, 0.75, 1.0)).max() > 1e-3 and np.ptp(one, axis=0).min() > 1e-3
    assert one.min() >= 0.1 - 1e-6 and one.max() <= 0.24 + 1e-6


def test_the_upper_bound_is_held_and_then_falls():
    network = noise_network(DATA, hold=0.4, left=0.25)
    found = [float(network.share(progress)) for progress in (0.0, 0.4, 0.7, 1.0)]
    np.testing.assert_allclose(found, [1.0, 1.0, 0.625, 0.25], atol=1e-6)
    assert float(noise_network(DATA, hold=1.0).share(1.0)) == 1.0


def test_a_critic_begins_at_zero_and_reads_what_is_seen():
    judge = critic(DATA, width=8)
    tree = judge.init(jax.random.key(0))
    np.testing.assert_array_equal(judge.apply(tree, SEEN), np.zeros(5))
    tree["output"]["kernel"] = jnp.ones((8, 1))
    assert np.ptp(judge.apply(tree, SEEN)) > 0.01


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(low=0.3), "0 < low <= high"),
        (dict(low=0.0), "0 < low <= high"),
        (dict(left=1.5), "shares between 0 and 1"),
        (dict(width=0), "width=0 and depth=2"),
        (dict(activation="tan"), "Did you mean 'tanh'"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        noise_network(DATA, **options)

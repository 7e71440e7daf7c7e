"""Embeddings against their formulas, dropout against its law."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.models.embeddings import (
    ConditionEmbedding,
    Dropout,
    octave_features,
    position_features,
    sinusoidal_features,
)


def test_sinusoidal_features_are_those_of_a_thousand_integer_steps():
    steps = np.array([0, 1, 250, 999])
    features = sinusoidal_features(jnp.asarray(steps / 1000, jnp.float32), 8)
    frequencies = np.array([1.0, 0.1, 0.01, 0.001])
    angles = steps[:, None] * frequencies
    np.testing.assert_allclose(features, np.concatenate([np.cos(angles), np.sin(angles)], 1), atol=2e-4)
    negative = sinusoidal_features(jnp.array([-1.3]), 4, time_scale=1.0)
    np.testing.assert_allclose(negative[0], [np.cos(1.3), np.cos(0.013), -np.sin(1.3), -np.sin(0.013)], atol=1e-6)
    with pytest.raises(ValueError, match="even"):
        sinusoidal_features(jnp.zeros(1), 5)


def test_octave_features_resolve_their_finest_step():
    t = jnp.linspace(0, 1, 257)
    features = octave_features(t, 8)
    assert features.shape == (257, 17)
    np.testing.assert_array_equal(features[:, 0], t)
    gaps = jnp.linalg.norm(features[:, None] - features[None], axis=-1) + 10 * jnp.eye(257)
    assert float(gaps.min()) > 1.0


def test_position_features_are_distinct_and_shift_by_rotation():
    features = position_features(4, 6, 16)
    assert features.shape == (24, 16)
    grid = features.reshape(4, 6, 16)
    np.testing.assert_array_equal(grid[0, :, 8:], np.broadcast_to(grid[0, 0, 8:], (6, 8)))  # rows in the second half
    np.testing.assert_array_equal(grid[:, 0, :8], np.broadcast_to(grid[0, 0, :8], (4, 8)))  # columns in the first
    np.testing.assert_allclose(grid[2, 3, [0, 4, 8, 12]], [np.sin(3), np.cos(3), np.sin(2), np.cos(2)], atol=1e-6)
    gaps = np.linalg.norm(features[:, None] - features[None], axis=-1) + 10 * np.eye(24)
    assert gaps.min() > 0.5


def test_a_new_second_time_changes_nothing():
    t, s = jnp.array([0.1, 0.7]), jnp.array([0.9, 0.8])
    module = ConditionEmbedding(8)
    two = module.init(jax.random.key(0), t, s)
    one = {"params": {"time": two["params"]["time"]}}
    np.testing.assert_array_equal(module.apply(two, t, s), module.apply(one, t))


class TwoDropouts(nn.Module):
    @nn.compact
    def __call__(self, x, keys):
        return Dropout(0.25)(x, keys), Dropout(0.25)(x, keys)


def test_dropout_keeps_the_mean_and_layers_differ():
    x = jnp.ones((3, 4000))
    keys = jax.random.split(jax.random.key(0), 3)
    first, second = TwoDropouts().apply({}, x, keys)
    values = np.unique(np.asarray(first))
    np.testing.assert_allclose(values, [0, 4 / 3], rtol=1e-6)
    # The share kept is binomial: 0.75 with deviation sqrt(0.75 * 0.25 / 4000) = 0.0068; rows and layers are
    # independent, so two masks agree in a share 0.75^2 + 0.25^2 = 0.625 of the units.
    kept = np.stack([first, second]) > 0
    np.testing.assert_allclose(kept.mean(axis=-1), 0.75, atol=5 * 0.0068)
    for a, b in [(kept[0, 0], kept[1, 0]), (kept[0, 0], kept[0, 1]), (kept[0, 1], kept[1, 2])]:
        np.testing.assert_allclose((a == b).mean(), 0.625, atol=5 * 0.0077)
    off, _ = TwoDropouts().apply({}, x, None)
    np.testing.assert_array_equal(off, x)

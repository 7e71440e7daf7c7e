"""Distances of feature maps: between directions, averaged over cells and layers."""

import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.losses.perception import feature_distance


def test_feature_distance_is_between_directions():
    """Unit vectors at an angle a are 2 - 2 cos a apart; lengths do not matter; cells and layers are averaged."""
    along, across = jnp.array([[[1.0, 0.0], [2.0, 0.0]]]), jnp.array([[[5.0, 0.0], [0.0, 0.1]]])
    np.testing.assert_allclose(feature_distance([along], [across]), [1.0], rtol=1e-5)
    np.testing.assert_allclose(feature_distance([along, along], [across, 7 * along]), [0.5], rtol=1e-5)
    np.testing.assert_allclose(feature_distance([along], [-along]), [4.0], rtol=1e-5)
    with pytest.raises(ValueError, match="got 1 and 0"):
        feature_distance([along], [])

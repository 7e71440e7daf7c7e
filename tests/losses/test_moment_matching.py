"""Moment matching: no discrepancy at exact maps' distributions, one particle is a consistency model, groups stay apart."""

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.losses.moment_matching import discrepancy, follower, laplace_kernel, time_weight
from flowjax.paths.path import linear_path, make_path

RNG = np.random.default_rng(0)


def test_the_discrepancy_is_that_of_all_pairs():
    own, target = jnp.asarray(RNG.normal(size=(2, 3, 4, 5)), jnp.float32)
    width = jnp.array([0.5, 1.0, 3.0])
    found = discrepancy(own, target, width).mean(axis=1)
    k = lambda a, b, w: np.exp(-w * np.linalg.norm(np.asarray(a) - np.asarray(b)) / 5)
    mean = lambda one, other, w: np.mean([[k(a, b, w) for b in other] for a in one])
    for one, other, w, value in zip(own, target, width, found):
        expected = mean(one, one, w) + mean(other, other, w) - 2 * mean(one, other, w)
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(discrepancy(own, own[:, ::-1], width).mean(axis=1), 0, atol=1e-6)


def test_one_particle_is_a_consistency_model_with_a_laplace_distance():
    own, target = jnp.asarray(RNG.normal(size=(2, 6, 1, 3)), jnp.float32)
    width = jnp.full(6, 2.0)
    expected = 2 - 2 * jnp.exp(-2.0 * jnp.linalg.norm(own - target, axis=-1) / 3)
    np.testing.assert_allclose(discrepancy(own, target, width), expected, rtol=1e-3)  # |y - y| counts as 1e-4


def test_padding_counts_for_nothing_and_the_target_has_no_gradient():
    own, target = jnp.asarray(RNG.normal(size=(2, 2, 4, 3)), jnp.float32)
    width, mask = jnp.ones(2), jnp.array([[1.0, 1, 1, 0], [1, 1, 1, 1]])
    found = discrepancy(own.at[0, 3].set(99.0), target.at[0, 3].set(-99.0), width, mask)
    np.testing.assert_allclose(found[0, :3], discrepancy(own[:1, :3], target[:1, :3], width[:1])[0], rtol=1e-5)
    slope = jax.grad(lambda target: jnp.sum(discrepancy(own, target, width)))(target)
    np.testing.assert_array_equal(slope, 0)
    same = jax.grad(lambda own: jnp.sum(discrepancy(own, own, width)))(own)
    assert np.isfinite(same).all()
    assert laplace_kernel(own, target, width).shape == (2, 4, 4)


def test_the_follower_is_a_fixed_step_of_noise_behind_and_never_beyond():
    path = linear_path()
    t, s = jnp.array([0.02, 0.3, 0.9, 0.0]), jnp.array([0.9, 0.31, 1.0, 1.0])
    r = follower(path, t, s, step=0.01, highest=160.0)
    np.testing.assert_allclose((1 - r[0]) / r[0], (1 - 0.02) / 0.02 - 1.6, rtol=1e-3)
    np.testing.assert_array_equal(r[1:3], s[1:3])  # 2.33 - 1.6 is cleaner than s; 0.11 - 1.6 is nothing
    assert 0 <= r[3] <= 0.01


def test_the_weight_is_the_published_one_on_the_linear_path():
    t = jnp.linspace(0.1, 0.9, 5)
    log_snr = 2 * np.log(t / (1 - t))
    expected = 0.5 / (1 + np.exp(log_snr - 4.0)) * 2 / (t * (1 - t)) * t**2 / (t**2 + (1 - t) ** 2)
    np.testing.assert_allclose(time_weight(make_path("linear"), t, 2.0, 4.0), expected, rtol=1e-4)

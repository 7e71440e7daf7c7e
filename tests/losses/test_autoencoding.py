"""Losses of an autoencoder against formulas, Monte Carlo, probabilistic PCA, and gradients known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowjax.losses import autoencoding as losses


def test_kl_is_the_formula_and_its_monte_carlo_estimate():
    mean = jnp.array([[0.3, -1.2, 0.0], [0.0, 0.0, 0.0]])
    logvar = jnp.array([[0.5, -2.0, 0.0], [0.0, 0.0, 0.0]])
    kl = losses.gaussian_kl(mean, logvar)
    by_hand = 0.5 * (0.3**2 + np.exp(0.5) - 1.5 + 1.2**2 + np.exp(-2.0) + 1.0)
    np.testing.assert_allclose(kl, [by_hand, 0.0], rtol=1e-6)

    noise = jax.random.normal(jax.random.key(0), (200_000, 3))
    z = losses.sample_posterior(*(jnp.broadcast_to(x[:1], noise.shape) for x in (mean, logvar)), noise)
    log_ratio = -0.5 * (noise**2 + logvar[0]).sum(-1) + 0.5 * (z**2).sum(-1)
    error = float(log_ratio.std()) / np.sqrt(len(noise))
    assert abs(float(log_ratio.mean()) - by_hand) < 4 * error < 0.02


def test_kl_keeps_its_digits_near_the_prior():
    """1/2 (exp(l) - 1 - l) = l^2 / 4 + l^3 / 12 + ...; exp(l) - (1 + l) in float32 would be off by a tenth."""
    logvar = jnp.full((1, 1), 1e-3)
    np.testing.assert_allclose(losses.gaussian_kl(jnp.zeros((1, 1)), logvar), 0.25e-6 + 1e-9 / 12, rtol=2e-3)


def test_a_linear_autoencoder_learns_probabilistic_pca():
    """Decoder z -> W z, encoder x -> N(V x, diag v), loss |x - y|^2 / (2 s^2) + KL: the optimum is known.

    Tipping & Bishop 1999, Lucas et al. 2019: with eigenvalues e_i of the data's covariance, the columns of W have squared
    lengths e_i - s^2 for the largest of them and the posterior has the variances s^2 / e_i. The expectations are exact:
    of data and of noise we take sigma points, which have the right second moments, and the loss is quadratic in both.
    """
    eigenvalues, noise_variance = np.array([4.0, 1.5, 0.3]), 0.5
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    points = lambda d: np.sqrt(d) * np.concatenate([np.eye(d), -np.eye(d)])
    data = points(3) * np.sqrt(eigenvalues) @ turn.T
    rows, noise = (
        jnp.repeat(jnp.asarray(data, jnp.float32), 4, axis=0),
        jnp.tile(jnp.asarray(points(2), jnp.float32), (6, 1)),
    )

    def objective(tree):
        mean = rows @ tree["encoder"]
        logvar = jnp.broadcast_to(tree["logvar"], mean.shape)
        z = losses.sample_posterior(mean, logvar, noise)
        squared = jnp.sum((rows - z @ tree["decoder"]) ** 2, axis=-1)
        return jnp.mean(squared / (2 * noise_variance) + losses.gaussian_kl(mean, logvar))

    keys = jax.random.split(jax.random.key(3))
    tree = {
        "encoder": 0.3 * jax.random.normal(keys[0], (3, 2)),
        "decoder": 0.3 * jax.random.normal(keys[1], (2, 3)),
        "logvar": jnp.zeros(2),
    }
    tx = optax.adam(optax.cosine_decay_schedule(0.03, 3000))

    @jax.jit
    def fit(tree):
        def body(carry, _):
            tree, state = carry
            changes, state = tx.update(jax.grad(objective)(tree), state)
            return (optax.apply_updates(tree, changes), state), None

        return jax.lax.scan(body, (tree, tx.init(tree)), None, length=3000)[0][0]

    tree = fit(tree)
    variances = np.sort(np.exp(tree["logvar"]))
    np.testing.assert_allclose(variances, noise_variance / eigenvalues[:2], rtol=2e-3)
    singular = np.linalg.svd(np.asarray(tree["decoder"]), compute_uv=False)
    np.testing.assert_allclose(singular**2, eigenvalues[:2] - noise_variance, rtol=2e-3)


@pytest.mark.parametrize("weight, w, s", [(1.0, 2.0, 1.0), (0.1, 1.0, 0.5), (5.0, 3.0, 2.0)])
def test_a_heavier_kl_widens_the_posterior_as_known(weight, w, s):
    """One value, decoder w fixed: the best variance is 1 / (1 + w^2 / (b s^2)); the gradient vanishes there alone."""
    noise, mean = jnp.array([[1.0], [-1.0]]), jnp.zeros((2, 1))

    def objective(variance):
        logvar = jnp.full((2, 1), jnp.log(variance))
        z = losses.sample_posterior(mean, logvar, noise)
        return jnp.mean((w * z[:, 0]) ** 2 / (2 * s**2) + weight * losses.gaussian_kl(mean, logvar))

    best = 1 / (1 + w**2 / (weight * s**2))
    slope = jax.grad(objective)
    assert abs(float(slope(best))) < 1e-4 * abs(float(slope(2 * best)))
    assert float(slope(0.5 * best)) < 0 < float(slope(2 * best))


def test_absolute_error_by_hand():
    images, painted = jnp.array([[1.0, -1.0], [0.5, 0.0]]), jnp.array([[0.0, 1.0], [0.5, 0.25]])
    np.testing.assert_allclose(losses.absolute_error(images, painted), [1.5, 0.125])


def test_the_adaptive_weight_is_the_ratio_of_known_gradients():
    """Losses 3 w_1 x and 4 w_2 x in the layer w: gradients of norms 3 and 4 times the mean of x over unmasked rows."""
    x, mask = jnp.array([1.0, 3.0, 100.0]), jnp.array([1.0, 1.0, 0.0])
    layer = {"a": jnp.array(0.7), "b": jnp.array(-0.2)}
    reconstruction = lambda tree: 3 * tree["a"] * x
    adversarial = lambda tree: 4 * tree["b"] * x + 0 * tree["a"]
    weight = losses.balanced(reconstruction, adversarial, layer, mask)
    np.testing.assert_allclose(weight, 6 / (8 + 1e-4), rtol=1e-6)
    # the weight is a constant to the outer derivative
    slope = jax.grad(lambda tree: losses.balanced(lambda t: t["a"] ** 2 * x, adversarial, tree, mask))(layer)
    assert all(float(leaf) == 0 for leaf in jax.tree.leaves(slope))


def test_the_adaptive_weight_is_clipped_and_survives_a_vanishing_adversary():
    large, none = {"w": jnp.full(4, 10.0)}, {"w": jnp.zeros(4)}
    assert float(losses.adaptive_weight(large, none)) == 1e4
    assert float(losses.adaptive_weight(none, large)) == 0.0
    np.testing.assert_allclose(losses.adaptive_weight({"w": jnp.full(4, 1e-3)}, none), 2e-3 / 1e-4, rtol=1e-5)

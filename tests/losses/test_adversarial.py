"""Adversarial games by hand, their best discriminators, and the gradient penalty with its approximation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowjax.losses import adversarial as losses

REAL, FAKE = jnp.array([[2.0, 0.0], [-1.0, 1.0]]), jnp.array([[-3.0, 0.5], [0.0, -1.0]])


def test_games_by_hand():
    np.testing.assert_allclose(losses.discriminator_hinge(REAL, FAKE), [0.5 * (0.5 + 0.75), 0.5 * (1.0 + 0.5)])
    np.testing.assert_allclose(losses.generator_hinge(FAKE), [1.25, 0.5])
    np.testing.assert_allclose(losses.discriminator_least_squares(REAL, FAKE), [0.5 * (1 + 3.125), 0.5 * (2 + 0.5)])
    np.testing.assert_allclose(losses.generator_least_squares(FAKE), [0.5 * (16 + 0.25), 0.5 * (1 + 4)])
    soft = lambda x: np.log1p(np.exp(np.asarray(x, np.float64))).mean(axis=1)
    np.testing.assert_allclose(
        losses.discriminator_non_saturating(REAL, FAKE), 0.5 * (soft(-REAL) + soft(FAKE)), rtol=1e-6
    )
    np.testing.assert_allclose(losses.generator_non_saturating(FAKE), soft(-FAKE), rtol=1e-6)


@pytest.mark.parametrize("name, undecided", [("hinge", 1.0), ("non_saturating", np.log(2)), ("least_squares", 1.0)])
def test_a_discriminator_that_says_nothing_has_the_value_of_the_table(name, undecided):
    zero = jnp.zeros((1, 3))
    np.testing.assert_allclose(losses.GAMES[name].discriminator(zero, zero), [undecided], rtol=1e-6)


@pytest.mark.parametrize(
    "name, best",
    [
        ("hinge", lambda p, q: np.sign(p - q)),
        ("non_saturating", lambda p, q: np.log(p / q)),
        ("least_squares", lambda p, q: (p - q) / (p + q)),
    ],
)
def test_the_best_discriminator_of_a_table_of_probabilities(name, best):
    """Four places, seen with the probabilities p among real and q among generated examples; D is a number for each."""
    p, q = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.1, 0.2, 0.3, 0.4])
    places = jnp.eye(4)
    game = losses.GAMES[name].discriminator

    def objective(logits):
        halves = game(logits[:, None], jnp.zeros((4, 1))), game(jnp.zeros((4, 1)), logits[:, None])
        return jnp.sum(p * halves[0] + q * halves[1])

    tx = optax.adam(optax.cosine_decay_schedule(0.1, 800))

    def body(carry, _):
        changes, state = tx.update(jax.grad(objective)(carry[0]), carry[1])
        return (carry[0] + changes, state), None

    start = 0.01 * places.sum(0)
    logits = jax.lax.scan(body, (start, tx.init(start)), None, length=800)[0][0]
    np.testing.assert_allclose(logits, best(p, q), atol=2e-2)


@pytest.mark.parametrize("name", list(losses.GAMES))
def test_a_generator_climbs_and_a_discriminator_parts(name):
    game = losses.GAMES[name]
    assert (np.asarray(jax.grad(lambda y: game.generator(y).sum())(FAKE)) < 0).all()
    low, high = jnp.full((1, 1), -0.5), jnp.full((1, 1), 0.5)
    slope = jax.grad(lambda x, y: game.discriminator(x, y).sum(), argnums=(0, 1))(low, high)
    assert slope[0].item() < 0 < slope[1].item()


SLOPE = jnp.array([3.0, -4.0])


def test_the_penalty_of_a_linear_score_is_its_squared_slope():
    score = lambda x: (x @ SLOPE)[:, None] * jnp.array([1.0, 3.0])  # two patches: the mean has slope 2 (3, -4)
    np.testing.assert_allclose(losses.gradient_penalty(score, jnp.ones((2, 2))), [50.0, 50.0])


def test_the_perturbed_penalty_is_the_same_on_average():
    score = lambda x: jnp.stack([jnp.tanh(x @ SLOPE), jnp.sin(x[:, 0])], axis=1)
    x = jnp.array([[0.3, 0.2]])
    noise = jax.random.normal(jax.random.key(0), (40_000, 2))
    many = jnp.broadcast_to(x, noise.shape)
    found = losses.perturbed_penalty(score, score(many), many, noise, 1e-2)
    exact = losses.gradient_penalty(score, x)[0]
    np.testing.assert_allclose(found.mean(), exact, rtol=0.03)
    # of a linear score it is exact for every step, and its gradient reaches the score's parameters
    linear = lambda w: lambda x: (x @ w)[:, None]
    value = lambda w: losses.perturbed_penalty(linear(w), linear(w)(x), x, jnp.array([[1.0, 0.0]]), 0.5).sum()
    np.testing.assert_allclose(value(SLOPE), 4.5, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(value)(SLOPE), [3.0, 0.0], rtol=1e-5, atol=1e-5)

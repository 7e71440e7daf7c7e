"""Flow maps against integration of the velocity, tilts against quadrature and reweighted samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.paths import closed_forms, oracles
from flowjax.paths.path import make_path

LINEAR = make_path("linear")


def integrate(mixture, path, x, t, r, steps=400):
    """Classical Runge-Kutta on the exact velocity."""
    h = (r - t) / steps

    def step(x, i):
        time = t + h * i
        f = lambda x, time: mixture.prediction(path, "velocity", x, time)
        k1 = f(x, time)
        k2 = f(x + h / 2 * k1, time + h / 2)
        k3 = f(x + h / 2 * k2, time + h / 2)
        k4 = f(x + h * k3, time + h)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    return jax.lax.scan(step, x, jnp.arange(steps, dtype=jnp.float32))[0]


@pytest.mark.parametrize("path_name", ["linear", "trigonometric", "vp"])
@pytest.mark.parametrize("mixture", [oracles.gaussian(0.7, 0.4, 2), oracles.three_modes_1d()], ids=["normal", "modes"])
@pytest.mark.parametrize("span", [(0.1, 0.9), (0.8, 0.3)], ids=["forward", "backward"])
def test_flow_map_is_the_integral_of_the_velocity(path_name: str, mixture, span: tuple[float, float]):
    path, (t, r) = make_path(path_name), span
    x = path.sample(
        jax.random.normal(jax.random.key(0), (16, mixture.means.shape[1])),
        mixture.sample(jax.random.key(1), 16),
        jnp.full(16, t),
    )
    both = jax.jit(lambda x: (closed_forms.flow_map(mixture, path, x, t, r), integrate(mixture, path, x, t, r)))
    moved, expected = both(x)
    assert float(jnp.abs(moved - x).max()) > 0.1
    np.testing.assert_allclose(moved, expected, atol=3e-4)


def test_flow_map_reaches_both_tails_and_the_data_end():
    mixture, x = oracles.three_modes_1d(), jnp.array([[-6.0], [-3.0], [0.0], [3.0], [6.0]])
    flow = jax.jit(lambda x, t, r: closed_forms.flow_map(mixture, LINEAR, x, t, r))
    ends = flow(x, 0.0, 1.0)
    assert bool(jnp.all(jnp.diff(ends[:, 0]) > 0))
    back = flow(ends, 1.0, 0.0)
    np.testing.assert_allclose(back, x, atol=2e-4)
    with pytest.raises(ValueError, match="no closed form"):
        closed_forms.flow_map(oracles.eight_modes(), LINEAR, jnp.zeros((1, 2)), 0.0, 1.0)


def test_average_velocity_closes_the_map_and_ends_at_the_velocity():
    mixture, x = oracles.gaussian(0.7, 0.4, 2), jnp.array([[0.5, -1.0], [2.0, 0.1]])
    average = closed_forms.average_velocity(mixture, LINEAR, x, jnp.array([0.2, 0.5]), jnp.array([0.9, 0.5]))
    moved = closed_forms.flow_map(mixture, LINEAR, x, 0.2, 0.9)
    np.testing.assert_allclose(x[0] + 0.7 * average[0], moved[0], atol=1e-5)
    np.testing.assert_allclose(average[1], mixture.prediction(LINEAR, "velocity", x, 0.5)[1], atol=1e-6)
    # MeanFlow's identity: U = v + (r - t) dU/dt along the flow, with r fixed.
    t, r, velocity = jnp.full(2, 0.2), jnp.full(2, 0.9), mixture.prediction(LINEAR, "velocity", x, 0.2)
    average, rate = jax.jvp(
        lambda x, t: closed_forms.average_velocity(mixture, LINEAR, x, t, r), (x, t), (velocity, jnp.ones(2))
    )
    np.testing.assert_allclose(average, velocity + 0.7 * rate, atol=1e-5)


def test_log_likelihood_from_the_divergence_along_the_flow():
    """log p_1(x1) = log N(x0) - integral of div v: the sign convention of every likelihood in the repository."""
    mixture, steps = oracles.three_modes_1d(), 2000
    x0 = jnp.array([[-1.2], [0.1], [0.9]])
    times = (jnp.arange(steps) + 0.5) / steps
    flow = lambda t: closed_forms.flow_map(mixture, LINEAR, x0, 0.0, t)

    @jax.jit
    def both_sides(times):
        along = jax.vmap(lambda t: mixture.divergence(LINEAR, flow(t), t))(times)
        log_noise = jax.scipy.stats.norm.logpdf(x0[:, 0])
        return mixture.log_density(LINEAR, flow(1.0), 1.0), log_noise - along.mean(0)

    np.testing.assert_allclose(*both_sides(times), atol=1e-3)


def test_straight_velocity_moves_each_pair_on_its_line():
    mixture, noise = oracles.gaussian(0.7, 0.4, 2), jax.random.normal(jax.random.key(0), (8, 2))
    data = 0.7 + 0.4 * noise
    for t in (0.0, 0.3, 1.0):
        x = LINEAR.sample(noise, data, jnp.full(8, t))
        np.testing.assert_allclose(closed_forms.straight_velocity(mixture, x, t), data - noise, atol=1e-5)
    # The first rectified flow is not straight: one Euler step from the noise lands every sample on the mean.
    np.testing.assert_allclose(noise + mixture.prediction(LINEAR, "velocity", noise, 0.0), 0.7, atol=1e-6)


REWARDS = {
    "linear": closed_forms.linear_reward(jnp.array([0.8])),
    "distance": closed_forms.distance_reward(jnp.array([1.5]), 0.6),
    "both": closed_forms.QuadraticReward(jnp.array([-0.5]), jnp.array([1.1]), jnp.array([0.3])),
    "repelling": closed_forms.distance_reward(jnp.array([0.0]), -0.4),
}


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_tilt_against_quadrature(name: str, beta: float):
    mixture, reward = oracles.three_modes_1d(), REWARDS[name]
    x = jnp.linspace(-9, 12, 8001)[:, None]
    step = 21 / 8000
    base = np.exp(np.asarray(mixture.log_density(LINEAR, x, 1.0), np.float64))
    value = np.asarray(reward(x), np.float64)
    product = base * np.exp(value / beta)
    normaliser = product.sum() * step
    tilted = product / normaliser
    result = closed_forms.tilt(mixture, reward, beta)
    density = np.exp(np.asarray(result.mixture.log_density(LINEAR, x, 1.0), np.float64))
    np.testing.assert_allclose(density, tilted, atol=1e-4 * tilted.max())
    np.testing.assert_allclose(result.log_normaliser, np.log(normaliser), atol=1e-4)
    np.testing.assert_allclose(result.expected_reward, (tilted * value).sum() * step, atol=2e-4)
    inside = tilted > 1e-30
    divergence = (tilted[inside] * np.log(tilted[inside] / base[inside].clip(1e-300))).sum() * step
    np.testing.assert_allclose(result.kl, divergence, atol=1e-3)
    assert abs(normaliser - 1) > 0.02


def test_tilt_against_reweighted_samples_in_the_plane():
    mixture = oracles.eight_modes(std=0.4)
    reward = closed_forms.QuadraticReward(jnp.array([0.7, -0.3]), jnp.array([0.5, 0.0]), jnp.array([1.0, 0.0]))
    draw = jax.jit(lambda key: mixture.sample(key, 200_000))
    x = draw(jax.random.key(0))
    weights = np.exp(np.asarray(reward(x), np.float64))
    mean = (weights[:, None] * np.asarray(x)).sum(0) / weights.sum()
    result = closed_forms.tilt(mixture, reward)
    np.testing.assert_allclose(result.mixture.mean(), mean, atol=0.03)
    np.testing.assert_allclose(jnp.exp(result.log_normaliser), weights.mean(), rtol=0.03)
    assert float(jnp.linalg.norm(result.mixture.mean())) > 0.5


def test_tilt_that_cannot_be_normalised_is_refused():
    with pytest.raises(ValueError, match="not integrable"):
        closed_forms.tilt(oracles.gaussian(), closed_forms.distance_reward(jnp.zeros(1), -2.0), 1.0)

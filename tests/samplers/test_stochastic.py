"""Stochastic samplers: their transitions pushed through exactly on Gaussians, and the marginals they must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.paths.oracles import GaussianMixture
from flowjax.paths.path import make_path
from flowjax.samplers.build import STEPPERS
from flowjax.samplers.field import Field
from flowjax.samplers.grids import make_grid
from flowjax.samplers.loop import integrate
from flowjax.samplers.stochastic import Noiseless
from flowjax.samplers.transition import Transition


def gaussian(mean, std):
    return GaussianMixture(jnp.ones(1), jnp.full((1, 1), mean), jnp.full((1,), std))


def field_of(oracle, path):
    return Field(lambda x, t: oracle.prediction(path, "velocity", x, t), "velocity", path)


def push(stepper, oracle, path, grid, mean, variance):
    """The mean and variance at the end of a chain of affine transitions, from Transition alone: V <- A^2 V + std^2."""
    field = field_of(oracle, path)
    last = stepper.finish(field, float(grid[-1]))
    probe = jnp.asarray([[0.0], [1.0]])

    def coefficients(stepper, t, t_next):
        transition = stepper.transition(field, probe, t, t_next)
        return transition.mean[0, 0], transition.mean[1, 0] - transition.mean[0, 0], transition.std

    t = jnp.asarray(grid, jnp.float32)
    rows = jax.jit(jax.vmap(lambda a, b: coefficients(stepper, a, b)))(t[:-1], t[1:])
    rows = [list(np.asarray(row, np.float64)) for row in rows]
    for row, value in zip(rows, coefficients(last, t[-2], t[-1])):
        row[-1] = float(value)
    for offset, slope, std in zip(*rows):
        mean, variance = offset + slope * mean, slope**2 * variance + std**2
    return mean, variance


# Data N(1.5, .3), uniform grid: METHODS figures, an independent recursion.
@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("flow_grpo", {"a": 0.7}, {10: 0.2772, 40: 0.2974, 200: 0.3014}),
        ("flow_grpo", {"a": 2**0.5}, {10: 0.3046, 40: 0.3002, 200: 0.3000}),
        ("dance_grpo", {"eta": 0.3}, {10: 0.2348, 40: 0.2821, 200: 0.2963, 1000: 0.2993}),
    ],
)
def test_variance_recursion(name, options, expected):
    path, oracle = make_path("linear"), gaussian(1.5, 0.3**0.5)
    for steps, variance in expected.items():
        stepper = STEPPERS[name](**options, last_step="noise")
        got = push(stepper, oracle, path, np.linspace(0, 1, steps + 1), 0.0, 1.0)[1]
        assert got == pytest.approx(variance, abs=1.5e-4), (steps, got)


@pytest.mark.parametrize("steps", [10, 40])
@pytest.mark.parametrize("name, noise", [("flow_grpo", 0.7), ("flow_grpo", 2**0.5), ("dance_grpo", 0.3)])
def test_variance_recursion_to_the_sixth_digit(name, noise, steps):
    """By the formulas of the publications in float64, turned to t = 1 for data: their s is 1 - t."""
    variance, h = 1.0, 1.0 / steps
    for t in np.arange(steps) / steps:
        marginal = t**2 * 0.3 + (1 - t) ** 2
        slope = (t * 0.3 - (1 - t)) / marginal  # v = 1.5 + slope (x - 1.5 t), score = -(x - 1.5 t) / marginal
        if name == "flow_grpo":  # whose g^2 h, infinite at pure noise, is a^2 there
            squared = noise**2 * (h * (1 - t) / t if t else 1.0)
        else:
            squared = noise**2 * h
        variance = (1 + h * slope - 0.5 * squared / marginal) ** 2 * variance + squared
    stepper = STEPPERS[name](**{"a" if name == "flow_grpo" else "eta": noise}, last_step="noise")
    path, oracle = make_path("linear"), gaussian(1.5, 0.3**0.5)
    got = push(stepper, oracle, path, np.linspace(0, 1, steps + 1), 0.0, 1.0)[1]
    assert got == pytest.approx(variance, abs=1e-6)


def test_flow_grpo_without_noise_is_euler():
    path, oracle = make_path("linear"), gaussian(1.5, 0.3**0.5)
    grid = np.linspace(0, 1, 11)
    variance = push(STEPPERS["flow_grpo"](a=0.0), oracle, path, grid, 0.0, 1.0)[1]
    slope = 1.0
    for t in grid[:-1]:  # v = m + (t s^2 - (1-t)) / (t^2 s^2 + (1-t)^2) (x - t m)
        slope *= 1 + 0.1 * (0.3 * t - (1 - t)) / (0.3 * t**2 + (1 - t) ** 2)
    assert variance == pytest.approx(slope**2, rel=1e-5)


def test_flow_grpo_transition_is_the_published_step():
    path, oracle, a = make_path("linear"), gaussian(1.5, 0.5), 0.7
    field, x = field_of(oracle, path), jnp.asarray([[0.3], [-1.0]])
    v = lambda t: oracle.prediction(path, "velocity", x, t)
    first = STEPPERS["flow_grpo"](a=a).transition(field, x, jnp.float32(0.0), jnp.float32(0.1))
    np.testing.assert_allclose(first.mean, (1 - a**2 / 2) * x + 0.1 * v(0.0), rtol=1e-5)
    np.testing.assert_allclose(first.std, a, rtol=1e-6)
    t, h = 0.4, 0.1
    later = STEPPERS["flow_grpo"](a=a).transition(field, x, jnp.float32(t), jnp.float32(t + h))
    mean = x + h * ((1 + a**2 / 2) * v(t) - a**2 / (2 * t) * x)
    np.testing.assert_allclose(later.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(later.std, a * np.sqrt((1 - t) / t * h), rtol=1e-5)


@pytest.mark.parametrize("path_name", ["vp", "vp_cosine", "linear", "ve"])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral_chain_keeps_the_data_std(path_name, variance):
    path, oracle = make_path(path_name), gaussian(0.0, 0.5)
    grid = make_grid({"name": "log_snr" if path_name != "vp" else "uniform"}, path, steps=1000)
    start = float(path.sigma(jnp.float32(grid[0])))
    got = push(STEPPERS["ancestral"](variance=variance), oracle, path, grid, 0.0, start**2)[1]
    end_std = np.sqrt(0.25 * float(path.alpha(path.end)) ** 2 + float(path.sigma(jnp.float32(path.end))) ** 2)
    assert np.sqrt(got) == pytest.approx(end_std, rel=0.01)


def test_ddim_eta_one_is_ancestral():
    path, oracle = make_path("vp"), gaussian(0.7, 0.5)
    field, x, t, s = field_of(oracle, path), jnp.linspace(-2, 2, 4)[:, None], jnp.float32(0.3), jnp.float32(0.5)
    ddim = STEPPERS["ddim"](eta=1.0).transition(field, x, t, s)
    ancestral = STEPPERS["ancestral"]().transition(field, x, t, s)
    np.testing.assert_allclose(ddim.mean, ancestral.mean, atol=2e-5)
    np.testing.assert_allclose(ddim.std, ancestral.std, rtol=1e-5)


def test_ddpm_posterior_matches_the_textbook():
    """mu = sqrt(abar') beta / (1-abar) x1 + sqrt(1-beta) (1-abar') / (1-abar) x, beta~ = (1-abar')/(1-abar) beta."""
    path, oracle = make_path("vp"), gaussian(0.7, 0.5)
    field, x, t, s = field_of(oracle, path), jnp.linspace(-2, 2, 4)[:, None], 0.3, 0.35
    abar, abar_next = (float(path.alpha(jnp.float32(u))) ** 2 for u in (t, s))
    beta = 1 - abar / abar_next
    data = oracle.expected_pair(path, x, t)[0]
    mean = (abar_next**0.5 * beta * data + (1 - beta) ** 0.5 * (1 - abar_next) * x) / (1 - abar)
    small = STEPPERS["ancestral"](variance="small").transition(field, x, jnp.float32(t), jnp.float32(s))
    large = STEPPERS["ancestral"](variance="large").transition(field, x, jnp.float32(t), jnp.float32(s))
    np.testing.assert_allclose(small.mean, mean, atol=1e-5)
    np.testing.assert_allclose(small.std, np.sqrt(beta * (1 - abar_next) / (1 - abar)), rtol=1e-4)
    np.testing.assert_allclose(large.std, np.sqrt(beta), rtol=1e-4)


MIXTURE = GaussianMixture(
    jnp.asarray([0.3, 0.5, 0.2]), jnp.asarray([[-1.5], [0.4], [2.0]]), jnp.asarray([0.3, 0.5, 0.2])
)


def mixture_cdf(path, t, points):
    alpha, sigma = float(path.alpha(jnp.float32(t))), float(path.sigma(jnp.float32(t)))
    stds = np.sqrt(alpha**2 * np.asarray(MIXTURE.stds) ** 2 + sigma**2)
    z = (points[:, None] - alpha * np.asarray(MIXTURE.means)[:, 0]) / stds
    return np.asarray(jax.scipy.stats.norm.cdf(z)) @ np.asarray(MIXTURE.weights)


@pytest.mark.parametrize(
    "path_name, diffusion, grid",
    [
        ("linear", "linear", "uniform"),
        ("linear", "increasing_decreasing", "uniform"),
        ("trigonometric", "sigma", "uniform"),
        ("vp", "sbdm", "log_snr"),
    ],
)
def test_sde_keeps_the_marginals(path_name, diffusion, grid):
    """At N = 400 the probabilities below five points are those of the true distribution within 1%."""
    path, count = make_path(path_name), 20000
    times = make_grid({"name": grid}, path, steps=400)
    keys = jax.random.split(jax.random.key(3), count)
    # Stratified starts leave the noise of the paths themselves as the only sampling error.
    start = float(path.sigma(jnp.float32(times[0])))
    x = start * jax.scipy.stats.norm.ppf((jnp.arange(count) + 0.5) / count)[:, None]
    stepper = STEPPERS["sde"](diffusion=diffusion)
    got = np.asarray(integrate(stepper, field_of(MIXTURE, path), times, x, keys))[:, 0]
    points = np.asarray([-1.6, -0.9, 0.4, 0.9, 1.9])
    probabilities = (got[:, None] < points).mean(0)
    np.testing.assert_allclose(probabilities, mixture_cdf(path, times[-1], points), atol=0.01)


def test_transition_density_is_normal():
    key_rows = jax.random.split(jax.random.key(0), 2)
    mean, std = jnp.asarray([[0.5, -1.0], [2.0, 0.0]]), jnp.asarray([0.3, 2.0])
    transition = Transition(mean, std)
    x = transition.sample(key_rows)
    expected = jax.scipy.stats.norm.logpdf(x, mean, std[:, None])
    np.testing.assert_allclose(transition.log_prob(x), expected.sum(1), rtol=1e-5)
    np.testing.assert_allclose(transition.log_prob(x, "mean"), expected.mean(1), rtol=1e-5)


def test_transition_kl_is_the_expected_log_ratio():
    first = Transition(jnp.asarray([[0.5, -1.0]]), jnp.asarray(0.3))
    other = Transition(jnp.asarray([[0.2, -0.7]]), jnp.asarray(0.5))
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    total = 0.0
    for mean_a, mean_b in zip([0.5, -1.0], [0.2, -0.7]):
        x = mean_a + 0.3 * nodes
        ratio = jax.scipy.stats.norm.logpdf(x, mean_a, 0.3) - jax.scipy.stats.norm.logpdf(x, mean_b, 0.5)
        total += float(np.sum(weights * np.asarray(ratio)) / weights.sum())
    np.testing.assert_allclose(first.kl(other)[0], total, rtol=1e-5)


def test_a_transition_without_noise_samples_its_mean():
    mean = jnp.asarray([[0.1, 0.7]])
    assert jnp.array_equal(Transition(mean, jnp.asarray(0.0)).sample(jax.random.split(jax.random.key(0), 1)), mean)


def test_last_step_choices():
    path = make_path("linear")
    field, x = field_of(MIXTURE, path), jnp.asarray([[0.3], [1.2]])
    t, s = jnp.float32(0.9), jnp.float32(0.95)
    noisy = STEPPERS["sde"](last_step="noise")
    assert noisy.finish(field, 1.0) is noisy
    mean = STEPPERS["sde"](last_step="mean").finish(field, 1.0)
    assert isinstance(mean, Noiseless)
    np.testing.assert_allclose(mean.transition(field, x, t, s).mean, noisy.transition(field, x, t, s).mean)
    tweedie = STEPPERS["sde"](last_step="tweedie").finish(field, 1.0).transition(field, x, t, s)
    np.testing.assert_allclose(tweedie.mean, MIXTURE.expected_pair(path, x, t)[0], rtol=1e-5)
    assert float(tweedie.std) == 0.0


@pytest.mark.parametrize(
    "build", [lambda: STEPPERS["sde"](diffusion="sigm"), lambda: STEPPERS["ddim"](last_step="means")]
)
def test_misspelt_choices_are_suggested(build):
    with pytest.raises(ValueError, match="Did you mean"):
        build()


def edm_std(steps, **options):
    """The std of EDM samples of N(0, .5^2): deterministic Heun is affine, so one suffices; churn needs many."""
    path, oracle = make_path("linear"), gaussian(0.0, 0.5)
    count = 20000 if options else 2
    grid = make_grid({"name": "karras"}, path, steps=steps)
    keys = jax.random.split(jax.random.key(1), count)
    unit = jax.scipy.stats.norm.ppf((jnp.arange(count) + 0.5) / count)[:, None] if options else jnp.ones((2, 1))
    x = float(path.sigma(jnp.float32(grid[0]))) * unit
    y = integrate(STEPPERS["edm_stochastic"](**options), field_of(oracle, path), grid, x, keys)
    return float(y.std()) if options else float(y[0, 0])


@pytest.mark.parametrize("steps, std", [(9, 0.639), (18, 0.528), (40, 0.505), (64, 0.502), (128, 0.500)])
def test_edm_heun_truncation_error(steps, std):
    assert edm_std(steps) == pytest.approx(std, abs=1e-3)


def test_edm_churn():
    assert edm_std(64, churn=30.0, churn_min=0.05, churn_max=50.0) == pytest.approx(0.511, abs=6e-3)

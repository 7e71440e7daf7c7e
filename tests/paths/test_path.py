"""Every schedule against closed forms written independently in float64, and against the diffusions it comes from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.paths.path import PATHS, make_path

pi, exp, sqrt, sin, cos, log = np.pi, np.exp, np.sqrt, np.sin, np.cos, np.log


def log_alpha_vp(s, low=0.1, high=20.0):
    """Song et al. 2020, equation 33: minus half the integral of beta."""
    return -0.25 * s**2 * (high - low) - 0.5 * s * low


def beta(s, low=0.1, high=20.0):
    return low + s * (high - low)


def closed_form(name, t):
    """alpha, sigma, alpha', sigma' in float64 by hand; s = 1 - t is the diffusion's time."""
    t = np.asarray(t, np.float64)
    s, one, zero = 1 - t, np.ones_like(t), np.zeros_like(t)
    a = exp(log_alpha_vp(s))
    a_dot = 0.5 * beta(s) * a
    c = 0.008
    angle, speed = (s + c) / (1 + c) * pi / 2, pi / (2 * (1 + c))
    norm = cos(c / (1 + c) * pi / 2)
    cosine, cosine_dot = cos(angle) / norm, speed * sin(angle) / norm
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "linear": lambda: (t, s, one, -one),
            "trigonometric": lambda: (
                sin(pi * t / 2),
                cos(pi * t / 2),
                pi / 2 * cos(pi * t / 2),
                -pi / 2 * sin(pi * t / 2),
            ),
            "vp": lambda: (a, sqrt(-np.expm1(2 * log_alpha_vp(s))), a_dot, -a * a_dot / sqrt(1 - a**2)),
            "vp_cosine": lambda: (cosine, sqrt(1 - cosine**2), cosine_dot, -cosine * cosine_dot / sqrt(1 - cosine**2)),
            "sub_vp": lambda: (a, -np.expm1(2 * log_alpha_vp(s)), a_dot, -2 * a * a_dot),
            "ve": lambda: (one, 0.01 * 5000**s, zero, -log(5000) * 0.01 * 5000**s),
            "edm": lambda: (one, s / t, zero, -1 / t**2),
        }[name]()


def times(path, count=41):
    return jnp.linspace(path.start, path.end, count)


def schedule(path, t):
    return path.alpha(t), path.sigma(t), path.alpha_dot(t), path.sigma_dot(t)


@pytest.mark.parametrize("name", PATHS)
def test_schedules_and_derivatives_are_the_closed_forms(name):
    path = make_path(name)
    t = times(path)
    for ours, expected in zip(schedule(path, t), closed_form(name, t)):
        # The largest value sets the scale of the zeros (cos(pi/2) in float64 is 6e-17, alpha' of ve is 0).
        np.testing.assert_allclose(ours, expected, rtol=2e-6, atol=1e-7 * max(np.max(np.abs(expected)), 1e-30))


@pytest.mark.parametrize("name", PATHS)
def test_schedules_in_float64(name):
    path = make_path(name)
    with jax.enable_x64(True):
        t = jnp.linspace(path.start, path.end, 41, dtype=jnp.float64)
        for ours, expected in zip(schedule(path, t), closed_form(name, t)):
            np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", PATHS)
def test_signal_never_falls_and_noise_falls(name):
    path = make_path(name)
    alpha, sigma, alpha_dot, sigma_dot = schedule(path, times(path, 200))
    assert np.all(np.diff(alpha) >= 0) and np.all(np.diff(sigma) < 0)
    inner = slice(1, -1)
    assert np.all(alpha_dot[inner] >= 0) and np.all(sigma_dot[inner] < 0)
    assert np.all(np.diff(path.log_snr(times(path, 200)[inner])) > 0)


ENDS = {  # name: alpha and sigma at the start, alpha and sigma at the end
    "linear": (0, 1, 1, 0),
    "trigonometric": (0, 1, 1, 0),
    "vp": (exp(-5.025), sqrt(1 - exp(-10.05)), exp(log_alpha_vp(1e-3)), sqrt(-np.expm1(2 * log_alpha_vp(1e-3)))),
    "vp_cosine": (0, 1, *(float(x) for x in closed_form("vp_cosine", 0.999)[:2])),
    "sub_vp": (exp(-5.025), 1 - exp(-10.05), exp(log_alpha_vp(1e-3)), -np.expm1(2 * log_alpha_vp(1e-3))),
    "ve": (1, 50, 1, 0.01),
    "edm": (1, 80, 1, 0.002),
}


@pytest.mark.parametrize("name", PATHS)
def test_ends(name):
    path = make_path(name)
    start, end = jnp.float32(path.start), jnp.float32(path.end)
    ours = [path.alpha(start), path.sigma(start), path.alpha(end), path.sigma(end)]
    # t near 1 has a spacing of 6e-8: sigma = 0.002 of edm keeps 3e-5 of relative accuracy, whatever the code.
    np.testing.assert_allclose(ours, ENDS[name], rtol=1e-4, atol=1e-7)


def test_exact_zeros_at_the_ends():
    """Ends that are exact in mathematics are exact in float32: no residue of pi."""
    for name in ("linear", "trigonometric"):
        path = make_path(name)
        assert path.alpha(jnp.float32(0)) == 0 and path.sigma(jnp.float32(1)) == 0
    assert make_path("vp_cosine").alpha(jnp.float32(0)) == 0


@pytest.mark.parametrize("name", ["trigonometric", "vp", "vp_cosine"])
def test_variance_is_preserved(name):
    path = make_path(name)
    alpha, sigma, _, _ = schedule(path, times(path))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, atol=5e-7)


def test_vp_is_the_limit_of_ddpm():
    """alpha(1 - (i + 1)/1000)^2 is the product of 1 - beta_j, up to the second order in beta."""
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    t = 1 - np.arange(1, 1001) / 1000
    # log(1 - b) = -b - b^2/2: the discrete chain is ahead by at most 1% at b = 0.02, and half a step of beta.
    ours = 2 * np.log(make_path("vp").alpha(jnp.asarray(t, jnp.float32)))
    np.testing.assert_allclose(ours[20:], np.log(alpha_bar)[20:], rtol=0.05)
    np.testing.assert_allclose(ours[-1], np.log(alpha_bar)[-1], rtol=0.01)


@pytest.mark.parametrize(
    "name, diffusion",
    [
        ("vp", lambda s: beta(s)),
        ("sub_vp", lambda s: beta(s) * (1 - exp(-2 * 0.1 * s - 19.9 * s**2))),
        ("ve", lambda s: (0.01 * 5000**s) ** 2 * 2 * log(5000)),
    ],
)
def test_diffusion_coefficients_of_score_sde(name, diffusion):
    """dx = (ln alpha)' x ds + g dw has g^2 = d sigma^2/ds - 2 (ln alpha)' sigma^2: Song et al. 2020, appendix B."""
    path = make_path(name)
    t = times(path)
    alpha, sigma, alpha_dot, sigma_dot = schedule(path, t)
    squared = 2 * sigma * (alpha_dot * sigma / alpha - sigma_dot)
    np.testing.assert_allclose(squared, diffusion(1 - np.asarray(t, np.float64)), rtol=2e-5)


@pytest.mark.parametrize("name", PATHS)
def test_sample_and_velocity_of_a_pair(name):
    path = make_path(name)
    rng = np.random.default_rng(0)
    noise, data = rng.normal(size=(2, 9, 3, 2)).astype(np.float32)
    t = times(path, 9)
    alpha, sigma, alpha_dot, sigma_dot = (value[:, None, None] for value in closed_form(name, t))
    pair = jnp.asarray(noise), jnp.asarray(data), t
    for ours, expected in (
        (path.sample(*pair), alpha * data + sigma * noise),
        (path.velocity(*pair), alpha_dot * data + sigma_dot * noise),
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5 * np.max(np.abs(expected)))


def test_unknown_path_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match="Did you mean 'linear'"):
        make_path("linaer")

"""Specs to samplers: every stepper on every path reaches the data, keys, conditions, descriptions and refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax.paths.noises import gaussian
from flowjax.paths.oracles import GaussianMixture
from flowjax.paths.path import PATHS, make_path
from flowjax.samplers.build import SAMPLERS, STEPPERS, make_parts, make_sampler
from flowjax.samplers.grids import make_grid

MIXTURE = GaussianMixture(
    jnp.asarray([0.3, 0.5, 0.2]), jnp.asarray([[-1.5], [0.4], [2.0]]), jnp.asarray([0.3, 0.5, 0.2])
)
WEIGHTS, MEANS, STDS = np.array([0.3, 0.5, 0.2]), np.array([-1.5, 0.4, 2.0]), np.array([0.3, 0.5, 0.2])
MEAN, STD = 0.15, 1.2709  # of the mixture


def check_samples(x, worst=0.05):
    """Moments, and the distribution function everywhere: the Gaussian with these moments is 0.11 away."""
    assert x.mean() == pytest.approx(MEAN, abs=0.12)
    assert x.std() == pytest.approx(STD, rel=0.08)
    assert stats.kstest(x, lambda v: stats.norm.cdf((v[:, None] - MEANS) / STDS) @ WEIGHTS).statistic < worst


def test_the_check_tells_the_mixture_from_the_gaussian_of_its_moments():
    gaussian_of_the_moments = stats.norm.ppf((np.arange(2048) + 0.5) / 2048) * STD + MEAN
    with pytest.raises(AssertionError, match="statistic"):
        check_samples(gaussian_of_the_moments, worst=0.1)


def sampler(spec, path_name="linear", prediction="velocity"):
    path = make_path(path_name)

    def predict(tree, x, t, conditions, s=None):
        value = MIXTURE.prediction(path, prediction, x, t)
        return value + tree * conditions["shift"][:, None] if "shift" in conditions else value

    built = make_sampler(
        spec, predict=predict, null=lambda c: jax.tree.map(jnp.zeros_like, c), prediction=prediction, path=path,
        noise=gaussian(), shape=(1,),
    )  # fmt: skip
    return dataclasses.replace(built, draw=jax.jit(built.draw))


KEYS = jax.random.split(jax.random.key(0), 2048)
# All paths for the cheap representatives of each kind of formula, two very different paths for all samplers.
BROAD = ("euler", "unipc", "ancestral", "sde")
# A student of one time needs the consistency function, not the posterior mean: tests/samplers/test_jumps.py.
NAMES = [name for name in SAMPLERS if name != "consistency"]
CASES = [(name, path) for name in NAMES for path in PATHS if path in ("linear", "ve") or name in BROAD]


@pytest.mark.parametrize("name, path_name", CASES)
def test_every_stepper_reaches_the_data(name, path_name):
    # Euler's error on the steep velocity of noise-exploding paths is of first order with a large constant.
    steep = path_name in ("ve", "edm") and name in ("euler", "sde", "flow_grpo", "dance_grpo")
    steps = 1500 if steep else 60
    spec = {"name": name} if name not in STEPPERS else {"name": name, "steps": steps, "grid": {"name": "log_snr"}}
    check_samples(np.asarray(sampler(spec, path_name).draw({"ema": 0.0}, {}, KEYS))[:, 0])


@pytest.mark.parametrize("prediction", ["noise", "data"])
def test_predictions_that_are_singular_at_an_end(prediction):
    built = sampler({"name": "heun", "steps": 60}, prediction=prediction)
    check_samples(np.asarray(built.draw({"ema": 0.0}, {}, KEYS))[:, 0])
    assert built.description["start"] == (0.005 if prediction == "noise" else 0.0)


def test_guidance_in_velocity_of_a_data_prediction_ends_where_the_network_is_determined():
    spec = {"name": "heun", "steps": 8, "guidance": {"name": "cfg_zero_star", "scale": 1.5}}
    built = sampler(spec, prediction="data")
    samples = built.draw({"ema": 0.0}, {"shift": jnp.zeros(16)}, KEYS[:16])
    assert np.isfinite(samples).all()
    assert built.description["nfe"] == 2 * 15  # the last step is one of Euler's


@pytest.mark.parametrize("name", ["sde", "predictor_corrector", "edm_stochastic", "dopri5"])
def test_sample_depends_on_its_own_key(name):
    spec = {"name": name} if name not in STEPPERS else {"name": name, "steps": 8}
    spec |= {"churn": 3.0} if name == "edm_stochastic" else {}
    built = sampler(spec)
    shift = jnp.linspace(-1, 1, 8)
    together = built.draw({"ema": 1.0}, {"shift": shift}, KEYS[:8])
    half = built.draw({"ema": 1.0}, {"shift": shift[3:6]}, KEYS[3:6])
    np.testing.assert_allclose(together[3:6], half, rtol=2e-5, atol=1e-5)


def test_cfg_shares_one_network_call():
    calls, path = [], make_path("linear")

    def predict(tree, x, t, conditions, s=None):
        calls.append(x.shape[0])
        return jnp.broadcast_to(conditions["shift"][:, None], x.shape)

    spec = {"name": "euler", "steps": 4, "guidance": {"name": "cfg", "scale": 3.0}}
    built = make_sampler(
        spec, predict=predict, null=lambda c: {"shift": jnp.ones_like(c["shift"])}, prediction="velocity", path=path,
        noise=gaussian(), shape=(2,),
    )  # fmt: skip
    zero = built.draw({"ema": 0.0}, {"shift": jnp.asarray([1.0, 1.0])}, KEYS[:2])
    moved = built.draw({"ema": 0.0}, {"shift": jnp.asarray([2.0, 1.0])}, KEYS[:2])
    assert set(calls) == {4}
    # u + 3 (c - u) = 1 + 3 (2 - 1) = 4 rather than 1, over unit time
    np.testing.assert_allclose(moved - zero, [[3.0, 3.0], [0.0, 0.0]], atol=1e-5)


@pytest.mark.parametrize(
    "spec, preparations",
    [
        ({"name": "heun", "steps": 6}, ["ema"]),
        ({"name": "dopri5"}, ["ema"]),
        ({"name": "heun", "steps": 6, "guidance": {"name": "cfg", "scale": 3.0}}, ["ema", "ema"]),
        ({"name": "heun", "steps": 6, "guidance": {"name": "autoguidance", "scale": 2.0}}, ["ema", "weak"]),
    ],
)
def test_conditions_are_prepared_once_with_each_tree_that_reads_them(spec, preparations):
    """What is left of the conditional and the null velocity is the same as if every evaluation prepared its own."""
    prepared = []

    def prepare(tree, conditions):
        prepared.append(tree["name"])
        return {"square": tree["gain"] * conditions["shift"] ** 2}

    def predict(tree, x, t, conditions, s=None):
        square = conditions["square"] if "square" in conditions else prepare(tree, conditions)["square"]
        return jnp.broadcast_to(square[:, None], x.shape) + t[:, None]

    params = {"ema": {"name": "ema", "gain": 1.0}, "weak": {"name": "weak", "gain": 0.5}}
    given = dict(predict=predict, null=lambda c: {"shift": jnp.ones_like(c["shift"])}, prediction="velocity",
                 path=make_path("linear"), noise=gaussian(), shape=(2,))  # fmt: skip
    conditions = {"shift": jnp.asarray([2.0, 1.0, -3.0])}
    once = make_sampler(spec, prepare=prepare, **given).draw(params, conditions, KEYS[:3])
    assert prepared == preparations
    each = make_sampler(spec, **given).draw(params, conditions, KEYS[:3])
    assert len(prepared) > len(preparations)
    np.testing.assert_allclose(once, each, rtol=1e-6)


@pytest.mark.parametrize(
    "spec, prediction, path_name, nfe",
    [
        ({"name": "heun", "steps": 20}, "velocity", "linear", 40),
        ({"name": "heun", "steps": 20}, "data", "linear", 39),
        ({"name": "unipc", "steps": 20}, "velocity", "linear", 20),
        ({"name": "rk4", "steps": 5, "guidance": {"name": "cfg", "scale": 2.0}}, "velocity", "linear", 40),
        ({"name": "euler", "steps": 10, "guidance": {"name": "cfg", "scale": 2.0, "low": 0.25, "high": 0.65}},
         "velocity", "linear", 14),
        ({"name": "edm_stochastic", "steps": 18, "grid": {"name": "karras"}}, "data", "linear", 35),
        ({"name": "edm_stochastic", "steps": 17, "grid": {"name": "karras"}}, "data", "edm", 35),
        ({"name": "predictor_corrector", "steps": 10, "corrections": 2, "last_step": "tweedie"}, "score", "vp", 30),
    ],
)  # fmt: skip
def test_nfe(spec, prediction, path_name, nfe):
    assert make_parts(spec, prediction, make_path(path_name)).nfe == nfe


def test_edm_path_reproduces_the_linear_path():
    """18 Karras levels and clean data are one algorithm on both paths, and the oracle is one distribution."""
    draws = []
    for path, steps in (("linear", 18), ("edm", 17)):
        spec = {"name": "edm_stochastic", "steps": steps, "grid": {"name": "karras"}}
        draws.append(sampler(spec, path, "data").draw({"ema": 0.0}, {}, KEYS[:64]))
    np.testing.assert_allclose(draws[0], draws[1], atol=2e-3)


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"name": "huen", "steps": 4}, "Did you mean 'heun'"),
        ({"name": "heun", "step": 4}, "Did you mean 'steps'"),
        ({"name": "heun"}, "needs `steps`"),
        ({"name": "ddim", "steps": 4, "et": 1.0}, "Did you mean 'eta'"),
        ({"name": "dopri5", "steps": 4}, "chooses its own steps"),
        ({"name": "heun", "steps": 4, "grid": {"name": "stored", "times": (0.0, 0.5, 1.0)}}, "stored grid has 2 steps"),
        ({"name": "heun", "grid": {"name": "stored", "times": (0.0, 0.7, 0.5)}}, "strictly increasing"),
        ({"name": "heun", "steps": 4, "grid": {"name": "uniform", "end": 1.5}}, "outside the path"),
        ({"name": "dopri5", "guidance": {"name": "apg", "scale": 2.0}}, "fixed-step"),
    ],
)
def test_refusals(spec, message):
    with pytest.raises(ValueError, match=message):
        make_parts(spec, "velocity", make_path("linear"))


def test_images_of_another_shape_follow_the_same_law_on_a_grid_of_their_own():
    path = make_path("linear")

    def predict(tree, x, t, conditions):  # every pixel is a draw of the mixture
        times = jnp.repeat(t, x[0].size)
        return MIXTURE.prediction(path, "velocity", x.reshape(-1, 1), times).reshape(x.shape)

    given = dict(predict=predict, null=None, prediction="velocity", path=path, noise=gaussian(), shape=(4, 4, 1))
    spec = {"name": "heun", "steps": 60, "grid": {"name": "shifted", "shift": "resolution", "base_shape": (4, 4)}}
    square, wide = (make_sampler({**spec, **more}, **given) for more in ({}, {"shape": (2, 32)}))
    samples = jax.jit(wide.draw)({"ema": 0.0}, {}, KEYS[:64])
    assert samples.shape == (64, 2, 32, 1) and wide.description["shape"] == (2, 32, 1)
    check_samples(np.asarray(samples)[:, :, ::2].reshape(-1))
    assert "shape" not in square.description
    # Four times the pixels: twice the shift, by which odds of noise are multiplied.
    odds = lambda grid: (1 - np.asarray(grid[1:-1])) / np.asarray(grid[1:-1])
    np.testing.assert_allclose(odds(wide.grid), 2 * odds(square.grid), rtol=1e-5)


@pytest.mark.parametrize(
    "shape, data", [((8,), (4, 4, 1)), ((8, 0), (4, 4, 1)), ((8, 8), (2,)), ((8, 8, 3), (4, 4, 1))]
)
def test_shapes_that_are_no_height_and_width_are_refused(shape, data):
    with pytest.raises(ValueError, match="expected \\(height, width\\) in pixels"):
        make_parts({"name": "heun", "steps": 4, "shape": shape}, "velocity", make_path("linear"), data)


@pytest.mark.parametrize("path_name", PATHS)
@pytest.mark.parametrize("name", ["uniform", "shifted", "karras", "log_snr", "quantile"])
def test_grids_run_from_start_to_end(path_name, name):
    path = make_path(path_name)
    grid = make_grid({"name": name}, path, steps=12)
    assert len(grid) == 13
    if name == "karras" and path_name == "sub_vp":  # reaches below sigma_min: the grid stops there
        assert float(path.noise_to_signal(jnp.float32(grid[-1]))) == pytest.approx(0.002, rel=1e-3)
    else:
        assert grid[-1] == path.end
    assert name == "karras" or grid[0] == path.start


def test_karras_levels():
    grid = make_grid({"name": "karras"}, make_path("linear"), steps=18)
    i = np.arange(18)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(grid[:-1], 1 / (1 + sigma), rtol=1e-6)
    assert grid[-1] == 1.0


def test_grid_formulas():
    linear = make_path("linear")
    shifted = make_grid({"name": "shifted", "shift": 3.0}, linear, steps=10)
    sigma = np.linspace(1, 0, 11)
    np.testing.assert_allclose(shifted, 1 - 3 * sigma / (1 + 2 * sigma), atol=1e-12)
    tied = make_grid(
        {"name": "shifted", "shift": "resolution", "base_shape": (4, 4)}, linear, steps=10, shape=(12, 12, 1)
    )
    np.testing.assert_allclose(tied, shifted, atol=1e-12)
    times = {"name": "uniform", "shift": "resolution", "base_shape": (4, 4)}
    quantiles = make_grid({"name": "quantile", "time": times}, linear, steps=10, shape=(12, 12, 1))
    np.testing.assert_allclose(quantiles, shifted, atol=1e-6)
    levels = make_grid({"name": "log_snr"}, linear, steps=10)[1:-1]
    np.testing.assert_allclose(np.diff(np.log(levels / (1 - levels))), 2 * np.log(999) / 10, rtol=1e-5)
    last = make_grid({"name": "uniform", "last": 0.04}, linear, steps=5)
    np.testing.assert_allclose(last, [0, 0.24, 0.48, 0.72, 0.96, 1.0], atol=1e-12)
    cosine = make_grid({"name": "quantile", "time": {"name": "logit_normal"}}, linear, steps=4)
    np.testing.assert_allclose(cosine[1:4], 1 / (1 + np.exp([0.6744898, 0, -0.6744898])), rtol=1e-5)


@pytest.mark.parametrize("path_name", ["vp", "edm"])
def test_quantile_grid_follows_the_law_that_training_draws_from(path_name):
    """The law given start <= t <= end, from scipy: not the quantiles of the whole law stretched over the path."""
    path = make_path(path_name)
    grid = make_grid({"name": "quantile", "time": {"name": "logit_normal", "mean": 1.5}}, path, steps=8)
    law = stats.norm(1.5, 1.0)
    low, high = (law.cdf(np.log(end / (1 - end))) if end not in (0.0, 1.0) else end for end in (path.start, path.end))
    whole = lambda u: 1 / (1 + np.exp(-law.ppf(u)))
    u = np.arange(1, 8) / 8
    np.testing.assert_allclose(grid[1:-1], whole(low + u * (high - low)), rtol=1e-5)
    assert np.abs(path.start + whole(u) * (path.end - path.start) - grid[1:-1]).max() > 1e-4

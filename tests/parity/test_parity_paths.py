"""Paths, conversions and couplings against Meta's flow_matching and torchcfm, on the same arrays in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import apart

from flowjax.paths.path import make_path
from flowjax.paths.predictions import convert

pytestmark = pytest.mark.parity
MEASURE = "largest difference, over the largest magnitude"
RNG = np.random.default_rng(0)
NOISE, DATA = RNG.normal(size=(2, 16, 3, 2))
TIMES = RNG.uniform(0.05, 0.95, 16)


def schedulers():
    """Meta's schedulers have our direction of time. Their cosine is trigonometric, their VP is Song's."""
    scheduler = pytest.importorskip("flow_matching.path.scheduler")
    return {
        "linear": scheduler.CondOTScheduler(),
        "trigonometric": scheduler.CosineScheduler(),
        "vp": scheduler.VPScheduler(beta_min=0.1, beta_max=20.0),
    }


@pytest.mark.parametrize("name", ["linear", "trigonometric", "vp"])
def test_schedule_sample_and_velocity(within, name):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("flow_matching.path").AffineProbPath(schedulers()[name])
    sample = theirs.sample(t=torch.tensor(TIMES), x_0=torch.tensor(NOISE), x_1=torch.tensor(DATA))
    schedule = schedulers()[name](torch.tensor(TIMES))
    with jax.enable_x64(True):
        path, t = make_path(name), jnp.asarray(TIMES)
        pair = jnp.asarray(NOISE), jnp.asarray(DATA), t
        ours = [
            path.alpha(t),
            path.sigma(t),
            path.alpha_dot(t),
            path.sigma_dot(t),
            path.sample(*pair),
            path.velocity(*pair),
        ]
    expected = [schedule.alpha_t, schedule.sigma_t, schedule.d_alpha_t, schedule.d_sigma_t]
    expected = [value.expand(16) for value in expected] + [sample.x_t, sample.dx_t]
    found = [apart(value, other.numpy(), True) for value, other in zip(ours, expected)]
    assert within(
        f"path {name}: alpha, sigma, their slopes, sample, velocity", "flow-matching", max(found), 1e-9, MEASURE
    )


@pytest.mark.parametrize("name", ["linear", "trigonometric", "vp"])
@pytest.mark.parametrize(
    "source, destination, method",
    [
        ("data", "velocity", "target_to_velocity"),
        ("noise", "velocity", "epsilon_to_velocity"),
        ("velocity", "data", "velocity_to_target"),
        ("noise", "data", "epsilon_to_target"),
        ("velocity", "noise", "velocity_to_epsilon"),
        ("data", "noise", "target_to_epsilon"),
    ],
)
def test_conversions(within, name, source, destination, method):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("flow_matching.path").AffineProbPath(schedulers()[name])
    value, x = RNG.normal(size=(2, 16, 3, 2))
    expected = getattr(theirs, method)(torch.tensor(value), torch.tensor(x), torch.tensor(TIMES)[:, None, None])
    with jax.enable_x64(True):
        path = make_path(name)
        ours = convert(path, source, destination, jnp.asarray(value), jnp.asarray(x), jnp.asarray(TIMES))
    assert within(f"path {name}: conversions", "flow-matching", apart(ours, expected.numpy(), True), 1e-8, MEASURE)


@pytest.mark.parametrize(
    "name, matcher",
    [("linear", "ConditionalFlowMatcher"), ("trigonometric", "VariancePreservingConditionalFlowMatcher")],
)
def test_torchcfm(within, name, matcher):
    torch = pytest.importorskip("torch")
    matchers = pytest.importorskip("torchcfm.conditional_flow_matching")
    theirs = getattr(matchers, matcher)(sigma=0.0)
    t, x, velocity = theirs.sample_location_and_conditional_flow(
        torch.tensor(NOISE), torch.tensor(DATA), t=torch.tensor(TIMES)
    )
    with jax.enable_x64(True):
        path, pair = make_path(name), (jnp.asarray(NOISE), jnp.asarray(DATA), jnp.asarray(TIMES))
        found = [apart(path.sample(*pair), x.numpy(), True), apart(path.velocity(*pair), velocity.numpy(), True)]
    assert within(f"path {name}: sample, velocity", "torchcfm", max(found), 1e-9, MEASURE)


def test_torchcfm_exact_plan(within):
    """Their exact plan holds our assignment; they then draw from it with replacement, we keep the permutation."""
    torch = pytest.importorskip("torch")
    plans = pytest.importorskip("torchcfm.optimal_transport")
    from flowjax.paths.transport import assignment

    noise, data = torch.tensor(NOISE), torch.tensor(DATA)
    plan = plans.OTPlanSampler(method="exact").get_map(noise, data)
    cost = ((NOISE[:, None] - DATA[None]) ** 2).sum((2, 3))
    others = np.sum(np.argmax(plan, axis=1) != assignment(cost))
    assert within("optimal transport of 16 pairs", "torchcfm", others, 0, "pairs that differ")

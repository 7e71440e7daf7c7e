"""Samplers against the schedulers of diffusers, on one analytic velocity field and identical times.

Their flow schedulers count sigma = 1 - t with velocity noise - data, so v_ours = -v_theirs, and they visit the sigmas
they are given; the sigmas are read back from the scheduler, so that both sides step through the same times.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import apart

from flowjax.paths.oracles import GaussianMixture
from flowjax.paths.path import GaussianPath, make_path
from flowjax.samplers.build import STEPPERS
from flowjax.samplers.field import Field
from flowjax.samplers.loop import integrate

pytestmark = pytest.mark.parity
diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

MIXTURE = GaussianMixture(
    jnp.asarray([0.3, 0.5, 0.2]), jnp.asarray([[-1.5], [0.4], [2.0]]), jnp.asarray([0.3, 0.5, 0.2])
)
LINEAR = make_path("linear")
X = np.linspace(-2, 2, 9, dtype=np.float32)[:, None]
KEYS = jax.random.split(jax.random.key(0), len(X))
SIGMAS = np.linspace(0.95, 0.05, 10)


def ours(name, times, path=LINEAR, x=X, **options):
    field = Field(lambda x, t: MIXTURE.prediction(path, "velocity", x, t), "velocity", path)
    return np.asarray(integrate(STEPPERS[name](**options), field, times, jnp.asarray(x), KEYS))


def theirs_flow(scheduler):
    """Runs a flow scheduler whose timesteps are 1000 sigma."""
    x = torch.from_numpy(X)
    for time in scheduler.timesteps:
        t = 1.0 - float(time) / 1000.0
        velocity = MIXTURE.prediction(LINEAR, "velocity", jnp.asarray(x.numpy()), t)
        x = scheduler.step(-torch.from_numpy(np.array(velocity)), time, x).prev_sample
    return x.numpy()


def times_of(scheduler):
    return 1.0 - np.asarray(scheduler.sigmas, np.float64)


def test_flow_match_euler(within):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=SIGMAS)
    assert within("sampler euler", "diffusers", apart(ours("euler", times_of(scheduler)), theirs_flow(scheduler)), 1e-4)


def test_flow_match_heun(within):
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(12)
    sigmas = np.asarray(scheduler.sigmas, np.float64)
    times = 1.0 - np.concatenate([sigmas[:1], sigmas[1:-1:2], [0.0]])  # interior sigmas are listed twice
    exact = theirs_flow(scheduler)
    # Their last step, to sigma = 0, is Euler: so is ours for a prediction that gives no velocity at clean data.
    field = Field(lambda x, t: MIXTURE.prediction(LINEAR, "data", x, t), "data", LINEAR)
    got = integrate(STEPPERS["heun"](), field, times, jnp.asarray(X), KEYS)
    assert within("sampler heun", "diffusers", apart(got, exact), 2e-4)


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc"])
def test_multistep_flow(within, name):
    kinds = {"dpmpp_2m": diffusers.DPMSolverMultistepScheduler, "unipc": diffusers.UniPCMultistepScheduler}
    options = {"dpmpp_2m": {"solver_type": "midpoint"}, "unipc": {"solver_type": "bh2"}}[name]
    scheduler = kinds[name](
        solver_order=2, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, lower_order_final=True,
        final_sigmas_type="zero", **options,
    )  # fmt: skip
    scheduler.set_timesteps(20)
    times = times_of(scheduler)
    # Their timesteps are rounded to whole numbers, their coefficients are not: evaluate at the sigmas.
    x = torch.from_numpy(X)
    for index, time in enumerate(scheduler.timesteps):
        velocity = MIXTURE.prediction(LINEAR, "velocity", jnp.asarray(x.numpy()), times[index])
        x = scheduler.step(-torch.from_numpy(np.array(velocity)), time, x).prev_sample
    assert within(f"sampler {name}", "diffusers", apart(ours(name, times), x.numpy()), 5e-4)


def test_edm_euler(within):
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(18)
    sigmas = np.asarray(scheduler.sigmas, np.float64)
    x = torch.from_numpy(X * sigmas[0].astype(np.float32))
    path = make_path("edm")
    for index, time in enumerate(scheduler.timesteps):
        s = np.float32(sigmas[index])
        data = MIXTURE.expected_pair(path, jnp.asarray(x.numpy()), float(1.0 / (1.0 + s)))[0]
        # Their network output F is read through D = c_skip x + c_out F with sigma_data = 0.5.
        skip, out = 0.25 / (s**2 + 0.25), s * 0.5 / np.sqrt(s**2 + 0.25)
        scheduler.scale_model_input(x, time)
        output = torch.from_numpy((np.asarray(data) - skip * x.numpy()) / out)
        x = scheduler.step(output, time, x).prev_sample
    # Euler in sigma is DDIM on any path.
    start = X * np.float32(sigmas[0])
    assert within(
        "sampler euler in sigma (EDM)", "diffusers", apart(ours("ddim", 1 / (1 + sigmas), path, start), x.numpy()), 2e-3
    )


def discrete_vp(scheduler):
    """A path through their cumulative products: alpha interpolated in t, exact at the grid t_i = 1 - i / 1000."""
    alphas = jnp.sqrt(jnp.asarray(scheduler.alphas_cumprod.numpy()))
    nodes = jnp.arange(1000)

    def alpha(t):
        return jnp.interp((1.0 - t) * 1000.0, nodes, alphas)

    return GaussianPath("discrete_vp", alpha, lambda t: jnp.sqrt(1.0 - alpha(t) ** 2))


def test_ddim(within):
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(20)
    path = discrete_vp(scheduler)
    times = 1.0 - np.append(scheduler.timesteps.numpy(), 0) / 1000.0
    field = Field(lambda x, t: MIXTURE.prediction(path, "noise", x, t), "noise", path)
    x = torch.from_numpy(X)
    for time in scheduler.timesteps[:-1]:
        noise = MIXTURE.prediction(path, "noise", jnp.asarray(x.numpy()), 1.0 - float(time) / 1000.0)
        x = scheduler.step(torch.from_numpy(np.array(noise)), time, x).prev_sample
    got = integrate(STEPPERS["ddim"](), field, times[:-1], jnp.asarray(X), KEYS)
    assert within("sampler ddim", "diffusers", apart(got, x.numpy()), 2e-3)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_step(within, variance):
    scheduler = diffusers.DDPMScheduler(clip_sample=False, variance_type=f"fixed_{variance}")
    scheduler.set_timesteps(50)
    path, time = discrete_vp(scheduler), scheduler.timesteps[20]
    previous = int(scheduler.previous_timestep(time))
    t, s = (jnp.float32(1.0 - int(u) / 1000.0) for u in (time, previous))
    noise = MIXTURE.prediction(path, "noise", jnp.asarray(X), t)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(X.shape, generator=torch.Generator().manual_seed(0))
    got = scheduler.step(torch.from_numpy(np.array(noise)), time, torch.from_numpy(X), generator=generator).prev_sample
    field = Field(lambda x, t: MIXTURE.prediction(path, "noise", x, t), "noise", path)
    transition = STEPPERS["ancestral"](variance=variance).transition(field, jnp.asarray(X), t, s)
    expected = transition.mean + transition.std * drawn.numpy()
    assert within(f"ancestral step, {variance} variance", "diffusers", apart(expected, got.numpy()), 2e-3)

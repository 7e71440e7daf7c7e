r"""Stochastic samplers whose step is one Gaussian transition p(x' | x), drawn from and scored by the same object.

DDIM and ancestral sampling predict the pair (x1, x0) and redraw part of the noise. With rho = alpha/alpha' and
sigma_{t|t'}^2 = sigma^2 - rho^2 sigma'^2, the noise that leads from t' back to t, the posterior q(x_t' | x_t, x1) has

    mean  = rho (sigma'/sigma)^2 x + alpha' (sigma_{t|t'}/sigma)^2 x1,             (1)
    std   = sigma_{t|t'} sigma'/sigma.                                            (2)

Ancestral sampling of DDPM (Ho et al. 2020) draws from it ("small"), or with std sigma_{t|t'} ("large"). DDIM (Song et
al. 2020) with c = eta times (2) is

    x' = alpha' x1 + sqrt(sigma'^2 - c^2) x0 + c z;                                (3)

eta = 0 is deterministic (on the linear path it is Euler's method), eta = 1 is (1). Nothing divides by alpha, so all
hold at pure noise. The SDE of stochastic interpolants is Euler-Maruyama on

    dx = [v + w s] dt + sqrt(2 w) dW,                                             (4)

which keeps every marginal for any w(t) >= 0; see `flowjax.samplers.diffusions`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.choices import choose
from flowjax.samplers.diffusions import DIFFUSIONS, Diffusion, dance_grpo_diffusion, flow_grpo_diffusion
from flowjax.samplers.field import Field
from flowjax.samplers.steppers import OneStep, Stepper
from flowjax.samplers.transition import Transition

LAST_STEPS = ("mean", "noise", "tweedie")


@dataclasses.dataclass(frozen=True)
class GaussianStepper(OneStep):
    """A stepper that draws from its `transition`; the last step may be without noise.

    Attributes:
      last_step: 'noise' draws the last step like any other; 'mean' takes its mean; 'tweedie' returns E[x1 | x].
    """

    last_step: str = "noise"
    stages = (0.0,)

    def __post_init__(self):
        choose("last_step", self.last_step, dict.fromkeys(LAST_STEPS))

    def transition(self, field: Field, x: Float[Array, "b ..."], t: Any, t_next: Any) -> Transition:
        """The Gaussian from which the step from t to t_next draws."""
        raise NotImplementedError  # abstract

    def step(self, field, x, t, t_next, memory, keys, place):
        """Draws from the transition."""
        return self.transition(field, x, t, t_next).sample(keys), memory

    def finish(self, field: Any, end: float) -> Stepper:
        """Without noise, as `last_step` says."""
        return self if self.last_step == "noise" else Noiseless(self, self.last_step)


@dataclasses.dataclass(frozen=True)
class Noiseless(OneStep):
    """The last step of a stochastic sampler: the mean of its transition, or E[x1 | x]."""

    of: Any
    kind: str
    stages = (0.0,)

    def transition(self, field: Field, x: Float[Array, "b ..."], t: Any, t_next: Any) -> Transition:
        """A point mass."""
        mean = field.data(x, t) if self.kind == "tweedie" else self.of.transition(field, x, t, t_next).mean
        return Transition(mean, jnp.zeros((), x.dtype))

    def step(self, field, x, t, t_next, memory, keys, place):
        """The mean of the transition, exactly."""
        return self.transition(field, x, t, t_next).mean, memory


def _squared_increment(path, t, t_next) -> tuple[Any, Any]:
    """(rho, sigma_{t|t'}^2) above; rounding may not make the variance negative."""
    rho = path.alpha(t) / path.alpha(t_next)
    return rho, jnp.maximum(path.sigma(t) ** 2 - (rho * path.sigma(t_next)) ** 2, 0.0)


@dataclasses.dataclass(frozen=True)
class DDIM(GaussianStepper):
    """Equation (3): eta = 0 deterministic, eta = 1 ancestral. Order 1, one evaluation."""

    eta: float = 0.0

    def transition(self, field: Field, x: Float[Array, "b ..."], t: Any, t_next: Any) -> Transition:
        """The Gaussian of equation (3)."""
        path = field.path
        alpha, sigma = path.alpha(t_next), path.sigma(t_next)
        std = self.eta * sigma / path.sigma(t) * jnp.sqrt(_squared_increment(path, t, t_next)[1])
        data, noise = field.pair(x, t)
        return Transition(alpha * data + jnp.sqrt(jnp.maximum(sigma**2 - std**2, 0.0)) * noise, std)


@dataclasses.dataclass(frozen=True)
class Ancestral(GaussianStepper):
    """The chain of DDPM: equation (1) with the 'small' variance (2) or the 'large' one sigma_{t|t'}^2."""

    variance: str = "small"

    def __post_init__(self):
        super().__post_init__()
        choose("variance", self.variance, dict.fromkeys(("small", "large")))

    def transition(self, field: Field, x: Float[Array, "b ..."], t: Any, t_next: Any) -> Transition:
        """The Gaussian of equation (1)."""
        path = field.path
        sigma, sigma_next = path.sigma(t), path.sigma(t_next)
        rho, added = _squared_increment(path, t, t_next)
        mean = rho * (sigma_next / sigma) ** 2 * x + path.alpha(t_next) * added / sigma**2 * field.data(x, t)
        std = jnp.sqrt(added) * (sigma_next / sigma if self.variance == "small" else 1.0)
        return Transition(mean, std)


@dataclasses.dataclass(frozen=True)
class SDE(GaussianStepper):
    """Euler-Maruyama on equation (4): weak order 1, one evaluation."""

    diffusion: Diffusion = None

    def transition(self, field: Field, x: Float[Array, "b ..."], t: Any, t_next: Any) -> Transition:
        """The Gaussian of one Euler-Maruyama step."""
        h = t_next - t
        w = self.diffusion(field.path, t, t_next)
        velocity, score = field.velocity_and_score(x, t)
        return Transition(x + h * (velocity + w * score), jnp.sqrt(2.0 * w * h))


def sde(diffusion: str = "sigma", scale: float = 1.0, last_step: str = "mean") -> SDE:
    """The SDE of Ma et al. 2024 (SiT) with a named diffusion coefficient, multiplied by `scale`."""
    coefficient = choose("diffusion coefficient", diffusion, DIFFUSIONS)
    return SDE(last_step, lambda path, t, t_next: scale * coefficient(path, t, t_next))


def flow_grpo(a: float = 0.7, last_step: str = "mean") -> SDE:
    """The rollout SDE of Flow-GRPO (Liu et al. 2025) with noise level a."""
    return SDE(last_step, flow_grpo_diffusion(a))


def dance_grpo(eta: float = 0.3, last_step: str = "mean") -> SDE:
    """The rollout SDE of DanceGRPO (Xue et al. 2025) with a constant noise eta."""
    return SDE(last_step, dance_grpo_diffusion(eta))


@dataclasses.dataclass(frozen=True)
class PredictorCorrector(OneStep):
    r"""Langevin corrections at t, then an ancestral step to t_next (Song et al. 2020; their code corrects first).

    One correction is x + eps s + sqrt(2 eps) z with eps = 2 a (snr ||z|| / ||s||)^2. The released code takes the two
    norms from the batch, which would tie examples together, or from one example, which would make the step depend on
    its own draw; here they are the values they estimate, ||z||^2 = d and ||s||^2 = d / sigma^2, so eps =
    2 a (snr sigma)^2. a = (alpha/alpha')^2 is 1 for exploding noise and 1 - beta for variance-preserving noise.

    Attributes:
      snr: the signal-to-noise ratio of the correction.
      corrections: how many corrections per step.
      variance: of the ancestral predictor; 'large' is the reverse-diffusion predictor.
      last_step: of the predictor.
    """

    snr: float = 0.16
    corrections: int = 1
    variance: str = "large"
    last_step: str = "mean"

    def __post_init__(self):
        self.predictor  # noqa: B018 (its checks)

    @property
    def predictor(self) -> Ancestral:
        """The predictor of the interior steps."""
        return Ancestral(self.last_step, self.variance)

    @property
    def stages(self) -> tuple[float, ...]:
        """All evaluations are at t."""
        return (0.0,) * (self.corrections + 1)

    def step(self, field, x, t, t_next, memory, keys, place):
        """Corrections, then the predictor."""
        return self._step(self.predictor, field, x, t, t_next, memory, keys, place)

    def _step(self, predictor, field, x, t, t_next, memory, keys, place):
        path = field.path
        eps = 2.0 * (path.alpha(t) / path.alpha(t_next) * self.snr * path.sigma(t)) ** 2
        for number in range(self.corrections):
            correction_keys = jax.vmap(lambda key, number=number: jax.random.fold_in(key, number + 1))(keys)
            correction = Transition(x + eps * field.score(x, t), jnp.sqrt(2.0 * eps))
            x = correction.sample(correction_keys)
        predictor_keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
        return predictor.step(field, x, t, t_next, memory, predictor_keys, place)

    def finish(self, field: Any, end: float) -> Stepper:
        """Corrections and a noise-free predictor."""
        last = self.predictor.finish(field, end)
        return self if last is self.predictor or self.last_step == "noise" else _LastCorrection(self, last)


@dataclasses.dataclass(frozen=True)
class _LastCorrection(OneStep):
    """The last step of a predictor-corrector: its corrections, then a noise-free predictor."""

    of: PredictorCorrector
    predictor: Any

    @property
    def stages(self) -> tuple[float, ...]:
        return self.of.stages

    def step(self, field, x, t, t_next, memory, keys, place):
        return self.of._step(self.predictor, field, x, t, t_next, memory, keys, place)

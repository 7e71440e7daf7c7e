r"""A flow as a policy: K steps from noise to an action, each a Gaussian around Euler's, under what is seen.

    x_{k+1} ~ N(x_k + h v(x_k, t_k, o), std(t_k, o)^2),    t_k = k h,    h = 1 / K,    x_0 ~ N(0, I),                 (1)

and the action is x_K. Its own density would be an integral over all ways there; that of the way it came is not,

    log p(x_1 ... x_K | x_0, o) = sum over k of log N(x_{k+1}; ...),    H = sum over k of H(N(...)).                (2)

The density of x_0 is left out: no parameter moves it. The published code divides both of (2) by K + 1 (it counts x_0) and by
the size of an action, so that ranges of clipping mean the same for long and short chains; the plain sum is the density itself.

Sampling and scoring go over the same times 0, h, ..., 1 - h: the network is never asked at t = 1, where it was hardly trained.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from flowjax.choices import choose
from flowjax.contract import Params, Sampler
from flowjax.control import Environment, roll_out
from flowjax.methods.parts import Setting
from flowjax.models.actor_critic import NoiseNetwork
from flowjax.samplers.build import split_keys
from flowjax.samplers.field import Field
from flowjax.samplers.grids import make_grid
from flowjax.samplers.learned import LearnedNoise
from flowjax.samplers.rollouts import Rollout, step_log_probs, step_transitions
from flowjax.samplers.rollouts import roll_out as draw_chain
from flowjax.samplers.transition import Transition

NOISE = "noise"  # the role of the noise network
STARTS = ("drawn", "zero")
SCALES = ("mean", "sum")


@dataclasses.dataclass(frozen=True)
class ChainPolicy:
    """Equation (1).

    Attributes:
      setting: the flow's path, noise, network and prediction.
      noise: how far steps stray.
      grid: the times.
      limit: the means of steps are kept between minus this and this; None leaves them alone.
      log_prob: 'mean' divides densities and entropies as the published code does, 'sum' leaves them as they are.
    """

    setting: Setting
    noise: NoiseNetwork
    grid: np.ndarray
    limit: float | None
    log_prob: str

    @property
    def steps(self) -> int:
        """K."""
        return len(self.grid) - 1

    def start(self, keys: Key[Array, " b"]) -> Float[Array, "b ..."]:
        """x_0."""
        sigma = self.setting.path.sigma(jnp.asarray(self.grid[0], jnp.float32))
        return sigma * self.setting.noise.sample(keys, self.setting.shape)

    def draw(
        self, params: Params, role: str, seen: Float[Array, "b ..."], keys: Key[Array, " b"], share: Any
    ) -> Rollout:
        """Actions with the steps that led to them; `share` is that of the noise network."""
        start_keys, step_keys = split_keys(keys)
        stepper = self._stepper(params, seen, share)
        return draw_chain(stepper, self._field(params[role], seen), self.grid, self.start(start_keys), step_keys)

    def flow(self, tree: PyTree, seen: Float[Array, "b ..."], x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """The action without noise on the way, from x_0 = x: Euler's method."""
        stepper, field = LearnedNoise(std=jnp.zeros_like, limit=self.limit), self._field(tree, seen)
        for t, t_next in zip(self.grid[:-1], self.grid[1:]):
            x = stepper.transition(field, x, jnp.float32(t), jnp.float32(t_next)).mean
        return x

    def transitions(
        self, params: Params, role: str, seen: Float[Array, "b ..."], x: Float[Array, "b k ..."], share: Any
    ) -> Transition:
        """The Gaussians of the steps that begin at x: mean and std are [k, b, ...]."""
        return step_transitions(self._stepper(params, seen, share), self._field(params[role], seen), self.grid, x)

    def log_probs(self, steps: Transition, x_next: Float[Array, "b k ..."]) -> Float[Array, " b"]:
        """The first of (2), divided as `log_prob` says."""
        return self.scaled(step_log_probs(steps, x_next))

    def scaled(self, log_prob: Float[Array, "b k"]) -> Float[Array, " b"]:
        """The same of steps whose densities are known."""
        return self._scale * jnp.sum(log_prob, axis=1)

    def entropy(self, steps: Transition) -> Float[Array, " b"]:
        """The second of (2), divided likewise."""
        each = [Transition(mean, std).entropy() for mean, std in zip(steps.mean, steps.std)]
        return self._scale * sum(each)

    @property
    def _scale(self) -> float:
        return 1.0 if self.log_prob == "sum" else 1.0 / ((self.steps + 1) * math.prod(self.setting.shape))

    def _field(self, tree: PyTree, seen: Float[Array, "b ..."]) -> Field:
        cond = {"observation": seen}
        predict = lambda x, t: self.setting.network.apply(tree, x, t, cond)
        return Field(predict, self.setting.prediction, self.setting.path)

    def _stepper(self, params: Params, seen: Float[Array, "b ..."], share: Any) -> LearnedNoise:
        return LearnedNoise(std=lambda t: self.noise.apply(params[NOISE], seen, t, share), limit=self.limit)


def make_chain_policy(
    setting: Setting, noise: NoiseNetwork, steps: int, limit: float | None, log_prob: str
) -> ChainPolicy:
    """A policy of K steps.

    Args:
      setting: of the flow.
      noise: how far steps stray.
      steps: K.
      limit: see ChainPolicy.
      log_prob: see ChainPolicy.
    """
    choose("method.log_prob", log_prob, dict.fromkeys(SCALES))
    if steps < 1 or (limit is not None and limit <= 0):
        raise ValueError(
            f"A chain of method.steps={steps} with mean_limit={limit} is no policy; expected 1 step or more, and a positive "
            "limit or None."
        )
    grid = make_grid(dict(name="uniform"), setting.path, steps=steps, shape=setting.shape)
    return ChainPolicy(setting, noise, grid, limit, log_prob)


def episodes_sampler(
    policy: ChainPolicy,
    environment: Environment,
    noisy: bool = False,
    start: str = "drawn",
    role: str = "student",
) -> Sampler:
    """Plays an episode for each key and gives its return: what a policy is measured by (evaluator `episode_return`).

    Args:
      policy: of which the role holds the parameters.
      environment: where.
      noisy: with the noise that it is trained with, at the bounds of the end of a run; otherwise with none.
      start: x_0 'drawn', as the flow was trained, or 'zero': the action is then a function of what is seen.
      role: whose flow.
    """
    choose("start of a chain", start, dict.fromkeys(STARTS))
    share = policy.noise.share(1.0)

    def draw(params: Params, conditions: Mapping[str, Array], keys: Key[Array, " b"]) -> Float[Array, "b 1"]:
        def act(seen, keys):
            if noisy:
                return policy.draw(params, role, seen, keys, share).samples, ()
            x = policy.start(split_keys(keys)[0])
            return policy.flow(params[role], seen, x if start == "drawn" else jnp.zeros_like(x)), ()

        return roll_out(environment, act, keys).returns[:, None]

    described = dict(sampler="episodes", steps=policy.steps, nfe=policy.steps, guidance="none", role=role)
    described |= dict(noisy=noisy, start=start, horizon=environment.horizon)
    return Sampler(draw, role, described, also=(NOISE,) if noisy else (), shape=(1,))

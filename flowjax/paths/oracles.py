r"""Distributions whose flow is known in closed form. Every loss and every sampler of FlowJAX is held against them.

For data sum_k w_k N(m_k, s_k^2 I) on the path x_t = alpha x1 + sigma x0 with standard normal x0, the marginal at t is
the mixture of N(alpha m_k, alpha^2 s_k^2 + sigma^2), and with responsibilities rho_k(x, t) proportional to its terms

    E[x1 | x_t]  = sum_k rho_k [ m_k + alpha s_k^2 (x - alpha m_k) / (alpha^2 s_k^2 + sigma^2) ],
    grad log p_t = - sum_k rho_k (x - alpha m_k) / (alpha^2 s_k^2 + sigma^2).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flowjax.arrays import batch_times
from flowjax.paths.path import GaussianPath
from flowjax.paths.predictions import prediction_row


@dataclasses.dataclass(frozen=True)
class GaussianMixture:
    """sum_k weights[k] N(means[k], stds[k]^2 I) in d dimensions; points are rows [b, d]."""

    weights: Float[Array, "k"]
    means: Float[Array, "k d"]
    stds: Float[Array, "k"]

    def sample(self, key: Key[Array, ""], count: int) -> Float[Array, "b d"]:
        """Draws `count` points."""
        key_component, key_normal = jax.random.split(key)
        component = jax.random.choice(key_component, len(self.weights), (count,), p=self.weights)
        normal = jax.random.normal(key_normal, (count, self.means.shape[1]))
        return self.means[component] + self.stds[component, None] * normal

    def _components(self, path: GaussianPath, x, t):
        t = batch_times(t, x)
        alpha, sigma = path.alpha(t), path.sigma(t)
        offset = x[:, None, :] - alpha[:, None, None] * self.means  # [b, k, d]
        variance = (alpha**2)[:, None] * self.stds**2 + (sigma**2)[:, None]  # [b, k]
        log_terms = (
            jnp.log(self.weights)
            - 0.5 * jnp.sum(offset**2, -1) / variance
            - 0.5 * x.shape[1] * jnp.log(2 * jnp.pi * variance)
        )
        return alpha, sigma, offset, variance, log_terms

    def log_density(self, path: GaussianPath, x: Float[Array, "b d"], t: Float[Array, "..."] | float) -> Float[Array, "b"]:
        """log p_t(x)."""
        return jax.nn.logsumexp(self._components(path, x, t)[-1], axis=1)

    def expected_pair(
        self, path: GaussianPath, x: Float[Array, "b d"], t: Float[Array, "..."] | float
    ) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
        """(E[x1 | x_t], E[x0 | x_t]), each computed without dividing by alpha or sigma."""
        alpha, sigma, offset, variance, log_terms = self._components(path, x, t)
        rho = jax.nn.softmax(log_terms, axis=1)[..., None]
        pull = offset / variance[..., None]
        data = jnp.sum(rho * (self.means + (alpha[:, None] * self.stds**2)[..., None] * pull), axis=1)
        noise = sigma[:, None] * jnp.sum(rho * pull, axis=1)
        return data, noise

    def prediction(
        self, path: GaussianPath, prediction: str, x: Float[Array, "b d"], t: Float[Array, "..."] | float
    ) -> Float[Array, "b d"]:
        """The exact conditional expectation of any prediction: what a perfect network outputs."""
        data, noise = self.expected_pair(path, x, t)
        a, b, c = prediction_row(path, prediction, batch_times(t, x))
        return ((a / c)[:, None]) * data + ((b / c)[:, None]) * noise

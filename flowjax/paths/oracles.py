r"""Distributions whose flow is known in closed form. Every loss and every sampler of FlowJAX is held against them.

For data sum_k w_k N(m_k, S_k) with diagonal S_k, on the path x_t = alpha x1 + sigma x0 with standard normal x0, the
marginal at t is the mixture of the N(alpha m_k, V_k) with V_k = alpha^2 S_k + sigma^2. Write rho_k(x, t) for the
responsibilities (proportional to the terms of the marginal) and q_k = (x - alpha m_k) / V_k. Then

    E[x1 | x_t] = sum_k rho_k (m_k + alpha S_k q_k),      E[x0 | x_t] = sigma sum_k rho_k q_k,            (1)
    grad log p_t = - sum_k rho_k q_k.                                                                     (2)

Each component on its own is carried by an affine velocity, and the mixture's is their average,

    v = sum_k rho_k v_k,      v_k = alpha' m_k + (alpha alpha' S_k + sigma sigma') q_k.                   (3)

Given x_t, one thing about the pair stays unknown: xi = (sigma x1 - alpha x0) / (alpha^2 + sigma^2). Both ends follow
from it, x1 = alpha x_t / (alpha^2 + sigma^2) + sigma xi and x0 = sigma x_t / (alpha^2 + sigma^2) - alpha xi, so the
target of a prediction with row (a, b), divisor c and determinant D (see predictions.py) varies as

    Cov[target | x_t] = (D / c)^2 Cov[xi | x_t],                                                          (4)

whose expected trace is the loss that no network can go below. Nothing here divides by alpha or sigma.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from flowjax.arrays import batch_times
from flowjax.paths.path import GaussianPath
from flowjax.paths.predictions import determinant, prediction_row

Time = Float[Array, "..."] | float


@dataclasses.dataclass(frozen=True)
class GaussianMixture:
    """sum_k weights[k] N(means[k], diag(stds[k]^2)) in d dimensions; points are rows [b, d].

    Attributes:
      weights: the component weights, which add up to 1.
      means: the component means.
      stds: one standard deviation a component, or one a component and dimension; zero is a point mass (`empirical`).
      classes: the class of each component, 0 ... num_classes - 1, or None. The methods that take `label` condition on
        it; a label outside that range (num_classes is the networks') is the null label and conditions on nothing.
    """

    weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    stds: Float[Array, " k"] | Float[Array, "k d"]
    classes: Int[Array, " k"] | None = None

    @property
    def variances(self) -> Float[Array, "k _"]:
        """stds^2 as [k, d], or as [k, 1] for round components."""
        return self.stds.reshape(len(self.weights), -1) ** 2

    @property
    def num_classes(self) -> int | None:
        """How many classes the components form."""
        return None if self.classes is None else int(jnp.max(self.classes)) + 1

    def mean(self) -> Float[Array, " d"]:
        """E[x1]."""
        return self.weights @ self.means

    def covariance(self) -> Float[Array, "d d"]:
        """Cov[x1]: the average within components plus the spread of their means."""
        offset = self.means - self.mean()
        within = jnp.broadcast_to(self.variances, self.means.shape)
        return jnp.diag(self.weights @ within) + jnp.einsum("k,ki,kj->ij", self.weights, offset, offset)

    def conditional(self, label: int) -> "GaussianMixture":
        """The distribution of one class."""
        keep = self._classes() == label
        if not bool(jnp.any(keep)):
            raise ValueError(f"No component has class {label}. Classes: 0 to {self.num_classes - 1}.")
        weights = self.weights[keep]
        return GaussianMixture(weights / jnp.sum(weights), self.means[keep], self.stds[keep])

    def sample(self, key: Key[Array, ""], count: int) -> Float[Array, "b d"]:
        """Draws `count` points."""
        return self.sample_components(key, count)[0]

    def sample_components(self, key: Key[Array, ""], count: int) -> tuple[Float[Array, "b d"], Int[Array, " b"]]:
        """Draws `count` points, each with the index of the component it came from (`classes[index]` is its label)."""
        key_component, key_normal = jax.random.split(key)
        component = jax.random.choice(key_component, len(self.weights), (count,), p=self.weights)
        normal = jax.random.normal(key_normal, (count, self.means.shape[1]))
        return self.means[component] + jnp.sqrt(self.variances[component]) * normal, component

    def log_density(
        self, path: GaussianPath, x: Float[Array, "b d"], t: Time, label: Int[Array, " b"] | None = None
    ) -> Float[Array, " b"]:
        """log p_t(x), or log p_t(x | label)."""
        return jax.nn.logsumexp(self._terms(path, x, t, label)[-1], axis=1)

    def responsibilities(
        self, path: GaussianPath, x: Float[Array, "b d"], t: Time, label: Int[Array, " b"] | None = None
    ) -> Float[Array, "b k"]:
        """rho_k: the probability that x_t came from component k."""
        return jax.nn.softmax(self._terms(path, x, t, label)[-1], axis=1)

    def class_probabilities(self, path: GaussianPath, x: Float[Array, "b d"], t: Time) -> Float[Array, "b c"]:
        """p(class | x_t): the exact classifier of noisy points."""
        return self.responsibilities(path, x, t) @ jax.nn.one_hot(self._classes(), self.num_classes)

    def score(
        self, path: GaussianPath, x: Float[Array, "b d"], t: Time, label: Int[Array, " b"] | None = None
    ) -> Float[Array, "b d"]:
        """grad_x log p_t(x): equation (2)."""
        _, _, pull, _, log_terms = self._terms(path, x, t, label)
        return -jnp.einsum("bk,bkd->bd", jax.nn.softmax(log_terms, axis=1), pull)

    def expected_pair(
        self, path: GaussianPath, x: Float[Array, "b d"], t: Time, label: Int[Array, " b"] | None = None
    ) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
        """(E[x1 | x_t], E[x0 | x_t]): equation (1)."""
        alpha, sigma, pull, _, log_terms = self._terms(path, x, t, label)
        rho = jax.nn.softmax(log_terms, axis=1)
        data = jnp.einsum("bk,bkd->bd", rho, self.means + alpha[:, None, None] * self.variances * pull)
        return data, sigma[:, None] * jnp.einsum("bk,bkd->bd", rho, pull)

    def prediction(
        self,
        path: GaussianPath,
        prediction: str,
        x: Float[Array, "b d"],
        t: Time,
        label: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b d"]:
        """The exact conditional expectation of any prediction: what a perfect network outputs."""
        if prediction == "score":  # equation (2) stays finite where sigma is 0
            return self.score(path, x, t, label)
        data, noise = self.expected_pair(path, x, t, label)
        a, b, c = prediction_row(path, prediction, batch_times(t, x))
        return ((a / c)[:, None]) * data + ((b / c)[:, None]) * noise

    def divergence(
        self, path: GaussianPath, x: Float[Array, "b d"], t: Time, label: Int[Array, " b"] | None = None
    ) -> Float[Array, " b"]:
        """div v: the derivative of (3), where grad rho_k = rho_k (sum_j rho_j q_j - q_k)."""
        times = batch_times(t, x)
        alpha, sigma, pull, variance, log_terms = self._terms(path, x, t, label)
        growth = (alpha * path.alpha_dot(times))[:, None, None] * self.variances
        growth = growth + (sigma * path.sigma_dot(times))[:, None, None]
        velocity = path.alpha_dot(times)[:, None, None] * self.means + growth * pull
        rho = jax.nn.softmax(log_terms, axis=1)
        mean_pull = jnp.einsum("bk,bkd->bd", rho, pull)[:, None]
        inside = jnp.sum(growth / variance + (mean_pull - pull) * velocity, axis=-1)
        return jnp.sum(rho * inside, axis=1)

    def posterior_covariance(
        self,
        path: GaussianPath,
        x: Float[Array, "b d"],
        t: Time,
        label: Int[Array, " b"] | None = None,
        prediction: str = "data",
    ) -> Float[Array, "b d d"]:
        """Cov[target | x_t] of a prediction's target: equation (4). By default that of x1 itself."""
        rho, within, offset = self._unknown(path, x, t, label)
        covariance = jax.vmap(jnp.diag)(jnp.einsum("bk,bkd->bd", rho, within))
        covariance = covariance + jnp.einsum("bk,bki,bkj->bij", rho, offset, offset)
        return self._spread(path, prediction, x, t)[:, None, None] * covariance

    def posterior_variance(
        self,
        path: GaussianPath,
        x: Float[Array, "b d"],
        t: Time,
        label: Int[Array, " b"] | None = None,
        prediction: str = "data",
    ) -> Float[Array, " b"]:
        """The trace of `posterior_covariance` over d, without forming the matrix: the loss left at x_t, per element."""
        rho, within, offset = self._unknown(path, x, t, label)
        per_element = jnp.einsum("bk,bkd->b", rho, within + offset**2) / x.shape[1]
        return self._spread(path, prediction, x, t) * per_element

    def floor(
        self, path: GaussianPath, prediction: str, t: Float[Array, " b"], key: Key[Array, ""]
    ) -> Float[Array, " b"]:
        """The irreducible squared loss per element at each time, from one draw of x_t each.

        Averaged over times from a density it estimates the smallest loss any network can have under that density. For
        one Gaussian every draw is exact: on the linear path the velocity's is std^2 / (t^2 std^2 + (1 - t)^2), which
        uniform t averages to pi std / 2.
        """
        key_data, key_noise = jax.random.split(key)
        data = self.sample(key_data, t.shape[0])
        x = path.sample(jax.random.normal(key_noise, data.shape), data, t)
        return self.posterior_variance(path, x, t, prediction=prediction)

    def _classes(self):
        if self.classes is None:
            raise ValueError("This mixture has no classes. Build it with `classes`, the class of each component.")
        return self.classes

    def _log_weights(self, label):
        """[b, k] (or [1, k]): log weights, those of other classes -inf and the rest renormalised."""
        if label is None:
            return jnp.log(self.weights)[None]
        classes = self._classes()
        null = (label < 0) | (label > jnp.max(classes))
        log_weights = jnp.where(null[:, None] | (classes == label[:, None]), jnp.log(self.weights), -jnp.inf)
        return log_weights - jax.nn.logsumexp(log_weights, axis=1, keepdims=True)

    def _terms(self, path, x, t, label):
        """alpha, sigma [b]; q and V [b, k, d]; the log of each term of the marginal [b, k]."""
        t = batch_times(t, x)
        alpha, sigma = path.alpha(t), path.sigma(t)
        offset = x[:, None] - alpha[:, None, None] * self.means
        variance = (alpha**2)[:, None, None] * self.variances + (sigma**2)[:, None, None]
        variance = jnp.broadcast_to(variance, offset.shape)
        pull = offset / variance
        log_normal = -0.5 * jnp.sum(offset * pull + jnp.log(2 * math.pi * variance), axis=-1)
        return alpha, sigma, pull, variance, self._log_weights(label) + log_normal

    def _unknown(self, path, x, t, label):
        """rho [b, k], the variance of xi within a component and the offset of its mean from the mixture's [b, k, d]."""
        alpha, sigma, pull, variance, log_terms = self._terms(path, x, t, label)
        rho = jax.nn.softmax(log_terms, axis=1)
        alpha, sigma = alpha[:, None, None], sigma[:, None, None]
        # sigma E_k[x1] - alpha E_k[x0] with the alpha sigma terms gathered: no difference of two large numbers.
        centre = sigma * (self.means + alpha * (self.variances - 1.0) * pull) / (alpha**2 + sigma**2)
        offset = centre - jnp.einsum("bk,bkd->bd", rho, centre)[:, None]
        return rho, self.variances / variance, offset

    def _spread(self, path, prediction, x, t):
        """(D / c)^2 of equation (4)."""
        t = batch_times(t, x)
        return (determinant(path, prediction, t) / prediction_row(path, prediction, t)[2]) ** 2


def gaussian(mean: float = 0.0, std: float = 1.0, dimensions: int = 1) -> GaussianMixture:
    """N(mean, std^2 I): the oracle whose flow map is affine (see closed_forms.py)."""
    return GaussianMixture(jnp.ones(1), jnp.full((1, dimensions), float(mean)), jnp.full(1, float(std)))


def three_modes_1d() -> GaussianMixture:
    """Three unequal modes on the line, the standard target of the sampler-order tests; each is its own class."""
    return GaussianMixture(
        jnp.array([0.3, 0.5, 0.2]), jnp.array([[-1.5], [0.4], [2.0]]), jnp.array([0.3, 0.5, 0.2]), jnp.arange(3)
    )


def eight_modes(
    radius: float = 2.0, std: float = 0.2, modes: int = 8, num_classes: int | None = None
) -> GaussianMixture:
    """Equal modes on a circle in the plane, numbered by angle; mode k has class k mod num_classes (default: k)."""
    angle = 2 * math.pi * jnp.arange(modes) / modes
    means = radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    classes = jnp.arange(modes) % (num_classes or modes)
    return GaussianMixture(jnp.full(modes, 1.0 / modes), means, jnp.full(modes, float(std)), classes)


def ring_modes(
    modes: int, radius: float, weights: str
) -> tuple[Float[np.ndarray, " modes"], Float[np.ndarray, "modes 2"]]:
    """The weights and means of modes on a circle, numbered by angle, in float64.

    Args:
      modes: how many.
      radius: of the circle.
      weights: 'even', or 'uneven' with w_k proportional to k + 1.
    """
    if weights not in ("even", "uneven"):
        raise ValueError(f"The mixture's weights are '{weights}'; expected 'even' or 'uneven'.")
    angle = 2 * np.pi * np.arange(modes) / modes
    means = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    shares = np.ones(modes) if weights == "even" else np.arange(1.0, modes + 1)
    return shares / shares.sum(), means


def ring(modes: int = 8, radius: float = 2.0, std: float = 0.15, weights: str = "even") -> GaussianMixture:
    """The mixture of N(m_k, std^2 I) on a circle (`ring_modes`)."""
    shares, means = (jnp.asarray(array, jnp.float32) for array in ring_modes(modes, radius, weights))
    return GaussianMixture(shares, means, jnp.full((modes,), std, jnp.float32))


def empirical(data: Float[Array, "n ..."], classes: Int[Array, " n"] | None = None) -> GaussianMixture:
    """A data set as a mixture of point masses: E[x1 | x_t] is then the softmax-weighted mean of its examples.

    Examples are flattened to rows. Valid where sigma(t) > 0; memory is batch x examples x elements.
    """
    rows = data.reshape(data.shape[0], -1)
    count = rows.shape[0]
    return GaussianMixture(jnp.full(count, 1.0 / count), rows, jnp.zeros(count), classes)

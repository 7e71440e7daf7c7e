r"""Closed forms beyond the velocity: flow maps, average velocities, straightened flows, and tilted distributions.

Flow map. X_{t->r} carries p_t to p_r along the velocity. For one Gaussian N(m, S) it is affine (coordinate by
coordinate, with V_t = alpha_t^2 S + sigma_t^2), and on the line it matches quantiles, whatever the mixture:

    X_{t->r}(x) = alpha_r m + sqrt(V_r / V_t) (x - alpha_t m),                                            (1)
    X_{t->r}(x) = F_r^{-1}(F_t(x))                        in one dimension, F_t the distribution function. (2)

The average velocity of two-time models is U(x, t, r) = (X_{t->r}(x) - x) / (r - t), and v where r = t.

Tilt. For the reward r(x) = a.x - sum_j c_j (x_j - o_j)^2 / 2, the distribution p*(x) = p(x) exp(r(x) / beta) / Z is the
optimum of E[r] - beta KL(p* | p): the target of every preference method, and for c = mask / noise^2 the posterior of an
inpainting problem. A Gaussian mixture stays one. With g = 1 + S c / beta and e = m - o, component by component,

    S* = S / g,     m* = (m + S (a + c o) / beta) / g,                                                    (3)
    log E_k[exp(r / beta)] = a.o / beta + sum_j [ (2 a e / beta + S a^2 / beta^2 - c e^2 / beta) / (2 g) - log(g) / 2 ],

which is added to the component's log weight; log Z is the log of the new weights' sum.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.arrays import batch_times, expand_to
from flowjax.paths.oracles import GaussianMixture
from flowjax.paths.path import GaussianPath

Time = Float[Array, "..."] | float
BISECTIONS = 60  # halvings of the bracket in (2): past float32's 24 bits from any starting width


def flow_map(
    mixture: GaussianMixture, path: GaussianPath, x: Float[Array, "b d"], t: Time, r: Time
) -> Float[Array, "b d"]:
    """X_{t->r}(x): equation (1) for a single Gaussian, (2) for a mixture on the line.

    In more dimensions a mixture's flow map has no closed form: integrate `mixture.prediction(path, 'velocity', ...)`.
    """
    t, r = batch_times(t, x)[:, None], batch_times(r, x)[:, None]
    if len(mixture.weights) == 1:
        start, end = (jnp.sqrt(path.alpha(time) ** 2 * mixture.variances + path.sigma(time) ** 2) for time in (t, r))
        return path.alpha(r) * mixture.means + end / start * (x - path.alpha(t) * mixture.means)
    if mixture.means.shape[1] != 1:
        raise ValueError(
            f"flow_map: {len(mixture.weights)} components in {mixture.means.shape[1]} dimensions have no closed form. "
            "Use one component or one dimension, or integrate the velocity."
        )
    return _match_quantile(mixture, path, x, t, r)


def _standardised(mixture, path, x, t):
    """(x - alpha m_k) / sqrt(V_k) as [b, k]."""
    std = jnp.sqrt(path.alpha(t) ** 2 * mixture.variances[:, 0] + path.sigma(t) ** 2)
    return (x - path.alpha(t) * mixture.means[:, 0]) / std, std


def _match_quantile(mixture, path, x, t, r):
    # Log probabilities of both tails keep their digits where F itself rounds to 0 or 1: each point is matched in the
    # tail on its own side of the median.
    log_weights = jnp.log(mixture.weights)

    def log_tails(point, time):
        z = _standardised(mixture, path, point, time)[0]
        left = jax.nn.logsumexp(log_weights + jax.scipy.stats.norm.logcdf(z), axis=1, keepdims=True)
        right = jax.nn.logsumexp(log_weights + jax.scipy.stats.norm.logcdf(-z), axis=1, keepdims=True)
        return left, right

    left, right = log_tails(x, t)

    # The answer lies between the images of x under the components' own affine maps.
    z, _ = _standardised(mixture, path, x, t)
    _, std = _standardised(mixture, path, x, r)
    images = path.alpha(r) * mixture.means[:, 0] + std * z
    low, high = jnp.min(images, axis=1, keepdims=True), jnp.max(images, axis=1, keepdims=True)

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        left_here, right_here = log_tails(middle, r)
        too_low = jnp.where(left < right, left_here < left, right_here > right)
        return jnp.where(too_low, middle, low), jnp.where(too_low, high, middle)

    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (low, high))
    return 0.5 * (low + high)


def average_velocity(
    mixture: GaussianMixture, path: GaussianPath, x: Float[Array, "b d"], t: Time, r: Time
) -> Float[Array, "b d"]:
    """U(x, t, r) = (X_{t->r}(x) - x) / (r - t), and the velocity where r = t."""
    t, r = batch_times(t, x), batch_times(r, x)
    same = expand_to(r == t, x)
    gap = jnp.where(same, 1.0, expand_to(r - t, x))
    mean = (flow_map(mixture, path, x, t, r) - x) / gap
    return jnp.where(same, mixture.prediction(path, "velocity", x, t), mean)


def straight_velocity(mixture: GaussianMixture, x: Float[Array, "b d"], t: Time) -> Float[Array, "b d"]:
    """The field of a rectified flow retrained on its own pairs, for one Gaussian on the linear path.

    The pairs (x0, m + s x0) move on straight lines: v = m + (s - 1) (x - t m) / (1 - t + t s). Reference: Liu et al.
    2022. One Euler step is exact.
    """
    if len(mixture.weights) != 1:
        raise ValueError(f"straight_velocity needs a single Gaussian, not {len(mixture.weights)} components.")
    t = batch_times(t, x)[:, None]
    std = jnp.sqrt(mixture.variances)
    return mixture.means + (std - 1.0) * (x - t * mixture.means) / (1.0 - t + t * std)


@dataclasses.dataclass(frozen=True)
class QuadraticReward:
    """r(x) = linear . x - sum_j curvature_j (x_j - centre_j)^2 / 2; negative curvature rewards distance."""

    linear: Float[Array, " d"]
    curvature: Float[Array, " d"]
    centre: Float[Array, " d"]

    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, " b"]:
        """The reward of each point."""
        return x @ self.linear - 0.5 * (x - self.centre) ** 2 @ self.curvature

    def expected(self, mixture: GaussianMixture) -> Float[Array, ""]:
        """E[r(x)] under a mixture, exactly."""
        spread = mixture.weights @ jnp.broadcast_to(mixture.variances, mixture.means.shape)
        return mixture.weights @ self(mixture.means) - 0.5 * spread @ self.curvature


def linear_reward(direction: Float[Array, " d"]) -> QuadraticReward:
    """r(x) = direction . x."""
    return QuadraticReward(direction, jnp.zeros_like(direction), jnp.zeros_like(direction))


def distance_reward(centre: Float[Array, " d"], curvature: float = 1.0) -> QuadraticReward:
    """r(x) = -curvature |x - centre|^2 / 2."""
    return QuadraticReward(jnp.zeros_like(centre), jnp.full_like(centre, curvature), centre)


@dataclasses.dataclass(frozen=True)
class Tilt:
    """p* = p exp(r / beta) / Z, its log normaliser, its expected reward and its divergence from p."""

    mixture: GaussianMixture
    log_normaliser: Float[Array, ""]
    expected_reward: Float[Array, ""]
    kl: Float[Array, ""]


def tilt(mixture: GaussianMixture, reward: QuadraticReward, beta: float = 1.0) -> Tilt:
    """The exact optimum of E[reward] - beta KL(. | mixture): equation (3)."""
    linear, curvature, centre = reward.linear / beta, reward.curvature / beta, reward.centre
    variances = jnp.broadcast_to(mixture.variances, mixture.means.shape)
    shrink = 1.0 + variances * curvature
    if beta <= 0 or bool(jnp.any(shrink <= 0)):
        raise ValueError(
            f"tilt: exp(reward / beta) is not integrable (beta = {beta}, smallest 1 + S c / beta = "
            f"{jnp.min(shrink):.3g}; both must be positive). Use a larger beta or a smaller negative curvature."
        )
    offset = mixture.means - centre
    gain = (2 * linear * offset + variances * linear**2 - curvature * offset**2) / (2 * shrink) - 0.5 * jnp.log(shrink)
    log_weights = jnp.log(mixture.weights) + linear @ centre + jnp.sum(gain, axis=1)
    log_normaliser = jax.nn.logsumexp(log_weights)
    tilted = GaussianMixture(
        weights=jnp.exp(log_weights - log_normaliser),
        means=(mixture.means + variances * (linear + curvature * centre)) / shrink,
        stds=jnp.sqrt(variances / shrink),
        classes=mixture.classes,
    )
    expected = reward.expected(tilted)
    return Tilt(tilted, log_normaliser, expected, expected / beta - log_normaliser)

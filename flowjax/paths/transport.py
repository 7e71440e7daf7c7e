r"""Optimal transport between two clouds of points: exact by assignment, entropic by Sinkhorn in the log domain.

Both clouds carry uniform weights, a_i = 1/n and b_j = 1/m. The entropic problem at temperature eps

    OT_eps = min_P  sum_ij P_ij C_ij + eps KL(P | a x b),    P 1 = a,  P^T 1 = b,                      (1)

has the solution P_ij = a_i b_j exp((f_i + g_j - C_ij) / eps), and each marginal condition gives one potential from the
other (Cuturi 2013; in logarithms Peyre & Cuturi 2019, section 4.4):

    f_i = -eps log sum_j b_j exp((g_j - C_ij) / eps),    g_j = -eps log sum_i a_i exp((f_i - C_ij) / eps).   (2)

Alternating (2) never overflows, whatever eps. It needs about max(C) / eps rounds, so eps starts at max(C) and falls by
a constant factor each round until it reaches its target (epsilon scaling); the rounds end when the rows of P sum to a.
At the solution (1) equals its dual value, mean(f) + mean(g).

As eps -> 0 and n = m, P tends to the best permutation / n: the assignment problem.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

EPSILON_DECAY = 0.8  # factor on epsilon in one round of epsilon scaling


class Potentials(NamedTuple):
    """A solution of (2) and how well it holds.

    Attributes:
      f: potential of the rows.
      g: potential of the columns.
      error: sum_i |sum_j P_ij - a_i|, the mass on wrong rows; columns hold to rounding.
      rounds: alternations done.
    """

    f: Float[Array, " n"]
    g: Float[Array, " m"]
    error: Float[Array, ""]
    rounds: Int[Array, ""]


def squared_distances(x: Float[Array, "n ..."], y: Float[Array, "m ..."]) -> Float[Array, "n m"]:
    """|x_i - y_j|^2 over all axes but the first, by one matrix product.

    The clouds are centred first: |x|^2 + |y|^2 - 2 x.y loses the digits by which the common offset exceeds the spread.
    """
    x, y = x.reshape(x.shape[0], -1), y.reshape(y.shape[0], -1)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"squared_distances: the points have {x.shape[1]} and {y.shape[1]} coordinates; give both clouds one shape."
        )
    centre = jnp.mean(y, axis=0)
    x, y = x - centre, y - centre
    product = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1) - 2 * product, 0.0)


def assignment(cost: np.ndarray) -> np.ndarray:
    """The permutation p that minimises sum_i cost[i, p[i]], exactly; on the host, O(n^3).

    Args:
      cost: a square matrix.
    """
    from scipy.optimize import linear_sum_assignment

    cost = np.asarray(cost)
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1]:
        raise ValueError(
            f"assignment: the cost has shape {cost.shape}; expected a square matrix. Take equally many points of each "
            "cloud, or use sinkhorn_plan."
        )
    return linear_sum_assignment(cost)[1]


@functools.partial(jax.jit, static_argnames=("tolerance", "max_rounds"))
def sinkhorn_potentials(
    cost: Float[Array, "n m"],
    epsilon: Float[Array, ""] | float,
    tolerance: float = 1e-4,
    max_rounds: int = 2000,
) -> Potentials:
    """Solves (2) with epsilon scaling until the row error is below `tolerance`.

    Args:
      cost: C_ij; infinite where a pair is forbidden.
      epsilon: the temperature, in the units of the cost.
      tolerance: largest total mass on wrong rows.
      max_rounds: rounds after which the loop ends without convergence; `error` then tells.
    """
    n, m = cost.shape
    epsilon = jnp.asarray(epsilon, cost.dtype)

    def softmin(values, eps, axis):
        return -eps * (jax.nn.logsumexp(values / eps, axis=axis) - jnp.log(cost.shape[axis]))

    def row_error(f, g, eps):
        # g was updated last, so only the rows can be off; each should hold 1/n.
        return jnp.mean(jnp.abs(jnp.exp((f - softmin(g - cost, eps, 1)) / eps) - 1.0))

    def body(state):
        _, g, eps, _, rounds = state
        eps = jnp.maximum(eps * EPSILON_DECAY, epsilon)
        f = softmin(g - cost, eps, 1)
        g = softmin(f[:, None] - cost, eps, 0)
        return f, g, eps, row_error(f, g, eps), rounds + 1

    def unfinished(state):
        _, _, eps, error, rounds = state
        return ((eps > epsilon) | (error > tolerance)) & (rounds < max_rounds)

    # An infinite cost forbids a pair; the largest allowed one sets the scale.
    largest = jnp.max(jnp.where(jnp.isfinite(cost), cost, 0.0))
    start = (jnp.zeros(n, cost.dtype), jnp.zeros(m, cost.dtype), jnp.maximum(largest, epsilon))
    f, _, _, _, rounds = jax.lax.while_loop(unfinished, body, (*start, jnp.asarray(jnp.inf, cost.dtype), 0))
    # Columns and error at the target epsilon, also when the rounds ran out on the way to it.
    g = softmin(f[:, None] - cost, epsilon, 0)
    return Potentials(f, g, row_error(f, g, epsilon), jnp.asarray(rounds))


def sinkhorn_plan(
    cost: Float[Array, "n m"], potentials: Potentials, epsilon: Float[Array, ""] | float
) -> Float[Array, "n m"]:
    """P_ij of the potentials: the plan, whose entries sum to one."""
    exponent = (potentials.f[:, None] + potentials.g - cost) / epsilon
    return jnp.exp(exponent) / (cost.shape[0] * cost.shape[1])


def plan_cost(plan: Float[Array, "n m"], cost: Float[Array, "n m"]) -> Float[Array, ""]:
    """sum_ij P_ij C_ij: what moving the mass costs, without the entropy."""
    return jnp.sum(plan * cost)


def entropic_cost(potentials: Potentials) -> Float[Array, ""]:
    """OT_eps of (1), through its dual value mean(f) + mean(g); the term of debiased Sinkhorn divergences."""
    return jnp.mean(potentials.f) + jnp.mean(potentials.g)

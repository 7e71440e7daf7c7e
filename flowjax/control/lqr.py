r"""The linear-quadratic regulator: the control problem whose best policy is known.

    x' = A x + B u + w,    w ~ N(0, W),    reward -(x'Q x + u'R u),    x_0 ~ N(0, S_0).                            (1)

With k steps to go the best policy is linear, u = -K x, and what is left to pay is x'P x plus what noise will add,

    P <- Q + A'P (A - B K),    K = (R + B'P B)^-1 B'P A,    from P = 0.                                            (2)

So over T steps no policy of any kind expects more than

    best return = -[ tr(P_T S_0) + sum over k < T of tr(P_k W) ].                                                  (3)

(2) converges to the solution of the algebraic Riccati equation. Doubling (Anderson 1978) takes 2^i of its steps in i: with
A_0 = A, G_0 = B R^-1 B', H_0 = Q and M = (I + G H)^-1,

    A <- A M A,    G <- G + A M G A',    H <- H + A' H M A,    H_i = P after 2^i steps.                            (4)

A linear policy u = -K x + e, e ~ N(0, E), keeps states Gaussian: with M = A - B K their covariance moves by

    S' = M S M' + W + B E B',    and a step costs    tr((Q + K'R K) S) + tr(R E).                                  (5)

(5) summed is the return of any gain, exactly and with a derivative; its fixed point (Lyapunov's equation) is the cost a step of
an endless episode. All of it is JAX: `jax.grad` of (5) is the exact policy gradient.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.arrays import normal_rows
from flowjax.control.environment import Environment, Step

DOUBLINGS = 24  # 2^24 steps of (2)


@dataclasses.dataclass(frozen=True)
class Problem:
    """The matrices of equation (1).

    Attributes:
      A, B: how states follow from states and actions.
      Q, R: what states and actions cost.
      W: covariance of the noise.
      S: covariance of the first state.
    """

    A: Float[Array, "n n"]
    B: Float[Array, "n m"]
    Q: Float[Array, "n n"]
    R: Float[Array, "m m"]
    W: Float[Array, "n n"]
    S: Float[Array, "n n"]

    @property
    def gain(self) -> Float[Array, "m n"]:
        """The best K of an endless episode."""
        return best_gain(self, riccati(self))

    def best_return(self, horizon: int) -> Float[Array, ""]:
        """Equation (3)."""

        def back(P, _):
            return self.Q + self.A.T @ P @ (self.A - self.B @ best_gain(self, P)), jnp.trace(P @ self.W)

        P, added = jax.lax.scan(back, jnp.zeros_like(self.Q), None, length=horizon)
        return -(jnp.trace(P @ self.S) + jnp.sum(added))


def best_gain(problem: Problem, P: Float[Array, "n n"]) -> Float[Array, "m n"]:
    """K of equation (2).

    Args:
      problem: the matrices.
      P: what states cost from the next step on.
    """
    B = problem.B
    return jnp.linalg.solve(problem.R + B.T @ P @ B, B.T @ P @ problem.A)


def riccati(problem: Problem) -> Float[Array, "n n"]:
    """The P that (2) converges to, by equation (4)."""
    unit = jnp.eye(len(problem.A), dtype=problem.A.dtype)

    def double(_, carry):
        A, G, H = carry
        M = jnp.linalg.inv(unit + G @ H)
        return A @ M @ A, G + A @ M @ G @ A.T, H + A.T @ H @ M @ A

    start = (problem.A, problem.B @ jnp.linalg.solve(problem.R, problem.B.T), problem.Q)
    return jax.lax.fori_loop(0, DOUBLINGS, double, start)[2]


def linear_return(
    problem: Problem,
    gain: Float[Array, "m n"],
    horizon: int,
    spread: Float[Array, "m m"] | float = 0.0,
    discount: float = 1.0,
) -> Float[Array, ""]:
    """What u = -K x + e expects of an episode: minus the sum of (5).

    Args:
      problem: the matrices.
      gain: K.
      horizon: steps.
      spread: E, the covariance of e.
      discount: a step counts this much less than the one before.
    """
    spread = jnp.broadcast_to(jnp.asarray(spread, problem.A.dtype), problem.R.shape)
    M, cost = problem.A - problem.B @ gain, problem.Q + gain.T @ problem.R @ gain

    def forward(S, _):
        return M @ S @ M.T + problem.W + problem.B @ spread @ problem.B.T, jnp.trace(cost @ S)

    _, costs = jax.lax.scan(forward, problem.S, None, length=horizon)
    return -jnp.sum(discount ** jnp.arange(horizon) * (costs + jnp.trace(problem.R @ spread)))


def stationary_covariance(problem: Problem, gain: Float[Array, "m n"]) -> Float[Array, "n n"]:
    """The fixed point of (5) without noise in the actions: one linear system in the n^2 entries of S."""
    M = problem.A - problem.B @ gain
    unit = jnp.eye(M.size, dtype=M.dtype)
    return jnp.linalg.solve(unit - jnp.kron(M, M), problem.W.ravel()).reshape(M.shape)


def average_reward(problem: Problem, gain: Float[Array, "m n"]) -> float:
    """Of a step of an endless episode under u = -K x.

    Args:
      problem: the matrices.
      gain: K, under which states stay finite.
    """
    radius = float(np.abs(np.linalg.eigvals(np.asarray(problem.A - problem.B @ gain))).max())
    if radius >= 1:
        raise ValueError(
            f"Under this gain states grow by a factor of {radius:.3g} a step, so an endless episode costs without bound. Give "
            "one under which the eigenvalues of A - B K are below 1."
        )
    cost = problem.Q + gain.T @ problem.R @ gain
    return -float(jnp.trace(cost @ stationary_covariance(problem, gain)))


def make_problem(A: Any, B: Any, Q: Any, R: Any, W: Any, S: Any) -> Problem:
    """The matrices as arrays, after checking that they fit one another and that costs are costs.

    Args:
      A, B, Q, R, W, S: nested sequences.
    """
    arrays = {name: jnp.asarray(value, float) for name, value in dict(A=A, B=B, Q=Q, R=R, W=W, S=S).items()}
    n, m = arrays["B"].shape if arrays["B"].ndim == 2 else (0, 0)
    wanted = dict(A=(n, n), B=(n, m), Q=(n, n), R=(m, m), W=(n, n), S=(n, n))
    for name, array in arrays.items():
        if array.shape != wanted[name] or not n * m:
            raise ValueError(
                f"The LQR has {name} of shape {array.shape} beside B of shape {arrays['B'].shape}; expected matrices, with B "
                "[states, actions], R [actions, actions] and all others [states, states]."
            )
    for name in "QRWS":
        array = np.asarray(arrays[name])
        least = np.linalg.eigvalsh(array).min()
        if not np.allclose(array, array.T) or least < (1e-9 if name == "R" else -1e-6):
            raise ValueError(
                f"The LQR's {name} must be symmetric with eigenvalues {'above' if name == 'R' else 'of at least'} zero; its "
                f"smallest is {least:.3g}."
            )
    return Problem(**arrays)


def lqr(
    dynamics: tuple = ((1.0, 0.2), (0.0, 1.0)),
    control: tuple = ((0.02,), (0.2,)),
    state_cost: tuple = ((1.0, 0.0), (0.0, 0.1)),
    action_cost: tuple = ((0.5,),),
    noise: float = 0.1,
    start: float = 1.0,
    horizon: int = 50,
) -> Environment:
    """Equation (1) as an environment that shows the whole state; the default is a point that is pushed towards zero.

    Args:
      dynamics: A.
      control: B.
      state_cost: Q.
      action_cost: R.
      noise: standard deviation of w, in every direction.
      start: standard deviation of the first state.
      horizon: steps of an episode.
    """
    unit = np.eye(len(dynamics))
    problem = make_problem(dynamics, control, state_cost, action_cost, noise**2 * unit, start**2 * unit)
    states, actions = problem.B.shape

    def reset(keys):
        x = start * normal_rows(keys, (states,))
        return x, x

    def step(x, u, keys):
        quadratic = lambda y, cost: jnp.einsum("bi,ij,bj->b", y, cost, y)
        reward = -(quadratic(x, problem.Q) + quadratic(u, problem.R))
        following = x @ problem.A.T + u @ problem.B.T + noise * normal_rows(keys, (states,))
        return Step(following, following, reward, jnp.zeros(len(x), bool))

    return Environment((states,), (actions,), horizon, reset, step, problem)

r"""Advantages of actions from rewards and a critic's values (Schulman et al. 2016), and what the critic learns from.

With V the critic, r_t the reward of step t, g_t = 1 where another step follows (or would, but for the limit of time), the error

    delta_t = r_t + gamma g_t V_{t+1} - V_t                                                                        (1)

is an advantage with the noise of one step and all of the critic's bias; discounted sums of it trade one for the other,

    A_t = delta_t + gamma lambda g_t A_{t+1},    A_T = 0.                                                          (2)

lambda = 0 is (1); lambda = 1 is the discounted sum of rewards, with gamma^(T-t) V_T for what was cut off, minus V_t. The critic
is fitted to the targets A_t + V_t by half the squared error.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def generalised_advantages(
    rewards: Float[Array, "b k"],
    values: Float[Array, "b k"],
    last: Float[Array, " b"],
    going: Float[Array, "b k"],
    discount: float,
    decay: float,
) -> Float[Array, "b k"]:
    """Equation (2).

    Args:
      rewards: of each step.
      values: of where each step begins.
      last: value of where the last step ends.
      going: 1 where another step follows, or would but for the limit of time.
      discount: gamma.
      decay: lambda.
    """
    following = jnp.concatenate([values[:, 1:], last[:, None]], axis=1)
    errors = rewards + discount * going * following - values

    def back(advantage, step):
        error, going = step
        advantage = error + discount * decay * going * advantage
        return advantage, advantage

    _, advantages = jax.lax.scan(back, jnp.zeros_like(last), (errors.T, going.T), reverse=True)
    return advantages.T


def value_loss(values: Float[Array, " b"], targets: Float[Array, " b"]) -> Float[Array, " b"]:
    """Half the squared error of the critic.

    Args:
      values: of the critic.
      targets: A + V, as they were when the episodes were played.
    """
    return 0.5 * (values - targets) ** 2

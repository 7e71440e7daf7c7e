r"""Who demonstrates: policies that are written down, and not the best ones on purpose.

    linear      u = -share K x + noise z, with K the best gain of a linear-quadratic problem                       (1)
    swing_up    a pendulum is pumped to the energy that it has when it stands, and caught there, less or more well

The energy of a rod of mass 1 and length 1 in gymnasium's Pendulum-v1, with theta = 0 upright and g = 10, is

    E = theta'^2 / 6 + 5 cos theta,    E = 5 upright at rest,    dE/dt = u theta',                                 (2)

so a torque u = pump (5 - E) theta' brings it there (Astrom & Furuta 2000); near the top -catch (3 theta + theta') holds it.
"""

from collections.abc import Callable

import jax.numpy as jnp

from flowjax.arrays import expand_to, normal_rows
from flowjax.control.environment import Environment
from flowjax.control.lqr import Problem

TORQUE, SPEED = 2.0, 8.0  # the bounds of Pendulum-v1, by which its actions and observations are scaled
NEAR = 0.9  # cos theta from which on the pendulum is caught


def linear(environment: Environment, share: float = 1.0, noise: float = 0.0) -> Callable:
    """Equation (1).

    Args:
      environment: 'lqr'.
      share: of the best gain; 1 is the best policy.
      noise: standard deviation of what is added.
    """
    if not isinstance(environment.oracle, Problem):
        raise ValueError("The expert 'linear' knows the best gain of the environment 'lqr', and of no other. Use that.")
    gain = share * environment.oracle.gain
    return lambda seen, keys: -seen @ gain.T + noise * normal_rows(keys, environment.action_shape)


def swing_up(environment: Environment, pump: float = 1.0, catch: float = 4.0, noise: float = 0.0) -> Callable:
    """Equation (2).

    Args:
      environment: 'gym' with Pendulum-v1.
      pump: torque for each unit of missing energy and speed.
      catch: torque for each unit of angle near the top; 0 lets it fall through.
      noise: standard deviation of what is added, of actions in [-1, 1].
    """
    if environment.observation_shape != (3,) or environment.action_shape != (1,):
        raise ValueError(
            f"The expert 'swing_up' reads the three numbers that Pendulum-v1 shows and gives one; this environment has "
            f"{environment.observation_shape} and {environment.action_shape}. Use dict(name='gym', id='Pendulum-v1')."
        )

    def act(seen, keys):
        cosine, sine, speed = seen[:, 0], seen[:, 1], SPEED * seen[:, 2]
        energy = speed**2 / 6 + 5 * cosine
        torque = jnp.where(cosine > NEAR, -catch * (3 * jnp.arctan2(sine, cosine) + speed), pump * (5 - energy) * speed)
        action = jnp.clip(expand_to(torque, seen) / TORQUE, -1.0, 1.0)
        return action + noise * normal_rows(keys, environment.action_shape)

    return act

"""Functions in JAX that rewards call by name, good ones and bad ones."""

import jax.numpy as jnp
import numpy as np


def cubed(samples, cond, scale=1.0):
    return scale * jnp.sum(samples**3, axis=-1) + cond.get("label", 0)


class Near:
    """Minus the distance from a place."""

    def __init__(self, place):
        self.place = jnp.asarray(place)

    def __call__(self, samples, cond):
        return -jnp.linalg.norm(samples - self.place, axis=-1)


def on_the_host(samples, cond):
    return np.asarray(samples).sum(axis=-1)


def decides(samples, cond):
    return samples[:, 0] if samples[0, 0] > 0 else samples[:, 1]


def column(samples, cond):
    return samples[:, :1]

"""Choosing at sampling time: of several draws the one that is worth most. Every tuning has to beat it at its price.

With F the law of what a draw is worth and no ties, the best of N draws has the density N F(r(x))^(N-1) p(x): its divergence
from p is log N - (N - 1) / N whatever the reward, and its price is N samples (Beirami et al. 2024).
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from flowjax.contract import Params, Sampler
from flowjax.rewards.reward import Rewards


def best_draw(sampler: Sampler, judge: Rewards, count: int) -> Sampler:
    """A sampler whose sample is the best of several of another's, under the same condition.

    Rewards on the host are asked from within the compiled program. Where nothing is known of any draw, because rewards failed
    and failures are skipped, the first is taken.

    Args:
      sampler: what draws.
      judge: what draws are worth.
      count: N.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 2:
        raise ValueError(f"best_of.count is {count!r}: of how many draws is the best taken? Expected two or more.")

    def total(values: Mapping[str, Array], samples: Array, cond: Mapping[str, Array]) -> Float[np.ndarray, "b n"]:
        """What draws are worth; what is not known, less than all else."""
        values, cond = ({name: np.asarray(array) for name, array in some.items()} for some in (values, cond))
        scores = judge.score(np.asarray(samples), cond) if judge.hosted else {}
        found = {**values, **scores}
        rows = len(next(iter(found.values())))
        worth = judge.total(found, np.arange(rows) // count).reshape(-1, count)
        return np.where(np.isnan(worth), -np.inf, worth).astype(np.float32)

    def draw(params: Params, conditions: Mapping[str, Array], keys: Key[Array, " b"]) -> Float[Array, "b ..."]:
        own = jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys)
        drawn = jax.lax.map(lambda some: sampler.draw(params, conditions, some), own)  # round by round
        together = jnp.moveaxis(drawn, 0, 1)
        samples = together.reshape(-1, *drawn.shape[2:])
        cond = {name: jnp.repeat(array, count, axis=0) for name, array in conditions.items()}
        values = judge.values(params, samples, cond)
        sent = (samples, cond) if judge.hosted else (jnp.zeros(0), {})
        worth = jax.pure_callback(total, jax.ShapeDtypeStruct((len(keys), count), jnp.float32), values, *sent)
        return together[jnp.arange(len(keys)), jnp.argmax(worth, axis=1)]

    told = dict(sampler.description)
    evaluations = None if told.get("nfe") is None else count * told["nfe"]
    description = {**told, "nfe": evaluations, "best_of": count, "rewards": sorted(judge.each)}
    return dataclasses.replace(sampler, draw=draw, description=description, brings={**sampler.brings, **judge.roles})

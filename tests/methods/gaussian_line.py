"""Preference tuning where everything is known: the exact flow of a Gaussian on the line, of which the mean alone is learnt."""

import jax
import jax.numpy as jnp
import numpy as np
from toys import toy_config

from flowjax.choices import build
from flowjax.config import ConfigDict
from flowjax.contract import DataSpec
from flowjax.methods import METHODS
from flowjax.models.network import Network
from flowjax.paths.oracles import gaussian
from flowjax.paths.path import linear_path
from flowjax.training.executors import JitExecutor
from flowjax.training.feed import make_feed
from flowjax.training.update import with_step

STD, MEAN, SIZE, GROUP = 0.5, 1.0, 512, 32
POINTS = DataSpec((1,))
RIGHT = dict(right=dict(name="linear", direction=(1.0,)))


def exact(data, **_):
    """The network: v(x, t) = c(t) x + (1 - t c(t)) mean, with c of `slope`."""

    def apply(tree, x, t, cond, *, s=None, keys=None):
        return gaussian(0.0, STD).prediction(linear_path(), "velocity", x - t[:, None] * tree["mean"], t) + tree["mean"]

    return Network(lambda key: {"mean": jnp.full(1, MEAN)}, apply, lambda cond, dropped: cond)


def slope(t):
    """c(t) of the exact velocity on the linear path."""
    return (t * STD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * STD**2)


def made(name, changes=None, size=SIZE, data=POINTS, **options):
    """A method on the exact network, and what runs it."""
    config = ConfigDict(toy_config().to_dict())
    config.batch_size, config.network, config.method = size, dict(name="exact"), dict(name=name)
    config.optimizer = dict(name="sgd", learning_rate=0.5, decay="constant", warmup_steps=0)
    config.samplers = dict(default=dict(name="euler", steps=2, role="ema"))
    config.update(changes or {})
    method = build("method", dict(name=name) | options, METHODS, config=config, data=data)
    return method, JitExecutor(method, config)


class Rows:
    """An iterator whose batches say how many samples are wanted, and no more."""

    def __init__(self, size=SIZE):
        self.size = size

    def stack_batches(self, count):
        return {
            "data": np.zeros((count, self.size, 1), np.float32),
            "row": np.tile(np.arange(self.size, dtype=np.int32), (count, 1)),
        }

    def get_state(self):
        return {}


def first_batch(method, executor, step=0):
    """The first batch of a period, the parameters and the feed."""
    feed = make_feed(Rows(executor.config.batch_size), method, executor)
    state = executor.start()
    batch = {name: jnp.asarray(value[0]) for name, value in feed.take(state, step, 1).items()}
    return with_step(batch, step), state.params, feed


def moved(params, by):
    """The parameters with another mean of the student."""
    return {**params, "student": {"mean": params["student"]["mean"] + by}}


def mean_loss(method, params, batch, key=0):
    """The masked mean of the only phase's loss, as a function of how far the student's mean has moved."""
    (phase,) = method.phases.values()
    mask = batch["mask"] / jnp.sum(batch["mask"])
    return lambda by: jnp.sum(mask * phase.loss(moved(params, by), batch, jax.random.key(key))[0])


def train(method, executor, steps):
    """The means of the student after each update."""
    feed, state, found = make_feed(Rows(executor.config.batch_size), method, executor), executor.start(), []
    for step in range(steps):
        state, metrics = executor.run(state, feed.take(state, step, 1), method.due(step), 1)
        found.append(float(state.params["student"]["mean"][0]))
    assert float(metrics["healthy"][0]) == 1
    return np.asarray(found), state, metrics, feed

"""Students and teachers in small, shared by the tests of distillation methods: a Gaussian whose flow map is affine."""

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.arrays import batch_times, expand_to
from flowjax.choices import build
from flowjax.config import defaults
from flowjax.contract import DataSpec
from flowjax.methods import METHODS
from flowjax.models.network import Network
from flowjax.paths.closed_forms import flow_map
from flowjax.paths.flow_maps import jump_target
from flowjax.paths.oracles import ring

TEACHER = dict(name="mixture", modes=1, radius=0.7, std=0.4)
EXACT = ring(1, 0.7, 0.4)
ROWS = 8


def config_of(**changes):
    """The defaults with a network of eight units and a batch of eight; `a__b` stands for config.a.b."""
    config = defaults()
    config.batch_size = ROWS
    config.steps = 100
    config.network = dict(name="mlp", width=8, depth=1)
    with config.ignore_type():
        for key, value in changes.items():
            *groups, last = key.split("__")
            node = config
            for group in groups:
                node = node[group]
            node[last] = value
    return config


def method_of(config, data=None, **options):
    """The method `options['name']` under a config."""
    return build("method", options, METHODS, config=config, data=data or DataSpec((2,)))


def params_of(method, seed=0):
    """Every role at its start."""
    params = {}
    for index, (name, role) in enumerate(method.roles.items()):
        source = role.copy_of
        params[name] = params[source] if source else role.init(jax.random.key(seed + index))
    return params


def batch_of(step=0, rows=ROWS, **arrays):
    """Points of the Gaussian, coupled with noise."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(rows, 2)).astype(np.float32)
    data = np.asarray(EXACT.means) + 0.4 * rng.normal(size=(rows, 2)).astype(np.float32)
    batch = dict(
        data=data.astype(np.float32),
        noise=noise,
        mask=np.ones(rows, np.float32),
        row=np.arange(rows, dtype=np.int32),
        step=np.full(rows, step, np.int32),
        **arrays,
    )
    return {name: jnp.asarray(value) for name, value in batch.items()}


def exact_map(path, x, t, s):
    """The Gaussian's flow map."""
    return flow_map(EXACT, path, x, t, s)


def exact_network(path, prediction="velocity"):
    """A factory for NETWORKS: the Gaussian's own flow map as a student, plus one parameter that leads astray.

    With one time it jumps to the end of the path. At s = t it is the field.
    """

    def factory(data, dtype="float32", two_times=False):
        def apply(tree, x, t, cond, *, s=None, keys=None):
            t = batch_times(t, x)
            s = batch_times((t if two_times else path.end) if s is None else s, x)
            same = expand_to(s == t, x)
            to = jnp.where(s == t, t + 0.1 * jnp.where(t < 0.5, 1, -1), s)
            value = jump_target(path, prediction, x, t, exact_map(path, x, t, to), to)
            return jnp.where(same, EXACT.prediction(path, prediction, x, t), value) + tree["astray"]

        return Network(lambda key: {"astray": jnp.zeros(2)}, apply, lambda cond, dropped: dict(cond), {}, two_times)

    return factory

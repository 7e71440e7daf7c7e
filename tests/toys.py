"""Small methods with closed-form updates, shared by the training tests."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flowjax.config import defaults
from flowjax.contract import Method, Phase, Role, Track

WIDTH, OUT = 64, 32  # large enough to be worth splitting over devices


def squared_error(params, batch, key):
    """|data W - target|^2 per example; NaN data gives a NaN value for its example alone."""
    error = batch["data"] @ params["student"]["w"] - batch["target"]
    value = jnp.sum(error**2, axis=-1)
    return value, {"t": batch["time"], "error": jnp.sqrt(value)}


def regression(tx=None, decay=0.9) -> Method:
    """Linear least squares with an averaged copy of the weights."""
    start = lambda key: {"w": 0.1 * jax.random.normal(key, (WIDTH, OUT))}
    return Method(
        roles={
            "student": Role(init=start, tx=tx or optax.sgd(1e-3), learning_rate=optax.constant_schedule(1e-3)),
            "ema": Role(copy_of="student", track=Track("student", lambda step: jnp.float32(1 - decay))),
        },
        phases={"fit": Phase(squared_error, ("student",))},
    )


def regression_batch(seed: int, size: int = 16, stack: int | None = None) -> dict[str, np.ndarray]:
    """A batch of the regression problem, or `stack` of them stacked."""
    if stack is not None:
        batches = [regression_batch(seed + i, size) for i in range(stack)]
        return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return dict(
        data=normal(size, WIDTH),
        target=normal(size, OUT),
        time=rng.uniform(size=size).astype(np.float32),
        mask=np.ones(size, np.float32),
        row=np.arange(size, dtype=np.int32),
    )


def toy_config(**changes):
    """The defaults with a batch of 16, and changes."""
    config = defaults()
    config.batch_size = 16
    config.update(changes)
    return config


def host(tree):
    """A tree as NumPy arrays."""
    return jax.tree.map(np.asarray, tree)

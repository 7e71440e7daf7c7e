"""A role that loads published weights starts from them, whatever the seed, and refuses weights of another shape."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import toy_config

from flowjax.contract import Method, Phase, Role
from flowjax.models.stored import CheckpointError
from flowjax.training.run import Run


def run_with(weights, init=None):
    loss = lambda params, batch, key: (params["student"] * batch["mask"] * params["eye"]["w"].sum(), {})
    roles = {
        "student": Role(init=lambda key: jnp.ones(()), tx=optax.sgd(0.1)),
        "eye": Role(load=lambda: weights, init=init),
    }
    run = Run(toy_config())
    run.__dict__["method"] = Method(roles, {"fit": Phase(loss, ("student",))})
    return run


def test_a_loaded_role_starts_from_its_weights_and_stays_frozen():
    weights = {"w": np.arange(3, dtype=np.float32)}
    run = run_with(weights, init=lambda key: {"w": jnp.zeros(3)})
    state = run.executor.start()
    np.testing.assert_array_equal(state.params["eye"]["w"], weights["w"])
    assert set(state.optimizer) == {"student"}


def test_weights_of_another_shape_are_refused():
    with pytest.raises(CheckpointError, match="cannot start from the weights it loads.*\n.*wanted .3,., found .4,."):
        _ = run_with({"w": np.zeros(4, np.float32)}, init=lambda key: {"w": jnp.zeros(3)}).restored

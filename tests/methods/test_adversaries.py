"""Optional adversaries: a discriminator that plays learns to tell, and sends a student that is astray back to the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation import EXACT, TEACHER, config_of, exact_network, method_of

from flowjax.models import NETWORKS
from flowjax.paths.path import make_path
from flowjax.training.state import initial_state
from flowjax.training.update import make_update

ROUNDS, BATCH = 60, 128
OPTIONS = {
    "dmd2": ({}, "fake", "student"),
    "trajectory_consistency": (dict(adaptive=False, denoising=0.0), "discriminator", "trajectories"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_game_leads_back_to_the_data(name, monkeypatch):
    """The student is the exact map plus a constant, so the way back is known: against that constant."""
    options, judging, learning = OPTIONS[name]
    monkeypatch.setitem(NETWORKS, "exact", exact_network(make_path("linear")))
    config = config_of(network=dict(name="exact", two_times=name == "trajectory_consistency"), batch_size=BATCH)
    rule = dict(name="adam", learning_rate=1e-2)
    options = {**options, "start": "fresh", "adversarial_weight": 1.0, "discriminator_optimizer": rule}
    method = method_of(config, name=name, teacher=TEACHER, **options)
    update, root = make_update(method, (judging,)), jax.random.key(4)
    astray = jnp.array([0.6, -0.4])
    state = initial_state(method, 1, {})
    state = state.replace(params={**state.params, "student": {"astray": astray}})

    def batch_at(index):
        data = EXACT.sample(jax.random.fold_in(jax.random.key(2), index), BATCH)
        return {"data": data, "mask": jnp.ones(BATCH), "row": jnp.arange(BATCH, dtype=jnp.int32)}

    @jax.jit
    def play(state):
        return jax.lax.scan(
            lambda state, index: (update(state, batch_at(index), root)[0], None), state, jnp.arange(ROUNDS)
        )[0]

    @jax.jit
    def slope(params):
        batch = {**batch_at(ROUNDS), "step": jnp.zeros(BATCH, jnp.int32)}
        fooling = lambda student: method.phases[learning].loss({**params, "student": student}, batch, root)[1][
            "adversarial"
        ]
        return jax.grad(lambda student: jnp.mean(fooling(student)))(params["student"])["astray"]

    taught = play(state).params
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), taught["discriminator"], state.params["discriminator"]
    )
    assert max(jax.tree.leaves(moved)) > 0.1
    np.testing.assert_array_equal(taught["student"]["astray"], astray)
    uphill = slope(taught)
    cosine = float(uphill @ astray / jnp.linalg.norm(uphill) / jnp.linalg.norm(astray))
    assert cosine > 0.9 and float(jnp.linalg.norm(uphill)) > 0.05

"""Trained for some seconds, a student of each method on trajectories lands where the teacher's flow does, point by point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation import EXACT, TEACHER, config_of, exact_map, method_of

from flowjax.arrays import normal_rows
from flowjax.paths.path import make_path
from flowjax.training.state import initial_state
from flowjax.training.update import make_update

STEPS, BATCH = 800, 64
SETTINGS = {  # options of the method, changes of the config, steps of the student
    "direct": (dict(teacher_steps=8), {}, 1),
    "progressive": (dict(first_steps=8), {}, 1),
    "reflow": (dict(teacher_steps=8), dict(time=dict(name="u_shaped")), 1),
    "boot": (dict(stride=0.2, solver="rk4"), dict(network__two_times=True), 1),
    "perflow": (dict(windows=2, teacher_steps=4), {}, 2),
}


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_it_lands_where_the_flow_does(name):
    options, changes, steps = SETTINGS[name]
    config = config_of(
        batch_size=BATCH,
        steps=STEPS,
        network=dict(name="mlp", width=32, depth=2, octaves=3),
        optimizer=dict(name="adam", learning_rate=5e-3, decay="cosine"),
        samplers=dict(default=dict(name="flow_map" if name == "boot" else "euler", steps=steps, role="student")),
        **changes,
    )
    method = method_of(config, name=name, teacher=TEACHER, **options)
    update = make_update(method, tuple(method.phases))

    @jax.jit
    def train(state):
        def step(state, index):
            data = EXACT.sample(jax.random.fold_in(jax.random.key(2), index), BATCH)
            batch = {"data": data, "mask": jnp.ones(BATCH), "row": jnp.arange(BATCH, dtype=jnp.int32)}
            return update(state, batch, jax.random.key(3))[0], None

        return jax.lax.scan(step, state, jnp.arange(STEPS))[0]

    keys = jax.random.split(jax.random.key(5), 512)
    samples = method.samplers["default"].draw(train(initial_state(method, 1, {})).params, {}, keys)
    # A sampler draws its noise with the first half of a key.
    noise = normal_rows(jax.vmap(lambda key: jax.random.split(key)[0])(keys), (2,))
    error = np.linalg.norm(samples - exact_map(make_path("linear"), noise, 0.0, 1.0), axis=1)
    assert np.median(error) < 0.1 and error.max() < 0.7  # noise and samples are about 1 apart

"""Progressive distillation as a method: whose steps a stage learns, when roles are handed over, what begins anew."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation import EXACT, TEACHER, batch_of, config_of, method_of, params_of

from flowjax.methods.progressive import stage_lengths
from flowjax.paths.path import make_path

KEY = jax.random.key(3)
OPTIONS = dict(name="progressive", teacher=TEACHER, first_steps=4)
STILL = dict(name="mlp", width=8, depth=1, zero_output=True)  # says 0, so that the loss is the target's square


def values(method, params, step):
    return jax.jit(method.phases["landing"].loss)(params, batch_of(step), KEY)


def test_each_stage_learns_two_steps_of_its_teacher():
    """Steps 0..32 are of the first stage of three; a student that says 0 has the teacher's mean velocity for its error."""
    method = method_of(config_of(network=STILL), **OPTIONS)
    params, path = params_of(method), make_path("linear")
    value, metrics = values(method, params, 0)
    t = metrics["t"]
    assert set(np.round(np.asarray(t) * 4, 5)) <= {0.0, 1.0, 2.0, 3.0} and (metrics["student_steps"] == 4).all()
    batch = batch_of()
    velocity = lambda x, t: EXACT.prediction(path, "velocity", x, t)
    x = path.sample(batch["noise"], batch["data"], t)
    one = velocity(x, t)
    expected = 0.5 * (one + velocity(x + one / 8, t + 1 / 8))
    np.testing.assert_allclose(value, jnp.mean(expected**2, axis=1), rtol=1e-3)
    for step, steps in ((33, 2), (67, 1)):
        _, metrics = values(method, params, step)
        assert (metrics["student_steps"] == steps).all()
        assert set(np.round(np.asarray(metrics["t"]) * steps, 5)) <= set(range(steps))


def test_the_teacher_is_asked_in_the_first_stage_alone_and_the_student_before_after_that():
    method = method_of(config_of(), **OPTIONS)
    params = params_of(method)
    moved = {
        name: {**params, name: jax.tree.map(lambda leaf: leaf + 0.1, params[name])} for name in ("teacher", "previous")
    }
    for step, read in ((0, "teacher"), (32, "teacher"), (33, "previous"), (99, "previous")):
        before = values(method, params, step)[0]
        for name in moved:
            assert bool((values(method, moved[name], step)[0] == before).all()) == (name != read), (step, name)
    gradient = jax.grad(lambda params: jnp.sum(values(method, params, 40)[0]))(params)
    assert all(not leaf.any() for name in ("teacher", "previous") for leaf in jax.tree.leaves(gradient[name]))


def test_the_student_is_handed_over_after_the_last_update_of_a_stage():
    method = method_of(config_of(), **OPTIONS)
    track = method.roles["previous"].track
    rates = np.array([track.rate(jnp.asarray(step)) for step in range(100)])
    np.testing.assert_array_equal(np.flatnonzero(rates), [32, 66])
    assert track.source == "student" and set(rates) == {0.0, 1.0}


def test_learning_rate_and_averages_begin_anew_with_every_stage():
    optimizer = dict(name="adam", learning_rate=1e-3, decay="linear", warmup_steps=3)
    config = config_of(optimizer=optimizer, ema=dict(ema=dict(name="power", std=0.1)))
    method = method_of(config, **OPTIONS)
    rate = np.array([method.roles["student"].learning_rate(step) for step in range(100)])
    begins = [0, *itertools.accumulate(stage_lengths(100, 4, 1)[:-1])]
    assert (rate[begins] == 0).all() and (rate[[b - 1 for b in begins[1:]]] < 5e-5).all()
    np.testing.assert_allclose(rate[[b + 3 for b in begins]], 1e-3, rtol=1e-4)
    follow = method.roles["ema"].track.rate
    averages = np.array([follow(jnp.asarray(step)) for step in range(100)])
    np.testing.assert_array_equal(np.flatnonzero(averages == 1), begins)
    np.testing.assert_allclose(averages[begins[1] :][:30], averages[:30], rtol=1e-5)


def test_stage_lengths():
    assert stage_lengths(100, 4, 1) == (33, 34, 33)
    assert stage_lengths(100, 4, 2, (1, 3)) == (25, 75)
    assert stage_lengths(10, 8, 8) == (10,)
    for arguments, message in (
        ((100, 12, 1), "never is last_steps=1"),
        ((100, 1, 4), "never is last_steps=4"),
        ((100, 4, 1, (1, 2)), "expected 3 positive numbers"),
        ((2, 16, 1), "do not divide into 5 stages"),
    ):
        with pytest.raises(ValueError, match=message):
            stage_lengths(*arguments)
    with pytest.raises(ValueError, match="'time' is"):
        method_of(config_of(time=dict(name="cosmap")), **OPTIONS)

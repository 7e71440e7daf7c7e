"""Optimizers do what their names say, on matrices whose answer is known."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowjax.methods.optimizers import make_optimizer, resting

ROTATION = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]


def first_step(spec, parameters, gradients):
    optimizer = make_optimizer(spec, 10)
    changes, _ = optimizer.tx.update(gradients, optimizer.tx.init(parameters), parameters)
    return changes


def test_muon_moves_a_matrix_by_equal_singular_values_along_its_gradient():
    """The gradient U S V^T becomes -rate U V^T, but for the iteration's coarse idea of 1 (0.7 to 1.2)."""
    gradient = jnp.asarray(ROTATION @ np.diag([3.0, 2.0, 1.0, 1.0, 0.5, 0.5]), jnp.float32)
    change = first_step(dict(name="muon", learning_rate=0.1, clip_norm=None), {"w": gradient * 0}, {"w": gradient})["w"]
    aligned = -np.asarray(change) / 0.1 @ np.eye(6)
    values = np.linalg.svd(aligned, compute_uv=False)
    assert values.min() > 0.6 and values.max() < 1.3
    # In the bases of the gradient the step is diagonal.
    diagonal = ROTATION.T @ aligned
    np.testing.assert_allclose(diagonal - np.diag(np.diag(diagonal)), 0, atol=1e-4)
    assert (np.diag(diagonal) > 0.6).all()


def test_muon_sees_a_convolution_as_the_matrix_from_its_inputs_and_leaves_vectors_to_nadam():
    draw = np.random.default_rng(1)
    kernel, bias = jnp.asarray(draw.normal(size=(3, 3, 2, 5)), jnp.float32), jnp.asarray([1.0, -2.0, 3.0, -4.0, 5.0])
    tree = {"kernel": kernel, "bias": bias}
    spec = dict(name="muon", learning_rate=0.1, vector_rate=0.5, clip_norm=None)
    changes = first_step(spec, {name: leaf * 0 for name, leaf in tree.items()}, tree)
    flat = first_step(spec, {"kernel": jnp.zeros((18, 5))}, {"kernel": kernel.reshape(18, 5)})
    np.testing.assert_allclose(changes["kernel"].reshape(18, 5), flat["kernel"], atol=1e-6)
    # The first step of Nadam: b1 m / (1 - b1^2) + g (1 - b1) / (1 - b1) with m = (1 - b1) g, over |g|.
    np.testing.assert_allclose(changes["bias"], -0.05 * (0.9 * 0.1 / 0.19 + 1) * np.sign(bias), rtol=1e-4)


def steps_of(optimizer, gradients):
    parameters = {"w": jnp.zeros(gradients.shape[1:])}
    state = optimizer.tx.init(parameters)
    for gradient in gradients:
        changes, state = optimizer.tx.update({"w": gradient}, state, parameters)
        yield changes["w"]


def test_a_natural_step_does_not_depend_on_the_units_of_the_parameters():
    """Of parameters c times smaller gradients are c times larger, and changes c times smaller: the same function moves."""
    draw = np.random.default_rng(2)
    gradients, units = jnp.asarray(draw.normal(size=(5, 4, 3))), jnp.asarray(np.geomspace(1e-2, 1e2, 12).reshape(4, 3))
    optimizer = make_optimizer(dict(name="natural", learning_rate=0.1, damping=0.0), 10)
    for plain, scaled in zip(steps_of(optimizer, gradients), steps_of(optimizer, gradients * units)):
        np.testing.assert_allclose(scaled * units, plain, rtol=1e-4)


def test_a_natural_step_is_as_long_as_it_is_told_in_the_metric_of_the_gradients():
    """Gradients that vary together, along three directions: what another one says of a step has the deviation of its length."""
    draw = np.random.default_rng(3)
    together = draw.normal(size=(3, 300)) + 0.3
    gradients = lambda count: draw.normal(size=(count, 3)) @ together + 0.1 * draw.normal(size=(count, 300))
    optimizer = make_optimizer(dict(name="natural", learning_rate=0.1, b2=0.98), 300)
    steps = list(steps_of(optimizer, jnp.asarray(gradients(300))))
    told = np.std([gradients(200) @ np.asarray(step) for step in steps[50:]])
    assert told == pytest.approx(0.1, rel=0.25)
    # Of the first gradient, which is all that is known then, after one of zero too, which tells nothing.
    first = jnp.asarray(gradients(1)[0])
    (step,) = steps_of(optimizer, first[None])
    assert float(-first @ step) == pytest.approx(0.1, rel=1e-2)
    still, after = steps_of(optimizer, jnp.stack([0 * first, first]))
    np.testing.assert_allclose(after, step, rtol=1e-5)
    assert not np.asarray(still).any()


def test_a_natural_step_finds_what_noise_hides_from_adam():
    """Of gradients with mean g and deviation s the most is gained for its risk along g / s^2: sqrt(sum g^2 / s^2)."""
    draw = np.random.default_rng(4)
    deviation = np.geomspace(1e-2, 10, 400)
    mean = 0.25 * np.abs(draw.normal(size=400)) * np.minimum(deviation, 0.3)
    gradients = jnp.asarray(mean + deviation * draw.normal(size=(400, 400)))
    best, worth = np.sqrt(np.sum(mean**2 / deviation**2)), {}
    for name, spec in {"adam": dict(b1=0.99), "natural": dict(b1=0.99, damping=1e-8)}.items():
        *_, change = steps_of(make_optimizer(dict(name=name, **spec), 400), gradients)
        worth[name] = -np.sum(mean * change) / np.sqrt(np.sum((deviation * np.asarray(change)) ** 2))
    assert worth["natural"] > 0.8 * best > 2 * worth["adam"], worth


@pytest.mark.parametrize("name", ["adam", "muon", "natural", "sgd"])
def test_a_quadratic_is_brought_down(name):
    optimizer = make_optimizer(dict(name=name, learning_rate=0.1, decay="linear"), 200)
    parameters = {"w": jnp.asarray(ROTATION, jnp.float32), "b": jnp.ones(3)}
    state = optimizer.tx.init(parameters)
    for _ in range(200):
        changes, state = optimizer.tx.update(parameters, state, parameters)
        parameters = optax.apply_updates(parameters, changes)
    assert optax.tree.norm(parameters) < 0.1


def test_the_rates_that_are_logged():
    assert make_optimizer(dict(name="muon", learning_rate=0.02, warmup_steps=4), 10).learning_rate(2) == 0.01


def test_an_optimizer_that_rests_keeps_its_momentum_for_later():
    plain = make_optimizer(dict(name="adam", learning_rate=0.1, decay="linear"), 10).tx
    resting_one = resting(plain)
    parameters, gradient = {"w": jnp.zeros(3), "b": jnp.zeros(2)}, {"w": jnp.arange(3.0), "b": jnp.ones(2)}
    nothing = {"w": jnp.zeros(3), "b": jnp.zeros(2)}
    state, one = resting_one.init(parameters), plain.init(parameters)
    for gradients, moves in ((gradient, True), (nothing, False), ({**nothing, "b": jnp.ones(2)}, True)):
        changes, state = resting_one.update(gradients, state, parameters)
        if not moves:
            assert not any(np.asarray(leaf).any() for leaf in changes.values())
            continue
        expected, one = plain.update(gradients, one, parameters)
        for name in parameters:
            np.testing.assert_allclose(changes[name], expected[name], rtol=1e-6)

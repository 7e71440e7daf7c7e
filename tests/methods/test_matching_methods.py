"""Distribution matching and adversarial distillation as methods: who is trained by what, generators, and refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.config import defaults
from flowjax.contract import DataSpec
from flowjax.methods import METHODS
from flowjax.methods.generators import make_generator
from flowjax.methods.judges import make_judge
from flowjax.methods.parts import make_setting
from flowjax.models.network import Network
from flowjax.training.state import initial_state
from flowjax.training.update import phase_gradients

DATA = DataSpec((2,))
BATCH = dict(
    data=jax.random.normal(jax.random.key(1), (16, 2)),
    mask=jnp.ones(16),
    row=jnp.arange(16),
    step=jnp.zeros(16, jnp.int32),
)
KEY = jax.random.key(3)
EXACT = dict(teacher=dict(name="mixture"), start="fresh")


def config_of(**changes):
    config = defaults()
    config.network = dict(name="mlp", width=8, depth=1)
    config.steps = 50
    for key, value in changes.items():
        config[key] = value
    return config


def method_of(name, config=None, data=DATA, **options):
    return METHODS[name](config=config or config_of(), data=data, **EXACT, **options)


ADVERSARY = dict(adversarial_weight=0.1, penalty_weight=0.5)
CASES = {
    "dmd": ("dmd", {}, "fake"),
    "dmd2": ("dmd2", dict(steps=3), "fake"),
    "dmd2_gan": ("dmd2", dict(steps=2, divergence="jensen_shannon", **ADVERSARY), "fake"),
    "sid": ("sid", dict(scale="gaussian"), "fake"),
    "ladd": ("ladd", dict(penalty_weight=0.5, penalty_step=0.1), "discriminator"),
    "add": ("add", dict(penalty_weight=0.5, inputs="simulated"), "discriminator"),
}


@pytest.mark.parametrize("case", CASES)
def test_phases_train_what_they_should_and_every_figure_is_finite(case):
    name, options, other = CASES[case]
    method = method_of(name, **options)
    assert set(method.phases) == {other, "student"} and method.phases["student"].trains == ("student",)
    trained = {role for role, it in method.roles.items() if it.tx is not None}
    assert trained == {role for phase in method.phases.values() for role in phase.trains}
    assert method.roles["teacher"].tx is None
    params = initial_state(method, 0, {}).params
    for phase in method.phases.values():
        _, gradients, metrics = jax.jit(lambda p, phase=phase: phase_gradients(phase, p, BATCH, KEY))(params)
        assert set(gradients) == set(phase.trains)
        for role, tree in gradients.items():
            size = sum(float(jnp.sum(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree))
            assert np.isfinite(size) and size > 0, role
        assert all(np.isfinite(np.asarray(value)).all() for value in metrics.values())


@pytest.mark.parametrize("case", CASES)
def test_losses_reach_no_frozen_parameters(case):
    """Even asked directly: the student's loss has no gradient by the fake denoiser, the discriminator or the teacher."""
    name, options, other = CASES[case]
    method = method_of(name, **options)
    params = initial_state(method, 0, {}).params
    frozen = {role: tree for role, tree in params.items() if role in ("teacher", "fake", "discriminator")}
    loss = lambda some: jnp.sum(method.phases["student"].loss({**params, **some}, BATCH, KEY)[0])
    for leaf in jax.tree.leaves(jax.grad(loss)(frozen)):
        np.testing.assert_array_equal(leaf, 0)
    critic = lambda tree: jnp.sum(method.phases[other].loss({**params, "student": tree}, BATCH, KEY)[0])
    for leaf in jax.tree.leaves(jax.grad(critic)(params["student"])):
        np.testing.assert_array_equal(leaf, 0)


def test_two_time_scales():
    method = method_of("dmd2", student_every=5, fake_warmup=10)
    assert [step for step in range(25) if method.phases["student"].due(step)] == [10, 15, 20]
    assert all(method.phases["fake"].due(step) for step in range(25))
    config = config_of(optimizer=dict(name="adam", learning_rate=1.0, decay="linear"))
    rate = method_of("dmd2", config, student_every=5, fake_warmup=10).roles["student"].learning_rate
    assert float(rate(8)) == 0.0 < float(rate(7))  # (50 - 10) / 5 updates


def affine(setting):
    """A student whose prediction of the data is a x + b t."""
    network = Network(
        init=lambda key: {"a": jnp.float32(0.5), "b": jnp.float32(0.3)},
        apply=lambda tree, x, t, cond, s=None, keys=None: tree["a"] * x + tree["b"] * t[:, None],
        drop=lambda cond, dropped: cond,
    )
    return dataclasses.replace(setting, network=network, prediction="data")


def test_a_generator_simulates_its_sampler_and_differentiates_the_last_step_alone():
    generator = make_generator(affine(make_setting(config_of(), DATA, "velocity")), 4)
    assert generator.times == (0.0, 0.25, 0.5, 0.75)
    tree, seen = generator.setting.network.init(KEY), {}
    for seed in range(30):
        key = jax.random.key(seed)
        x, t = generator.simulated(tree, BATCH, {}, key)
        assert len(set(np.asarray(t).tolist())) == 1
        seen[float(t[0])] = (key, x)
    assert set(seen) == set(generator.times)
    noise = lambda key: generator.noise(BATCH, key)
    # by hand: one step of the sampler, then the next point
    key, x = seen[0.25]
    first, _, again = jax.random.split(key, 3)
    clean = 0.5 * noise(first)
    np.testing.assert_allclose(x, 0.25 * clean + 0.75 * noise(jax.random.fold_in(again, 0)), rtol=1e-5, atol=1e-6)
    moved = lambda tree, key: jnp.sum(generator.simulated(tree, BATCH, {}, key)[0] ** 2)
    for key, _ in seen.values():
        assert all(float(leaf) == 0 for leaf in jax.tree.leaves(jax.grad(moved)(tree, key)))
    # an example's points depend on its row alone, not on its neighbours
    half = {name: value[8:] for name, value in BATCH.items()}
    key, x = seen[0.75]
    np.testing.assert_allclose(generator.simulated(tree, half, {}, key)[0], x[8:], rtol=1e-6)


def test_points_from_data_lie_at_the_students_times():
    generator = make_generator(make_setting(config_of(), DATA, "velocity"), 4)
    still = dataclasses.replace(generator, setting=dataclasses.replace(generator.setting))
    x, t = still.from_data(BATCH, KEY)
    assert set(np.asarray(t).tolist()) <= {0.0, 0.25, 0.5, 0.75} and len(set(np.asarray(t).tolist())) > 1
    noise = (x - t[:, None] * BATCH["data"]) / (1 - t[:, None])
    assert 0.6 < float(noise.std()) < 1.4


def test_clean_tokens_are_those_at_the_end_of_the_path():
    data = DataSpec((4, 4, 1), num_classes=3)
    config = config_of(network=dict(name="dit", width=8, depth=2, heads=2, patch=2))
    network = make_setting(config, data, "velocity").network
    options = dict(backbone=(network, "teacher"), end=0.875)
    clean, noised = (
        make_judge(dict(name="tokens"), config, data, None, noised=noised, **options) for noised in (False, True)
    )
    params = {"teacher": network.init(KEY), "discriminator": clean.roles["discriminator"].init(KEY)}
    # a fresh transformer's blocks begin as the identity: every layer gets something to say
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(KEY, leaf.shape), params)
    x, cond = jax.random.normal(KEY, (5, 4, 4, 1)), {"label": jnp.arange(5) % 3}
    seen = clean.logits(params, x, None, cond)
    np.testing.assert_allclose(seen, noised.logits(params, x, jnp.full(5, 0.875), cond), rtol=1e-5, atol=1e-6)
    assert (
        np.abs(seen - clean.logits(params, x, None, {"label": jnp.full(5, 2)}))[:2].max() > 1e-4
    )  # it knows the class
    assert np.abs(seen - noised.logits(params, x, jnp.full(5, 0.2), cond)).max() > 1e-4


def test_what_does_nothing_is_refused():
    with pytest.raises(ValueError, match="adversarial_weight is 0, so there is no discriminator"):
        method_of("dmd2", divergence="forward_kl")
    with pytest.raises(ValueError, match="this is method 'dmd2'"):
        method_of("dmd", regression_weight=0.0)
    with pytest.raises(ValueError, match="penalty_step=0.1 belongs to a penalty"):
        method_of("ladd", penalty_step=0.1)
    with pytest.raises(ValueError, match="config entry 'coupling'"):
        method_of("sid", config_of(coupling=dict(name="minibatch_ot")))
    with pytest.raises(ValueError, match="moves nothing at the start of the path"):
        method_of("sid", prediction="noise")
    with pytest.raises(ValueError, match="method.distillation_weight is 0"):
        method_of("add", distillation_weight=0.0)
    with pytest.raises(ValueError, match="Unknown discriminator 'patch'"):
        method_of("ladd", discriminator=dict(name="patch"))
    with pytest.raises(ValueError, match="fake_warmup=50: expected at least 1, and a step of the run"):
        method_of("sid", fake_warmup=50)

"""A method with adapters: losses and samplers see sums, gradients reach factors alone, copies share one base."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from flowjax.config import ConfigError, defaults, validate
from flowjax.contract import Collect, DataSpec, Method, Phase, Role, Sampler, Track
from flowjax.methods.lora import with_lora
from flowjax.models.lora import Adapter, is_adapter, merged
from flowjax.models.mlp import mlp
from flowjax.training.state import initial_state
from flowjax.training.update import phase_gradients

NETWORK = mlp(DataSpec((2,)), width=8, depth=2)
TREE = NETWORK.init(jax.random.key(7))
BATCH = dict(
    data=jax.random.normal(jax.random.key(1), (8, 2)), mask=jnp.ones(8), row=jnp.arange(8), step=jnp.zeros(8, jnp.int32)
)
KEY = jax.random.key(3)


def loss(params, batch, key):
    t = jnp.full(8, 0.5)
    apart = NETWORK.apply(params["student"], batch["data"], t, {}) - NETWORK.apply(
        params["teacher"], batch["data"], t, {}
    )
    return jnp.sum((apart - 1.0) ** 2, axis=1), {}


def method_of(**roles):
    tx = optax.sgd(0.1)
    start = dict(init=NETWORK.init, restore_from="run:ema")
    return Method(
        roles={
            "student": Role(**start, tx=tx),
            "teacher": Role(**start),
            "ema": Role(copy_of="student", track=Track("student", lambda step: 0.1)),
            "other": Role(init=NETWORK.init, load=lambda: TREE),
            **roles,
        },
        phases={"fit": Phase(loss, ("student",))},
        samplers={
            "default": Sampler(
                lambda params, cond, keys: NETWORK.apply(
                    params["ema"], jnp.ones((len(keys), 2)), jnp.zeros(len(keys)), {}
                ),
                "ema",
                {},
            ),
            "teacher": Sampler(lambda params, cond, keys: params["teacher"]["output"]["bias"][None], "teacher", {}),
        },
    )


def options(**changes):
    return ConfigDict({**defaults().lora.to_dict(), "rank": 2, **changes})


def start_of(method):
    return initial_state(
        method, 0, {name: TREE for name, role in method.roles.items() if role.restore_from or role.load}
    )


def test_without_a_rank_it_is_the_method_itself():
    method = method_of()
    assert with_lora(method, options(rank=0)) is method


def test_a_shared_base_is_stored_once_and_everything_starts_as_it_was():
    plain, adapted = method_of(), with_lora(method_of(), options())
    params = start_of(adapted).params
    assert set(params) == {"base", "student", "ema", "other"}  # the teacher is the base
    assert is_adapter(params["student"]) and is_adapter(params["ema"]) and not is_adapter(params["other"])
    value, _ = adapted.phases["fit"].loss(params, BATCH, KEY)
    expected, _ = plain.phases["fit"].loss(start_of(plain).params, BATCH, KEY)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_a_reference_that_never_moves_is_the_base():
    first = Role(copy_of="student")
    moving = Role(copy_of="student", track=Track("student", lambda step: 1.0))
    held = lambda name: (
        lambda params, batch, key: (NETWORK.apply(params[name], batch["data"], jnp.zeros(8), {})[:, 0], {})
    )
    plain = method_of(reference=first, again=Role(copy_of="reference"), moving=moving)
    adapted = with_lora(dataclasses.replace(plain, phases={"fit": Phase(held("reference"), ("student",))}), options())
    params = dict(start_of(adapted).params)
    assert "reference" not in params and is_adapter(params["moving"]) and not is_adapter(params["again"])
    params["student"] = jax.tree.map(lambda leaf: leaf + 0.1, params["student"])
    expected = NETWORK.apply(TREE, BATCH["data"], jnp.zeros(8), {})[:, 0]
    np.testing.assert_array_equal(adapted.phases["fit"].loss(params, BATCH, KEY)[0], expected)


def test_gradients_reach_the_factors_alone_and_are_those_of_the_sum():
    method = with_lora(method_of(), options(alpha=6.0))
    params = dict(start_of(method).params)
    params["student"] = jax.tree.map(lambda leaf: leaf + 0.1, params["student"])
    _, gradients, _ = phase_gradients(method.phases["fit"], params, BATCH, KEY)
    assert set(gradients) == {"student"}
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), gradients["student"], params["student"])

    def by_hand(adapter):
        tree = merged(TREE, Adapter(adapter, alpha=6.0))
        return loss(dict(student=tree, teacher=TREE), BATCH, KEY)[0].mean()

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, gradients["student"], jax.grad(by_hand)(params["student"]))
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients["student"]))
    # and nothing of the loss pulls at the base through its own phase
    base = jax.grad(lambda tree: method.phases["fit"].loss({**params, "base": tree}, BATCH, KEY)[0].sum())(
        params["base"]
    )
    assert jax.tree.structure(base) == jax.tree.structure(TREE)
    assert "base" not in method.phases["fit"].trains and method.roles["base"].tx is None


def test_samplers_draw_from_the_sum_and_name_what_they_read():
    method = with_lora(method_of(), options())
    params = dict(start_of(method).params)
    params["ema"] = jax.tree.map(lambda leaf: leaf + 0.1, params["ema"])
    sampler = method.samplers["default"]
    assert (sampler.role, sampler.also) == ("ema", ("base",))
    read = {name: params[name] for name in (sampler.role, *sampler.also)}
    found = sampler.draw(read, {}, jax.random.split(KEY, 3))
    tree = merged(TREE, Adapter(params["ema"]))
    np.testing.assert_allclose(found, NETWORK.apply(tree, jnp.ones((3, 2)), jnp.zeros(3), {}), rtol=1e-5)
    assert method.samplers["teacher"].role == "base"
    np.testing.assert_array_equal(method.samplers["teacher"].draw(params, {}, KEY)[0], TREE["output"]["bias"])


def test_rollouts_and_checks_see_sums():
    seen = []
    look = lambda params, *rest: seen.append(is_adapter(params["student"]))
    method = dataclasses.replace(method_of(), collect=Collect(look, lambda *a: [], every=1), checks={"look": look})
    adapted = with_lora(method, options())
    params = start_of(adapted).params
    adapted.collect.rollout(params, BATCH, KEY)
    adapted.checks["look"](params, BATCH, KEY)
    assert seen == [False, False]


def test_two_adapted_roles_and_a_teacher_that_is_handed_over():
    start = dict(init=NETWORK.init, restore_from="run:ema")
    extra = dict(
        fake=Role(**start, tx=optax.sgd(0.1)), old=Role(copy_of="teacher", track=Track("student", lambda step: 1.0))
    )
    plain = method_of()
    phases = {**plain.phases, "fake": Phase(loss, ("fake",))}
    both = dataclasses.replace(plain, roles={**plain.roles, **extra}, phases=phases)
    adapted = with_lora(both, options(roles=("student", "fake")))
    params = start_of(adapted).params
    assert all(is_adapter(params[name]) for name in ("student", "fake", "old", "ema"))
    np.testing.assert_array_equal(
        params["old"]["output"]["kernel"]["down"], params["student"]["output"]["kernel"]["down"]
    )


def test_what_does_not_work_is_refused():
    fresh = method_of(student=Role(init=NETWORK.init, tx=optax.sgd(0.1)))
    with pytest.raises(ValueError, match="starts with fresh parameters.*Set restore.student"):
        with_lora(fresh, options())
    with pytest.raises(ValueError, match="has 'teacher', which is no trained role. Trained: student"):
        with_lora(method_of(), options(roles=("teacher",)))
    with pytest.raises(ValueError, match="No kernel of the network"):
        with_lora(method_of(), options(pattern="nowhere"))
    with pytest.raises(ValueError, match="follows 'student', and only one of the two is an adapter"):
        with_lora(method_of(ema=Role(init=NETWORK.init, track=Track("student", lambda step: 0.1))), options())
    config = defaults()
    config.lora.alpha = 4.0
    with pytest.raises(ConfigError, match="lora.rank is 0, so no other entry"):
        validate(config)

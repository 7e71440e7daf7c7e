"""The autoencoder's losses put together by hand, who is trained when, what is refused, what the checks find."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.choices import build
from flowjax.config import defaults
from flowjax.contract import DataSpec
from flowjax.losses.perception import feature_distance
from flowjax.methods import METHODS
from flowjax.models import features
from flowjax.models.autoencoder import convolutional
from flowjax.models.discriminator import patch
from flowjax.models.features.extractor import FeatureExtractor, Unit
from flowjax.training.state import initial_state

SPEC = DataSpec((8, 8, 1), None, 0.7)
NETWORK = dict(name="convolutional", channels=4, multipliers=(1, 1), blocks=1, latent_channels=2, attention=False)
JUDGE = dict(name="patch", channels=4, layers=1)
DEFAULT = dict(name="autoencoder", kl_weight=0.1, discriminator=JUDGE, adversarial_weight=0.5)


def method_of(**changes):
    config = defaults()
    config.network = NETWORK
    config.samplers = dict(default=dict(name="reconstruct"), prior=dict(name="prior"))
    config.method = {**DEFAULT, **changes.pop("method", {})}
    for name, value in changes.items():
        config[name] = value
    return build("method", config.method, METHODS, config=config, data=SPEC)


def batch_of(count=4, step=0, seed=0):
    data = jax.random.normal(jax.random.key(seed), (count, *SPEC.shape))
    return dict(
        data=data,
        mask=jnp.ones(count),
        row=jnp.arange(count, dtype=jnp.int32),
        step=jnp.full(count, step, jnp.int32),
    )


@pytest.fixture(scope="module")
def game():
    """A method whose adversary plays from step 3 on, its parameters, and its first phase's loss as one program."""
    method = method_of(method=dict(adversarial_start=3))
    params = jax.jit(lambda: initial_state(method, 0, {}).params)()
    # Away from the start, where layers that begin at zero make everything simple.
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    shaken = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)]
    return method, jax.tree.unflatten(structure, shaken), jax.jit(method.phases["autoencoder"].loss)


def test_the_loss_is_its_equation_before_and_after_the_adversary_enters(game):
    method, params, loss = game
    key, batch = jax.random.key(5), batch_of()
    value, metrics = loss(params, batch, key)
    expected = np.asarray(metrics["l1"]) + 0.1 * np.asarray(metrics["kl"]) / 64
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert float(metrics["adaptive_weight"]) == 0

    later, metrics = loss(params, batch_of(step=3), key)
    weighted = 0.5 * float(metrics["adaptive_weight"]) * np.asarray(metrics["adversarial"])
    np.testing.assert_allclose(later, expected + weighted, rtol=1e-5)
    assert float(metrics["adaptive_weight"]) > 0


def test_the_adaptive_weight_is_that_of_gradients_of_the_whole_network(game):
    """The method differentiates the last layer alone; here all of the decoder is differentiated, the last layer kept."""
    _, params, loss = game
    key, batch = jax.random.key(5), batch_of(step=3)
    batch["mask"] = batch["mask"].at[3].set(0.0)
    weight = float(loss(params, batch, key)[1]["adaptive_weight"])
    model = convolutional(SPEC, **{k: v for k, v in NETWORK.items() if k != "name"})
    judge = patch(SPEC, channels=4, layers=1)
    noise = jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(key, row), model.latent_shape))(batch["row"])

    @jax.jit
    def gradients(tree):
        def paint(tree):
            mean, logvar = model.encode(tree, batch["data"])
            return model.decode(tree, mean + jnp.exp(logvar / 2) * noise)[:3]

        one = jax.grad(lambda tree: jnp.mean(jnp.abs(paint(tree) - batch["data"][:3])))(tree)
        other = jax.grad(lambda tree: -jnp.mean(judge.apply(params["discriminator"], paint(tree))))(tree)
        return one["output"], other["output"]

    norms = [
        np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(tree)))
        for tree in gradients(params["autoencoder"])
    ]
    assert weight == pytest.approx(norms[0] / (norms[1] + 1e-4), rel=1e-4)


def test_each_phase_trains_its_own_role_and_the_adversary_starts_late(game):
    method, params, _ = game
    assert [method.due(step) for step in (0, 2, 3)] == [
        ("autoencoder",),
        ("autoencoder",),
        ("autoencoder", "discriminator"),
    ]
    assert {name: phase.trains for name, phase in method.phases.items()} == dict(
        autoencoder=("autoencoder",), discriminator=("discriminator",)
    )
    assert method.updates_of("discriminator", 5) == 2 and method.updates_of("autoencoder", 5) == 5
    value, metrics = jax.jit(method.phases["discriminator"].loss)(params, batch_of(), jax.random.key(0))
    assert value.shape == (4,) and set(metrics) == {"logits_real", "logits_fake"}


def test_a_loss_depends_on_its_own_example_but_for_the_adaptive_weight(game):
    """Before the adversary enters nothing of one example reaches another: the same rows in another batch, the same values."""
    _, params, loss = game
    whole = batch_of()
    value = loss(params, whole, jax.random.key(5))[0]
    changed = {**whole, "data": whole["data"].at[:2].set(0.0)}
    np.testing.assert_array_equal(loss(params, changed, jax.random.key(5))[0][2:], value[2:])


def tiny_eye(input_size: int = 8) -> FeatureExtractor:
    units = (Unit("one", (1, 1, 1, 3), "one.conv", "one.norm"),)

    def apply(tree, images):
        near = images @ tree["one"]["kernel"][0, 0] + tree["one"]["bias"]
        return {"near": near, "far": jnp.tanh(near[:, ::2, ::2]), "pooled": near.mean(axis=(1, 2))}

    return FeatureExtractor("tiny", input_size, dict(near=3, far=3, pooled=3), "near", units, 0.0, apply)


def test_the_perceptual_network_is_a_frozen_role_whose_features_are_compared(monkeypatch):
    monkeypatch.setitem(features.EXTRACTORS, "tiny", tiny_eye)
    spec = dict(name="features", extractor="tiny", layers=("near", "far"), weights="random")
    method = method_of(method=dict(perceptual=spec, perceptual_weight=2.0, adversarial_weight=0.0, discriminator=None))
    assert method.roles["perceptual"].tx is None and set(method.phases) == {"autoencoder"}
    params = initial_state(method, 0, {}).params
    batch = batch_of()
    value, metrics = method.phases["autoencoder"].loss(params, batch, jax.random.key(5))
    parts = metrics["l1"] + 2.0 * metrics["perceptual"] + 0.1 * metrics["kl"] / 64
    np.testing.assert_allclose(value, parts, rtol=1e-5)
    assert float(metrics["perceptual"].min()) > 0
    # A perfect reconstruction has no distance; the distance of two images is that of their features.
    see = lambda x: [tiny_eye().apply(params["perceptual"], x)[name] for name in ("near", "far")]
    assert float(feature_distance(see(batch["data"]), see(batch["data"])).max()) == 0
    with pytest.raises(ValueError, match="Unknown map of tiny 'pooled'"):
        method_of(method=dict(perceptual=dict(spec, layers=("pooled",))))


def test_published_weights_are_asked_for_with_the_way_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setenv("FLOWJAX_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="weights of efficientnet_lite0 are not in .*flowjax.data.prepare"):
        method_of(method=dict(perceptual=dict(name="features")))


def test_samplers_reconstruct_what_they_read_and_decode_the_prior(game):
    method, params, _ = game
    keys = jax.random.split(jax.random.key(1), 4)
    images = batch_of()["data"]
    default, prior = method.samplers["default"], method.samplers["prior"]
    assert default.reads == ("data",) and prior.reads == ()
    model = convolutional(SPEC, **{k: v for k, v in NETWORK.items() if k != "name"})
    mean = model.encode(params["ema"], images)[0]
    np.testing.assert_allclose(
        default.draw(params, {"data": images}, keys), model.decode(params["ema"], mean), rtol=1e-5, atol=1e-5
    )
    one, other = prior.draw(params, {}, keys), prior.draw(params, {}, keys[::-1])
    np.testing.assert_allclose(one[0], other[3], rtol=1e-4, atol=1e-5)
    assert one.shape == images.shape and not np.allclose(one[0], one[1])


def test_checks_pass_at_the_start_and_find_a_kl_that_drowns_the_image(game):
    method, _, _ = game
    params = jax.jit(lambda: initial_state(method, 0, {}).params)()
    for check in method.checks.values():
        result = check(params, batch_of(8), jax.random.key(0))
        assert result.passed, result
    heavy = method_of(method=dict(kl_weight=1e4, adversarial_weight=0.0, discriminator=None))
    result = heavy.checks["gradient_balance"](params, batch_of(8), jax.random.key(0))
    assert not result.passed and "lower method.kl_weight" in result.fix
    far = {**params, "autoencoder": jax.tree.map(lambda leaf: 30 * leaf, params["autoencoder"])}
    assert not method.checks["posterior_at_the_start"](far, batch_of(8), jax.random.key(0)).passed


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(path=dict(name="vp")), "'path' is .*vp.*but the method 'autoencoder' does not read it"),
        (dict(method=dict(adversarial_weight=0.0)), "there is no discriminator: drop discriminator"),
        (dict(method=dict(kl_weight=-1.0)), "method.kl_weight is -1.0"),
        (dict(method=dict(perceptual_weight=2.0)), "method.perceptual names no network"),
        (dict(ema=dict(autoencoder=dict(name="constant"))), "ema.autoencoder has the name of a role"),
        (dict(network=dict(name="mlp")), "Unknown autoencoder 'mlp'"),
        (dict(samplers=dict(default=dict(name="heun"))), "Unknown sampler of an autoencoder 'heun'"),
    ],
)
def test_what_would_do_nothing_or_harm_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        method_of(**changes)

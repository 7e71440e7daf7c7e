"""Reward models: losses by hand, scores found again in rankings, ties as likely as they are, trunks of every kind."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowjax.choices import build
from flowjax.config import defaults
from flowjax.contract import DataSpec
from flowjax.data import SOURCES, make_iterator
from flowjax.methods import METHODS
from flowjax.models.scorer import make_scorer

LINEAR = dict(name="mlp", widths=())  # r(x) = a . x, which can be written down
A = jnp.array([1.0, -2.0])


def config_of(**method):
    config = defaults()
    config.network = dict(name="mlp")
    config.method = dict(name="reward_model", **method)
    config.samplers = dict(default=dict(name="scores", role="ema"))
    config.steps = 400
    config.optimizer = dict(name="adam", learning_rate=2e-2, decay="cosine")
    return config


def method_of(data, config=None, **method):
    method = {"scorer": LINEAR, **method}
    config = config or config_of(**method)
    return build("method", config.method, METHODS, config=config, data=data)


def batch_of(examples, outcome, **more):
    examples = jnp.asarray(examples, jnp.float32)
    batch = {"data": examples[:, 0], "others": examples[:, 1:], "outcome": jnp.asarray(outcome, jnp.int32), **more}
    return {**batch, "mask": jnp.ones(len(examples)), "row": jnp.arange(len(examples))}


def loss_of(method, batch):
    params = {"scorer": {"output": A[:, None]}}
    return jax.jit(method.phases["comparisons"].loss)(params, batch, jax.random.key(0))


def softplus(x):
    return math.log1p(math.exp(x))


def test_pairs_by_hand():
    # scores 1 - 2 * 0.5 = 0 and 0.2
    batch = batch_of([[[1.0, 0.5], [0.2, 0.0]]] * 3, [1, -1, 0], margin=jnp.array([0.5, 1.0, 2.0]))
    spec = DataSpec((2,), compared=2)
    value, metrics = loss_of(method_of(spec), batch)
    tie = 0.5 * (softplus(0.2) + softplus(-0.2))
    np.testing.assert_allclose(value, [softplus(0.2), softplus(-0.2), tie], rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], [0.0, 1.0, 0.5])
    np.testing.assert_allclose(metrics["margin"], [-0.2, 0.2, 0.0], atol=1e-6)
    value, _ = loss_of(method_of(spec, margin=0.7), batch)
    np.testing.assert_allclose(value, [softplus(0.9), softplus(0.5), tie], rtol=1e-5)
    value, _ = loss_of(method_of(spec, margin="data"), batch)
    np.testing.assert_allclose(value, [softplus(0.7), softplus(0.8), tie], rtol=1e-5)
    with pytest.raises(ValueError, match="these comparisons have no margins"):
        loss_of(method_of(spec, margin="data"), {k: v for k, v in batch.items() if k != "margin"})


def test_ties_by_hand():
    batch = batch_of([[[1.0, 0.5], [0.2, 0.0]]] * 3, [1, -1, 0])
    value, _ = loss_of(method_of(DataSpec((2,), compared=2), loss="tie", theta=3.0), batch)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))
    first, second = sigmoid(-0.2 - math.log(3)), sigmoid(0.2 - math.log(3))
    np.testing.assert_allclose(value, -np.log([first, second, 1 - first - second]), rtol=1e-5)


def test_rankings_by_hand():
    points = [[[0.5, 0.0], [0.0, 0.5], [1.0, 0.0]]] * 2  # scores 0.5, -1, 1
    present = jnp.array([[True, True], [True, False]])
    batch, spec = batch_of(points, [1, 1], present=present), DataSpec((2,), compared=3)
    value, metrics = loss_of(method_of(spec, loss="ranking"), batch)
    e = np.exp([0.5, -1.0, 1.0])
    np.testing.assert_allclose(
        value, [-np.log(e[0] / e.sum() * e[1] / (e[1] + e[2])), -np.log(e[0] / (e[0] + e[1]))], rtol=1e-5
    )
    np.testing.assert_allclose(metrics["accuracy"], [1 / 3, 1.0], rtol=1e-6)
    value, _ = loss_of(method_of(spec, loss="pair"), batch)  # every pair of a ranking
    ahead = [[1.5, -0.5, -2.0], [1.5]]
    np.testing.assert_allclose(value, [np.mean([softplus(-d) for d in row]) for row in ahead], rtol=1e-5)


def trained(source, batch_size=128, rate=2e-2, **method):
    """The scorer's tree after a short training, without the trainer around it."""
    config = config_of(**method)
    config.optimizer.learning_rate = rate
    made = build("method", config.method, METHODS, config=config, data=source.spec)
    role, loss = made.roles["scorer"], made.phases["comparisons"].loss

    @jax.jit
    def update(tree, state, batch):
        value = lambda tree: jnp.mean(loss({"scorer": tree}, batch, jax.random.key(0))[0])
        changes, state = role.tx.update(jax.grad(value)(tree), state, tree)
        return optax.apply_updates(tree, changes), state

    tree = role.init(jax.random.key(1))
    state, iterator = role.tx.init(tree), make_iterator(source, batch_size)
    for _ in range(config.steps):
        batch = {name: jnp.asarray(value) for name, value in next(iterator).items()}
        tree, state = update(tree, state, batch)
    return make_scorer(config.method.scorer, source.spec), tree


def test_known_scores_are_recovered_from_rankings_up_to_a_constant():
    score = dict(name="quadratic", centre=(0.5, -0.5), curvature=1.5)
    source = build("data", dict(name="compared_points", score=score, examples=5), SOURCES)
    scorer, tree = trained(source, scorer=dict(name="mlp", widths=(64, 64)), loss="ranking")
    points = source.reference("test", 2000)["data"]
    found = np.asarray(scorer.score(tree, None, jnp.asarray(points), {}))
    known = -0.75 * ((points - np.array([0.5, -0.5])) ** 2).sum(1)
    assert np.corrcoef(found, known)[0, 1] > 0.99
    slope = np.polyfit(known, found, 1)[0]  # the unit of a score is that of the noise
    assert abs(slope - 1) < 0.1


def test_scores_learnt_with_ties_have_their_unit():
    score = dict(name="linear", direction=(1.0, -2.0))
    spec = dict(name="compared_points", score=score, theta=4.0)
    _, tree = trained(build("data", spec, SOURCES), rate=0.1, scorer=LINEAR, loss="tie", theta=4.0)
    np.testing.assert_allclose(tree["output"][:, 0], A, atol=0.08)


def test_the_order_of_two_does_not_matter():
    source = build("data", dict(name="compared_points", theta=2.0), SOURCES)
    batch = {name: jnp.asarray(value) for name, value in next(make_iterator(source, 64)).items()}
    turned = {**batch, "data": batch["others"][:, 0], "others": batch["data"][:, None], "outcome": -batch["outcome"]}
    for loss in ("pair", "tie"):
        method = method_of(source.spec, loss=loss)
        for one, other in zip(jax.tree.leaves(loss_of(method, batch)), jax.tree.leaves(loss_of(method, turned))):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_doctor_knows_the_loss_without_an_opinion():
    source = build("data", dict(name="compared_points", examples=4), SOURCES)
    method = method_of(source.spec, loss="ranking", scorer=dict(name="mlp"))
    params = {"scorer": method.roles["scorer"].init(jax.random.key(0))}
    batch = {name: jnp.asarray(value) for name, value in next(make_iterator(source, 32)).items()}
    found = method.checks["start"](params, batch, jax.random.key(0))
    assert found.passed and f"{math.log(math.factorial(4)):.3f} where all scores are alike" in found.detail
    loud = jax.tree.map(lambda leaf: 50 * leaf, params)
    assert not method.checks["start"](loud, batch, jax.random.key(0)).passed


PAIRS = DataSpec((2,), compared=2)


@pytest.mark.parametrize(
    "data, method, change, message",
    [
        (DataSpec((2,)), {}, {}, "these data have none"),
        (DataSpec((2,), compared=3), dict(loss="tie"), {}, "Use 'pair' or 'ranking'"),
        (PAIRS, dict(loss="ranking"), {}, "which of two is the same"),
        (PAIRS, dict(loss="best"), {}, "Unknown method.loss 'best'"),
        (PAIRS, dict(theta=2.0), {}, "only loss 'tie'"),
        (PAIRS, dict(loss="tie", theta=1.0), {}, "a number above 1"),
        (PAIRS, dict(loss="tie", margin=1.0), {}, "only loss 'pair' has a margin"),
        (PAIRS, dict(margin="wide"), {}, "expected a number, or 'data'"),
        (PAIRS, dict(scorer=dict(name="mlp", widths=(0,))), {}, "expected positive numbers"),
        (PAIRS, dict(scorer=dict(name="mlp", activation="sine")), {}, "Unknown activation 'sine'"),
        (PAIRS, dict(scorer=dict(name="unet")), {}, "Unknown scorer 'unet'"),
        (PAIRS, {}, dict(path=dict(name="vp")), "does not read it"),
        (PAIRS, {}, dict(samplers=dict(default=dict(name="heun"))), "Unknown sampler of a reward model 'heun'"),
        (PAIRS, {}, dict(samplers=dict(default=dict(name="scores", role="student"))), "role 'student'"),
        (PAIRS, {}, dict(ema=dict(scorer=dict(name="warmup"))), "ema.scorer has the name of a role"),
    ],
)
def test_what_does_not_fit_is_refused(data, method, change, message):
    config = config_of(**{"scorer": LINEAR, **method})
    for name, value in change.items():
        config[name] = value
    with pytest.raises(ValueError, match=message):
        method_of(data, config)


IMAGES = dict(shape=(8, 8, 3), text_length=5, vocabulary=9, compared=2)
DIT = dict(name="dit", width=16, depth=2, heads=2, patch=4)
WORDS = dict(name="embedding", width=8)


def image_batch(spec, seed=0):
    draw = np.random.default_rng(seed)
    examples = draw.normal(size=(4, 2, *spec.shape)).astype(np.float32)
    batch = batch_of(examples, [1, -1, 1, 1], tokens=jnp.asarray(draw.integers(1, 9, (4, 5)), jnp.int32))
    if spec.num_classes:
        batch["label"] = jnp.arange(4) % spec.num_classes
    return batch


def score_both(scorer, tree, frozen, batch):
    cond = {name: batch[name] for name in scorer.conditions}
    return scorer.score(tree, frozen, batch["data"], cond), scorer.score(tree, frozen, batch["others"][:, 0], cond)


NETWORK = dict(name="joint", trunk=dict(name="network", network=DIT, text=WORDS))
MMDIT = dict(name="mmdit", width=16, depth=2, heads=2, patch=4, qk_norm="none")
UNET = dict(name="unet", channels=8, multipliers=(1, 1), blocks=1, attention=(8,), head_channels=8)
PUBLISHED = dict(name="features", trunk=dict(name="efficientnet_lite0", input_size=32, weights="random"), text_width=8)


@pytest.mark.parametrize(
    "spec",
    [
        NETWORK,
        dict(NETWORK, trunk=dict(NETWORK["trunk"], layer=1)),
        dict(NETWORK, trunk=dict(NETWORK["trunk"], network=MMDIT)),
        dict(NETWORK, trunk=dict(NETWORK["trunk"], network=UNET)),
        PUBLISHED,
    ],
    ids=["dit", "dit-1", "mmdit", "unet", "features"],
)
def test_every_parameter_counts_and_picture_and_caption_meet(spec):
    data = DataSpec(**IMAGES)
    scorer, batch = make_scorer(spec, data), image_batch(data)
    shake = lambda key, tree: jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(key, leaf.shape), tree)
    tree = shake(jax.random.key(1), scorer.init(jax.random.key(0)))
    frozen = None if scorer.trunk is None else scorer.trunk.init(jax.random.key(2))

    @jax.jit
    def ahead(tree, batch):
        one, other = score_both(scorer, tree, frozen, batch)
        return one - other

    slopes = jax.grad(lambda tree: jnp.sum(jnp.sin(ahead(tree, batch))))(tree)
    for path, leaf in jax.tree_util.tree_flatten_with_path(slopes)[0]:
        assert float(jnp.abs(leaf).max()) > 0, path
    other_words = {**batch, "tokens": batch["tokens"][::-1]}
    assert float(jnp.abs(ahead(tree, batch) - ahead(tree, other_words)).max()) > 1e-6
    slope = jax.grad(lambda x: jnp.sum(scorer.score(tree, frozen, x, {n: batch[n] for n in scorer.conditions})))
    assert (np.abs(slope(batch["data"])).reshape(4, -1).max(axis=1) > 0).all()  # a reward to be climbed


def test_a_head_starts_as_published():
    data = DataSpec(**IMAGES)
    spec = dict(NETWORK, widths=(200, 100, 50))
    head = make_scorer(spec, data).init(jax.random.key(0))["head"]
    inputs = {"layer_0": 16, "layer_1": 200, "layer_2": 100, "output": 50}
    for name, count in inputs.items():
        kernel = head[name] if name == "output" else head[name]["kernel"]
        assert kernel.shape[0] == count and (name == "output" or not head[name]["bias"].any())
        assert float(kernel.std()) == pytest.approx(1 / (count + 1), rel=0.25)


def test_encoded_captions_and_labels_reach_the_head():
    base = dict(shape=(8, 8, 3), compared=2, num_classes=3, text_length=4, text_channels=6)
    for more, name in (({}, "text"), (dict(pooled_channels=5), "text_pooled")):
        data = DataSpec(**base, **more)
        scorer = make_scorer(PUBLISHED, data)
        assert set(scorer.conditions) == {"label", name} | ({"text_mask"} if name == "text" else set())
        draw = np.random.default_rng(0)
        cond = {
            "label": jnp.array([0, 1]),
            "text": jnp.asarray(draw.normal(size=(2, 4, 6)), jnp.float32),
            "text_mask": jnp.array([[True, True, False, False]] * 2),
            "text_pooled": jnp.asarray(draw.normal(size=(2, 5)), jnp.float32),
        }
        tree, frozen = scorer.init(jax.random.key(0)), scorer.trunk.init(jax.random.key(1))
        x = jnp.asarray(draw.normal(size=(2, 8, 8, 3)), jnp.float32)
        value = scorer.score(tree, frozen, x, cond)
        hidden = {**cond, "text": cond["text"].at[:, 2:].set(7.0)}  # beyond the mask
        np.testing.assert_array_equal(value, scorer.score(tree, frozen, x, hidden))
        for changed in ({name: cond[name][::-1]}, {"label": cond["label"][::-1]}):
            assert (np.asarray(scorer.score(tree, frozen, x, {**cond, **changed})) != np.asarray(value)).all()


@pytest.mark.parametrize(
    "spec, message",
    [
        (dict(NETWORK, trunk=dict(NETWORK["trunk"], layer=3)), "trunk.layer is 3"),
        (dict(NETWORK, trunk=dict(name="network", network=dict(name="mlp"))), "has no blocks"),
        (dict(NETWORK, trunk=dict(name="network", network=DIT)), "which the trunk does not read"),
        (dict(NETWORK, trunk=dict(PUBLISHED["trunk"])), "use scorer 'features'"),
        (dict(PUBLISHED, activation="none"), "adds the same for a caption"),
        (dict(PUBLISHED, trunk=dict(PUBLISHED["trunk"], layer="b7")), "Unknown layer of efficientnet_lite0 'b7'"),
        (dict(PUBLISHED, trunk=dict(name="resnet")), "Unknown trunk 'resnet'"),
        (dict(PUBLISHED, trunk=dict(layer=2)), "has no 'name'"),
    ],
)
def test_scorers_that_could_not_work_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        make_scorer(spec, DataSpec(**IMAGES))


def test_masked_data_are_refused():
    data = DataSpec((8, 8, 3), compared=2, visible_shape=(4, 4), visible_multiple=4)
    with pytest.raises(ValueError, match="Scorers read no masks"):
        make_scorer(LINEAR, data)


def test_a_label_matters_where_the_data_have_one():
    data = DataSpec((2,), num_classes=3, compared=2)
    scorer = make_scorer(dict(name="mlp", widths=(8,)), data)
    tree = scorer.init(jax.random.key(0))
    x = jnp.ones((3, 2))
    ahead = scorer.score(tree, None, x, {"label": jnp.arange(3)}) - scorer.score(
        tree, None, -x, {"label": jnp.arange(3)}
    )
    assert all(abs(one - other) > 1e-4 for one, other in itertools.combinations(np.asarray(ahead).tolist(), 2))


def test_direct_preference_optimisation_reads_the_same_batches():
    source = build("data", dict(name="compared_points"), SOURCES)
    config = defaults()
    config.method, config.network = dict(name="dpo"), dict(name="mlp", width=16, depth=1)
    method = build("method", config.method, METHODS, config=config, data=source.spec)
    batch = {name: jnp.asarray(value) for name, value in next(make_iterator(source, 16)).items()}
    batch["step"] = jnp.zeros(16, jnp.int32)
    tree = method.roles["student"].init(jax.random.key(0))
    value, _ = method.phases["preference"].loss({"student": tree, "reference": tree}, batch, jax.random.key(0))
    np.testing.assert_allclose(value, math.log(2), rtol=1e-5)  # before the first update nothing is preferred

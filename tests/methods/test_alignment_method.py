"""Alignment around flow matching: the term by hand, what it may not touch, what it does to training, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.choices import build
from flowjax.config import defaults
from flowjax.contract import DataSpec
from flowjax.methods import METHODS
from flowjax.methods.alignment import visible_cells
from flowjax.methods.encoders import make_encoder
from flowjax.methods.parts import draw, make_setting
from flowjax.models import features
from flowjax.models.features.extractor import FeatureExtractor, Unit
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.run import read_role
from flowjax.training.state import initial_state
from flowjax.training.update import make_update, with_step

SPEC = DataSpec((8, 8, 1), None, 1.0)
NETWORK = dict(name="dit", width=16, depth=2, heads=2, patch=2)
TERM = dict(encoder=dict(name="tiny", weights="random"), layer=1, weight=0.5, projector=dict(name="mlp", width=32))
COUNT = 16


def tiny_eye(input_size: int = 8) -> FeatureExtractor:
    """A map with 6 channels on a grid of 4 x 4: the pixels of each cell and what is bright, mixed at random."""
    units = (Unit("one", (1, 1, 4, 6), "one.conv", "one.norm"),)

    def apply(tree, images):
        cells = images.reshape(-1, 4, 2, 4, 2, 1).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, 4)
        near = cells @ tree["one"]["kernel"][0, 0] + tree["one"]["bias"]
        return {"near": near, "pooled": near.mean(axis=(1, 2))}

    return FeatureExtractor("tiny", input_size, dict(near=6, pooled=6), "near", units, 0.0, apply)


@pytest.fixture(autouse=True)
def eye(monkeypatch):
    monkeypatch.setitem(features.EXTRACTORS, "tiny", tiny_eye)


def config_of(alignment=None, **changes):
    config = defaults()
    config.batch_size, config.steps = COUNT, 30
    config.network = NETWORK
    config.samplers = dict(default=dict(name="euler", steps=2, role="ema"))
    config.method = dict(name="flow_matching") | ({} if alignment is None else dict(alignment=alignment))
    for name, value in changes.items():
        config[name] = value
    return config


def method_of(alignment=None, data=SPEC, **changes):
    config = config_of(alignment, **changes)
    return build("method", config.method, METHODS, config=config, data=data)


def batch_of(count=COUNT, step=0, size=8):
    """Bright squares at random places on a dark ground."""
    corner = jax.random.randint(jax.random.key(3), (count, 2), 0, size // 2)
    place = jnp.arange(size)
    inside = (place >= corner[:, :, None]) & (place < corner[:, :, None] + size // 2)
    data = (inside[:, 0, :, None] & inside[:, 1, None, :]).astype(jnp.float32)[..., None] * 2 - 1
    return with_step(dict(data=data, mask=jnp.ones(count), row=jnp.arange(count, dtype=jnp.int32)), step)


def shaken(method):
    """Parameters away from the start, where layers that begin at zero make everything simple."""
    leaves, structure = jax.tree.flatten(jax.jit(lambda: initial_state(method, 0, {}).params)())
    keys = jax.random.split(jax.random.key(9), len(leaves))
    return jax.tree.unflatten(structure, [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])


def gradient_of(method, params, batch):
    """The gradient of the mean loss with respect to every role, and values and metrics."""

    @jax.jit
    def run(params):
        def mean(params):
            value, metrics = method.phases["flow"].loss(params, batch, jax.random.key(5))
            return jnp.mean(value), (value, metrics)

        return jax.grad(mean, has_aux=True)(params)

    return run(params)


@pytest.fixture(scope="module")
def aligned():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(features.EXTRACTORS, "tiny", tiny_eye)
        method = method_of(TERM)
        params = shaken(method)
        return method, params, gradient_of(method, params, batch_of())


def test_the_term_is_its_equation(aligned):
    method, params, (_, (value, metrics)) = aligned
    plain, batch = method_of(), batch_of()
    flow = jax.jit(plain.phases["flow"].loss)(params, batch, jax.random.key(5))[0]
    setting = make_setting(config_of(), SPEC, "velocity")
    drawn = draw(setting, batch, jax.random.key(5), 0.1)
    x = setting.path.sample(drawn.noise, drawn.data, drawn.t)
    tokens = jax.jit(lambda tree: setting.network.hidden(tree, x, drawn.t, {}, layer=1)[1])(params["student"])
    seen = tiny_eye().apply(params["encoder"], batch["data"])["near"]
    hidden = np.asarray(tokens)
    for index in range(3):
        layer = params["projector"][f"layer_{index}"]
        hidden = (hidden / (1 + np.exp(-hidden)) if index else hidden) @ np.asarray(layer["kernel"]) + layer["bias"]
    length = lambda x: np.linalg.norm(x, axis=-1)
    cosine = ((hidden * np.asarray(seen)).sum(-1) / (length(hidden) * length(seen))).reshape(COUNT, -1).mean(-1)
    np.testing.assert_allclose(metrics["alignment"], cosine, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(metrics["flow_loss"], flow, rtol=1e-5)
    np.testing.assert_allclose(value, flow - 0.5 * cosine, rtol=1e-3)


def test_the_term_reaches_the_blocks_up_to_the_layer_and_the_projector_alone(aligned):
    """At equal parameters and draws the gradient differs from plain flow matching's by the term's."""
    method, params, (gradient, _) = aligned
    plain = gradient_of(method_of(), {name: params[name] for name in ("student", "ema")}, batch_of())[0]
    own = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), gradient["student"], plain["student"])
    largest = {name: max(jax.tree.leaves(tree)) for name, tree in own.items()}
    assert all(largest[name] > 1e-4 for name in ("patch_embedding", "embedding", "block_0")), largest
    assert all(largest[name] < 1e-6 for name in ("block_1", "final_modulation", "output")), largest
    assert all(float(jnp.max(jnp.abs(leaf))) > 0 for leaf in jax.tree.leaves(gradient["projector"]))
    assert all(float(jnp.max(jnp.abs(leaf))) == 0 for leaf in jax.tree.leaves(gradient["encoder"]))


def test_without_weight_it_is_flow_matching_to_the_last_bit():
    plain, weightless = method_of(), method_of({**TERM, "weight": 0.0})
    assert set(weightless.roles) == set(plain.roles) and weightless.phases["flow"].trains == ("student",)
    params = jax.jit(lambda: initial_state(weightless, 0, {}).params)()
    (value, metrics), (expected, known) = (
        jax.jit(method.phases["flow"].loss)(params, batch_of(), jax.random.key(5)) for method in (weightless, plain)
    )
    np.testing.assert_array_equal(value, expected)
    assert set(metrics) == set(known)


def test_from_the_last_step_on_it_is_flow_matching(aligned):
    _, params, _ = aligned
    batch = batch_of(step=3)
    plain, (expected, _) = gradient_of(method_of(), {name: params[name] for name in ("student", "ema")}, batch)
    gradient, (value, metrics) = gradient_of(method_of({**TERM, "until": 3}), params, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)  # another program: other last bits
    jax.tree.map(close, gradient["student"], plain["student"])
    assert float(metrics["alignment_weight"]) == 0
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradient["projector"])) == 0


def test_before_the_last_step_the_term_is_whole(aligned):
    _, params, (_, (value, metrics)) = aligned
    early, found = jax.jit(method_of({**TERM, "until": 3}).phases["flow"].loss)(
        params, batch_of(step=2), jax.random.key(5)
    )
    np.testing.assert_allclose(early, value, rtol=1e-5)
    assert float(found["alignment_weight"]) == 0.5
    np.testing.assert_allclose(found["alignment"], metrics["alignment"], rtol=1e-4, atol=1e-6)


def test_student_averages_and_samplers_are_those_of_the_plain_method(aligned):
    method, _, _ = aligned
    plain = method_of()
    assert set(method.roles) == {"student", "ema", "encoder", "projector"}
    assert method.phases["flow"].trains == ("student", "projector")
    assert method.roles["encoder"].tx is None and method.roles["encoder"].track is None
    ours, theirs = (jax.jit(lambda m=m: initial_state(m, 0, {}).params)() for m in (method, plain))
    for role in ("student", "ema"):
        jax.tree.map(np.testing.assert_array_equal, ours[role], theirs[role])
    reads = {(s.role, *s.also) for s in method.samplers.values()}
    keys = jax.random.split(jax.random.key(0), 2)
    sample = method.samplers["default"].draw({"ema": ours["ema"]}, {}, keys)  # nothing else is there to be read
    assert reads == {("ema",)} and sample.shape == (2, 8, 8, 1)


def test_the_loss_of_an_example_does_not_depend_on_the_batch_split(aligned):
    method, params, (_, (whole, _)) = aligned
    batch, loss = batch_of(), jax.jit(method.phases["flow"].loss)
    half = loss(params, {name: array[1::2] for name, array in batch.items()}, jax.random.key(5))[0]
    np.testing.assert_allclose(half, whole[1::2], rtol=1e-4, atol=1e-5)


def test_training_brings_tokens_and_features_together():
    changes = dict(optimizer=dict(name="adam", learning_rate=3e-3))
    method, batch = method_of({**TERM, "contrast": 0.6}, **changes), batch_of()
    state = jax.jit(lambda: initial_state(method, 0, {}))()
    step = jax.jit(make_update(method, ("flow",)))
    cosines, flows, frozen = [], [], jax.tree.map(np.asarray, state.params["encoder"])
    for _ in range(30):
        state, metrics = step(state, batch, jax.random.key(1))
        cosines.append(float(metrics["alignment"]))
        flows.append(float(metrics["flow_loss"]))
    assert cosines[-1] > cosines[0] + 0.3 and np.isfinite(flows).all() and flows[-1] < flows[0], (cosines, flows)
    jax.tree.map(np.testing.assert_array_equal, state.params["encoder"], frozen)
    assert set(state.optimizer) == {"student", "projector"}


def test_the_check_measures_the_pull_and_finds_features_that_are_zero(aligned):
    method, params, _ = aligned
    result = method.checks["alignment"](params, batch_of(), jax.random.key(0))
    assert result.passed and "projector" in result.detail, result
    blind = {**params, "encoder": jax.tree.map(jnp.zeros_like, params["encoder"])}
    assert not method.checks["alignment"](blind, batch_of(), jax.random.key(0)).passed


def saved_run(folder, data=SPEC):
    """A run directory with the checkpoint of an untrained flow on its own data."""
    config = config_of(network=dict(NETWORK, width=8, depth=2))
    method = build("method", config.method, METHODS, config=config, data=data)
    state = jax.jit(lambda: initial_state(method, 7, {}))()
    state = state.replace(params={"student": state.params["student"], "ema": shaken(method)["ema"]})
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(1, state, {}, config.to_dict())
    checkpoints.close()
    return make_setting(config, data, "velocity"), state.params


def test_the_tokens_of_a_finished_run_are_features_at_any_resolution(tmp_path):
    setting, params = saved_run(tmp_path)
    wide = dataclasses.replace(SPEC, shape=(16, 16, 1))
    method = method_of(dict(TERM, encoder=dict(name="run", restore_from=str(tmp_path), layer=1)), wide)
    role = method.roles["encoder"]
    assert role.tx is None and role.restore_from == f"{tmp_path}:ema"
    tree = read_role("encoder", role, 0)
    jax.tree.map(np.testing.assert_array_equal, tree, params["ema"])
    spec = dict(name="run", restore_from=str(tmp_path), layer=1)
    batch = batch_of(4, size=16)
    found = jax.jit(make_encoder(spec, wide).encode)(tree, batch, jax.random.key(0))
    large = make_setting(config_of(network=dict(NETWORK, width=8, depth=2)), wide, "velocity").network
    expected = jax.jit(lambda: large.hidden(params["ema"], batch["data"], jnp.ones(4), {}, layer=1)[1])()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    noisy = make_encoder({**spec, "time": 0.7}, wide)
    assert not np.allclose(jax.jit(noisy.encode)(tree, batch, jax.random.key(0)), expected, atol=1e-2)
    state = jax.jit(lambda tree: initial_state(method, 0, {"encoder": tree}).params)(tree)
    value, metrics = jax.jit(method.phases["flow"].loss)(state, batch, jax.random.key(1))
    assert value.shape == (4,) and bool(jnp.all(jnp.abs(metrics["alignment"]) < 1))
    with pytest.raises(ValueError, match="encoder.layer is 3, but the network of .* has blocks 1 ... 2"):
        make_encoder({**spec, "layer": 3}, wide)
    with pytest.raises(ValueError, match="encoder.time is 1.5"):
        make_encoder({**spec, "time": 1.5}, wide)


def test_stored_features_come_with_the_batch(aligned):
    _, params, (_, (value, _)) = aligned
    data = dataclasses.replace(SPEC, feature_shape=(4, 4, 6))
    method = method_of(dict(TERM, encoder=dict(name="stored")), data)
    assert set(method.roles) == {"student", "ema", "projector"}
    batch = batch_of()
    batch["features"] = tiny_eye().apply(params["encoder"], batch["data"])["near"]
    params = {name: tree for name, tree in params.items() if name != "encoder"}
    found = jax.jit(method.phases["flow"].loss)(params, batch, jax.random.key(5))[0]
    np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)


def test_cells_with_a_visible_pixel_count():
    pixels = jnp.zeros((2, 4, 4), bool).at[0, 0, 1].set(True).at[1, 2:].set(True)
    expected = np.array([[[True, False], [False, False]], [[False, False], [True, True]]])
    np.testing.assert_array_equal(visible_cells(pixels, 2, 2), expected)


@pytest.mark.parametrize(
    "term, changes, message",
    [
        (dict(layer=3), {}, "alignment.layer is 3, but the network 'dit' has blocks 1 ... 2"),
        ({}, dict(network=dict(name="mlp")), "'mlp' has no blocks whose tokens could be read. Use 'dit'"),
        (dict(weight=-1.0), {}, "alignment.weight is -1.0"),
        (dict(until=0), {}, "alignment.until is 0"),
        (dict(contrast=2.0), {}, "alignment.contrast is 2.0"),
        (dict(laier=2), {}, "no option 'laier'.*Did you mean 'layer'"),
        (dict(encoder=dict(name="dino")), {}, "Unknown encoder 'dino'"),
        (dict(encoder=dict(layer="near")), {}, "has no 'name'"),
        (dict(encoder=dict(name="tiny", layer="pooled")), {}, "Unknown map of tiny 'pooled'"),
        (dict(encoder=dict(name="stored")), {}, "bring none.*featured"),
        (dict(projector=dict(name="linear")), {}, "Unknown projector 'linear'"),
        ({}, dict(ema=dict(projector=dict(name="constant")), samplers={}), "ema.projector has the name of a role"),
    ],
)
def test_what_cannot_work_is_refused(term, changes, message):
    with pytest.raises(ValueError, match=message):
        method_of({**TERM, **term}, **changes)


def test_latents_are_not_shown_to_a_network_of_photographs():
    with pytest.raises(ValueError, match="1 or 3 channels.*featured"):
        method_of(TERM, DataSpec((8, 8, 4), None, 1.0))

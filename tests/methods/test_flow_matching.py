"""The method against mathematics: closed forms at zero, invariance to batch splits, label dropout, and learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowjax.config import defaults
from flowjax.contract import DataSpec
from flowjax.losses import denoising
from flowjax.methods import METHODS
from flowjax.methods.flow_matching import zero_network_check
from flowjax.methods.parts import draw, make_setting
from flowjax.methods.presets import PRESETS, apply_preset
from flowjax.paths import oracles
from flowjax.paths.path import make_path

MIXTURE = oracles.eight_modes(std=0.2, num_classes=2)
BATCH = 512
DATA = DataSpec((2,), num_classes=2, std=float(np.sqrt(np.diag(MIXTURE.covariance()).mean())))


def make_config(preset: str | None = None, **changes):
    config = defaults()
    config.batch_size = BATCH
    config.network = dict(name="mlp", width=32, depth=2)
    config.samplers = dict(default=dict(name="heun", steps=6, grid=dict(name="uniform"), role="ema"))
    if preset:
        apply_preset(config, preset)
    for name, value in changes.items():
        config[name] = value
    return config


def make_method(config):
    options = {key: value for key, value in config.method.items() if key != "name"}
    return METHODS["flow_matching"](config, DATA, **options)


@functools.cache
def make_batch(count: int = BATCH):
    data, component = MIXTURE.sample_components(jax.random.key(0), count)
    return dict(data=data, label=MIXTURE.classes[component], row=jnp.arange(count), mask=jnp.ones(count))


def start(method):
    student = jax.jit(method.roles["student"].init)(jax.random.key(1))
    return {"student": student, "ema": student}


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_trains_samples_and_passes_its_own_check(preset: str):
    config = make_config(preset)
    method, batch = make_method(config), make_batch()
    params = start(method)
    loss = method.phases["flow"].loss

    def mean_loss(student, key):
        value, metrics = loss({"student": student}, batch, key)
        return jnp.mean(value), (value, metrics)

    gradient, (value, metrics) = jax.jit(jax.grad(mean_loss, has_aux=True))(params["student"], jax.random.key(2))
    assert value.shape == (BATCH,) and bool(jnp.all(jnp.isfinite(value)))
    path = make_path(config.path.name)
    assert bool(jnp.all((metrics["t"] >= path.start) & (metrics["t"] <= path.end)))
    size = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient))
    assert np.isfinite(size) and size > 0
    samples = method.samplers["default"].draw(
        params, {"label": batch["label"][:4]}, jax.random.split(jax.random.key(3), 4)
    )
    assert samples.shape == (4, 2) and bool(jnp.all(jnp.isfinite(samples)))
    result = method.checks["zero_network_loss"](params, batch, jax.random.key(4))
    assert result.passed and "closed form" in result.detail, result.detail


def test_the_check_notices_a_wrong_loss():
    """Data that the loss sees scaled by 1.2 does not give the closed form of the batch as it is."""
    method, batch = make_method(make_config("rectified_flow")), make_batch()
    params = start(method)
    honest = method.phases["flow"].loss
    setting = make_setting(make_config("rectified_flow"), DATA, "velocity")
    wrong = lambda params, batch, key: honest(params, {**batch, "data": 1.2 * batch["data"]}, key)
    assert not zero_network_check(setting, "velocity", wrong, params, batch, jax.random.key(4)).passed


@pytest.mark.parametrize("preset", ["rectified_flow", "pfgmpp"])
def test_loss_of_an_example_does_not_depend_on_the_batch_split(preset: str):
    config = make_config(preset)
    config.network.dropout = 0.2
    config.time.stratified = True
    method, batch = make_method(config), make_batch()
    params, loss, key = start(method), jax.jit(method.phases["flow"].loss), jax.random.key(5)
    whole, metrics = loss(params, batch, key)
    parts = [loss(params, {name: array[i::4] for name, array in batch.items()}, key) for i in range(4)]
    for i, (value, part_metrics) in enumerate(parts):
        np.testing.assert_allclose(value, whole[i::4], rtol=2e-4, atol=1e-5)
        np.testing.assert_array_equal(part_metrics["t"], metrics["t"][i::4])
    assert not np.allclose(loss(params, batch, jax.random.key(6))[0], whole)


def test_labels_are_dropped_as_often_as_asked_and_independently_of_time():
    count = 20_000
    config = make_config()
    config.batch_size = count
    setting = make_setting(config, DATA, "velocity")
    drawn = draw(setting, make_batch(count), jax.random.key(0), 0.1)
    null = np.asarray(drawn.cond["label"]) == 2
    assert abs(null.mean() - 0.1) < 5 * np.sqrt(0.09 / count)
    t, first = np.asarray(drawn.t), np.asarray(drawn.noise)[:, 0]
    assert abs(np.corrcoef(t, null)[0, 1]) < 5 / np.sqrt(count)
    assert abs(np.corrcoef(t, first)[0, 1]) < 5 / np.sqrt(count)
    kept = draw(setting, make_batch(count), jax.random.key(0), 0.0).cond["label"]
    np.testing.assert_array_equal(kept, make_batch(count)["label"])


def test_noise_of_the_batch_is_used():
    config = make_config()
    setting = make_setting(config, DATA, "velocity")
    batch = {**make_batch(), "noise": jnp.full((BATCH, 2), 3.0)}
    drawn = draw(setting, batch, jax.random.key(0), 0.0)
    np.testing.assert_array_equal(drawn.noise, batch["noise"])
    assert set(drawn.cond) == {"label"}
    check = make_method(config).checks["zero_network_loss"]
    assert check(start(make_method(config)), batch, jax.random.key(1)).passed


def test_the_loss_is_the_published_one():
    """DDPM's loss on the method's own draws, through the named loss: the config wires what it says."""
    config = make_config("ddpm", precision="float32")
    method, batch, key = make_method(config), make_batch(), jax.random.key(8)
    params = start(method)
    setting = make_setting(config, DATA, "noise")
    drawn = draw(setting, batch, key, config.method.get("label_dropout", 0.1))
    predict = lambda x, t: setting.network.apply(params["student"], x, t, drawn.cond)
    expected, _ = denoising.noise_loss(predict, drawn.noise, drawn.data, drawn.t)
    np.testing.assert_allclose(method.phases["flow"].loss(params, batch, key)[0], expected, rtol=1e-5)


def test_training_approaches_the_closed_form_floor():
    """Flow matching on one Gaussian ends at pi std / 2 from above, within a few percent, after a short run."""
    std, config = 0.5, make_config(network=dict(name="mlp", width=64, depth=2, class_conditional=False))
    config.steps = 400
    config.optimizer = dict(name="adam", learning_rate=5e-3, decay="cosine")
    config.time.stratified = True
    method = make_method(config)
    loss, tx = method.phases["flow"].loss, method.roles["student"].tx
    gaussian = oracles.gaussian(0.3, std, 2)
    student = jax.jit(method.roles["student"].init)(jax.random.key(0))

    def mean_loss(student, key):
        data = gaussian.sample(jax.random.fold_in(key, 1), BATCH)
        batch = dict(data=data, row=jnp.arange(BATCH), mask=jnp.ones(BATCH))
        return jnp.mean(loss({"student": student}, batch, key)[0])

    def update(carry, key):
        student, optimizer = carry
        value, gradient = jax.value_and_grad(mean_loss)(student, key)
        changes, optimizer = tx.update(gradient, optimizer, student)
        return (optax.apply_updates(student, changes), optimizer), value

    keys = jax.random.split(jax.random.key(1), config.steps)
    (student, _), values = jax.jit(lambda carry: jax.lax.scan(update, carry, keys))((student, tx.init(student)))
    final = np.asarray(jax.jit(jax.vmap(mean_loss, (None, 0)))(student, jax.random.split(jax.random.key(2), 64)))
    floor, error = np.pi * std / 2, final.std() / 8
    assert floor - 5 * error < final.mean() < 1.05 * floor
    assert values[:5].mean() > 1.3 * floor


def test_presets_leave_nothing_behind():
    twice, once = apply_preset(make_config("pfgmpp"), "ddpm"), make_config("ddpm")
    assert twice.to_dict() == once.to_dict()
    with pytest.raises(ValueError, match="Did you mean 'ddpm'"):
        apply_preset(defaults(), "dpm")


def test_what_cannot_work_is_refused_with_a_remedy():
    data_in_velocity = make_config(method=dict(name="flow_matching", prediction="data", loss="velocity"))
    with pytest.raises(ValueError, match="time.high"):
        make_method(data_in_velocity)
    data_in_velocity.time = dict(name="uniform", high=0.95)
    assert make_method(data_in_velocity).phases
    for coupling in ("optimal_transport", "sinkhorn"):
        with pytest.raises(ValueError, match="would be ignored.*name='independent'"):
            make_method(make_config("pfgmpp", coupling=dict(name=coupling)))
    with pytest.raises(ValueError, match="label_dropout"):
        make_method(make_config(method=dict(name="flow_matching", label_dropout=1.5)))
    with pytest.raises(ValueError, match="prediction"):
        make_method(make_config(method=dict(name="flow_matching", prediction="speed")))


@pytest.mark.parametrize("guidance", ["cfg", "cfg_zero_star", "apg"])
def test_guidance_away_from_the_null_condition_needs_a_condition(guidance: str):
    """Without a condition both predictions are one, and the scale would do nothing: for either cause."""
    rule = dict(name=guidance, scale=2.0)
    samplers = dict(default=dict(name="heun", steps=6, grid=dict(name="uniform"), guidance=rule, role="ema"))
    config = make_config(samplers=samplers)
    assert make_method(config).samplers["default"].description["guidance"] == guidance
    with pytest.raises(ValueError, match="labels=True.*class_conditional=True.*name='none'"):
        METHODS["flow_matching"](config, DataSpec((2,), None, 1.0), prediction="velocity", loss="velocity")
    config.network.class_conditional = False
    with pytest.raises(ValueError, match=f"'{guidance}'.*no condition"):
        make_method(config)
    config.samplers.default.guidance = dict(name="autoguidance", scale=2.0, role="ema")
    assert make_method(config).samplers


def test_the_size_of_images_on_a_canvas_is_that_of_what_is_seen():
    """Resolution-dependent times and grids go by the visible shape, not by the canvas around it."""
    shift = dict(shift="resolution", base_shape=(4, 4))
    config = make_config(
        time=dict(name="uniform", **shift),
        samplers=dict(default=dict(name="heun", steps=6, grid=dict(name="shifted", **shift), role="ema")),
    )
    network = dict(name="dit", width=16, depth=1, heads=2)
    canvas = DataSpec((12, 16, 1), visible_shape=(8, 8), visible_multiple=2)
    quantiles, grids = [], []
    for data, masked in ((canvas, True), (DataSpec((8, 8, 1)), False), (DataSpec((12, 16, 1)), False)):
        config.network = dict(network, masked=masked)
        quantiles.append(make_setting(config, data, "velocity").times.quantile(jnp.linspace(0.1, 0.9, 5)))
        grids.append(METHODS["flow_matching"](config, data).samplers["default"].grid)
    for found in (quantiles, grids):
        np.testing.assert_array_equal(found[0], found[1])
        assert np.abs(np.subtract(found[0], found[2])).max() > 1e-2

"""Latents: scaled as measured, drawn anew at every position, decoded back; read from a finished run, kept in a cache."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.choices import build
from flowjax.config import defaults
from flowjax.contract import DataSpec
from flowjax.data import SOURCES
from flowjax.data.latents import Codec, LatentSource, MomentSource, in_chunks, measure, stored_scales
from flowjax.models.autoencoder import Autoencoder, convolutional
from flowjax.models.stored import CheckpointError
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.state import State

DIGITS = SOURCES["digits"]()
NETWORK = dict(name="convolutional", channels=4, multipliers=(1, 1), blocks=1, latent_channels=2, attention=False)


def save_run(folder: pathlib.Path, seed=0, method="autoencoder", spec=DIGITS.spec) -> dict:
    """A checkpoint as training leaves it, with random parameters for the roles autoencoder and ema."""
    model = convolutional(spec, **{k: v for k, v in NETWORK.items() if k != "name"})
    params = {"autoencoder": model.init(jax.random.key(seed)), "ema": model.init(jax.random.key(seed + 1))}
    config = defaults()
    config.network, config.method = NETWORK, dict(name=method)
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(7, State(jnp.int32(7), params, {}, jnp.ones((), bool)), {}, config.to_dict())
    checkpoints.close()
    return params


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "autoencoder"
    return folder, save_run(folder)


def make(reference, **options):
    return build(
        "data source",
        dict(name="latents", source=dict(name="digits"), autoencoder=str(reference), **options),
        SOURCES,
        seed=3,
    )


def linear_codec() -> Codec:
    """Images x: moments (2 x + 1, |x|) and decoder z -> z - 5, a latent cell for each pixel."""
    encode = lambda tree, x: (2 * x + 1, 2 * jnp.log(jnp.abs(x) + 1e-6))
    model = Autoencoder(lambda key: {}, encode, lambda tree, z: z, lambda tree, h: h - 5, 1, (8, 8, 1))
    return Codec(model, {}, 32)


def test_chunks_have_one_shape_and_lose_nothing():
    seen = []

    def double(rows):
        seen.append(len(rows))
        return 2 * rows

    values = np.arange(10.0).reshape(5, 2)
    np.testing.assert_array_equal(in_chunks(double, values, 3), 2 * values)
    assert seen == [3, 3]


def test_scales_are_the_moments_of_drawn_latents():
    """Var z = Var m + E s^2 for each channel, against a million draws; of means alone it is Var m."""
    rng = np.random.default_rng(0)
    mean = rng.normal([1.0, -2.0], [0.5, 3.0], size=(50, 4, 4, 2))
    std = np.exp(rng.normal(size=mean.shape)) * [1.0, 0.1]
    shift, scale = measure(np.concatenate([mean, std], axis=-1), sampled=True)
    drawn = mean + std * rng.normal(size=(1000, *mean.shape))
    np.testing.assert_allclose(shift, mean.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(scale, drawn.std((0, 1, 2, 3)), rtol=5e-3)
    np.testing.assert_allclose(
        measure(np.concatenate([mean, std], -1), sampled=False)[1], mean.std((0, 1, 2)), rtol=1e-5
    )
    dead = np.concatenate([np.full((5, 2, 2, 1), 3.0), np.zeros((5, 2, 2, 1))], axis=-1)
    assert [value.tolist() for value in measure(dead, sampled=True)] == [[3.0], [1.0]]


@pytest.mark.parametrize("sampled", [True, False])
def test_examples_are_the_equation(sampled):
    codec, shift, scale = linear_codec(), np.float32([0.5]), np.float32([4.0])
    source = LatentSource(DIGITS, MomentSource(DIGITS, codec), codec, DIGITS.spec, shift, scale, sampled)
    images = DIGITS.dataset(0, 1438, 0, 1438)[0]
    rows = source.dataset(0, 1438, 0, 1438)[0]
    np.testing.assert_array_equal(rows["label"], images["label"])
    noise = (rows["data"] * 4.0 + 0.5 - (2 * images["data"] + 1)) / (np.abs(images["data"]) + 1e-6)
    if not sampled:
        np.testing.assert_allclose(noise, 0, atol=1e-4)
        return
    noise = noise[np.abs(images["data"]) > 0.1]
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size) and noise.std() == pytest.approx(1, abs=0.02)
    later = source.dataset(0, 1438, 0, 1438)[1]
    order = lambda data, key: data[np.lexsort(key.reshape(1438, -1).T)]
    again = DIGITS.dataset(0, 1438, 0, 1438)[1]["data"]
    assert not np.allclose(
        order(rows["data"], images["data"]), order(later["data"], again)
    )  # another epoch, other draws
    np.testing.assert_array_equal(source.decode(np.float32([[[[1.0]]]])), 0.5 + 4.0 - 5)


def test_rows_do_not_depend_on_who_makes_them(run):
    source = make(run[0])
    whole = source.dataset(3, 64, 0, 64)[5]
    part, alone = source.dataset(3, 64, 16, 32)[5], source.dataset(3, 1, 5 * 64 + 16, 5 * 64 + 32)[0]
    for rows in (part, alone):
        np.testing.assert_allclose(rows["data"], whole["data"][16:32], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(rows["label"], whole["label"][16:32])


def test_a_finished_run_is_read_with_its_average_and_its_scales_are_kept(run):
    folder, params = run
    source = make(folder)
    assert source.spec == dataclasses.replace(DIGITS.spec, shape=(4, 4, 2), std=1.0)
    assert (
        source.size == DIGITS.size
        and (source.decoded.reference("test")["data"] == DIGITS.reference("test")["data"]).all()
    )
    kernels = lambda tree: np.asarray(tree["output"]["kernel"])
    np.testing.assert_array_equal(kernels(source.codec.tree), kernels(params["ema"]))
    other = make(f"{folder}:autoencoder")
    np.testing.assert_array_equal(kernels(other.codec.tree), kernels(params["autoencoder"]))
    assert source.fingerprint() != other.fingerprint()
    data = source.reference("train")["data"]
    np.testing.assert_allclose(data.mean((0, 1, 2)), 0, atol=0.02)
    np.testing.assert_allclose(data.std((0, 1, 2)), 1, atol=0.02)
    files = list((folder / "latents").iterdir())
    assert len(files) == 2  # one for each role
    kept = [json.loads(file.read_text()) for file in files]
    assert source.scale.tolist() in [np.float32(one["scale"]).tolist() for one in kept]
    again = make(folder)
    assert again.fingerprint() == source.fingerprint()
    unread = stored_scales(files[0], lambda: pytest.fail("measured again"))
    assert len(unread) == 2


def test_means_are_decoded_to_the_reconstruction(run):
    folder, params = run
    source = make(folder, sampled=False)
    images = jnp.asarray(DIGITS.reference("test", 10, 0)["data"])
    model = source.codec.model
    expected = model.decode(params["ema"], model.encode(params["ema"], images)[0])
    np.testing.assert_allclose(source.decode(source.reference("test", 10, 0)["data"]), expected, rtol=1e-3, atol=1e-4)


def test_cached_moments_give_the_same_latents(run, tmp_path):
    folder, _ = run
    direct, cached = make(folder), make(folder, cache=str(tmp_path / "moments"))
    np.testing.assert_array_equal(cached.scale, direct.scale)
    one, other = direct.dataset(3, 32, 0, 32)[2], cached.dataset(3, 32, 0, 32)[2]
    np.testing.assert_allclose(other["data"], one["data"], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(other["label"], one["label"])
    with pytest.raises(ValueError, match="made with another encoder"):
        make(f"{folder}:autoencoder", cache=str(tmp_path / "moments"))


def test_what_is_no_autoencoder_is_refused(run, tmp_path):
    with pytest.raises(CheckpointError, match="no folder"):
        make(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no role 'emma'.*Did you mean 'ema'"):
        make(f"{run[0]}:emma")
    with pytest.raises(CheckpointError, match="no checkpoint 9 .*Steps: 7"):
        make(run[0], step=9)
    save_run(tmp_path / "flow", method="flow_matching")
    with pytest.raises(ValueError, match="is one of 'flow_matching'"):
        make(tmp_path / "flow")
    save_run(tmp_path / "colour", spec=DataSpec((8, 8, 3)))
    with pytest.raises(ValueError, match="trained on images of other channels"):
        make(tmp_path / "colour")

"""Features kept beside pictures: they belong to the very pictures of a batch, or are refused."""

import dataclasses

import jax
import numpy as np
import pytest

from flowjax.choices import build
from flowjax.data import SOURCES, check_batch, make_iterator
from flowjax.data.featured import featured
from flowjax.data.latents import Codec, MomentSource
from flowjax.data.sources import ArraySource
from flowjax.models import features
from flowjax.models.autoencoder import convolutional
from flowjax.models.features.extractor import FeatureExtractor

DIGITS = dict(name="digits")
ENCODER = dict(name="cells", weights="random")


def cells(input_size: int = 8) -> FeatureExtractor:
    """Each cell of 2 x 2 pixels as four channels."""

    def apply(tree, images):
        near = images.reshape(-1, 4, 2, 4, 2, 1).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, 4)
        return {"near": near, "pooled": near.mean(axis=(1, 2))}

    return FeatureExtractor("cells", input_size, dict(near=4, pooled=4), "near", (), 0.0, apply)


def expected(images):
    return images.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 4, 4, 4)


@pytest.fixture(autouse=True)
def eye(monkeypatch):
    monkeypatch.setitem(features.EXTRACTORS, "cells", cells)


def test_batches_bring_the_features_of_their_own_pictures(tmp_path, monkeypatch):
    source = build(
        "data source", dict(name="featured", source=DIGITS, folder=str(tmp_path / "c"), encoder=ENCODER), SOURCES
    )
    assert source.spec.feature_shape == (4, 4, 4) and source.spec.shape == (8, 8, 1)
    iterator = make_iterator(source, 32, seed=1)  # checks the first batch
    for _ in range(2):
        batch = next(iterator)
        assert batch["features"].dtype == np.float32
        np.testing.assert_allclose(batch["features"], expected(batch["data"]), atol=1e-3)  # kept in half precision
    held_out = source.reference("test", 50)
    np.testing.assert_allclose(held_out["features"], expected(held_out["data"]), atol=1e-3)

    blind = lambda input_size=8: dataclasses.replace(cells(), apply=lambda tree, images: 1 / 0)
    monkeypatch.setitem(features.EXTRACTORS, "cells", blind)
    again = featured(DIGITS, str(tmp_path / "c"), ENCODER)  # read, not computed
    np.testing.assert_array_equal(next(make_iterator(again, 32, seed=1))["features"].shape, (32, 4, 4, 4))
    with pytest.raises(ValueError, match="made with another encoder .encoder.input_size"):
        featured(DIGITS, str(tmp_path / "c"), dict(ENCODER, input_size=16))


def test_latents_keep_the_features_of_their_pictures():
    rows = {"data": np.ones((6, 8, 8, 1), np.float32), "features": np.ones((6, 4, 4, 4), np.float32)}
    spec = dataclasses.replace(build("data source", DIGITS, SOURCES).spec, feature_shape=(4, 4, 4))
    model = convolutional(spec, channels=4, multipliers=(1, 1), blocks=1, latent_channels=2, attention=False)
    codec = Codec(model, jax.jit(model.init)(jax.random.key(0)), 4)
    moments = MomentSource(ArraySource(rows, rows, spec), codec)
    batch = moments.dataset(0, 4, 0, 4)[0]
    assert batch["data"].shape == (4, 4, 4, 4)
    np.testing.assert_array_equal(batch["features"], rows["features"][:4])


def test_what_would_come_apart_is_refused(tmp_path):
    with pytest.raises(ValueError, match="this source augments them"):
        featured(dict(name="digits", shift=1), str(tmp_path / "moved"), ENCODER)
    with pytest.raises(ValueError, match="'shapes' has no end.*method.alignment.encoder"):
        featured(dict(name="shapes", resolution=8), str(tmp_path / "endless"), ENCODER)
    with pytest.raises(ValueError, match="Unknown map of cells 'pooled'"):
        featured(DIGITS, str(tmp_path / "pooled"), dict(ENCODER, layer="pooled"))


def test_a_batch_without_its_features_is_refused():
    source = build("data source", DIGITS, SOURCES)
    batch = next(make_iterator(source, 8))
    spec = dataclasses.replace(source.spec, feature_shape=(4, 4, 4))
    with pytest.raises(ValueError, match=r"features of shape \(4, 4, 4\), but the batch has no 'features'"):
        check_batch(batch, spec)
    check_batch({**batch, "features": np.zeros((8, 4, 4, 4), np.float32)}, spec)
    with pytest.raises(ValueError, match=r"but the batch has features of shape \(2, 4, 4\)"):
        check_batch({**batch, "features": np.zeros((8, 2, 4, 4), np.float32)}, spec)

"""Image networks as features of evaluations: jitted batches, memory, disk, receipts. Random weights, a tiny input."""

import jax
import numpy as np
import pytest

from flowjax.choices import build
from flowjax.contract import DataSpec
from flowjax.data import ArraySource
from flowjax.evaluation import EVALUATORS, judging
from flowjax.evaluation.image_features import image_features
from flowjax.models.features import FeatureExtractor
from flowjax.models.features.extractor import Unit, convolve, resized

COUNT = {"runs": 0}


def toy(size=8):
    """A network of one unit, quick to compile."""

    def apply(tree, images):
        def ran():
            COUNT["runs"] += 1

        jax.debug.callback(ran)
        x = jax.nn.relu(convolve(resized(images, size), tree["only"], 2))
        return {"map": x, "pooled": x.mean((1, 2)) ** 2}

    units = (Unit("only", (3, 3, 3, 6), "conv", "bn"),)
    return FeatureExtractor("toy", size, {"map": 6, "pooled": 6}, "map", units, 1e-3, apply)


@pytest.fixture
def features(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWJAX_CACHE", str(tmp_path))
    extractor = toy()
    COUNT["runs"] = 0
    return extractor, extractor.init(jax.random.key(0)), tmp_path


def pictures(count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 8, 8, 3)).astype(np.float32)


def runs():
    jax.effects_barrier()
    return COUNT["runs"]


def test_batches_of_one_size_give_the_features_of_the_network(features):
    extractor, tree, _ = features
    x = pictures(11)
    found = image_features(extractor, tree, batch_size=4)
    vectors = found.embed(x)
    assert runs() == 3 and vectors.shape == (11, 6)
    np.testing.assert_allclose(vectors, extractor.vector(extractor.apply(tree, x), "map"), rtol=1e-4, atol=1e-5)
    other = image_features(extractor, tree, "pooled", batch_size=4).embed(x)
    np.testing.assert_allclose(other, extractor.apply(tree, x)["pooled"], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="Unknown layer of toy 'maps'.*Did you mean 'map'"):
        image_features(extractor, tree, "maps")


def test_generated_features_are_remembered_and_real_ones_kept_on_disk(features):
    extractor, tree, folder = features
    found = image_features(extractor, tree, batch_size=8)
    first = found.embed(pictures(8))
    assert runs() == 1
    np.testing.assert_array_equal(found.embed(pictures(8)), first)
    assert runs() == 1 and not (folder / "features").exists()
    found.embed(pictures(8, seed=1))
    assert runs() == 2
    real = found.real(pictures(8, seed=2))
    assert runs() == 3 and len(list((folder / "features").iterdir())) == 1
    again = image_features(extractor, tree, batch_size=8)  # another process
    np.testing.assert_array_equal(again.real(pictures(8, seed=2)), real)
    assert runs() == 3
    # Other weights, another layer, other images: never mixed up.
    other = image_features(extractor, extractor.init(jax.random.key(1)), batch_size=8).real(pictures(8, seed=2))
    assert runs() == 4 and not np.allclose(other, real)
    image_features(extractor, tree, "pooled", batch_size=8).real(pictures(8, seed=2))
    image_features(extractor, tree, batch_size=8).real(pictures(8, seed=3))
    assert runs() == 6 and len(list((folder / "features").iterdir())) == 4


def test_a_damaged_file_is_made_anew(features):
    extractor, tree, folder = features
    found = image_features(extractor, tree, batch_size=8)
    real = found.real(pictures(8))
    (path,) = (folder / "features").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    np.testing.assert_array_equal(image_features(extractor, tree, batch_size=8).real(pictures(8)), real)
    assert np.load(path).shape == (8, 6)


def test_receipts_name_the_network_the_layer_and_the_weights(features, monkeypatch):
    extractor, tree, _ = features
    made = image_features(extractor, tree, batch_size=64)
    monkeypatch.setitem(judging.FEATURES, "toy", lambda: made)
    arrays = {"data": pictures(200)}
    source = ArraySource(arrays, {"data": pictures(40, 5)}, DataSpec((8, 8, 3)), levels=256)
    judge = build(
        "evaluator", dict(name="frechet", features=dict(name="toy"), pairs=3), EVALUATORS, source=source, seed=0
    )
    result = judge(pictures(100, 7) * 0.7, {})
    fields = judging.receipt_fields(judge, result, "frechet")
    described = fields["features"]
    assert (described["name"], described["layer"], described["input_size"]) == ("toy", "map", 8)
    assert described["weights"] != image_features(extractor, extractor.init(jax.random.key(1))).receipt["weights"]
    low, high = fields["interval"]
    assert low < result["frechet"] < high and fields["floor"] < low
    by_name = build("evaluator", dict(name="frechet", features="toy", pairs=3), EVALUATORS, source=source, seed=0)
    assert by_name(pictures(100, 7) * 0.7, {}) == result


def test_missing_weights_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWJAX_DATA", str(tmp_path))
    source = ArraySource({"data": pictures(4)}, {"data": pictures(2)}, DataSpec((8, 8, 3)), levels=256)
    for name, message in (("efficientnet_lite0", "prepare efficientnet_lite0"), ("inception_v3", "FID weights")):
        with pytest.raises(ValueError, match=message):
            build("evaluator", dict(name="frechet", features=name), EVALUATORS, source=source, seed=0)
    with pytest.raises(ValueError, match="has no option 'layers'.*Did you mean 'layer'"):
        judging.features_of(dict(name="efficientnet_lite0", layers="b10"), source)

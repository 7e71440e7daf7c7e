"""Classifiers that features come from: good enough, deterministic, kept on disk safely."""

import dataclasses

import numpy as np
import pytest

from flowjax.data.digits import digits
from flowjax.evaluation import classifiers, features

SHORT = dataclasses.replace(classifiers.RECIPES["digits"], steps=2)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    patch = pytest.MonkeyPatch()
    patch.setenv("FLOWJAX_CACHE", str(folder))
    classifiers.classifier.cache_clear()
    yield classifiers.classifier("digits"), folder
    classifiers.classifier.cache_clear()
    patch.undo()


@pytest.fixture
def short(monkeypatch, tmp_path):
    monkeypatch.setenv("FLOWJAX_CACHE", str(tmp_path))
    monkeypatch.setitem(classifiers.RECIPES, "digits", SHORT)
    return tmp_path


def test_accuracy_on_held_out_digits_is_the_one_reported(classifier):
    test = digits().reference("test")
    accuracy = (classifier[0].classify(test["data"]) == test["label"]).mean()
    assert classifier[0].accuracy == pytest.approx(accuracy)
    assert accuracy >= 0.97


def test_features_have_unit_mean_square_and_do_not_depend_on_the_neighbours(classifier):
    train = digits().reference("train")["data"]
    embedded = classifier[0].embed(train)
    assert embedded.shape == (len(train), 64)
    assert np.mean(embedded.astype(float) ** 2) == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose(classifier[0].embed(train[700:703]), embedded[700:703], rtol=1e-4, atol=1e-5)


def test_the_kept_file_gives_the_same_features_without_training(classifier, monkeypatch):
    def train_again(recipe):
        raise AssertionError("trained again")

    monkeypatch.setenv("FLOWJAX_CACHE", str(classifier[1]))
    monkeypatch.setattr(classifiers, "train_classifier", train_again)
    again = classifiers.classifier.__wrapped__("digits")
    data = digits().reference("test", 20)["data"]
    np.testing.assert_array_equal(again.embed(data), classifier[0].embed(data))
    assert [path.suffix for path in classifier[1].iterdir()] == [".npz"]


def test_training_is_deterministic():
    one, other = classifiers.train_classifier(SHORT), classifiers.train_classifier(SHORT)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_poor_classifier_is_refused(short):
    with pytest.raises(RuntimeError, match="of the held-out images right"):
        classifiers.classifier.__wrapped__("digits")


def test_another_recipe_has_another_file():
    assert SHORT.hash() != classifiers.RECIPES["digits"].hash() == classifiers.RECIPES["digits"].hash()


def test_damaged_files_count_as_absent(tmp_path):
    weights = classifiers.train_classifier(SHORT)
    path = tmp_path / "kept.npz"
    assert classifiers.load(SHORT, path) is None
    classifiers.save(path, weights)
    np.testing.assert_array_equal(classifiers.load(SHORT, path)["head"], weights["head"])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert classifiers.load(SHORT, path) is None
    np.savez(path, **{**weights, "head": np.zeros((2, 2), np.float32)})
    assert classifiers.load(SHORT, path) is None
    np.savez(path, **{**weights, "head": np.array([{}], dtype=object)})
    assert classifiers.load(SHORT, path) is None  # a pickle is never opened


def test_a_folder_that_cannot_be_written_is_only_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="could not be kept"):
        classifiers.save(tmp_path / "file" / "kept.npz", {"a": np.zeros(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_wrong_images_are_refused(classifier):
    with pytest.raises(ValueError, match=r"images \[n, 8, 8, 1\]"):
        classifier[0].embed(np.zeros((3, 28, 28, 1), np.float32))


def test_identity_flattens():
    x = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    np.testing.assert_array_equal(features.identity().embed(x), x.reshape(2, 6))

"""TFDS names: read by index without TensorFlow, and plain words where that cannot be."""

import sys

import numpy as np
import pytest
from real_data import png
from toy_tfds import ToyPictures

from flowjax.data import make_iterator, records, tfds
from flowjax.data.prepare import __main__ as command
from flowjax.data.prepare import tfds as preparing
from flowjax.data.prepare.fetch import PrepareError
from flowjax.data.prepare.write import write_plan

module = sys.modules["flowjax.data.tfds"]  # the name in the package is the source


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    ToyPictures.folder = tmp_path_factory.mktemp("pictures")
    ToyPictures(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return str(folder)


def levels(data):
    return np.rint((data[:, 0, 0, 0] + 1) * 127.5).astype(int)


def test_a_tfds_name_without_tensorflow(data_dir):
    source = tfds("toy_pictures", size=4, data_dir=data_dir, test_share=0.3, tokenizer=dict(name="words"))
    assert source.spec.shape == (4, 4, 3) and source.spec.num_classes == 2 and source.labels == ("dark", "light")
    assert source.size + source.test_size == 12 and source.test_size
    batch = next(make_iterator(source, source.size))
    np.testing.assert_array_equal(batch["label"], levels(batch["data"]) > 100)
    assert source.tokenizer.decode(batch["tokens"]) == [f"grey {level}" for level in levels(batch["data"])]
    test = source.reference("test")
    assert sorted([*levels(batch["data"]), *levels(test["data"])]) == list(range(0, 240, 20))
    assert tfds("toy_pictures", image="depth", size=2, channels=1, data_dir=data_dir, test_share=0.0).reference(
        "train"
    )["data"].shape == (12, 2, 2, 1)


def test_what_cannot_be_is_said(data_dir, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no TFDS data set 'toy_picturez'"):
        tfds("toy_picturez", data_dir=data_dir)
    with pytest.raises(ValueError, match="no feature 'picture' for image. It has .*depth"):
        tfds("toy_pictures", image="picture", data_dir=data_dir)
    with pytest.raises(ValueError, match="is not at .*Run `python -m flowjax.data.prepare toy_pictures --from"):
        tfds("toy_pictures", data_dir=str(tmp_path))
    monkeypatch.setattr(module, "random_access", lambda builder: False)
    with pytest.raises(ValueError, match="as array_record, which has no access by index. Run `python -m .*TensorFlow"):
        tfds("toy_pictures", data_dir=data_dir)


def test_preparing_a_tfds_name(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWJAX_DATA", str(tmp_path))
    card = command.run(["toy_pictures", "--from", data_dir, "--test-share", "0.3"], say=lambda line: None)
    assert card["labels"] == ["dark", "light"] and card["shape"] == [4, 6, 3]
    assert card["sources"][0]["tfds"] == "toy_pictures/1.0.0" and card["sources"][0]["attribution"] == "nobody, 2026"
    source = records("toy_pictures", tokenizer=dict(name="words"))
    direct = tfds("toy_pictures", size=4, data_dir=data_dir, test_share=0.3, tokenizer=dict(name="words"))
    for split in ("train", "test"):
        one, other = source.reference(split), direct.reference(split)
        np.testing.assert_array_equal(levels(one["data"]), levels(other["data"]))
        np.testing.assert_array_equal(one["label"], other["label"])
        assert source.tokenizer.decode(one["tokens"]) == direct.tokenizer.decode(other["tokens"])


def test_tfrecords_of_several_shards_are_prepared_with_tensorflow(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow")
    import tensorflow_datasets as datasets

    def sixty(builder):
        for index in range(60):
            file = tmp_path / f"{index}.png"
            file.write_bytes(png((4 * index,) * 3, (6, 4)) if index != 7 else b"corrupt")
            depth = np.zeros((2, 2, 1), np.uint8)
            yield index, {"image": str(file), "depth": depth, "kind": index % 2, "caption": f"grey {4 * index}"}

    monkeypatch.setenv("FLOWJAX_DATA", str(tmp_path / "home"))
    monkeypatch.setattr(ToyPictures, "_generate_examples", sixty)
    builder = ToyPictures(data_dir=str(tmp_path / "tfds"), file_format="tfrecord")
    builder.download_and_prepare(download_config=datasets.download.DownloadConfig(num_shards=3))
    # TFDS reads sixteen examples of one shard, then sixteen of the next, unless it is told to keep their order.
    assert builder.info.splits["train"].num_shards == 3 and min(builder.info.splits["train"].shard_lengths) > 16
    with pytest.raises(ValueError, match="as tfrecord, which has no access by index. Run `python -m .*with TensorFlow"):
        tfds("toy_pictures", size=4, data_dir=str(tmp_path / "tfds"))
    plan = preparing.plan(tmp_path / "tfds", tmp_path, print, "toy_pictures", test_share=0.3)
    card = write_plan(plan, tmp_path / "home" / "toy_pictures", print, 16)  # pieces that begin and end inside shards
    assert {reason: entry["count"] for reason, entry in card["skipped"]["reasons"].items()} == {"corrupt picture": 1}
    assert card["splits"]["test"]["count"] > 5
    source, seen = records("toy_pictures", tokenizer=dict(name="bytes")), []
    for split in ("train", "test"):
        rows = source.reference(split)
        grey = levels(rows["data"])
        np.testing.assert_array_equal(rows["label"], grey // 4 % 2)
        assert source.tokenizer.decode(rows["tokens"]) == [f"grey {level}" for level in grey]
        seen += grey.tolist()
    assert sorted(seen) == [4 * index for index in range(60) if index != 7]  # each once, in one of the splits


def test_without_tensorflow_the_extra_is_named(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "has_tensorflow", lambda: False)
    with pytest.raises(
        ValueError, match=r"has to be made by TFDS, which takes TensorFlow.*flowjax-research\[tensorflow\]"
    ):
        command.run(["toy_pictures", "--from", str(tmp_path)], say=lambda line: None)
    monkeypatch.setattr(sys.modules["flowjax.data.prepare.tfds"], "random_access", lambda builder: False)
    with pytest.raises(ValueError, match="has to be read in order, which takes TensorFlow"):
        command.run(["toy_pictures", "--from", data_dir], say=lambda line: None)


def test_a_builder_that_fails_is_one_message(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "has_tensorflow", lambda: True)

    def fails(self):
        raise ConnectionError("no route to the server")

    monkeypatch.setattr(ToyPictures, "_generate_examples", fails)
    with pytest.raises(PrepareError, match="TFDS could not make toy_pictures/1.0.0: .*no route.*Without a network"):
        command.run(["toy_pictures", "--from", str(tmp_path)], say=lambda line: None)

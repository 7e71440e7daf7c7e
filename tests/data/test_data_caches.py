"""Caches: what is read is what was encoded; others are refused by name; cuts and full disks lose nothing."""

import dataclasses
import errno
import json
import os

import numpy as np
import pytest

from flowjax.choices import build
from flowjax.contract import DataSpec
from flowjax.data import SOURCES, ArraySource, RecordSource, caches, check_batch, make_iterator, mixed
from flowjax.data.cached import with_cache
from flowjax.data.caches import CacheError, build_cache, encoder_parts, open_cache
from flowjax.data.fingerprints import records_hash, source_fingerprint, tree_hash
from flowjax.data.pictures import MemoryPictures, picture_source
from flowjax.data.points import moons
from flowjax.data.turns import make_schedule

RNG = np.random.default_rng(0)
PIXELS, TOKENS = RNG.normal(size=(2600, 3)).astype(np.float32), RNG.integers(1, 9, (2600, 4)).astype(np.int32)
WEIGHTS = {"table": RNG.normal(size=(9, 5)).astype(np.float32)}
PARTS = encoder_parts("table", WEIGHTS, width=5)


def captioned(count=2600):
    split = lambda part: {"data": PIXELS[part], "tokens": TOKENS[part]}
    return ArraySource(split(slice(100, count)), split(slice(0, 100)), DataSpec((3,), text_length=4, vocabulary=9))


def captioned_records():
    decode = lambda index: {"data": PIXELS[index], "tokens": TOKENS[index]}
    return RecordSource(range(100, 400), decode, DataSpec((3,), text_length=4, vocabulary=9), test=range(100))


def encode(rows):
    return {"text": WEIGHTS["table"][rows["tokens"]], "text_mask": rows["tokens"] > 2}


def latents(rows):
    return {"data": rows["data"][:, :2] * 2, "label": (rows["data"][:, 0] > 0).astype(np.int32)}


def test_hashes_change_with_every_value_and_with_nothing_else():
    tree = {"b": {"kernel": np.ones((2, 3), np.float32)}, "a": np.arange(4)}
    assert tree_hash(tree) == tree_hash({"a": np.arange(4), "b": {"kernel": np.ones((2, 3), np.float32)}})
    changed = {"b": {"kernel": np.ones((2, 3), np.float32)}, "a": np.array([0, 1, 2, 4])}
    others = [
        changed,
        {**tree, "a": np.arange(4, dtype=np.int32)},
        {**tree, "a": np.arange(4).reshape(2, 2)},
        {"b": tree["b"], "c": tree["a"]},
        {"b": {"kernel": np.ones((3, 2), np.float32)}, "a": np.arange(4)},
    ]
    assert len({tree_hash(other) for other in (tree, *others)}) == 6
    assert tree_hash({"x": np.arange(6).reshape(2, 3).T}) == tree_hash({"x": np.arange(6).reshape(2, 3).T.copy()})
    assert len({records_hash(records) for records in ([b"ab", b"c"], [b"a", b"bc"], [b"abc"], ["abc"])}) == 4


def test_sources_know_what_they_are():
    same = [captioned(), captioned(), captioned_records(), captioned_records(), moons(), moons()]
    prints = [source_fingerprint(source) for source in same]
    assert prints[::2] == prints[1::2] and len(set(prints)) == 3
    assert source_fingerprint(captioned(2599)) not in prints
    assert source_fingerprint(moons(0.2)) not in prints
    assert source_fingerprint(SOURCES["mix"]((dict(name="moons"), dict(name="moons")), weights=(1, 2))) not in prints

    class Plain:  # a source without a method of its own
        size = None

        def dataset(self, seed, batch_size, start, stop):
            return moons().dataset(seed, batch_size, start, stop)

    assert source_fingerprint(Plain()) == source_fingerprint(Plain())


def captioned_pictures():
    """A source of pictures with their captions, which draws its examples itself."""
    captions = [(f"{'red' if i % 3 else 'blue'} {i % 7}",) for i in range(60)]
    pixels = np.arange(60, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    train, test = MemoryPictures(pixels[:40], None, captions[:40]), MemoryPictures(pixels[40:], None, captions[40:])
    return picture_source(train, test, (4, 4, 3), 0.5, None, dict(name="words"), 0)


def test_cached_text_of_a_source_that_draws_by_itself(tmp_path):
    source = captioned_pictures()
    table = RNG.normal(size=(source.spec.vocabulary, 5)).astype(np.float32)
    read = lambda rows: {"text": table[rows["tokens"]], "text_mask": rows["tokens"] > 0}
    both = with_cache(source, build_cache(tmp_path / "text", source, read, encoder_parts("table", table)))
    assert both.size == 40 and both.spec.text_channels == 5 and both.levels == 256
    plain, joined = make_iterator(source, 16, seed=4), make_iterator(both, 16, seed=4)
    for _ in range(6):
        expected, batch = next(plain), next(joined)
        check_batch(batch, both.spec)
        np.testing.assert_array_equal(batch["tokens"], expected["tokens"])
        np.testing.assert_array_equal(batch["data"], expected["data"])
        np.testing.assert_array_equal(batch["text"], table[expected["tokens"]])
    for options in (("train",), ("test", 7, 3), ("all", 50, 1)):
        np.testing.assert_array_equal(both.reference(*options)["text"], table[source.reference(*options)["tokens"]])
    np.testing.assert_array_equal(both.examples("test", 3, 9)["text"], both.reference("test")["text"][3:9])
    assert source_fingerprint(both) != source_fingerprint(source)
    mixture = mixed([both, both], make_schedule(2, None, (), None))
    assert next(make_iterator(mixture, 8))["text"].shape == (8, source.spec.text_length, 5)


@pytest.mark.parametrize("make", [captioned, captioned_records])
def test_cached_text_takes_the_place_of_tokens_row_by_row(make, tmp_path):
    source = make()
    cache = build_cache(tmp_path / "text", source, encode, PARTS)
    assert {path.name for path in (tmp_path / "text").iterdir()} == {
        "header.json", "train.text.npy", "train.text_mask.npy", "test.text.npy", "test.text_mask.npy"
    }  # fmt: skip
    both = with_cache(source, cache)
    assert both.spec == DataSpec((3,), text_length=4, text_channels=5)
    plain, joined = make_iterator(source, 16, seed=2), make_iterator(both, 16, seed=2)
    for _ in range(5):
        expected, batch = next(plain), next(joined)
        check_batch(batch, both.spec)
        np.testing.assert_array_equal(batch["tokens"], expected["tokens"])
        np.testing.assert_array_equal(batch["data"], expected["data"])
        np.testing.assert_array_equal(batch["text"], WEIGHTS["table"][expected["tokens"]])
        np.testing.assert_array_equal(batch["text_mask"], expected["tokens"] > 2)
    np.testing.assert_array_equal(both.reference("test")["text"], WEIGHTS["table"][TOKENS[:100]])


def test_cached_latents_are_the_data(tmp_path):
    for index, source in enumerate((captioned(), captioned_records())):
        both = with_cache(source, build_cache(tmp_path / str(index), source, latents, encoder_parts("halve")))
        reference = both.reference("train")
        expected = source.reference("train")["data"]
        np.testing.assert_array_equal(reference["data"], expected[:, :2] * 2)
        np.testing.assert_array_equal(reference["label"], expected[:, 0] > 0)
        assert both.spec.shape == (2,) and both.spec.std == pytest.approx((expected[:, :2] * 2).std(), rel=1e-5)


def test_some_of_an_endless_source(tmp_path):
    source = moons(labels=True)
    keep = lambda rows: {"data": rows["data"] + 1, "label": rows["label"]}
    both = with_cache(source, build_cache(tmp_path / "some", source, keep, encoder_parts("plus one"), count=50))
    assert both.size == 50 and both.test_size == 5
    np.testing.assert_array_equal(both.reference("train")["data"], source.reference("train", 50)["data"] + 1)
    open_cache(tmp_path / "some", source)
    with pytest.raises(CacheError, match="has no end"):
        build_cache(tmp_path / "other", source, keep, encoder_parts("plus one"))
    with pytest.raises(CacheError, match="taken as a whole"):
        build_cache(tmp_path / "other", captioned(), encode, PARTS, count=5)


def test_half_precision_is_read_as_float32(tmp_path):
    source = captioned()
    cache = build_cache(tmp_path / "half", source, encode, PARTS, float_type="float16")
    assert cache.arrays("train")["text"].dtype == np.float16 and cache.arrays("train")["text_mask"].dtype == bool
    batch = next(make_iterator(with_cache(source, cache), 8))
    assert batch["text"].dtype == np.float32 and batch["text_mask"].dtype == bool
    np.testing.assert_allclose(
        with_cache(source, cache).reference("test")["text"], encode(source.test)["text"], rtol=1e-3
    )


def test_another_source_or_encoder_is_refused_by_name(tmp_path):
    folder, source = tmp_path / "cache", captioned()
    build_cache(folder, source, encode, PARTS)
    assert build_cache(folder, source, lambda rows: pytest.fail("encoded again"), PARTS).encoder == PARTS
    for other, message in (
        (
            encoder_parts("table", {"table": WEIGHTS["table"] + 1e-6}, width=5),
            r"another encoder \(encoder.parameters: '",
        ),
        (encoder_parts("table", WEIGHTS, width=6), r"encoder.width: 5 then, 6 now"),
        (encoder_parts("tables", WEIGHTS, width=5), r"encoder.name: 'table' then, 'tables' now"),
        (encoder_parts("table", width=5), r"encoder.parameters: '\w+' then, None now"),
    ):
        for use in (
            lambda parts: build_cache(folder, source, encode, parts),
            lambda parts: open_cache(folder, source, parts),
        ):
            with pytest.raises(CacheError, match=message):
                use(other)
    with pytest.raises(CacheError, match=r"another source \(source.content.*delete .*cache first"):
        open_cache(folder, captioned(2599), PARTS)
    with pytest.raises(CacheError, match="another source and encoder"):
        open_cache(folder, captioned(2599), encoder_parts("b"))
    longer = ArraySource(source.train, source.test, DataSpec((3,), text_length=4, vocabulary=10))
    with pytest.raises(CacheError, match="source.spec"):
        open_cache(folder, longer, PARTS)


def test_a_cache_made_before_specs_had_a_field_is_of_the_same_source_unless_it_says_otherwise(tmp_path):
    folder, source = tmp_path / "cache", captioned()
    build_cache(folder, source, encode, PARTS)
    header = json.loads((folder / "header.json").read_text())
    del header["source"]["spec"]["visible_shape"], header["source"]["spec"]["pooled_channels"]
    (folder / "header.json").write_text(json.dumps(header))
    assert open_cache(folder, source, PARTS).encoder == PARTS
    pooled = ArraySource(source.train, source.test, dataclasses.replace(source.spec, pooled_channels=3))
    with pytest.raises(CacheError, match="source.spec"):
        open_cache(folder, pooled, PARTS)


@pytest.mark.parametrize("rows", [0, 64, 1100, 2450])
def test_building_goes_on_where_it_was_cut(rows, tmp_path):
    folder, source = tmp_path / "cache", captioned()
    calls = []

    def cut(batch):
        calls.append(len(batch["data"]))
        if sum(calls) > rows:
            raise KeyboardInterrupt
        return encode(batch)

    with pytest.raises(KeyboardInterrupt):
        build_cache(folder, source, cut, PARTS)
    assert not folder.exists()
    with pytest.raises(CacheError, match="cut off.*goes on where it stopped"):
        open_cache(folder)
    with pytest.raises(CacheError, match="encoder.width"):
        build_cache(folder, source, encode, encoder_parts("table", WEIGHTS, width=6))
    again = []

    def counted(batch):
        again.append(len(batch["data"]))
        return encode(batch)

    cache = build_cache(folder, source, counted, PARTS)
    assert sum(again) == 2600 - rows // 1024 * 1024
    assert not (tmp_path / "cache.partial").exists()
    for split in ("train", "test"):
        for name, value in encode(getattr(source, split)).items():
            np.testing.assert_array_equal(cache.arrays(split)[name], value)


def test_a_full_disk_is_one_message_and_keeps_what_was_done(tmp_path, monkeypatch):
    folder, source = tmp_path / "cache", captioned()
    real, syncs = os.fsync, []

    def fsync(number):
        syncs.append(number)
        if len(syncs) > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    monkeypatch.setattr(caches.os, "fsync", fsync)
    with pytest.raises(CacheError, match="The disk is full while the cache .* goes on from there"):
        build_cache(folder, source, encode, PARTS)
    monkeypatch.undo()
    assert json.loads((tmp_path / "cache.partial" / "progress.json").read_text())["train"]["done"] >= 1024
    np.testing.assert_array_equal(
        build_cache(folder, source, encode, PARTS).arrays("train")["text"], encode(source.train)["text"]
    )


def test_damage_and_misuse_are_noticed(tmp_path):
    folder, source = tmp_path / "cache", captioned()
    build_cache(folder, source, encode, PARTS)
    np.save(folder / "test.text.npy", np.zeros((100, 4, 6), np.float32))
    with pytest.raises(CacheError, match="test.text.npy is <f4.100, 4, 6.; the header says <f4.100, 4, 5."):
        open_cache(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "holiday.jpg").write_bytes(b"")
    with pytest.raises(CacheError, match="holds other files"):
        build_cache(tmp_path / "other", source, encode, PARTS)
    with pytest.raises(CacheError, match="one row for each"):
        build_cache(tmp_path / "short", source, lambda rows: {"text": rows["data"][:-1]}, PARTS)
    with pytest.raises(CacheError, match="needs a name"):
        build_cache(tmp_path / "b", source, encode, {"width": 5})
    with pytest.raises(CacheError, match="nothing was built"):
        open_cache(tmp_path / "nowhere")
    with pytest.raises(CacheError, match="float_type='bfloat16'"):
        build_cache(tmp_path / "b", source, encode, PARTS, float_type="bfloat16")


def test_two_builders_do_not_write_into_one_cache(tmp_path):
    folder, source = tmp_path / "cache", captioned()

    def nested(rows):
        with pytest.raises(CacheError, match="Another process is building"):
            build_cache(folder, source, encode, PARTS)
        return encode(rows)

    build_cache(folder, source, nested, PARTS, splits=("test",))


def test_from_a_config(tmp_path):
    spec = dict(name="digits", labels=True)
    source = build("data source", spec, SOURCES)
    halve = lambda rows: {"data": rows["data"].reshape(-1, 4, 2, 4, 2, 1).mean((2, 4))}
    build_cache(tmp_path / "small", source, halve, encoder_parts("mean", factor=2))
    config = dict(name="cached", folder=str(tmp_path / "small"), source=spec, encoder=dict(factor=2))
    small = build("data source", config, SOURCES, seed=0, total_steps=10)
    assert small.spec.shape == (4, 4, 1) and small.spec.num_classes == 10
    one, other = next(make_iterator(small, 32, seed=5)), next(make_iterator(source, 32, seed=5))
    np.testing.assert_array_equal(one["label"], other["label"])
    np.testing.assert_allclose(one["data"], halve(other)["data"], atol=1e-6)
    with pytest.raises(CacheError, match="encoder.factor: 2 then, 4 now"):
        build("data source", {**config, "encoder": dict(factor=4)}, SOURCES)
    with pytest.raises(CacheError, match="source.content"):
        build("data source", {**config, "source": dict(name="digits", split_seed=1)}, SOURCES)

"""Folders and tar archives read in place: joins, splits, and runs that go on past a bad picture."""

import json

import numpy as np
import pytest
from real_data import noise_png, png, write_folder, write_tar

from flowjax.choices import build
from flowjax.data import SOURCES, make_iterator
from flowjax.data.folders import folder, list_folder
from flowjax.data.listing import held_out
from flowjax.data.webdataset import archives_of, list_archives, webdataset

GREYS = {f"{level:03d}.png": level for level in range(0, 250, 10)}


def greys():
    return {name: png((level, level, level)) for name, level in GREYS.items()}


def grey_folder(root, **options):
    metadata = [{"file_name": name, "text": f"grey {level}"} for name, level in GREYS.items()]
    return write_folder(root, greys(), metadata)


def grey_tars(root):
    root.mkdir()
    members = [
        [(name, content), (name.replace(".png", ".txt"), f"grey {GREYS[name]}".encode())]
        for name, content in greys().items()
    ]
    for index in range(2):
        write_tar(root / f"shard-{index:03d}.tar", [one for pair in members[index::2] for one in pair])
    return root


@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_pictures_meet_their_captions_and_splits_are_kept(tmp_path, kind):
    root = grey_folder(tmp_path / "in") if kind == "folder" else grey_tars(tmp_path / "in")
    where = {"folder": "path", "webdataset": "pattern"}[kind]
    spec = {
        "name": kind,
        where: str(root),
        "size": 8,
        "test_share": 0.3,
        "tokenizer": dict(name="words"),
        "text_length": 3,
    }
    source = build("data source", spec, SOURCES)
    assert source.spec.shape == (8, 8, 3) and source.spec.num_classes is None
    assert source.size + source.test_size == len(GREYS) and source.test_size > 0
    seen = {"train": next(make_iterator(source, source.size)), "test": source.reference("test")}
    levels = {}
    for split, batch in seen.items():
        levels[split] = np.rint((batch["data"][:, 0, 0, 0] + 1) * 127.5).astype(int)
        np.testing.assert_allclose(batch["data"].std(axis=(1, 2, 3)), 0, atol=1e-6)
        if split == "train":  # words of held-out captions may be unknown
            assert source.tokenizer.decode(batch["tokens"]) == [f"grey {level}" for level in levels[split]]
    assert sorted([*levels["train"], *levels["test"]]) == sorted(GREYS.values())
    names = {level: name if kind == "folder" else None for name, level in GREYS.items()}
    if kind == "folder":
        assert all(held_out(names[level], 0.3) for level in levels["test"])
    whole = np.concatenate([seen["train"]["data"]]) / 1
    np.testing.assert_allclose(source.spec.std, whole.std(), rtol=1e-5)
    assert source.fingerprint() == build("data source", spec, SOURCES).fingerprint()
    other = build("data source", {**spec, "fit": "pad"}, SOURCES)
    assert other.fingerprint() != source.fingerprint()


def test_a_picture_that_breaks_later_gives_its_place_to_the_next(tmp_path):
    root = grey_folder(tmp_path / "in")
    source = folder(str(root), size=8, test_share=0.0)
    (root / "030.png").write_bytes(b"gone bad")
    (root / "240.png").unlink()
    with pytest.warns(UserWarning, match=r"030.png: the picture cannot be decoded: .*; its neighbour takes its place"):
        batch = next(make_iterator(source, source.size))
    levels = np.rint((batch["data"][:, 0, 0, 0] + 1) * 127.5).astype(int)
    expected = sorted([*(level for level in GREYS.values() if level not in (30, 240)), 40, 0])
    assert sorted(levels) == expected
    assert source.train.skipped.reasons["corrupt picture"]["count"] == 2
    np.testing.assert_array_equal(next(make_iterator(source, source.size))["data"], batch["data"])


def test_sub_folders_are_classes_and_own_splits_are_respected(tmp_path):
    files = {
        f"{split}/{kind}/{i}.png": png(kind)
        for split in ("train", "test")
        for kind in ("red", "blue")
        for i in range(2)
    }
    source = folder(str(write_folder(tmp_path / "in", files)), size=8)
    assert (
        source.labels == ("blue", "red") and source.spec.num_classes == 2 and (source.size, source.test_size) == (4, 4)
    )
    test = source.reference("test")
    np.testing.assert_array_equal(test["label"], [0, 0, 1, 1])
    np.testing.assert_array_equal(test["data"][:, 0, 0], [[-1, -1, 1]] * 2 + [[1, -1, -1]] * 2)
    assert "label" not in folder(str(tmp_path / "in"), size=8, labels=False).reference("test")


def test_labels_and_several_captions_of_metadata(tmp_path):
    metadata = [{"file_name": f"{i}.png", "text": ["plain", f"other {i}"], "label": 2 * i} for i in range(3)]
    root = write_folder(tmp_path / "in", {f"{i}.png": png("red") for i in range(3)}, metadata)
    source = folder(str(root), size=4, test_share=0.0, tokenizer=dict(name="words"))
    assert source.spec.num_classes == 5
    assert source.tokenizer.decode(source.reference("train")["tokens"]) == ["plain"] * 3
    iterator = make_iterator(source, 3)
    drawn = [text for _ in range(40) for text in source.tokenizer.decode(next(iterator)["tokens"])]
    assert {"plain", "other 0", "other 1", "other 2"} == set(drawn) and 40 < drawn.count("plain") < 80


def test_a_folder_that_does_not_fit_together(tmp_path):
    metadata = [
        {"file_name": "a.png", "text": "a", "label": 1},
        {"file_name": "a.png", "text": "again", "label": 1},
        {"file_name": "gone.png", "text": "gone", "label": 1},
        {"file_name": "../outside.png", "text": "x", "label": 1},
        {"file_name": "unlabelled.png", "text": "b"},
        {"file_name": "silent.png", "text": "  ", "label": 0},
        {"file_name": "odd.png", "text": 7, "label": 0},
        {"file_name": "below.png", "text": "b", "label": -1},
        "{",
        {"text": "nameless"},
    ]
    names = ["a.png", "unlabelled.png", "silent.png", "odd.png", "below.png", "extra.png"]
    write_folder(tmp_path, {"outside.png": png("red")})
    listing = list_folder(write_folder(tmp_path / "in", {name: png("red") for name in names}, metadata), 0.0)
    assert [item.name for item in listing.splits["train"]] == ["a.png"]
    assert {reason: entry["first"] for reason, entry in listing.skipped.reasons.items()} == {
        "duplicate entry": ["a.png"],
        "caption without a picture": ["gone.png", "../outside.png"],
        "picture without a label": ["unlabelled.png"],
        "picture without a caption": ["below.png", "extra.png", "odd.png", "silent.png"],
        "unreadable line of metadata.jsonl": ["line 7", "line 9", "line 10"],
        "negative label": ["below.png"],
    }
    with pytest.raises(ValueError, match="folder .*nowhere is not there"):
        folder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="has no captions"):
        folder(
            str(write_folder(tmp_path / "bare", {"a.png": png("red")})), tokenizer=dict(name="words"), test_share=0.0
        )
    with pytest.raises(ValueError, match="test_share=1"):
        folder(str(tmp_path / "in"), test_share=1.0)


def test_archives_that_do_not_fit_together(tmp_path):
    long = noise_png(0, (40, 40))[0]
    json_caption = json.dumps({"caption": "from json", "label": 3}).encode()
    write_tar(
        tmp_path / "a.tar",
        [
            *[("x/1.png", png("red")), ("x/1.json", json_caption)],
            *[("2.jpg", png("blue", kind="JPEG")), ("2.txt", b"two"), ("2.cls", b"1"), ("2.png", png("red"))],
            *[("3.txt", b"no picture"), ("4.png", png("red")), ("5.png", png("red")), ("5.cls", b"x")],
            *[("1.png", png("red")), ("1.png", png("blue")), ("1.txt", b"one"), ("1.cls", b"0"), ("readme", b"")],
        ],
    )
    cut = write_tar(tmp_path / "b.tar", [("7.txt", b"seven"), ("7.cls", b"2"), ("7.png", png("red")), ("8.png", long)])
    cut.write_bytes(cut.read_bytes()[:6000])
    archives = list_archives(str(tmp_path), test_share=0.0)
    found = {item.name: (item.captions, item.label) for item in archives.listing.splits["train"]}
    assert found == {
        "a/x/1": (("from json",), 3),
        "a/2": (("two",), 1),
        "a/1": (("one",), 0),
        "b/7": (("seven",), 2),
    }
    reasons = archives.listing.skipped.reasons
    assert {reason: entry["count"] for reason, entry in reasons.items()} == {
        "caption without a picture": 1,
        "picture without a caption": 1,
        "unreadable caption or label": 1,
        "duplicate entry": 1,
        "archive cut off or damaged": 1,
    }
    assert "b.tar" in reasons["archive cut off or damaged"]["first"][0]
    assert reasons["picture without a caption"]["first"] == ["a/4"]
    source = webdataset(str(tmp_path), size=4, test_share=0.0)
    order = [item.name for item in archives.listing.splits["train"]]
    pixels = source.examples("train", order.index("a/1"), order.index("a/1") + 1)["data"]
    np.testing.assert_array_equal(pixels[0, 0, 0], [1, -1, -1])  # the first of two members with one name


def test_patterns_of_archives(tmp_path):
    for index in range(12):
        write_tar(tmp_path / f"s-{index:02d}.tar", [])
    names = lambda pattern: [name[-6:-4] for name in archives_of(str(tmp_path / pattern))]
    assert (
        names("s-{08..11}.tar") == ["08", "09", "10", "11"] and names("s-0?.tar")[-1] == "09" and len(names("")) == 12
    )
    with pytest.raises(ValueError, match="No archive matches"):
        archives_of(str(tmp_path / "t-*.tar"))
    with pytest.raises(ValueError, match="{a..c} that is not one of whole numbers"):
        archives_of(str(tmp_path / "{a..c}.tar"))
    with pytest.raises(ValueError, match="no training example"):
        webdataset(str(tmp_path))


def test_mirrored_pictures_come_half_of_the_time(tmp_path):
    content, pixels = noise_png(3)
    source = folder(str(write_folder(tmp_path / "in", {"a.png": content})), size=8, flip=True, test_share=0.0)
    iterator = make_iterator(source, 1)
    mirrored = 0
    for _ in range(100):
        image = np.rint((next(iterator)["data"][0] + 1) * 127.5)
        mirrored += bool((image == pixels[:, ::-1]).all())
        assert (image == pixels).all() or (image == pixels[:, ::-1]).all()
    assert 30 < mirrored < 70
    np.testing.assert_allclose(source.reference("train")["data"][0], pixels / 127.5 - 1, atol=1e-6)

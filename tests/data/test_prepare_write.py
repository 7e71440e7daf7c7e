"""Prepared sets: whole or not there, gone on with after a cut, and open about what was left out."""

import errno
import json
import subprocess
import sys

import numpy as np
import pytest
from real_data import noise_png, png, write_folder

from flowjax.data import make_iterator, records
from flowjax.data.prepare import __main__ as command
from flowjax.data.prepare import write
from flowjax.data.prepare.fetch import PrepareError
from flowjax.data.prepare.folder import plan as folder_plan
from flowjax.data.records import NotPrepared, Prepared


def pictures(folder, count, size=(8, 8)):
    made = {f"{index:03d}.png": noise_png(index, size) for index in range(count)}
    metadata = [{"file_name": name, "text": f"picture {index}"} for index, name in enumerate(made)]
    write_folder(folder, {name: content for name, (content, _) in made.items()}, metadata)
    return {name: pixels for name, (_, pixels) in made.items()}


def silent(line):
    pass


def make(folder, to, shard_size=4, say=silent, **options):
    return write.write_plan(folder_plan(folder, to, say, **options), to, say, shard_size)


def content(folder):
    """name -> (pixels, caption) of every record."""
    prepared, found = Prepared.open(folder), {}
    for split in ("train", "test"):
        shape = tuple(prepared.card["shape"])
        pixels, fields = prepared.pixels(split, shape, "crop") if prepared.count(split) else ((), ())
        found |= {field["name"]: (picture, field["caption"]) for picture, field in zip(pixels, fields)}
    return found


def test_a_folder_becomes_records_losslessly_with_a_card(tmp_path):
    truth = pictures(tmp_path / "in", 11)
    card = make(tmp_path / "in", tmp_path / "out", test_share=0.3)
    found = content(tmp_path / "out")
    assert found.keys() == truth.keys()
    for index, (name, pixels) in enumerate(truth.items()):
        np.testing.assert_array_equal(found[name][0], pixels)
        assert found[name][1] == [f"picture {index}"]
    counts = {split: value["count"] for split, value in card["splits"].items()}
    assert sum(counts.values()) == 11 and counts["test"] > 0
    train = np.concatenate([found[name][0].reshape(-1) for name in _names(tmp_path / "out", "train")])
    np.testing.assert_allclose(card["std"], (train / 127.5 - 1).std(), rtol=1e-6)
    assert card["skipped"] == {"count": 0, "reasons": {}} and card["shape"] == [8, 8, 3]
    text = (tmp_path / "out" / "card.md").read_text()
    assert "11 pictures" in text and card["sha256"] in text
    assert (tmp_path / "out" / "sheet.png").read_bytes()[:4] == b"\x89PNG"
    assert not list((tmp_path / "out").glob("*.part")) and not (tmp_path / "out" / ".progress").exists()


def _names(folder, split):
    return [header["name"] for header in Prepared.open(folder).headers(split)]


def test_bad_input_is_skipped_counted_and_named(tmp_path):
    truth = pictures(tmp_path / "in", 6)
    whole = (tmp_path / "in" / "001.png").read_bytes()
    write_folder(tmp_path / "in", {"001.png": whole[: len(whole) // 2], "002.png": b"", "lonely.png": png("red")})
    lines = (tmp_path / "in" / "metadata.jsonl").read_text()
    more = [{"file_name": "000.png", "text": "twice"}, {"file_name": "gone.png", "text": "no picture"}, "{not json"]
    lines += "\n".join(line if isinstance(line, str) else json.dumps(line) for line in more)
    (tmp_path / "in" / "metadata.jsonl").write_text(lines)
    said = []
    card = make(tmp_path / "in", tmp_path / "out", say=said.append, test_share=0.0)
    reasons = {reason: (entry["count"], entry["first"]) for reason, entry in card["skipped"]["reasons"].items()}
    assert reasons == {
        "corrupt picture": (2, ["001.png", "002.png"]),
        "picture without a caption": (1, ["lonely.png"]),
        "caption without a picture": (1, ["gone.png"]),
        "duplicate entry": (1, ["000.png"]),
        "unreadable line of metadata.jsonl": (1, ["line 9"]),
    }
    assert "6 skipped: caption without a picture 1 (gone.png), corrupt picture 2 (001.png, 002.png)" in said[-1]
    assert sorted(content(tmp_path / "out")) == ["000.png", "003.png", "004.png", "005.png"]
    assert content(tmp_path / "out")["000.png"][1] == ["picture 0"] and len(truth) == 6


def test_nothing_left_is_an_error(tmp_path):
    write_folder(tmp_path / "in", {"a.png": b"no", "b.png": b"picture"})
    with pytest.raises(PrepareError, match="No training example is left of 2 found: 2 skipped: corrupt picture 2"):
        make(tmp_path / "in", tmp_path / "out", test_share=0.0)
    with pytest.raises(ValueError, match="no training picture"):
        make(write_folder(tmp_path / "none", {"readme.txt": b""}), tmp_path / "out")


class Cut(Exception):
    """The power goes."""


def cut_after(monkeypatch, shards, error):
    """Lets so many shards be written and then raises."""
    original, done = write.write_records, []

    def writes(*arguments):
        if len(done) == shards:
            arguments[0].write_bytes(b"half a sha")
            raise error
        done.append(arguments[0].name)
        return original(*arguments)

    monkeypatch.setattr(write, "write_records", writes)
    return done


def test_a_cut_off_run_goes_on_where_it_stopped_and_ends_the_same(tmp_path, monkeypatch):
    pictures(tmp_path / "in", 13)
    whole = make(tmp_path / "in", tmp_path / "whole", test_share=0.0)
    with monkeypatch.context() as patch:
        cut_after(patch, 2, Cut())
        with pytest.raises(Cut):
            make(tmp_path / "in", tmp_path / "out", test_share=0.0)
    with pytest.raises(NotPrepared, match="was cut off before its end"):
        records(str(tmp_path / "out"))
    said, done = [], cut_after(monkeypatch, 99, Cut())
    card = make(tmp_path / "in", tmp_path / "out", say=said.append, test_share=0.0)
    assert len(done) == 2 and [line.split()[1] for line in said[:4]] == ["kept", "kept", "wrote", "wrote"]
    assert card == whole
    assert make(tmp_path / "in", tmp_path / "out", say=said.append, test_share=0.0) == whole
    assert "already prepared" in said[-1] and len(done) == 2


def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(tmp_path):
    pictures(tmp_path / "in", 9)
    script = f"""
import os, pathlib
from flowjax.data.prepare import write
from flowjax.data.prepare.folder import plan
original, done = write.write_records, []
def writes(part, examples, group):
    def dying():
        for index, example in enumerate(examples):
            if done and index == 2:
                os.kill(os.getpid(), 9)
            yield example
    found = original(part, dying(), group)
    done.append(part)
    return found
write.write_records = writes
to = pathlib.Path({str(tmp_path / "out")!r})
write.write_plan(plan(pathlib.Path({str(tmp_path / "in")!r}), to, print, test_share=0.0), to, print, 4)
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == -9
    left = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert left[1] == "train-00000-of-00003.array_record" and "card.json" not in left
    card = make(tmp_path / "in", tmp_path / "out", test_share=0.0)
    assert card == make(tmp_path / "in", tmp_path / "whole", test_share=0.0)
    assert not list((tmp_path / "out").glob("*.part"))


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write() failed: No space left on device; x")],
    ids=["python", "array_record"],
)
def test_a_full_disk_is_one_message_and_keeps_what_is_whole(tmp_path, monkeypatch, error):
    pictures(tmp_path / "in", 9)
    with monkeypatch.context() as patch:
        cut_after(patch, 1, error)
        with pytest.raises(
            PrepareError, match=r"The disk is full: [\d,]+ bytes free at .*; 1 shards are whole and kept"
        ):
            make(tmp_path / "in", tmp_path / "out", test_share=0.0)
    assert not list((tmp_path / "out").glob("*.part"))
    assert make(tmp_path / "in", tmp_path / "out", test_share=0.0)["splits"]["train"]["count"] == 9


def test_other_errors_of_writing_are_not_called_a_full_disk(tmp_path, monkeypatch):
    pictures(tmp_path / "in", 3)
    cut_after(monkeypatch, 0, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        make(tmp_path / "in", tmp_path / "out", test_share=0.0)


def test_other_options_or_changed_files_are_never_mixed_in(tmp_path):
    pictures(tmp_path / "in", 6)
    make(tmp_path / "in", tmp_path / "out", test_share=0.0)
    said = []
    assert make(tmp_path / "in", tmp_path / "out", say=said.append, size=4, test_share=0.0)["shape"] == [4, 4, 3]
    assert "making it anew" in said[0]
    write_folder(tmp_path / "in", {"000.png": png("red", (9, 9))})
    make(tmp_path / "in", tmp_path / "out", size=4, test_share=0.0)
    assert (content(tmp_path / "out")["000.png"][0] == (255, 0, 0)).all()


def test_what_others_wrote_is_never_replaced(tmp_path):
    pictures(tmp_path / "in", 3)
    (tmp_path / "file").write_text("")
    with pytest.raises(PrepareError, match="file is a file. Give a folder to --to"):
        make(tmp_path / "in", tmp_path / "file", test_share=0.0)
    write_folder(tmp_path / "other", {"train-00000-of-00001.array_record": b"mine"})
    with pytest.raises(PrepareError, match="holds ArrayRecord files of something else"):
        make(tmp_path / "in", tmp_path / "other", test_share=0.0)
    assert (tmp_path / "other" / "train-00000-of-00001.array_record").read_bytes() == b"mine"
    make(tmp_path / "in", tmp_path / "out", called="first", test_share=0.0)
    with pytest.raises(PrepareError, match="holds the prepared set 'first'. Give another folder"):
        make(tmp_path / "in", tmp_path / "out", called="second", test_share=0.0)
    assert len(content(tmp_path / "out")) == 3


def test_a_damaged_shard_is_noticed_and_made_again(tmp_path):
    pictures(tmp_path / "in", 6)
    make(tmp_path / "in", tmp_path / "out", test_share=0.0)
    shard = sorted((tmp_path / "out").glob("*.array_record"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"00001-of-00002.array_record has .* bytes instead of .*prepare folder"):
        Prepared.open(tmp_path / "out")
    make(tmp_path / "in", tmp_path / "out", test_share=0.0)
    shard.unlink()
    with pytest.raises(ValueError, match="is missing"):
        Prepared.open(tmp_path / "out")
    make(tmp_path / "in", tmp_path / "out", test_share=0.0)
    assert len(content(tmp_path / "out")) == 6


@pytest.mark.parametrize("memory", [True, False])
def test_a_prepared_set_as_a_source(tmp_path, memory):
    truth = pictures(tmp_path / "in", 20)
    make(tmp_path / "in", tmp_path / "out", test_share=0.2)
    source = records(str(tmp_path / "out"), tokenizer=dict(name="words"), text_length=4, memory=memory)
    assert source.spec.shape == (8, 8, 3) and source.spec.text_length == 4 and source.spec.num_classes is None
    names = _names(tmp_path / "out", "train")
    assert source.size == len(names) and source.size + source.test_size == 20
    iterator = make_iterator(source, source.size)
    batch = next(iterator)
    seen = sorted(tuple(image.reshape(-1)) for image in batch["data"])
    wanted = [tuple((truth[name].astype(np.float32) * np.float32(1 / 127.5) - 1).reshape(-1)) for name in names]
    np.testing.assert_allclose(seen, sorted(wanted), atol=1e-6)
    for image, caption in zip(batch["data"], source.tokenizer.decode(batch["tokens"])):
        own = truth[f"{int(caption.split()[1]):03d}.png"]
        np.testing.assert_allclose(image, own / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(source.tokenizer.encode(source.tokenizer.decode(batch["tokens"])), batch["tokens"])
    again = records(str(tmp_path / "out"), tokenizer=dict(name="words"), text_length=4, memory=not memory)
    np.testing.assert_array_equal(next(make_iterator(again, source.size))["data"], batch["data"])


def test_pictures_of_any_size_keep_their_files_and_go_into_buckets(tmp_path):
    kinds = {"wide": (40, 20), "tall": (20, 40), "square": (30, 30)}
    sizes = {f"{name}{i}.png": size for name, size in kinds.items() for i in range(4)}
    write_folder(tmp_path / "in", {name: noise_png(i, size)[0] for i, (name, size) in enumerate(sizes.items())})
    card = make(tmp_path / "in", tmp_path / "out", test_share=0.0)
    assert card["shape"] is None
    with pytest.raises(ValueError, match="various sizes: give `size`"):
        records(str(tmp_path / "out"))
    assert records(str(tmp_path / "out"), size=16).spec.shape == (16, 16, 3)
    source = records(str(tmp_path / "out"), size=16, bucket_multiple=4)
    iterator = make_iterator(source, 4)
    shapes = {next(iterator)["data"].shape[1:] for _ in range(40)}
    assert shapes == {(16, 16, 3), (20, 12, 3), (12, 20, 3)}


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLOWJAX_DATA", str(tmp_path / "home"))
    pictures(tmp_path / "mine", 5)
    card = command.run(["folder", "--from", str(tmp_path / "mine"), "--size", "4", "--test-share", "0"])
    assert card["splits"]["train"]["count"] == 5 and (tmp_path / "home" / "mine" / "card.json").is_file()
    assert records("mine").spec.shape == (4, 4, 3)
    command.run(["folder", "--from", str(tmp_path / "mine"), "--called", "other", "--test-share", "0"])
    assert records("other").spec.shape == (8, 8, 3)
    for arguments, message in [
        (["folder"], "needs --from"),
        (["folder", "--from", str(tmp_path / "no")], "is not there"),
        (["fashion_mnist", "--size", "3"], "'fashion_mnist' has no option --size"),
        (["emoji", "--size", "0"], "--size 0"),
        (["folder", "--from", str(tmp_path), "--test-share", "1"], "--test-share 1"),
    ]:
        monkeypatch.setattr(sys, "argv", ["prepare", *arguments])
        assert command.main() == 1
        assert message in capsys.readouterr().err
    with pytest.raises(NotPrepared, match="is not there at .*home/nothing. Run `python -m flowjax.data.prepare"):
        records("nothing")

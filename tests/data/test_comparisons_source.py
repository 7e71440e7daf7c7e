"""Folders of comparisons: what was written is read back, and what cannot be used is left out and counted."""

import json

import numpy as np
import pytest
from real_data import png, write_folder

from flowjax.data import compare, make_iterator
from flowjax.data.compared_points import compared_points
from flowjax.data.compared_shapes import compared_shapes
from flowjax.data.comparisons import comparisons
from flowjax.data.listing import held_out

GREYS = {f"{level:03d}.png": level for level in range(0, 250, 10)}
WORDS = dict(name="words")


def folder_of(root, entries, **more):
    """A folder of grey pictures; entries that are text are written as they are."""
    files = {name: png((level, level, level)) for name, level in GREYS.items()} | more
    write_folder(root, files)
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (root / "comparisons.jsonl").write_text("\n".join(lines))
    return str(root)


def pair(one, other, outcome="first", prompt="", **more):
    return dict(prompt=prompt, images=[f"{one:03d}.png", f"{other:03d}.png"], outcome=outcome, **more)


def levels(batch):
    pictures = np.concatenate([batch["data"][:, None], batch["others"]], axis=1)
    return np.rint((pictures[:, :, 0, 0, 0] + 1) * 127.5).astype(int)


@pytest.mark.parametrize("examples", [2, 3])
@pytest.mark.parametrize("split", ["train", "test"])
def test_what_was_written_is_read_back(tmp_path, examples, split):
    theta = dict(theta=3.0) if examples == 2 else {}
    source = compared_shapes(kind="style", examples=examples, **theta)
    compare.write_comparisons(source, tmp_path / "out", 40, split, seed=5)
    back = comparisons(str(tmp_path / "out"), size=32, tokenizer=WORDS, test_share=0.0)
    found = back.examples("train", 0, 40)
    wanted = next(make_iterator(source, 40, seed=5)) if split == "train" else source.reference("test", 40, 5)
    for name in ("data", "others"):
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-6)
    np.testing.assert_array_equal(found["outcome"], wanted["outcome"])
    assert back.tokenizer.decode(found["tokens"]) == source.tokenizer.decode(wanted["tokens"])
    assert back.spec.compared == examples and ("present" in found) == (examples == 3)
    assert examples == 3 or set(found["outcome"]) == {-1, 0, 1}


def test_the_command_writes_and_refuses(tmp_path, capsys):
    out = str(tmp_path / "out")
    assert compare.main([out, "compared_shapes", "kind=degraded", "resolution=16", "--count", "3"]) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 6
    lines = [json.loads(line) for line in (tmp_path / "out" / "comparisons.jsonl").read_text().splitlines()]
    assert all(entry["outcome"] in ("first", "second") and entry["prompt"] for entry in lines)
    for arguments, message in (
        ([out, "compared_shapes"], "is there already"),
        ([out + "2", "compared_points"], "Only comparisons of pictures"),
        ([out + "2", "shapes"], "compared=0"),
        ([out + "2", "compared_shapes", "kind"], "'kind' is no option=value"),
        ([out + "2", "compared_shapes", "side=3"], "has no option 'side'"),
        ([out + "2", "compared_shapes", "--split", "held_out"], "expected 'train' or 'test'"),
    ):
        assert compare.main(arguments) == 2 and message in capsys.readouterr().err


def test_all_comparisons_of_a_prompt_are_of_one_split(tmp_path):
    prompts = [f"grey {i}" for i in range(12)]
    entries = [pair(10 * i, 10 * i + 10 * j, prompt=prompts[i]) for i in range(12) for j in (1, 2, 3)]
    entries += [pair(0, 240, prompt=prompts[i], group="together") for i in range(12)]
    source = comparisons(folder_of(tmp_path / "in", entries), size=8, tokenizer=WORDS, text_length=2, test_share=0.4)
    assert source.size + source.test_size == 48
    batch, held = next(make_iterator(source, source.size)), source.reference("test")
    grouped = (levels(batch) == [0, 240]).all(axis=1)
    texts = np.array(source.tokenizer.decode(batch["tokens"]))[~grouped]
    mine = [text for text in prompts if not held_out(text, 0.4)]
    assert 0 < len(mine) < 12 and sorted(texts) == sorted(3 * mine)
    together = levels(held if held_out("together", 0.4) else batch)
    assert (together == [0, 240]).all(axis=1).sum() == 12
    again = next(make_iterator(source, source.size, threads=2))
    np.testing.assert_array_equal(again["data"], batch["data"])
    assert sorted(map(tuple, levels(batch))) == sorted(map(tuple, levels(source.examples("train", 0, source.size))))


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path, capsys):
    entries = [
        pair(10, 20, prompt="a grey", margin=0.5, label=1),
        pair(20, 30, "second", prompt="a grey", label=0),
        pair(30, 40, "tie", prompt="a grey", margin=2, label=3),
        "{broken",
        '["no", "object"]',
        dict(images=["010.png"], outcome="first"),
        dict(images=["010.png", "010.png"], outcome="first"),
        dict(images=["010.png", "020.png", "030.png"], outcome="first"),
        pair(10, 20, "third"),
        pair(10, 20, margin="wide"),
        pair(10, 20, label=-1),
        pair(10, 20, prompt=7),
        pair(10, 777),
        pair(10, 20, prompt="an unknown"),
    ]
    file = tmp_path / "words.txt"
    file.write_text("a\ngrey\n")
    options = dict(tokenizer=dict(WORDS, file=str(file), strict=True), test_share=0.0, size=8)
    source = comparisons(folder_of(tmp_path / "in", entries), **options)
    said = capsys.readouterr().out
    assert "11 skipped" in said and "line that is no comparison 9 (line 4, line 5" in said
    assert "picture that is not there 1 (777.png)" in said and "tokenizer refuses 1 (an unknown)" in said
    batch = source.examples("train", 0, 3)
    np.testing.assert_array_equal(levels(batch), [[10, 20], [20, 30], [30, 40]])
    np.testing.assert_array_equal(batch["outcome"], [1, -1, 0])
    np.testing.assert_array_equal(batch["margin"], np.float32([0.5, 0.0, 2.0]))
    np.testing.assert_array_equal(batch["label"], [1, 0, 3])
    assert source.spec.num_classes == 4 and source.spec.compared == 2 and source.card["skipped"]["count"] == 11
    next(make_iterator(source, 3))  # fits the contract


def alone(level, outcome="good", **more):
    return dict(images=[f"{level:03d}.png"], outcome=outcome, **more)


def test_pictures_may_be_judged_by_themselves(tmp_path, capsys):
    entries = [alone(10, prompt="a"), alone(20, "bad", prompt="b", margin=2.0), alone(30, "tie"), alone(40, "first")]
    path = folder_of(tmp_path / "in", [*entries, dict(images=[], outcome="good")])
    source = comparisons(path, size=8, tokenizer=WORDS, test_share=0.0)
    assert "line that is no comparison 3 (line 3, line 4, line 5)" in capsys.readouterr().out
    batch = source.examples("train", 0, 2)
    assert source.spec.compared == 1 and not {"others", "present", "margin"} & set(batch)
    assert list(np.rint((batch["data"][:, 0, 0, 0] + 1) * 127.5)) == [10, 20]
    np.testing.assert_array_equal(batch["outcome"], [1, -1])
    next(make_iterator(source, 2))  # fits the contract


def test_pairs_come_apart_where_each_is_judged_by_itself_and_not_the_other_way(tmp_path, capsys):
    ranked = dict(images=["070.png", "080.png", "090.png"], outcome="ranking")
    entries = [pair(10, 20, "second", margin=1.0), alone(30), pair(40, 50, "tie"), ranked, pair(60, 70)]
    path = folder_of(tmp_path / "in", entries)
    source = comparisons(path, size=8, test_share=0.0, examples=1)
    assert "where each picture is good or bad 2 (line 3, line 4)" in capsys.readouterr().out
    batch = source.examples("train", 0, 5)
    assert list(np.rint((batch["data"][:, 0, 0, 0] + 1) * 127.5)) == [10, 20, 30, 60, 70]
    np.testing.assert_array_equal(batch["outcome"], [-1, 1, 1, 1, -1])
    assert comparisons(path, size=8, test_share=0.0, examples=2).size == 3
    assert "picture judged by itself among comparisons 1 (030.png)" in capsys.readouterr().out


def test_rankings_of_several_lengths_are_filled_up(tmp_path, capsys):
    ranked = lambda *own: dict(images=[f"{level:03d}.png" for level in own], outcome="ranking")
    entries = [ranked(30, 10, 20, 40), pair(50, 60, "second"), ranked(70, 80), pair(90, 100, "tie"), ranked(10, 20, 30)]
    path = folder_of(tmp_path / "in", entries)
    source = comparisons(path, size=8, test_share=0.0)
    assert "tie among rankings 1" in capsys.readouterr().out and source.spec.compared == 4
    batch = source.examples("train", 0, 4)
    present = np.concatenate([np.ones((4, 1), bool), batch["present"]], axis=1)
    assert [list(own[there]) for own, there in zip(levels(batch), present)] == [
        [30, 10, 20, 40],
        [60, 50],
        [70, 80],
        [10, 20, 30],
    ]
    assert (batch["outcome"] == 1).all()
    assert comparisons(path, size=8, test_share=0.0, examples=3).size == 3
    assert "ranking of more than 3 1 (line 1)" in capsys.readouterr().out


def test_a_picture_that_is_no_picture_gives_its_place_away(tmp_path):
    files = {"bad.png": b"not a picture"}
    entries = [dict(images=["bad.png", "010.png"], outcome="first"), pair(20, 30), pair(40, 50)]
    path = folder_of(tmp_path / "in", entries, **files)
    with pytest.warns(UserWarning, match="bad.png, 010.png"):
        source = comparisons(path, size=8, test_share=0.0)
    np.testing.assert_array_equal(levels(source.examples("train", 0, 3)), [[20, 30], [20, 30], [40, 50]])


def test_a_folder_without_comparisons_says_what_it_lacks(tmp_path):
    with pytest.raises(ValueError, match="There is no file"):
        comparisons(str(tmp_path))
    with pytest.raises(ValueError, match=r"no comparison that can be used.*line that is no comparison 1"):
        comparisons(folder_of(tmp_path / "in", ["nothing"]), size=8)
    with pytest.raises(ValueError, match="Only comparisons of pictures"):
        compare.write_comparisons(compared_points(), tmp_path / "out", 3)

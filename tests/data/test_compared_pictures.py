"""Scores of compared pictures, found again in the pictures themselves: by the parser, by distances, by colours."""

import numpy as np
import pytest
from real_data import png

from flowjax.data import make_iterator
from flowjax.data.compared_emoji import compared_emoji
from flowjax.data.compared_shapes import compared_shapes
from flowjax.data.degradations import DEGRADATIONS, degrade
from flowjax.data.prepare.plan import Plan
from flowjax.data.prepare.write import write_plan
from flowjax.data.record_format import decode_picture
from flowjax.shapes.parse import parse
from flowjax.shapes.requirements import judge, understand
from flowjax.shapes.scenes import LARGE
from flowjax.shapes.vocabulary import BACKGROUNDS

STYLES = ("google", "twitter", "fluent")


def shown(batch):
    return np.concatenate([batch["data"][:, None], batch["others"]], axis=1)


@pytest.mark.parametrize("examples", [2, 3])
def test_a_parser_finds_no_mistake_where_the_score_says_so(examples):
    source = compared_shapes(kind="caption", resolution=64, objects=(1, 3), examples=examples)
    batch, scores = source.judged("test", 60)
    wanted = understand(source.tokenizer.decode(batch["tokens"]))
    verdicts = [judge(parse(shown(batch)[:, i]), wanted)["all"] for i in range(examples)]
    np.testing.assert_array_equal(np.stack(verdicts, axis=1) == 1, scores == 0)
    assert (np.sort(scores, axis=1)[:, -1] == 0).all() and scores.min() <= -2


def test_one_mistake_is_one_wrong_colour_or_kind():
    source = compared_shapes(kind="caption", resolution=64, objects=(1, 1))
    batch, scores = source.judged("test", 80)
    wanted = understand(source.tokenizer.decode(batch["tokens"]))
    for place in range(2):
        found = judge(parse(shown(batch)[:, place]), wanted)
        np.testing.assert_array_equal((found["colour"] == 0).astype(int) + (found["kind"] == 0), -scores[:, place])
        np.testing.assert_array_equal(found["count"], 1)


def test_stronger_degradations_are_further_away():
    whole = compared_shapes(kind="style").reference("test", 24)["data"]
    pixels = np.rint((whole + 1) * 127.5).astype(np.uint8)
    uniforms = np.random.default_rng(0).random(24)
    for which in range(len(DEGRADATIONS)):
        error = []
        for strength in (0.0, 0.25, 0.5, 1.0):
            made = degrade(pixels, np.full(24, which), np.full(24, strength), uniforms)
            error.append(((made.astype(float) - pixels) ** 2).mean())
        assert error[0] == 0 and error[1] < error[2] < error[3] and error[1] > 1
    noisy = degrade(pixels[:1] // 2 + 64, np.array([1]), np.array([0.25]), uniforms[:1]) - (pixels[:1] // 2 + 64.0)
    assert abs(noisy.std() - 16) < 1  # a quarter of 64 levels


def test_a_degraded_picture_is_scored_by_what_can_be_seen():
    source = compared_shapes(kind="degraded", resolution=16, examples=3, sizes=("large",))
    batch, scores = source.judged("test", 300)
    same = (shown(batch)[:, 0] == shown(batch)[:, 1]).all(axis=(1, 2, 3))
    assert same.any() and (scores[same, 0] == scores[same, 1]).all()  # what looks alike is worth the same
    assert scores.max() == 0 and -8 <= scores.min() < -6
    pixels = np.rint((shown(batch) + 1) * 127.5)
    best, rows = scores.argmax(axis=1), np.arange(300)
    untouched = scores[rows, best] == 0  # whole pictures are in the batch themselves
    error = np.sqrt(((pixels - pixels[rows, best][:, None]) ** 2).mean(axis=(2, 3, 4)))
    np.testing.assert_allclose(-8 * scores[untouched], error[untouched], atol=1e-6)
    assert untouched.sum() > 30


def test_taste_is_that_for_backgrounds_and_sizes():
    source = compared_shapes(kind="style", resolution=64, objects=(1, 2), taste=(2.0, 1.0))
    batch, scores = source.judged("test", 60)
    wanted = understand(source.tokenizer.decode(batch["tokens"]))
    light = np.array([sum(colour) for colour in BACKGROUNDS.values()], float)
    light = 2 * (light - light.min()) / (light.max() - light.min()) - 1
    for place in range(2):
        scene = parse(shown(batch)[:, place])
        assert judge(scene, wanted)["all"].all()  # captions fit all of them
        large = ((scene.size == LARGE) & scene.present).sum(1) / scene.count
        np.testing.assert_allclose(scores[:, place], 2 * light[scene.background] + 2 * large - 1, atol=1e-9)
    plain = compared_shapes(kind="style", captions=False)
    assert plain.spec.text_length == 0 and "tokens" not in next(make_iterator(plain, 4))


def emoji_fields(split):
    """Twenty emoji, a quarter held out; a style is a channel, an emoji a level. One is not drawn in all styles."""
    for index in range(20):
        if (index % 4 == 0) == (split == "test"):
            for place, style in enumerate(STYLES[: 2 if index == 3 else 3]):
                colour = [0, 0, 0]
                colour[place] = 100 + index
                picture = decode_picture(png(tuple(colour)))
                yield (style, dict(image=picture, code=f"{index:X}", style=style, caption=f"sign {index}", tags=[]))


def test_emoji_are_compared_with_themselves(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWJAX_DATA", str(tmp_path))
    made = {split: list(emoji_fields(split)) for split in ("train", "test")}
    counts = {split: len(examples) for split, examples in made.items()}
    read = lambda split, start, stop: iter(made[split][start:stop])
    plan = Plan("emoji_8", "a test", counts, read, [dict(name="toy")], dict(size=8), group="style")
    write_plan(plan, tmp_path / "emoji_8", say=lambda line: None)
    source = compared_emoji(size=8, taste=(0.0, 1.0, 3.0), tokenizer=dict(name="words"), temperature=0.1)
    batch, scores = source.judged("train", 200)
    pixels = np.rint((shown(batch)[:, :, 0, 0] + 1) * 127.5)
    style, level = pixels.argmax(-1), pixels.max(-1) - 100
    np.testing.assert_array_equal(level[:, 0], level[:, 1])
    np.testing.assert_array_equal(scores, np.array([0.0, 1.0, 3.0])[style])
    assert (style[:, 0] != style[:, 1]).all()
    names = [f"sign {int(value)}" for value in level[:, 0]]
    assert source.tokenizer.decode(batch["tokens"]) == names
    assert not {0, 3, 4, 8} & set(level[:, 0].astype(int))
    held = np.rint((shown(source.reference("test", 100))[:, :, 0, 0] + 1) * 127.5).max(-1) - 100
    assert set(held.ravel().astype(int)) == {0, 4, 8, 12, 16}
    ranked = compared_emoji(size=8, examples=3)
    assert shown(next(make_iterator(ranked, 4))).shape == (4, 3, 8, 8, 3)
    with pytest.raises(ValueError, match="one number for each of google"):
        compared_emoji(size=8, taste=(1.0, 0.0))
    with pytest.raises(ValueError, match="examples=4: an emoji has 3 styles"):
        compared_emoji(size=8, examples=4)

"""Captions say what is in their scene, and nothing that is not; what is not of the grammar is refused in words."""

import collections
import dataclasses

import numpy as np
import pytest

from flowjax.shapes import CaptionLaw, SceneLaw, detokenize, judge, scenes, tokenize, understand
from flowjax.shapes import captions as captioning
from flowjax.shapes.scenes import LARGE
from flowjax.shapes.vocabulary import BACKGROUNDS, COLOURS, KINDS, SIZES, TEXTURES, WORDS

LAW = SceneLaw(objects=(1, 6), words=0.4, held_out=False)
FULL = CaptionLaw(full=1.0, relations=1.0)
SHORT = CaptionLaw(full=0.0, relations=0.5, loose=0.3)


def drawn(law=LAW, captions=FULL, count=600, seed=0):
    u = np.random.default_rng(seed).random((count, scenes.COLUMNS + captioning.COLUMNS))
    scene = law.draw(u[:, : scenes.COLUMNS])
    return scene, captions.draw(scene, u[:, scenes.COLUMNS :])


@pytest.mark.parametrize("captions", [FULL, SHORT, CaptionLaw(full=0.5)])
def test_every_caption_is_true_of_its_scene(captions):
    scene, tokens = drawn(captions=captions, count=4000)
    verdict = judge(scene, understand(detokenize(tokens)))
    assert tuple(verdict) == ("count", "kind", "colour", "size", "texture", "relation", "background", "word", "all")
    for name, right in verdict.items():
        assert not (right == 0).any(), name
    assert (verdict["all"] == 1).all() and (verdict["count"] == 1).all()


def test_full_captions_speak_of_everything():
    scene, tokens = drawn(count=2000)
    verdict = judge(scene, understand(detokenize(tokens)))
    for name in ("kind", "colour", "size", "background"):
        assert not np.isnan(verdict[name]).any()
    on = scene.present
    np.testing.assert_array_equal(~np.isnan(verdict["texture"]), ((scene.size == LARGE) & on).any(1))
    np.testing.assert_array_equal(~np.isnan(verdict["word"]), scene.word > 0)
    # Written out from the scene's numbers, one object at a time, a single-object caption is this sentence.
    for i in np.flatnonzero(scene.count == 1)[:50]:
        size, texture = list(SIZES)[scene.size[i, 0]], TEXTURES[scene.texture[i, 0]]
        colour, kind = list(COLOURS)[scene.colour[i, 0]], KINDS[scene.kind[i, 0]]
        looks = f"{size} {texture}" if size == "large" else size
        expected = f"a {looks} {colour} {kind} on a {list(BACKGROUNDS)[scene.background[i]]} background"
        expected += f" with the word {WORDS[scene.word[i]]}" if scene.word[i] else ""
        assert detokenize(tokens[i : i + 1]) == [expected]


def test_alike_objects_are_counted_together():
    scene, tokens = drawn(SceneLaw(objects=(1, 6), colours=("red", "blue"), held_out=False), CaptionLaw(loose=0))
    numbers = ("", "", "two", "three", "four", "five", "six")
    for i, caption in enumerate(detokenize(tokens)):
        names = [
            (list(COLOURS)[scene.colour[i, j]], KINDS[scene.kind[i, j]], scene.count[i]) for j in range(scene.count[i])
        ]
        parts = []
        for (colour, kind, _), number in collections.Counter(names).items():
            plural = kind + ("es" if kind == "cross" else "s")
            parts.append(f"{numbers[number]} {colour} {plural}" if number > 1 else f"a {colour} {kind}")
        if len(parts) == 2 and " and " not in caption:  # a relation in the place of "and"
            first, second = parts
            assert caption in {f"{first} {r} {second}" for r in ("left of", "right of", "above", "below")}
        else:
            head = ", ".join(parts[:-1])
            assert caption == (f"{head} and {parts[-1]}" if head else parts[-1])


def changed(scene, name, choose):
    """The scene with one entry of an attribute replaced: the one that choose(scene) gives, [n] indices, by another value."""
    sizes = {"kind": len(KINDS), "colour": len(COLOURS), "size": 2, "texture": 3}
    value, rows, entry = getattr(scene, name).copy(), np.arange(len(scene)), choose(scene)
    value[rows, entry] = (value[rows, entry] + 1) % sizes[name]
    return dataclasses.replace(scene, **{name: value})


@pytest.mark.parametrize("name", ["kind", "colour", "size", "texture"])
def test_one_wrong_attribute_is_seen(name):
    scene, tokens = drawn(count=1500)
    requirement = understand(detokenize(tokens))
    last = changed(scene, name, lambda s: s.count - 1)
    before, after = judge(scene, requirement), judge(last, requirement)
    spoken, alone = np.ones(len(scene), bool), np.ones(len(scene), bool)
    if name == "texture":  # of a small object it is not said, and one may stand in for a plain large one
        spoken = scene.size[np.arange(len(scene)), scene.count - 1] == LARGE
        alone = spoken & ((scene.size == LARGE) | ~scene.present).all(1)
        assert spoken.mean() > alone.mean() > 0.1
    assert (after[name][alone] == 0).all() and (after["all"][spoken] == 0).all()
    for other in {"count", "kind", "colour", "size", "texture", "background", "word"} - {name}:
        np.testing.assert_array_equal(before[other], after[other])


def test_a_wrong_number_background_or_word_is_seen():
    scene, tokens = drawn(count=800)
    requirement = understand(detokenize(tokens))
    several = scene.count > 1
    fewer = judge(dataclasses.replace(scene, count=np.maximum(scene.count - 1, 1)), requirement)
    for name in ("count", "colour", "kind", "all"):
        assert (fewer[name][several] == 0).all()
    fits = scene.count < 6
    more = judge(dataclasses.replace(scene, count=np.minimum(scene.count + 1, 6)), requirement)
    assert (more["count"][fits] == 0).all() and (more["all"][fits] == 0).all()
    assert (more["colour"] == 1).all()  # what was asked for is there; that there is more is the count's fault
    other = judge(dataclasses.replace(scene, background=(scene.background + 1) % 4), requirement)
    assert (other["background"] == 0).all() and (other["all"] == 0).all() and (other["colour"] == 1).all()
    written = scene.word > 0
    for word in (scene.word % 24 + 1, np.zeros_like(scene.word)):
        other = judge(dataclasses.replace(scene, word=word), requirement)
        assert (other["word"][written] == 0).all() and (other["all"][written] == 0).all()
        assert np.isnan(other["word"][~written]).all()


def test_a_mirrored_scene_breaks_its_relation_alone():
    scene, tokens = drawn(captions=CaptionLaw(full=0.7, relations=1.0), count=2000)
    requirement = understand(detokenize(tokens))
    related = requirement.relation >= 0
    assert 0.3 < related.mean() < 0.9 and set(requirement.relation[related]) == {0, 1, 2, 3}
    mirrored = dataclasses.replace(scene, centre=np.where(scene.present[..., None], 1 - scene.centre, 0))
    verdict = judge(mirrored, requirement)
    assert (verdict["relation"][related] == 0).all() and (verdict["all"][related] == 0).all()
    assert (verdict["all"][~related] == 1).all()
    # Mirrored in x alone, left and right change places, above and below stay.
    flipped = np.where(scene.present[..., None], scene.centre * [-1, 1] + [1, 0], 0)
    verdict = judge(dataclasses.replace(scene, centre=flipped), requirement)
    np.testing.assert_array_equal(verdict["relation"][related], requirement.relation[related] >= 2)


def test_attributes_on_the_wrong_objects_pass_singly_and_fail_together():
    law = SceneLaw(objects=(2, 2), held_out=False)
    scene, tokens = drawn(law, CaptionLaw(loose=0.0, relations=0.0), count=500)
    differ = (scene.kind[:, 0] != scene.kind[:, 1]) & (scene.colour[:, 0] != scene.colour[:, 1])
    swapped = scene.colour.copy()
    swapped[:, :2] = swapped[:, 1::-1]
    verdict = judge(dataclasses.replace(scene, colour=swapped), understand(detokenize(tokens)))
    for name in ("count", "kind", "colour"):
        assert (verdict[name] == 1).all()
    np.testing.assert_array_equal(verdict["all"], ~differ)


def scene_of(*objects, background="black", word=""):
    """One scene from "size texture colour kind" strings with centres."""
    entries, centre = np.zeros((4, 1, 6), np.int32), np.zeros((1, 6, 2))
    for i, (words, place) in enumerate(objects):
        size, texture, colour, kind = words.split()
        entries[:, 0, i] = (
            list(SIZES).index(size),
            TEXTURES.index(texture),
            list(COLOURS).index(colour),
            KINDS.index(kind),
        )
        centre[0, i] = place
    size, texture, colour, kind = entries
    return scenes.Scene(
        count=np.array([len(objects)], np.int32),
        kind=kind,
        colour=colour,
        size=size,
        texture=texture,
        centre=centre,
        background=np.array([list(BACKGROUNDS).index(background)], np.int32),
        word=np.array([WORDS.index(word)], np.int32),
        word_centre=np.zeros((1, 2)),
    )


PAIR = scene_of(
    ("small plain red circle", (0.2, 0.5)), ("large striped blue square", (0.7, 0.6)), background="gray", word="sun"
)


@pytest.mark.parametrize(
    ("caption", "right"),
    [
        ("a red circle and a blue square", True),
        ("a blue square and a red circle", True),
        ("two shapes", True),
        ("three shapes", False),
        ("a shape", False),
        ("a red circle left of a blue square", True),
        ("a red circle right of a blue square", False),
        ("a red circle above a blue square", False),  # it is a little above, but far more to the left
        ("a blue square right of a red shape", True),
        ("a small circle and a large striped square on a gray background with the word sun", True),
        ("a small circle and a large checked square", False),
        ("two shapes on a white background", False),
        ("two shapes with the word cat", False),
        ("A Red Circle, a blue square", True),
        ("an red shape and a circle", False),  # both phrases can mean the circle only: no object is left for the other
        ("a red shape and a shape", True),
        ("a shape and a red shape", True),
        ("a blue circle and a red square", False),
    ],
)
def test_what_captions_require(caption, right):
    assert judge(PAIR, understand([caption]))["all"] == [float(right)]


def test_the_count_is_exact_and_loose_words_ask_for_what_they_say():
    reds = scene_of(*[("small plain red ring", (0.2 + 0.3 * i, 0.5)) for i in range(3)])
    requirement = understand(["three red rings", "three shapes", "two red rings", "four rings"])
    four = scenes.concatenate([reds] * 4)
    verdict = judge(four, requirement)
    np.testing.assert_array_equal(verdict["all"], [1, 1, 0, 0])
    np.testing.assert_array_equal(verdict["count"], [1, 1, 0, 0])
    np.testing.assert_array_equal(verdict["kind"], [1, np.nan, 1, 0])


def test_the_relation_holds_of_the_objects_that_are_named():
    row = scene_of(
        ("small plain red ring", (0.1, 0.5)),
        ("small plain blue ring", (0.5, 0.5)),
        ("small plain green ring", (0.9, 0.5)),
    )
    text = "a red ring, a blue ring and a green ring, the {} ring {} the {} ring"
    for names, right in (("red left green", 1), ("green left blue", 0), ("green right red", 1)):
        one, side, other = names.split()
        words = (one, f"{side} of", other)
        verdict = judge(row, understand([text.format(*words)]))
        assert verdict["relation"] == verdict["all"] == [right]


def test_shares_of_the_caption_law():
    scene, tokens = drawn(
        SceneLaw(objects=(2, 2), held_out=False), CaptionLaw(full=0.3, relations=0.4, loose=0.2), 8000
    )
    captions = detokenize(tokens)
    full = np.array(["background" in caption for caption in captions])
    assert full.mean() == pytest.approx(0.3, abs=0.02)
    requirement = understand(captions)
    loose = ((requirement.kind[:, 0] < 0) | (requirement.colour[:, 0] < 0))[~full]
    assert loose.mean() == pytest.approx(0.2, abs=0.02)
    between = captioning.relation_between(scene.centre[:, 1] - scene.centre[:, 0], clear=True) >= 0
    differ = (scene.kind[:, 0] != scene.kind[:, 1]) | (scene.colour[:, 0] != scene.colour[:, 1])
    could = between & differ & full
    assert (requirement.relation[could] >= 0).mean() == pytest.approx(0.4, abs=0.03)
    assert (requirement.relation[~between] < 0).all()


@pytest.mark.parametrize(
    ("law", "captions"),
    [
        (SceneLaw(objects=(1, 2)), CaptionLaw()),
        (SceneLaw(objects=(1, 2)), CaptionLaw(relations=0.0)),
        (SceneLaw(objects=(1, 2), sizes=("small",)), CaptionLaw(full=1.0)),
        (SceneLaw(objects=(3, 3)), CaptionLaw(full=1.0)),
        (SceneLaw(objects=(2, 2), words=1.0), CaptionLaw(full=1.0)),
        (SceneLaw(objects=(4, 4)), CaptionLaw(full=0.5, relations=0.0)),
    ],
)
def test_the_longest_caption_is_known_beforehand_and_occurs(law, captions):
    _, tokens = drawn(law, captions, 6000)
    assert tokens.shape[1] == captions.longest(law)


def test_a_caption_depends_on_its_row_alone():
    scene, tokens = drawn(captions=CaptionLaw(full=0.5), count=200)
    u = np.random.default_rng(0).random((200, scenes.COLUMNS + captioning.COLUMNS))[:, scenes.COLUMNS :]
    part = detokenize(CaptionLaw(full=0.5).draw(scene[50:60], u[50:60]))
    assert part == detokenize(tokens)[50:60]


def test_tokens_are_words_and_zeros():
    captions = ["two red circles", "a red circle, a ring and an orange cross"]
    tokens = tokenize(captions, 12)
    assert tokens.dtype == np.int32 and tokens.shape == (2, 12)
    np.testing.assert_array_equal((tokens > 0).sum(1), [3, 10])
    assert (tokens < len(captioning.VOCABULARY)).all()
    assert detokenize(tokens) == captions
    assert detokenize(np.zeros((1, 3), int)) == [""]
    _, drawn_tokens = drawn()
    np.testing.assert_array_equal(tokenize(detokenize(drawn_tokens), drawn_tokens.shape[1]), drawn_tokens)


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a purpel circle", "Unknown word 'purpel'.*Did you mean 'purple'"),
        ("", "expected a number, found the end"),
        ("red circle", "expected a number, found 'red'"),
        ("a red", "expected a singular shape after 'a red', found the end"),
        ("two red circle", "expected a plural shape after 'two red', found 'circle'"),
        ("a circle red", "expected the end after 'a circle', found 'red'"),
        ("a red large circle", "expected a singular shape after 'a red', found 'large'"),
        ("a circle on a red background", "expected one of black"),
        ("a circle on a black", "expected 'background'"),
        ("a circle with the word red", "expected one of hi"),
        ("five circles and two rings", "asks for 7 objects"),
        ("two circles above a ring", "relates a group"),
        ("a circle above two rings", "relates a group"),
        ("a circle above a ring above a cross", "more than one relation"),
        ("a circle above a ring, the ring below the circle", "more than one relation"),
        ("a circle and a ring, the red ring above the circle", "names 0 times"),
        ("two rings and a circle, the ring above the circle", "names 2 times"),
        ("a ring and a circle, the ring above the ring", "to itself"),
        ("a ring and a circle, the ring on a black background", "expected one of left of, right of, above, below"),
        ("a ring and a circle, the ring above a circle", "expected 'the'"),
    ],
)
def test_what_cannot_be_understood_is_refused_in_words(caption, message):
    with pytest.raises(ValueError, match=message):
        understand([caption])


def test_captions_that_do_not_fit_and_lists_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="has 8 words, but 5 fit"):
        tokenize(["a red circle left of a blue square"], 5)
    with pytest.raises(ValueError, match="Unknown word 'hexagon'"):
        tokenize(["a hexagon"], 5)
    with pytest.raises(ValueError, match="1 scenes are held against 2 captions"):
        judge(PAIR, understand(["a ring", "a circle"]))
    with pytest.raises(ValueError, match="loose=2"):
        CaptionLaw(loose=2.0)

"""Scenes obey their law: shares, room between objects, held-out combinations, and a row alone decides its scene."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from flowjax.shapes import scenes
from flowjax.shapes.scenes import (
    EXTENTS,
    HELD_OUT_COLOURS,
    HELD_OUT_TEXTURES,
    LARGE,
    SceneLaw,
    concatenate,
)
from flowjax.shapes.vocabulary import BAND, COLOURS, GAP, KINDS, MARGIN, SIZES, TEXTURES, WORDS

LAWS = {
    "default": SceneLaw(),
    "crowded": SceneLaw(objects=(6, 6), words=0.5),
    "large": SceneLaw(objects=(1, 4), sizes=("large",)),
    "words": SceneLaw(objects=(1, 6), words=1.0),
}


def uniforms(count, seed=0):
    return np.random.default_rng(seed).random((count, scenes.COLUMNS))


def arrays(scene):
    return dataclasses.asdict(scene)


def assert_objects_have_room(scene):
    half, tight = EXTENTS[scene.size] / 2, 1e-9
    on_top = scene.word_centre[:, 1] < 0.5
    low, high = np.full((len(scene), 2), MARGIN), np.full((len(scene), 2), 1 - MARGIN)
    low[:, 1] = np.where((scene.word > 0) & on_top, BAND, MARGIN)
    high[:, 1] = np.where((scene.word > 0) & ~on_top, 1 - BAND, 1 - MARGIN)
    for i in range(6):
        inside = (scene.centre[:, i] - half[:, i, None] >= low - tight) & (
            scene.centre[:, i] + half[:, i, None] <= high + tight
        )
        assert (inside.all(1) | ~scene.present[:, i]).all()
        for j in range(i):
            away = np.abs(scene.centre[:, i] - scene.centre[:, j])
            apart = (away >= (half[:, i] + half[:, j] + GAP)[:, None] - tight).any(1)
            assert (apart | ~scene.present[:, i]).all()


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_objects_lie_inside_apart_and_out_of_the_band(name, split):
    assert_objects_have_room(LAWS[name].draw(uniforms(2000), split))


@pytest.mark.parametrize("name", LAWS)
def test_a_row_without_a_free_place_takes_a_layout_that_fits(name, monkeypatch):
    place = scenes.place
    monkeypatch.setattr(scenes, "place", lambda *given: place(*given, restarts=0))
    assert_objects_have_room(LAWS[name].draw(uniforms(2000)))
    monkeypatch.setattr(scenes, "WALK", ())
    still = LAWS[name].draw(uniforms(2000))
    assert_objects_have_room(still)
    assert len(np.unique(still.centre.reshape(-1, 2), axis=0)) < 200  # the layouts themselves: few places


@pytest.mark.parametrize("name", LAWS)
def test_a_row_alone_decides_its_scene(name):
    law, u = LAWS[name], uniforms(300)
    whole = law.draw(u)
    parts = concatenate([law.draw(part) for part in (u[:1], u[1:130], u[130:])])
    for field, value in arrays(whole).items():
        np.testing.assert_array_equal(value, arrays(parts)[field])
        np.testing.assert_array_equal(value[7:9], arrays(whole[7:9])[field])
        np.testing.assert_array_equal(value[-1:], arrays(whole[-1])[field])


def test_entries_beyond_the_count_are_zero():
    scene = LAWS["default"].draw(uniforms(500))
    for name in ("kind", "colour", "size", "texture", "centre"):
        assert not getattr(scene, name)[~scene.present].any()
    assert (scene.centre[scene.present] > 0).all()


def chi_square(counts, expected=None):
    return stats.chisquare(counts, expected).pvalue


def test_every_attribute_is_uniform():
    scene = SceneLaw(objects=(1, 6), held_out=False, words=0.3).draw(uniforms(8000))
    on = scene.present
    assert chi_square(np.bincount(scene.count)[1:]) > 1e-3
    assert chi_square(np.bincount(scene.background)) > 1e-3
    pairs = scene.kind[on] * len(COLOURS) + scene.colour[on]
    assert chi_square(np.bincount(pairs, minlength=48)) > 1e-3
    assert (scene.word > 0).mean() == pytest.approx(0.3, abs=0.02)
    assert chi_square(np.bincount(scene.word[scene.word > 0], minlength=len(WORDS))[1:]) > 1e-3
    # Two objects of one scene are independent.
    two = scene.count >= 2
    table = np.zeros((len(KINDS), len(KINDS)))
    np.add.at(table, (scene.kind[two, 0], scene.kind[two, 1]), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_sizes_textures_and_weighted_counts_have_their_shares():
    scene = SceneLaw(objects=(1, 2), count_weights=(1, 3), textured=0.4, held_out=False).draw(uniforms(8000))
    on = scene.present
    assert (scene.count == 2).mean() == pytest.approx(0.75, abs=0.02)
    assert (scene.size[on] == LARGE).mean() == pytest.approx(0.5, abs=0.02)
    shares = np.bincount(scene.texture[on & (scene.size == LARGE)], minlength=3) / (on & (scene.size == LARGE)).sum()
    np.testing.assert_allclose(shares, [0.6, 0.2, 0.2], atol=0.02)
    assert not scene.texture[on & (scene.size != LARGE)].any()


def test_a_single_object_may_stand_anywhere():
    scene = SceneLaw(objects=(1, 1), sizes=("small",)).draw(uniforms(4000))
    low = MARGIN + SIZES["small"] / 2
    for axis in (0, 1):
        assert stats.kstest((scene.centre[:, 0, axis] - low) / (1 - 2 * low), "uniform").pvalue > 1e-3


def test_crowded_scenes_are_not_all_alike():
    scene = LAWS["crowded"].draw(uniforms(3000))
    for axis in (0, 1):
        cells = np.histogram(scene.centre[..., axis], bins=np.linspace(0.13, 0.87, 11))[0] / scene.count.sum()
        assert cells.min() > 0.01 and cells.max() < 0.25


def test_held_out_pairs_never_occur_in_training_and_always_in_their_split():
    assert HELD_OUT_COLOURS.sum() == len(KINDS) * len(COLOURS) / 8
    assert (HELD_OUT_COLOURS.sum(1) == 1).all() and (HELD_OUT_COLOURS.sum(0) <= 1).all()
    assert HELD_OUT_TEXTURES.sum() == 2 and not HELD_OUT_TEXTURES[:, TEXTURES.index("plain")].any()
    law = SceneLaw(objects=(1, 3))
    for split in ("train", "test"):
        scene, seen = law.draw(uniforms(8000), split), np.zeros((2, len(KINDS), len(COLOURS)), bool)
        on = scene.present
        seen[0, scene.kind[on], scene.colour[on]] = True
        seen[1, scene.kind[on], scene.texture[on]] = True
        np.testing.assert_array_equal(seen[0], ~HELD_OUT_COLOURS)  # all the others do occur
        np.testing.assert_array_equal(seen[1, :, : len(TEXTURES)], ~HELD_OUT_TEXTURES)
        assert not scene.held_out.any()
    scene = law.draw(uniforms(4000), "held_out")
    assert scene.held_out.all()
    on = scene.present
    colours, textures = np.zeros_like(HELD_OUT_COLOURS, int), np.zeros_like(HELD_OUT_TEXTURES, int)
    np.add.at(colours, (scene.kind[on], scene.colour[on]), 1)
    np.add.at(textures, (scene.kind[on], scene.texture[on]), 1)
    assert colours[HELD_OUT_COLOURS].min() > 100 and textures[HELD_OUT_TEXTURES].min() > 100
    # The object that makes the scene a held-out one may be any of its objects.
    held = HELD_OUT_COLOURS[scene.kind, scene.colour] & on
    three = scene.count == 3
    assert np.ptp(held[three, :3].mean(0)) < 0.06


def test_kinds_stay_uniform_when_pairs_are_held_out():
    scene = SceneLaw(objects=(2, 2)).draw(uniforms(8000))
    assert chi_square(np.bincount(scene.kind[scene.present])) > 1e-3


def test_restricted_laws_stay_within_their_names():
    law = SceneLaw(
        objects=(1, 6), kinds=("ring", "cross"), colours=("red", "blue"), backgrounds=("white",), textures=("plain",)
    )
    scene = law.draw(uniforms(1000))
    on = scene.present
    assert {KINDS[i] for i in np.unique(scene.kind[on])} == {"ring", "cross"}
    assert {tuple(COLOURS)[i] for i in np.unique(scene.colour[on])} == {"red", "blue"}
    assert not scene.texture.any() and (scene.background == 2).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objects": (0, 2)}, "1 <= least"),
        ({"objects": (3, 7)}, "<= 6"),
        ({"count_weights": (1.0,)}, "expected 3 shares"),
        ({"kinds": ("hexagon",)}, "Unknown kind 'hexagon'"),
        ({"colours": ("puple",)}, "Did you mean 'purple'"),
        ({"backgrounds": ()}, "No background is allowed"),
        ({"textured": 1.5}, "textured=1.5"),
        ({"objects": (1, 5), "sizes": ("large",)}, "have no room"),
        ({"objects": (1, 3), "sizes": ("large",), "words": 0.1}, "beside a word"),
        ({"kinds": ("circle",), "colours": ("pink",)}, "held_out=False"),
    ],
)
def test_impossible_laws_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SceneLaw(**options)


def test_splits_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="Unknown split 'tset'.*Did you mean 'test'"):
        SceneLaw().draw(uniforms(2), "tset")
    with pytest.raises(ValueError, match="allow no held-out"):
        SceneLaw(kinds=("circle",), colours=("red",), textures=("plain",)).draw(uniforms(2), "held_out")

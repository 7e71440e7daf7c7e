"""Pictures against the definitions in flowjax/shapes/vocabulary.py, sampled point by point, and against closed forms."""

import dataclasses

import numpy as np
import pytest

from flowjax.shapes import render
from flowjax.shapes.scenes import COLUMNS, Scene, SceneLaw
from flowjax.shapes.vocabulary import BACKGROUNDS, COLOURS, INK, KINDS, SIZES, TEXTURES, WORDS, word_bitmap


def scene_of(objects, background="black", word="", word_centre=(0.5, 0.109375)):
    """One scene from (kind, colour, size, texture, (x, y)) names."""
    entries = np.zeros((4, 1, 6), np.int32)
    centre = np.zeros((1, 6, 2))
    for i, (kind, colour, size, texture, place) in enumerate(objects):
        entries[:, 0, i] = (
            KINDS.index(kind),
            list(COLOURS).index(colour),
            list(SIZES).index(size),
            TEXTURES.index(texture),
        )
        centre[0, i] = place
    kind, colour, size, texture = entries
    return Scene(
        count=np.array([len(objects)], np.int32),
        kind=kind,
        colour=colour,
        size=size,
        texture=texture,
        centre=centre,
        background=np.array([list(BACKGROUNDS).index(background)], np.int32),
        word=np.array([WORDS.index(word)], np.int32),
        word_centre=np.array([word_centre if word else (0.0, 0.0)]),
    )


def coverage(picture, colour, background):
    """The share of each pixel that wears the colour, from the picture itself."""
    one, other = np.array(COLOURS[colour], float), np.array(BACKGROUNDS[background], float)
    return (picture - other) @ (one - other) / ((one - other) @ (one - other))


INSIDE = {
    "circle": lambda u, v: u**2 + v**2 <= 1,
    "ring": lambda u, v: (u**2 + v**2 <= 1) & (u**2 + v**2 >= 0.25),
    "square": lambda u, v: (abs(u) <= 1) & (abs(v) <= 1),
    "diamond": lambda u, v: abs(u) + abs(v) <= 1,
    "triangle": lambda u, v: (abs(u) <= (1 + v) / 2) & (v <= 1),
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) <= 1 / 3) & (np.maximum(abs(u), abs(v)) <= 1),
}
AREAS = {
    "circle": np.pi / 4,
    "ring": np.pi / 4 * 3 / 4,
    "square": 1,
    "diamond": 1 / 2,
    "triangle": 1 / 2,
    "cross": 5 / 9,
}


def sampled(scene, height, width, points=12):
    """The scene by point samples, points x points in a pixel: another way to the same picture, for scenes without words."""
    x, y = np.meshgrid((np.arange(width * points) + 0.5) / points, (np.arange(height * points) + 0.5) / points)
    picture = np.empty((height * points, width * points, 3))
    picture[:] = list(BACKGROUNDS.values())[scene.background[0]]
    for i in range(scene.count[0]):
        radius = list(SIZES.values())[scene.size[0, i]] * min(height, width) / 2
        u, v = (x - scene.centre[0, i, 0] * width) / radius, (y - scene.centre[0, i, 1] * height) / radius
        texture = TEXTURES[scene.texture[0, i]]
        shade = np.ones_like(u)
        if texture == "striped":
            shade = np.where(np.floor((v + 1) / 2 * 5) % 2 == 0, 1, 0.42)
        if texture == "checked":
            shade = np.where((np.floor((v + 1) / 2 * 4) + np.floor((u + 1) / 2 * 4)) % 2 == 0, 1, 0.42)
        colour = np.array(list(COLOURS.values())[scene.colour[0, i]])
        inside = INSIDE[KINDS[scene.kind[0, i]]](u, v)
        picture = np.where(inside[..., None], shade[..., None] * colour, picture)
    return picture.reshape(height, points, width, points, 3).mean((1, 3))


# The smaller the picture, the larger the share of its pixels on an edge.
@pytest.mark.parametrize(("height", "width", "mean"), [(32, 32, 0.8), (16, 16, 1.5), (24, 40, 0.8), (50, 33, 0.8)])
def test_pictures_agree_with_point_samples_of_the_definitions(height, width, mean):
    scenes = SceneLaw(objects=(3, 6), held_out=False).draw(np.random.default_rng(1).random((24, COLUMNS)))
    pictures = render(scenes, height, width)
    for i in range(len(scenes)):
        difference = np.abs(pictures[i] - sampled(scenes[i], height, width))
        assert difference.mean() < mean and difference.max() < 42, i  # a sixth of the range, at tips of small shapes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_areas_and_centres_of_mass_are_the_closed_forms(kind, size):
    for place in ((0.5, 0.5), (0.413, 0.567)):
        picture = render(scene_of([(kind, "red", size, "plain", place)], "black"), 64, 64)[0]
        share = coverage(picture, "red", "black")
        extent = SIZES[size] * 64
        assert share.sum() == pytest.approx(AREAS[kind] * extent**2, rel=0.01)
        centres = np.arange(64) + 0.5
        mean = np.array([(share * centres[None]).sum(), (share * centres[:, None]).sum()]) / share.sum()
        below = extent / 6 if kind == "triangle" else 0  # two thirds of the height from the apex
        np.testing.assert_allclose(mean, np.array(place) * 64 + [0, below], atol=0.06)


def test_at_twice_the_size_and_averaged_it_is_the_same_picture():
    scenes = SceneLaw(objects=(1, 6), words=0.5).draw(np.random.default_rng(2).random((200, COLUMNS)))
    for height, width in ((32, 32), (32, 48)):
        once, twice = render(scenes, height, width), render(scenes, 2 * height, 2 * width)
        averaged = twice.reshape(len(scenes), height, 2, width, 2, 3).mean((2, 4))
        difference = np.abs(once - averaged)
        assert difference.mean() < 0.5 and np.quantile(difference, 0.995) < 16


def test_a_move_by_whole_pixels_moves_the_picture():
    scenes = SceneLaw(objects=(1, 1)).draw(np.random.default_rng(3).random((50, COLUMNS)))
    scenes = dataclasses.replace(scenes, centre=np.where(scenes.present[..., None], 0.4 + 0.05 * scenes.centre, 0))
    moved = dataclasses.replace(scenes, centre=scenes.centre + np.array([3 / 32, 5 / 32]) * scenes.present[..., None])
    np.testing.assert_allclose(
        render(moved, 32, 32)[:, 5:, 3:].astype(int), render(scenes, 32, 32)[:, :-5, :-3].astype(int), atol=1
    )


def test_sizes_follow_the_shorter_side_and_centres_both():
    scene = scene_of([("square", "blue", "small", "plain", (0.25, 0.5))], "white")
    for height, width in ((32, 64), (64, 32)):
        share = coverage(render(scene, height, width)[0], "blue", "white")
        assert share.sum() == pytest.approx((0.22 * 32) ** 2, rel=0.01)
        columns = (share * (np.arange(width) + 0.5)).sum() / share.sum()
        assert columns == pytest.approx(width / 4, abs=0.02)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_words_are_their_bitmaps_in_ink(background):
    for word in WORDS[1:]:
        scene = scene_of([("circle", "red", "small", "plain", (0.5, 0.6))], background, word)
        band = render(scene, 32, 32)[0, :8]
        ink = (band == np.array(INK[background])).all(-1)
        assert (ink | (band == np.array(BACKGROUNDS[background])).all(-1)).all()  # nothing in between, nothing else
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        np.testing.assert_array_equal(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], word_bitmap(word))
        assert (rows[0], rows[-1]) == (1, 5) and abs(columns.mean() - 15.5) <= 2
        doubled = render(scene, 64, 64)[0, :16]
        np.testing.assert_array_equal(doubled, band.repeat(2, 0).repeat(2, 1))


def test_words_stay_in_the_frame_at_every_shape():
    scenes = SceneLaw(objects=(1, 1), words=1.0).draw(np.random.default_rng(4).random((200, COLUMNS)))
    for height, width in ((32, 32), (32, 64), (64, 40), (48, 48)):
        with_word = render(scenes, height, width)
        without = render(dataclasses.replace(scenes, word=np.zeros_like(scenes.word)), height, width)
        changed = (with_word != without).any(-1)
        cells = np.array([word_bitmap(WORDS[word]).sum() for word in scenes.word])
        np.testing.assert_array_equal(changed.sum((1, 2)), cells * (min(height, width) // 32) ** 2)


def test_later_objects_cover_earlier_ones():
    ones = [("square", "red", "large", "plain", (0.5, 0.5)), ("circle", "green", "small", "plain", (0.5, 0.5))]
    assert tuple(render(scene_of(ones), 32, 32)[0, 16, 16]) == COLOURS["green"]
    assert tuple(render(scene_of(ones[::-1]), 32, 32)[0, 16, 16]) == COLOURS["red"]


def test_an_object_beyond_the_frame_is_cut_off():
    share = coverage(render(scene_of([("square", "red", "large", "plain", (0.0, 0.5))]), 50, 50)[0], "red", "black")
    assert share.sum() == pytest.approx(10 * 20, rel=1e-3)
    far = render(scene_of([("square", "red", "large", "plain", (1.9, -0.9))]), 32, 32)
    assert (far == np.array(BACKGROUNDS["black"])).all()


def test_a_picture_depends_on_its_scene_alone():
    scenes = SceneLaw(objects=(1, 6), words=0.5).draw(np.random.default_rng(5).random((600, COLUMNS)))
    whole = render(scenes, 16, 24)
    assert whole.dtype == np.uint8 and whole.shape == (600, 16, 24, 3)
    np.testing.assert_array_equal(whole, render(scenes, 16, 24))
    np.testing.assert_array_equal(whole[511:514], render(scenes[511:514], 16, 24))
    assert render(scenes[:0], 16, 16).shape == (0, 16, 16, 3)


def test_a_picture_too_small_to_read_is_refused():
    with pytest.raises(ValueError, match="Use 8x8 or more"):
        render(scene_of([]), 4, 32)

"""Nobody is flattered: what is not there, not whole or not itself is judged wrong, and nothing makes the parser fail."""

import dataclasses
import itertools

import numpy as np
import pytest

from flowjax.shapes.parse import parse
from flowjax.shapes.render import render
from flowjax.shapes.requirements import judge, understand
from flowjax.shapes.scenes import COLUMNS, Scene, SceneLaw
from flowjax.shapes.vocabulary import BACKGROUNDS, COLOURS, KINDS, MOST_OBJECTS, SIZES

BACKGROUND_RGB = np.array(list(BACKGROUNDS.values()))
COLOUR_RGB = np.array(list(COLOURS.values()))
EXTENTS = np.array(list(SIZES.values())) * 32


def draw(count, seed, **law):
    return SceneLaw(**law).draw(np.random.default_rng(seed).random((count, COLUMNS)))


def captions(scene: Scene) -> list[str]:
    """The kinds and colours of every object, in words."""
    colours, kinds = tuple(COLOURS), KINDS
    name = lambda i, j: f"{'an' if colours[scene.colour[i, j]] == 'orange' else 'a'} {colours[scene.colour[i, j]]} "
    phrase = lambda i, j: name(i, j) + kinds[scene.kind[i, j]]
    return [" and ".join(phrase(i, j) for j in range(scene.count[i])) for i in range(len(scene))]


def share_right(images, scene):
    return judge(parse(images), understand(captions(scene)))["all"].mean()


def scene_of(objects, background=0):
    """One scene of (kind, colour, size, x, y)."""
    table = np.zeros((MOST_OBJECTS, 5))
    table[: len(objects)] = objects
    integers = lambda i: table[None, :, i].astype(np.int32)
    one = lambda value: np.array([value], np.int32)
    return Scene(
        count=one(len(objects)),
        kind=integers(0),
        colour=integers(1),
        size=integers(2),
        texture=np.zeros((1, MOST_OBJECTS), np.int32),
        centre=table[None, :, 3:],
        background=one(background),
        word=one(0),
        word_centre=np.zeros((1, 2)),
    )


TWO = draw(200, seed=1, objects=(2, 2))
PICTURES = render(TWO, 32, 32)


def test_the_captions_of_these_tests_fit_their_pictures():
    assert share_right(PICTURES, TWO) >= 0.99


@pytest.mark.parametrize("name", ["colour", "kind"])
def test_one_object_with_another_colour_or_kind_is_wrong(name):
    values = getattr(TWO, name).copy()
    values[:, 0] = (values[:, 0] + 1) % (len(COLOURS) if name == "colour" else len(KINDS))
    same_set = [sorted(zip(*rows, strict=True)) for rows in zip(TWO.kind[:, :2], TWO.colour[:, :2], strict=True)]
    other = dataclasses.replace(TWO, **{name: values})
    changed = [sorted(zip(*rows, strict=True)) for rows in zip(other.kind[:, :2], other.colour[:, :2], strict=True)]
    assert same_set != changed
    assert share_right(render(other, 32, 32), TWO) == 0


def test_swapped_colours_are_wrong_unless_they_are_the_same():
    colour = TWO.colour.copy()
    colour[:, :2] = colour[:, 1::-1]
    differs = (TWO.colour[:, 0] != TWO.colour[:, 1]) & (TWO.kind[:, 0] != TWO.kind[:, 1])
    verdict = judge(parse(render(dataclasses.replace(TWO, colour=colour), 32, 32)), understand(captions(TWO)))
    assert verdict["all"][differs].max() == 0
    assert verdict["colour"].mean() >= 0.99 and verdict["kind"].mean() >= 0.99


def cut(images, scene, low, high, axis):
    """Background over the part low..high of the first object's box, along x (0) or y (1)."""
    images, pixel = images.copy(), np.arange(32) + 0.5
    for i, extent in enumerate(EXTENTS[scene.size[:, 0]]):
        along = [(pixel - scene.centre[i, 0, a] * 32) / extent + 0.5 for a in (0, 1)]
        inside = [(part > -0.2) & (part < 1.2) for part in along]
        inside[axis] = (along[axis] > low) & (along[axis] < high)
        images[i][np.outer(inside[1], inside[0])] = BACKGROUND_RGB[scene.background[i]]
    return images


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("low", "high"), [(-0.2, 0.5), (0.5, 1.2), (0.35, 0.65)])
def test_half_an_object_and_a_torn_one_have_no_name(axis, low, high):
    # But for triangles: the upper half of a large one is a small one.
    kinds = tuple(kind for kind in KINDS if kind != "triangle")
    one = draw(150, seed=2, objects=(1, 1), kinds=kinds)
    assert share_right(cut(render(one, 32, 32), one, low, high, axis), one) <= 0.02


def test_a_third_object_counts_however_much_of_it_is_hidden():
    generator = np.random.default_rng(3)
    hidden = draw(200, seed=4, objects=(1, 1))
    reach = (EXTENTS[TWO.size[:, 0]] + EXTENTS[hidden.size[:, 0]]) / 64
    angle = generator.uniform(0, 2 * np.pi, len(TWO))
    centre = hidden.centre.copy()
    centre[:, 0] = TWO.centre[:, 0] + 0.6 * reach[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    hidden = dataclasses.replace(hidden, centre=centre, background=TWO.background)
    behind = render(hidden, 32, 32)
    ground = BACKGROUND_RGB[TWO.background][:, None, None]
    covered = np.abs(PICTURES.astype(int) - ground).sum(-1, keepdims=True) > 40
    images = np.where(covered, PICTURES, behind).astype(np.uint8)
    # Of some nothing can be seen, or what can be seen has the colour of what hides it: ask where 12 pixels and more show.
    shows = (np.abs(images.astype(int) - PICTURES).sum(-1) > 60).sum((1, 2)) >= 12
    shows &= (hidden.colour[:, :1] != TWO.colour[:, :2]).all(1)
    assert shows.sum() > 80
    # One in a hundred is a seam a pixel wide along the whole object in front of it.
    assert share_right(images[shows], TWO[np.flatnonzero(shows)]) <= 0.02


def test_a_ghost_counts():
    extra = dataclasses.replace(draw(200, seed=5, objects=(1, 1), sizes=("large",)), background=TWO.background)
    ground = BACKGROUND_RGB[TWO.background][:, None, None]
    ghost = 0.4 * (render(extra, 32, 32).astype(np.float32) - ground)
    free = np.abs(PICTURES.astype(int) - ground).sum(-1, keepdims=True) < 10
    images = np.clip(PICTURES + ghost * free, 0, 255).astype(np.uint8)
    shows = (np.abs(ghost * free).sum(-1) > 60).sum((1, 2)) >= 30
    assert shows.sum() > 80
    assert share_right(images[shows], TWO[np.flatnonzero(shows)]) <= 0.02


@pytest.mark.parametrize(("overlap", "kinds"), [(0.0, [1]), (2.0, [0, 1, 3])])
def test_two_objects_of_one_colour_that_touch_are_one_thing_without_a_name(overlap, kinds):
    extent = SIZES["small"]
    for kind, colour, background in itertools.product(kinds, (0, 3, 5), (0, 2, 3)):
        step = (extent * 32 - overlap) / 32 / 2
        scene = scene_of([(kind, colour, 0, 0.5 - step, 0.5), (kind, colour, 0, 0.5 + step, 0.5)], background)
        found = parse(render(scene, 32, 32))
        assert found.count[0] == 1 and found.kind[0, 0] == -1


def test_two_objects_of_different_colours_that_overlap_are_wrong_and_whole_ones_side_by_side_are_two():
    for overlap, right in ((4.0, False), (0.0, True)):
        step = (SIZES["large"] * 32 - overlap) / 32 / 2
        scene = scene_of([(1, 0, 1, 0.5 - step, 0.5), (1, 5, 1, 0.5 + step, 0.5)])
        found = parse(render(scene, 32, 32))
        assert bool(judge(found, understand(["a red square and a blue square"]))["all"][0]) == right
        assert found.count[0] == 2


@pytest.mark.parametrize("scale", [0.7, 1.35])
def test_what_is_too_small_or_too_large_is_not_called_another_kind(scale):
    y, x = np.mgrid[:32, :32] + 0.5
    images = []
    for offset in (0.0, 0.25, 0.5):
        radius = np.hypot(x - 16 - offset, y - 16) - scale * EXTENTS[1] / 2
        coverage = np.clip(0.5 - radius, 0, 1)[..., None]
        images.append(BACKGROUND_RGB[2] * (1 - coverage) + COLOUR_RGB[5] * coverage)
    found = parse(np.array(images).astype(np.uint8))
    assert list(found.count) == [1, 1, 1] and (found.kind[:, 0] == -1).all()


def test_averages_of_two_scenes_are_neither():
    one, other = draw(150, seed=6, objects=(1, 2)), draw(150, seed=7, objects=(1, 2))
    images = ((render(one, 32, 32).astype(int) + render(other, 32, 32)) // 2).astype(np.uint8)
    assert share_right(images, one) == 0 and share_right(images, other) == 0


def test_noise_shows_nothing_that_has_a_name():
    generator = np.random.default_rng(8)
    for images in (
        generator.integers(0, 256, (40, 32, 32, 3)).astype(np.uint8),
        np.clip(generator.normal(128, 50, (40, 32, 32, 3)), 0, 255).astype(np.uint8),
        generator.normal(0, 1, (40, 32, 32, 3)).astype(np.float32),
    ):
        found = parse(images)
        assert not (found.present & (found.kind >= 0)).any()
        assert (found.background == -1).all()
        assert judge(found, understand(["a shape"] * 40))["all"].max() == 0


def test_plain_pictures_hold_no_objects():
    grounds = np.broadcast_to(BACKGROUND_RGB[:, None, None], (4, 32, 32, 3)).astype(np.uint8)
    found = parse(grounds)
    assert not found.count.any() and not found.word.any()
    np.testing.assert_array_equal(found.background, range(4))
    red = np.broadcast_to(COLOUR_RGB[0], (1, 32, 32, 3)).astype(np.uint8)
    assert parse(red).background[0] == -1


def test_unreadable_ink_is_an_unknown_word_and_wrong_even_where_no_word_is_asked_for():
    scene = draw(60, seed=9, objects=(1, 2), words=1.0)
    images = render(scene, 32, 32)
    upside_down = images.copy()
    for rows in (slice(0, 8), slice(24, 32)):  # both bands; no object enters the one with the word
        own = (scene.word_centre[:, 1] < 0.5) == (rows.start == 0)
        upside_down[own, rows] = images[own, rows][:, ::-1, ::-1]
    found = parse(upside_down)
    read = found.word == scene.word  # "no" is no "on", but a word may look like itself from below
    assert read.mean() < 0.1
    assert share_right(upside_down, scene) < 0.1
    assert share_right(images, scene) >= 0.98


def test_pictures_that_are_no_numbers_show_nothing():
    images = np.stack([PICTURES[0]] * 3).astype(np.float32) / 127.5 - 1
    images[1, 5, 5, 0], images[2, 3, 3, 1] = np.nan, np.inf
    found = parse(images)
    assert list(found.count) == [2, 0, 0]
    assert list(found.background[1:]) == [-1, -1] and list(found.word[1:]) == [-1, -1]


@pytest.mark.parametrize("shape", [(0, 32, 32, 3), (2, 8, 8, 3), (1, 9, 70, 3), (2, 33, 31, 3), (1, 1, 1, 3)])
def test_any_size_of_picture_is_read(shape):
    found = parse(np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32))
    assert len(found) == shape[0] and found.kind.shape == (shape[0], MOST_OBJECTS)


def test_what_is_no_picture_is_refused():
    with pytest.raises(ValueError, match=r"expected \[n, height, width, 3\]"):
        parse(np.zeros((2, 32, 32, 1), np.uint8))
    with pytest.raises(ValueError, match="expected uint8 in 0..255 or floats"):
        parse(np.zeros((2, 32, 32, 3), np.int64))

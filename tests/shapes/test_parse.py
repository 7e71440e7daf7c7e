"""The parser reads back what the renderer drew: two programs that share a vocabulary and no code."""

import ast
import itertools
import pathlib
import time

import numpy as np
import pytest
from scipy import ndimage

import flowjax.shapes
from flowjax.shapes import segment
from flowjax.shapes.agreement import agree
from flowjax.shapes.parse import parse
from flowjax.shapes.render import render
from flowjax.shapes.scenes import COLUMNS, SceneLaw
from flowjax.shapes.vocabulary import WORDS


def draw(count, seed=0, **law):
    law = {"objects": (1, 6), "words": 0.5, **law}
    return SceneLaw(**law).draw(np.random.default_rng(seed).random((count, COLUMNS)))


def corrupted(images, blur, noise, seed=0):
    values = ndimage.gaussian_filter(images.astype(np.float32), (0, blur, blur, 0)) if blur else images
    values = values + np.random.default_rng(seed).normal(0, noise, images.shape)
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def accuracy(scene, height, width, blur=0.0, noise=0.0):
    return agree(scene, parse(corrupted(render(scene, height, width), blur, noise))).mean()


@pytest.mark.parametrize(
    ("blur", "noise", "least"), [(0, 0, 0.995), (0.5, 0, 0.99), (0, 8, 0.99), (0.5, 8, 0.985)], ids=str
)
def test_scenes_at_32x32_are_read_agree(blur, noise, least):
    assert accuracy(draw(400, seed=1), 32, 32, blur, noise) >= least


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 64), (48, 40), (100, 130)])
def test_other_resolutions_and_aspect_ratios(height, width):
    assert accuracy(draw(80, seed=2), height, width) >= 0.98


def test_large_plain_objects_at_16x16():
    scene = draw(300, seed=3, objects=(1, 4), words=0.0, sizes=("large",), textures=("plain",))
    assert accuracy(scene, 16, 16) >= 0.98
    assert accuracy(scene, 16, 16, 0.5, 8) >= 0.95


def test_scenes_with_every_combination_held_out_or_not():
    assert accuracy(draw(300, seed=4, held_out=False), 32, 32) >= 0.99
    scene = SceneLaw(objects=(1, 6)).draw(np.random.default_rng(5).random((200, COLUMNS)), "held_out")
    assert agree(scene, parse(render(scene, 32, 32))).mean() >= 0.99


def test_every_word_is_read_and_no_word_is_made_up():
    scene = draw(200, seed=6, words=1.0, objects=(1, 3))
    assert set(scene.word) == set(range(1, len(WORDS)))
    for blur, noise in ((0, 0), (0.5, 8)):
        found = parse(corrupted(render(scene, 32, 32), blur, noise))
        np.testing.assert_array_equal(found.word, scene.word)
        assert np.abs(found.word_centre - scene.word_centre).max() <= 0.51 / 32  # letters keep to the grid of cells
    assert not parse(render(draw(200, seed=7, words=0.0), 32, 32)).word.any()


def test_bytes_and_floats_are_read_alike_and_each_picture_by_itself():
    images = render(draw(40, seed=8), 32, 32)
    found = parse(images)
    as_floats = parse(images.astype(np.float32) / 127.5 - 1)
    alone = [parse(images[i : i + 1]) for i in range(5)]
    for name in ("count", "kind", "colour", "size", "texture", "centre", "background", "word"):
        np.testing.assert_array_equal(getattr(found, name), getattr(as_floats, name))
        np.testing.assert_array_equal(getattr(found, name)[:5], np.concatenate([getattr(one, name) for one in alone]))


def test_hundreds_of_pictures_a_second_on_a_busy_machine():
    images = corrupted(render(draw(500, seed=9), 32, 32), 0.5, 8)
    parse(images[:50])  # the tables are made once
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        parse(images)
        seconds.append(time.perf_counter() - began)
    # A third of a second on one free core; the bound leaves room for a machine that does other things too.
    assert min(seconds) < 5


def test_it_shares_no_code_with_the_renderer():
    room = pathlib.Path(flowjax.shapes.__file__).parent
    modules, seen = ["parse"], set()
    while modules:
        name = modules.pop()
        seen.add(name)
        for node in ast.walk(ast.parse((room / f"{name}.py").read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("flowjax.shapes"):
                continue
            named = [node.module.split(".")[2]] if node.module.count(".") > 1 else [a.name for a in node.names]
            modules += [module for module in named if module not in seen]
    assert seen == {"parse", "fit", "letters", "segment", "scenes", "vocabulary"}


def test_connected_components_stay_within_a_picture_and_specks_are_dropped():
    mask = np.zeros((3, 8, 8), bool)
    mask[0, 1:4, 1:4] = mask[1, 1:4, 1:4] = True  # the same place in neighbouring pictures
    mask[1, 4, 4] = True  # touches by a corner
    mask[2, 6, 6:8] = True  # two pixels
    labels, picture, box = segment.connected(mask, 3)
    assert list(picture) == [0, 1] and labels.max() == 2
    np.testing.assert_array_equal(box, [[1, 1, 4, 4], [1, 1, 5, 5]])


def test_what_grows_is_a_square_around_each_pixel():
    mask = np.zeros((1, 7, 7), bool)
    mask[0, 3, 0] = True
    assert segment.grow(mask).nonzero()[1].tolist() == [2, 2, 3, 3, 4, 4]


def test_paints_are_told_apart_from_any_background_and_from_ink():
    table = segment.tables()
    palette = np.concatenate([segment.COLOUR_RGB, segment.COLOUR_RGB * 0.42])
    for background, (paint, rgb) in itertools.product(range(4), enumerate(palette)):
        (code,) = segment.codes(rgb[None])
        assert table["paint"][background, code] == paint % 8
        assert table["coverage"][background, code] > 0.8
    for background in range(4):
        assert table["paint"][background, segment.codes(segment.INK_RGB)[background]] == segment.INK_PAINT
        assert table["coverage"][background, segment.codes(segment.BACKGROUND_RGB)[background]] == 0

"""Names are unique, and what they stand for can be told apart."""

import itertools

import numpy as np

from flowjax.shapes.captions import VOCABULARY
from flowjax.shapes.vocabulary import BACKGROUNDS, COLOURS, DARK, INK, LETTERS, WORDS, word_bitmap, word_width


def distance(one, other):
    return np.linalg.norm(np.subtract(one, other))


def test_every_word_of_a_caption_means_one_thing():
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert VOCABULARY[0] == ""
    assert all(word == word.lower() and " " not in word for word in VOCABULARY)


def test_colours_are_far_apart_in_light_and_in_shade():
    lit = list(COLOURS.values())
    shaded = [tuple(DARK * value for value in colour) for colour in lit]
    assert min(distance(a, b) for a, b in itertools.combinations(lit, 2)) > 80
    assert min(distance(a, b) for a, b in itertools.product(lit, BACKGROUNDS.values())) > 60
    assert min(distance(a, b) for a, b in itertools.combinations(BACKGROUNDS.values(), 2)) > 60
    # A stripe differs from its neighbour: it is the same hue, much darker.
    assert min(distance(a, b) for a, b in zip(lit, shaded)) > 80


def test_ink_stands_out_from_its_background():
    assert set(INK) == set(BACKGROUNDS)
    assert min(distance(INK[name], BACKGROUNDS[name]) for name in INK) > 200


def test_words_are_short_and_differ_by_several_cells_wherever_they_are_laid_over_each_other():
    assert len(WORDS) - 1 == 24 and all(2 <= len(word) <= 4 for word in WORDS[1:])
    for one, other in itertools.combinations(WORDS[1:], 2):
        a, b = sorted((word_bitmap(one), word_bitmap(other)), key=lambda bitmap: bitmap.shape[1])
        for shift in range(-3, b.shape[1] - a.shape[1] + 4):
            canvas = np.zeros((2, 5, 40), bool)
            canvas[0, :, 10 + shift : 10 + shift + a.shape[1]] = a
            canvas[1, :, 10 : 10 + b.shape[1]] = b
            assert (canvas[0] ^ canvas[1]).sum() >= 4, (one, other)


def test_bitmaps_are_the_letters_side_by_side():
    assert len(set(LETTERS.values())) == len(LETTERS)
    assert all(len(rows) == 5 and all(len(row) == 3 for row in rows) for rows in LETTERS.values())
    expected = ["101 111", "101 010", "111 010", "101 010", "101 111"]
    found = ["".join(" 1"[int(cell)] for cell in row) for row in word_bitmap("hi")]
    assert found == [row.replace("0", " ") for row in expected]
    assert word_width("hi") == 7 and word_width("") == 0 and word_bitmap("").shape == (5, 0)

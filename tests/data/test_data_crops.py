"""Resizing against means and straight lines, crops against slices."""

import numpy as np
import pytest

from flowjax.data.crops import Cropping, cover, resize, unit_range

RNG = np.random.default_rng(0)


def noise(height, width, channels=3):
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_whole_factors_down_are_means_of_boxes_axis_by_axis():
    picture = noise(12, 8)
    expected = picture.reshape(4, 3, 4, 2, 3).astype(float).mean((1, 3))
    np.testing.assert_allclose(resize(picture, 4, 4), expected, atol=1.01)
    real = picture.astype(np.float32) / 255
    np.testing.assert_allclose(resize(real, 4, 4), expected / 255, atol=1e-5)
    tall = resize(real, 4, 16)  # down on one axis, up on the other
    between = resize(real, 4, 8)  # the range of what is enlarged is where overshoots are cut off
    np.testing.assert_allclose(resize(between, 4, 16), tall.clip(between.min(), between.max()), atol=1e-5)


def test_straight_lines_and_constants_survive_every_scale():
    ramp = np.linspace(0, 1, 24, dtype=np.float32)[None, :, None] * np.ones((10, 1, 2), np.float32)
    for width in (7, 12, 24, 37, 48):
        scaled = resize(ramp, 10, width)
        centres = ((np.arange(width) + 0.5) * 24 / width - 0.5) / 23
        inner = slice(3, -3) if width > 12 else slice(2, -2)
        np.testing.assert_allclose(
            scaled[:, inner], np.broadcast_to(centres[None, inner, None], scaled[:, inner].shape), atol=2e-3
        )
    np.testing.assert_allclose(resize(np.full((5, 9, 1), 0.3, np.float32), 13, 4), 0.3, atol=1e-6)


def test_down_scaling_does_not_alias():
    stripes = np.tile(np.float32([0, 1]), 32)[None, :, None] * np.ones((8, 1, 1), np.float32)
    assert np.abs(resize(stripes, 8, 23)[:, 2:-2] - 0.5).max() < 0.12  # taking every third pixel would give 0 and 1


def test_enlarging_is_sharper_than_lines_and_stays_in_range():
    step = np.repeat(np.float32([0, 1]), 8)[None, :, None] * np.ones((4, 1, 1), np.float32)
    wide = resize(step, 4, 64)
    assert wide.min() >= 0 and wide.max() <= 1
    assert wide.dtype == np.float32 and resize(noise(4, 4), 9, 9).dtype == np.uint8


def test_cover_cuts_what_needs_no_scaling_and_never_resamples_it():
    picture = noise(20, 8)
    np.testing.assert_array_equal(cover(picture, 8, 8), picture[6:14])
    np.testing.assert_array_equal(cover(picture, 8, 8, down=0.0), picture[:8])
    np.testing.assert_array_equal(cover(picture, 8, 8, down=0.999), picture[12:])
    np.testing.assert_array_equal(cover(picture.swapaxes(0, 1), 8, 8, across=0.0), picture.swapaxes(0, 1)[:, :8])
    np.testing.assert_array_equal(cover(picture, 20, 8), picture)
    np.testing.assert_allclose(cover(picture, 4, 4), picture[6:14].reshape(4, 2, 4, 2, 3).mean((1, 3)), atol=1.01)


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (50, 3), (17, 16), (200, 133)])
def test_any_size_becomes_the_shape(size):
    for places in ((0.0, 0.0), (0.5, 0.5), (0.999, 0.999)):
        assert cover(noise(*size), 16, 24, *places).shape == (16, 24, 3)


def test_crops_are_a_function_of_the_generator_and_cover_every_place():
    cut = Cropping(8, 8, flip=True)
    picture = noise(11, 8)
    places = {
        tuple(unit_range(picture[top : top + 8, ::sign]).ravel()): (top, sign) for top in range(4) for sign in (1, -1)
    }
    seen = []
    for position in range(400):
        one = cut.augment({"data": picture, "label": 3}, np.random.default_rng(position))
        again = cut.augment({"data": picture, "label": 3}, np.random.default_rng(position))
        np.testing.assert_array_equal(one["data"], again["data"])
        assert one["label"] == 3 and one["data"].dtype == np.float32
        seen.append(places[tuple(one["data"].ravel())])
    counts = np.array([seen.count(place) for place in places.values()])
    assert (np.abs(counts - 50) < 30).all()  # eight equally likely places, five standard deviations


def test_evaluation_takes_the_middle_and_options_do_not_shift_draws():
    picture = noise(11, 8)
    np.testing.assert_array_equal(Cropping(8, 8, flip=True).fit({"data": picture})["data"], unit_range(picture[2:10]))
    assert unit_range(np.uint8([[[0], [255]]])).ravel().tolist() == [-1, 1]
    plain = Cropping(8, 8).augment({"data": picture}, np.random.default_rng(4))["data"]
    mirrored = Cropping(8, 8, flip=True).augment({"data": picture}, np.random.default_rng(4))["data"]
    assert np.array_equal(plain, mirrored) or np.array_equal(plain[:, ::-1], mirrored)
    centre = Cropping(8, 8, "centre").augment({"data": picture}, np.random.default_rng(4))["data"]
    np.testing.assert_array_equal(centre, unit_range(picture[2:10]))
    with pytest.raises(ValueError, match="crop='center'"):
        Cropping(8, 8, "center")

"""Pictures: every pixel where it belongs, and files that stay small."""

import io

import numpy as np
import pytest

from flowjax.evaluation import pictures


def test_to_uint8_maps_clips_and_draws_nan_black():
    values = np.array([-1.0, 0.0, 1.0, 3.0, -9.0, np.nan])
    assert pictures.to_uint8(values).tolist() == [0, 128, 255, 255, 0, 0]


def test_grid_places_and_enlarges_whole_pixels():
    images = np.stack([np.full((2, 2, 1), 10 * i, np.uint8) for i in range(1, 4)])
    made = pictures.grid(images, 2, scale=3)
    assert made.shape == (21, 21, 3)
    small = made[1::3, 1::3, 0]
    assert (small[1:3, 1:3] == 10).all() and (small[1:3, 4:6] == 20).all() and (small[4:6, 1:3] == 30).all()
    assert (small[4:6, 4:6] == 255).all() and (small[0] == 255).all()


def test_grid_with_labels_gives_each_class_a_row():
    labels = np.array([1, 0, 1, 0, 1])
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * 10
    small = pictures.grid(images, labels=labels, scale=1)[1::2, 1::2, 0]
    assert small.tolist() == [[10, 30, 255], [0, 20, 40]]


def test_hidden_pixels_are_white_and_what_nobody_shows_is_cut_off():
    mask = np.zeros((2, 4, 5), bool)
    mask[0, :3, :2], mask[1, :1, :4] = True, True
    shown = pictures.on_white(np.zeros((2, 4, 5, 3), np.float32), mask)
    assert shown.shape == (2, 3, 4, 3) and shown.dtype == np.float32
    np.testing.assert_array_equal(shown[..., 0], np.where(mask, 0, 1)[:, :3, :4])
    assert pictures.on_white(np.zeros((1, 4, 4, 1)), np.zeros((1, 4, 4), bool)).shape == (1, 1, 1, 1)


def test_bad_grids_are_refused():
    with pytest.raises(ValueError, match="at least one image"):
        pictures.grid(np.zeros((0, 2, 2, 1)))
    with pytest.raises(ValueError, match="1, 3 or 4 channels"):
        pictures.grid(np.zeros((1, 2, 2, 2)))


def test_png_is_exact_when_small_and_bounded_when_not(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (40, 30, 3), np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(pictures.encode_png(small)))) == small).all()
    pictures.save_png(tmp_path / "a/big.png", rng.integers(0, 256, (500, 500, 3), np.uint8), limit=100_000)
    assert (tmp_path / "a/big.png").stat().st_size <= 100_000


def test_scatter_draws_both_panels_and_survives_nan():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(200, 2))
    broken = points.copy()
    broken[:100] = np.nan
    full, half = pictures.scatter(points, points), pictures.scatter(broken, points)
    teal = lambda picture: int(((picture[..., 0] < 120) & (picture[..., 1] > 90) & (picture[..., 2] > 90)).sum())
    middle = full.shape[1] // 2
    assert teal(full[:, :middle]) > 1.3 * teal(half[:, :middle]) > 0
    assert (full[:, middle + 20 :] == half[:, middle + 20 :]).all()


def test_captions_stand_under_their_own_images_and_are_cut_where_they_are_too_long():
    black = np.full((3, 32, 32, 3), -1, np.float32)
    one = pictures.captioned_grid(black, ["", "a red circle", ""], columns=3)
    assert one.dtype == np.uint8 and one.shape == (6 + 128 + 13 + 12, 6 + 3 * 134, 3)
    beneath = one[6 + 128 :]
    ink = [bool((beneath[:, 6 + i * 134 : 6 + i * 134 + 128] < 128).any()) for i in range(3)]
    assert ink == [False, True, False] and not one[6:134, 6:134].any()
    fits = lambda text: len(text) <= 10
    assert pictures._wrap("a red circle on white", fits) == ["a red", "circle on", "white"]
    assert pictures._wrap("incomprehensibilities a", fits) == ["incomprehe", "nsibilitie", "s a"]
    cut = pictures._wrap("word " * 30, fits)
    assert len(cut) == pictures.CAPTION_LINES and cut[-1] == "word word…"
    with pytest.raises(ValueError, match="3 images and 2 captions"):
        pictures.captioned_grid(black, ["a", "b"])

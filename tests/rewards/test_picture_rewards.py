"""Pictures by the size of their files, and scenes by what the parser reads in them."""

import io

import numpy as np
import pytest
from PIL import Image

from flowjax.contract import DataSpec
from flowjax.rewards import REWARDS, RewardMistake, make_rewards
from flowjax.shapes import VOCABULARY, CaptionLaw, Scene, SceneLaw, concatenate, render, tokenize
from flowjax.shapes.captions import COLUMNS as CAPTION_COLUMNS
from flowjax.shapes.scenes import COLUMNS as SCENE_COLUMNS


def scored(name, samples, cond=None, **options):
    rewards = make_rewards({"own": dict(name=name, **options)}, REWARDS, "skip")
    return rewards.score(samples, cond or {})["own"]


def test_the_size_of_a_file_by_hand():
    levels = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3)).astype(np.uint8)
    pictures = levels.astype(np.float32) / 127.5 - 1
    for format, quality, expected in (
        ("png", None, {}),
        ("jpeg", None, dict(quality=95)),
        ("jpeg", 30, dict(quality=30)),
    ):
        sizes = []
        for picture in levels:
            file = io.BytesIO()
            Image.fromarray(picture).save(file, format, **expected)
            sizes.append(len(file.getvalue()))
        options = {} if quality is None else dict(quality=quality)
        np.testing.assert_array_equal(
            scored("compressibility", pictures, format=format, **options), -np.array(sizes) / (16 * 24)
        )


@pytest.mark.parametrize("format", ["png", "jpeg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_flat_pictures_are_worth_more_than_noise(format, channels):
    draw = np.random.default_rng(0)
    flat = np.full((16, 16, channels), 0.3)
    ramp = np.broadcast_to(np.linspace(-1, 1, 16)[:, None, None], flat.shape)
    noise = draw.uniform(-1, 1, flat.shape)
    beyond = np.full_like(flat, 7.0)  # white, and no more than that
    broken = np.where(np.arange(channels) == 0, np.nan, flat)
    pictures = np.stack([flat, ramp, noise, beyond, np.ones_like(flat), broken]).astype(np.float32)
    worth = scored("compressibility", pictures, format=format)
    assert worth[0] > worth[1] > worth[2] and worth[3] == worth[4] and np.isnan(worth[5])


def test_what_is_no_picture_is_refused():
    make = lambda data, **options: make_rewards({"own": dict(**options)}, REWARDS, data=data)
    with pytest.raises(ValueError, match=r"'compressibility' reads pictures .*1 or 3 channels\), .* shape \(2,\)"):
        make(DataSpec((2,)), name="compressibility")
    masked = DataSpec((32, 32, 3), visible_shape=(16, 32), visible_multiple=16)
    with pytest.raises(ValueError, match="in part masked"):
        make(masked, name="compressibility")
    with pytest.raises(ValueError, match="quality=80; expected a quality from 1 to 95, which JPEG alone has"):
        make(None, name="compressibility", format="png", quality=80)
    with pytest.raises(ValueError, match="format='gif'; expected jpeg or png"):
        make(None, name="compressibility", format="gif")
    with pytest.raises(RewardMistake, match=r"samples of shape \(3, 2\)"):
        scored("compressibility", np.zeros((3, 2)))
    captions = dict(text_length=8, vocabulary=len(VOCABULARY))
    assert make(DataSpec((32, 32, 3), **captions), name="scene").hosted
    with pytest.raises(ValueError, match=r"'scene' reads pictures .* shape \(8, 8, 1\)"):
        make(DataSpec((8, 8, 1), **captions), name="scene")
    with pytest.raises(ValueError, match="vocabulary=30000. Use data 'shapes'"):
        make(DataSpec((32, 32, 3), text_length=8, vocabulary=30000), name="scene")
    with pytest.raises(ValueError, match="Unknown what the reward 'scene' has judged"):
        make(None, name="scene", judged="most")


def as_samples(pixels):
    return pixels.astype(np.float32) / np.float32(127.5) - 1


def test_scenes_are_right_under_their_captions_and_wrong_under_others():
    uniforms = np.random.default_rng(0).random((64, SCENE_COLUMNS + CAPTION_COLUMNS))
    drawn = SceneLaw(objects=(1, 3), words=0.5).draw(uniforms[:, :SCENE_COLUMNS])
    tokens = CaptionLaw(full=1.0).draw(drawn, uniforms[:, SCENE_COLUMNS:])  # which say all there is to say
    samples = as_samples(render(drawn, 32, 32))
    for judged in ("all", "share"):
        right = scored("scene", samples, {"tokens": tokens}, judged=judged)
        assert right.shape == (64,) and (right == 1).mean() >= 0.98  # the parser reads 99% wholly right
        wrong = scored("scene", samples, {"tokens": np.roll(tokens, 1, axis=0)}, judged=judged)
        assert (wrong == 0).all() if judged == "all" else (wrong <= 0.5).all()
    # Contrast beyond what a picture can have is cut off; one number that is none, and the picture is none.
    beyond = np.where(np.abs(samples) > 0.99, 3 * samples, samples)
    beyond[5, 3, 3, 1], beyond[6, 0, 0, 0] = np.nan, np.inf
    worth = scored("scene", beyond, {"tokens": tokens})
    assert np.isnan(worth[5:7]).all()
    others = np.delete(np.arange(64), [5, 6])
    np.testing.assert_array_equal(worth[others], scored("scene", samples, {"tokens": tokens})[others])


def painted(*objects):
    """A picture of large objects (kind, colour) side by side on gray: a scene written down by hand."""
    kinds, colours = ("circle", "square"), ("red", "orange", "yellow", "green", "cyan", "blue")
    count = len(objects)
    row = lambda values, empty=0: np.array([[*values, *[empty] * (6 - count)]], np.int32)
    centres = np.zeros((1, 6, 2))
    centres[0, :count] = [(0.28 + 0.44 * place, 0.5) for place in range(count)]
    return Scene(
        count=np.array([count], np.int32),
        kind=row(kinds.index(kind) for kind, _ in objects),
        colour=row(colours.index(colour) for _, colour in objects),
        size=row([1] * count),
        texture=row([0] * count),
        centre=centres,
        background=np.array([1], np.int32),
        word=np.array([0], np.int32),
        word_centre=np.zeros((1, 2)),
    )


def test_the_share_of_verdicts_by_hand():
    scenes = [
        painted(("circle", "red"), ("square", "blue")),
        painted(("circle", "blue"), ("square", "red")),  # every kind and colour, and nothing where it belongs
        painted(("square", "blue"), ("circle", "red")),  # right but for the relation
        painted(("circle", "red")),
        painted(("circle", "green"), ("square", "green")),
    ]
    samples = as_samples(render(concatenate(scenes), 32, 32))
    plain = tokenize(["a red circle and a blue square"] * 5, 12)
    # Verdicts: count, kind, colour.
    expected = np.array([1, (3 / 3 + 0) / 2, 1, (0 / 3 + 0) / 2, (2 / 3 + 0) / 2])
    np.testing.assert_allclose(scored("scene", samples, {"tokens": plain}, judged="share"), expected)
    np.testing.assert_array_equal(scored("scene", samples, {"tokens": plain}), [1, 0, 1, 0, 0])
    placed = tokenize(["a red circle left of a blue square"] * 5, 12)
    # Verdicts: count, kind, colour, relation.
    expected = np.array([1, (3 / 4 + 0) / 2, (3 / 4 + 0) / 2, 0, (2 / 4 + 0) / 2])
    np.testing.assert_allclose(scored("scene", samples, {"tokens": placed}, judged="share"), expected)


def test_captions_that_are_none():
    samples = as_samples(render(painted(("circle", "red")), 32, 32))
    with pytest.raises(RewardMistake, match="needs the condition 'tokens', and there are label"):
        scored("scene", samples, {"label": np.zeros(1, int)})
    stopping = make_rewards({"own": dict(name="scene")}, REWARDS)
    with pytest.raises(RuntimeError, match="The caption '' cannot be read"):
        stopping.score(samples, {"tokens": np.zeros((1, 4), np.int32)})

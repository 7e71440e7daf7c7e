"""Every evaluator tells a perfect sampler from a bad one, and says what perfection would have scored."""

import numpy as np
import pytest

from flowjax.choices import build
from flowjax.contract import DataSpec
from flowjax.data import SOURCES, ArraySource
from flowjax.evaluation import EVALUATORS
from flowjax.evaluation.evaluators import disjoint_real_sets, quantised
from flowjax.evaluation.features import Features, identity
from flowjax.evaluation.judging import receipt_fields

MIXTURE = SOURCES["mixture"]()
DIGITS = SOURCES["digits"]()


def evaluator(name, source=MIXTURE, **options):
    return build("evaluator", {"name": name, **options}, EVALUATORS, source=source, seed=0)


def perfect(count=600):
    return MIXTURE.reference("train", count, seed=77)["data"]


@pytest.mark.parametrize("name", ["sliced_w2", "exact_w2", "sinkhorn_w2", "frechet"])
def test_distances_have_a_ratio_near_one_for_perfect_samples_and_far_from_it_for_bad_ones(name):
    judge = evaluator(name)
    good, bad = judge(perfect(400), {}), judge(perfect(400) * 0.3, {})
    assert good["count"] == 400
    assert good[name + "_ratio"] == pytest.approx(good[name] / good[name + "_floor"])
    assert 0.2 < good[name + "_ratio"] < 4
    assert bad[name + "_ratio"] > 2.5 * good[name + "_ratio"]
    assert bad[name + "_floor"] == good[name + "_floor"]


def test_kernel_distances_are_about_zero_for_perfect_samples():
    for name, options in (("mmd", {}), ("kid", {"subsets": 10})):
        judge = evaluator(name, **options)
        good, bad = judge(perfect(), {})[name], judge(perfect() * 0.5, {})[name]
        assert abs(good) < 0.1 * bad


def test_the_floor_falls_with_the_number_of_samples():
    judge = evaluator("sliced_w2")
    assert judge(perfect(4000), {})["sliced_w2_floor"] < 0.5 * judge(perfect(100), {})["sliced_w2_floor"]


def test_values_floors_and_samples_all_have_one_count():
    seen, sizes = [], []

    class Spy:
        def __call__(self, samples):
            seen.append(len(samples))
            return np.asarray(samples).reshape(len(samples), -1)

    from flowjax.evaluation.evaluators import Compared

    def measure(one, other):
        sizes.append((len(one), len(other)))
        return {"gap": float(len(one) - len(other))}

    judge = Compared(measure, DIGITS, Features("spy", Spy()), "test", 0, pairs=3)
    half = len(DIGITS.reference("test")["data"]) // 2
    result = judge(np.zeros((1000, 8, 8, 1), np.float32), {})
    assert seen == [2 * half, half] and set(sizes) == {(half, half)} and len(sizes) == 4
    assert result["gap"] == result["gap_floor"] == result["gap_floor_std"] == 0 and result["count"] == half
    judge(np.zeros((1000, 8, 8, 1), np.float32), {})
    assert seen == [2 * half, half, half]  # real examples are embedded once


@pytest.mark.parametrize("name", ["sliced_w2", "frechet", "kid", "precision_recall"])
def test_figures_have_intervals_and_floors_with_deviations(name):
    judge = evaluator(name, **({"subsets": 5} if name == "kid" else {}))
    result = judge(perfect(300) * 0.9, {})
    for metric in ("precision", "recall") if name == "precision_recall" else (name,):
        low, high = result[metric + "_low"], result[metric + "_high"]
        assert low <= result[metric] <= high and low < high
        assert result[metric + "_floor_std"] > 0
        fields = receipt_fields(judge, result, metric)
        assert fields["interval"] == [low, high] and fields["floor_std"] == result[metric + "_floor_std"]
        assert fields["features"] == {"name": "identity"} and fields["floor_pairs"] == 8
        assert fields.get("better") == ("higher" if name == "precision_recall" else None)
    plain = evaluator(name, groups=0, pairs=1, **({"subsets": 5} if name == "kid" else {}))(perfect(300), {})
    assert not [key for key in plain if key.endswith(("_low", "_high", "_floor_std"))]
    few = judge(perfect(30), {})  # too few to leave groups out of: the figure stands without an interval
    assert not [key for key in few if key.endswith("_low")]


def test_a_perfect_model_lies_within_the_floor_and_its_deviation():
    judge = evaluator("frechet")
    scores = []
    for seed in range(8):
        result = judge(MIXTURE.reference("train", 300, seed=seed)["data"], {})
        scores.append((result["frechet"] - result["frechet_floor"]) / result["frechet_floor_std"])
    assert np.median(np.abs(scores)) < 2
    assert (judge(perfect(300) * 0.8, {})["frechet"] - result["frechet_floor"]) / result["frechet_floor_std"] > 5


def test_real_sets_are_disjoint():
    for source, split, count in ((DIGITS, "all", 898), (DIGITS, "test", 50), (MIXTURE, "all", 300)):
        one, other = disjoint_real_sets(source, split, count, seed=3)
        assert len(one) == len(other) == count
        if source is MIXTURE:
            assert not set(map(tuple, one)) & set(map(tuple, other))
    numbers = np.arange(10, dtype=np.float32)[:, None]
    small = ArraySource({"data": numbers[:6]}, {"data": numbers[6:]}, MIXTURE.spec)
    one, other = disjoint_real_sets(small, "all", 99, seed=0)
    assert sorted(np.concatenate([one, other])[:, 0]) == list(range(10))


def test_quantised():
    x = np.float32([-3, -1, -0.94, -0.93, 0.06, 0.07, 0.99, 2])
    np.testing.assert_allclose(quantised(x, 17), [-1, -1, -1, -0.875, 0, 0.125, 1, 1], atol=1e-7)
    np.testing.assert_array_equal(quantised(x, None), x)
    images = DIGITS.reference("test")["data"]
    np.testing.assert_array_equal(quantised(images, 17), images)
    # Noise below half a level is undone, so it may not change any figure.
    wobble = np.random.default_rng(0).uniform(-0.06, 0.06, images.shape).astype(np.float32)
    judge = evaluator("sliced_w2", DIGITS)
    assert judge(images + wobble, {}) == judge(images, {})


def test_precision_recall_of_perfect_and_collapsed_samples():
    judge = evaluator("precision_recall")
    good = judge(perfect(), {})
    assert good["precision"] == pytest.approx(good["precision_floor"], abs=0.05)
    assert good["recall"] == pytest.approx(good["recall_floor"], abs=0.05)
    one_mode = np.asarray(MIXTURE.oracle.means)[0] + 0.1 * np.random.default_rng(0).standard_normal((600, 2))
    assert judge(one_mode.astype(np.float32), {})["recall"] < 0.2


def test_mode_weights_against_its_floor():
    judge = evaluator("mode_weights")
    result = judge(perfect(4000), {})
    assert result["mode_weight_error"] < 3 * result["mode_weight_error_floor"]
    uneven = SOURCES["mixture"](weights="uneven").reference("test", 4000)["data"]
    # Even against uneven weights: 1/2 sum |1/8 - k/36|.
    expected = np.abs(1 / 8 - np.arange(1, 9) / 36).sum() / 2
    assert judge(uneven, {})["mode_weight_error"] == pytest.approx(expected, abs=0.02)


def test_class_accuracy(monkeypatch):
    # A stand-in whose answer is the brightest of the first ten pixels, so the expected share is known exactly.
    from flowjax.evaluation import judging

    classify = lambda samples: samples.reshape(len(samples), -1)[:, :10].argmax(1).astype(np.int32)
    stand_in = Features("stand-in", identity().embed, classify, 0.99)
    monkeypatch.setattr(judging, "FEATURES", {"digits": lambda: stand_in, "identity": identity})
    labels = np.arange(40, dtype=np.int32) % 10
    samples = np.full((40, 64), -1, np.float32)
    samples[np.arange(40), labels] = 1
    samples = samples.reshape(40, 8, 8, 1)
    judge = evaluator("class_accuracy", DIGITS)
    everything = judge(samples, {"label": labels})
    assert (everything["class_accuracy"], everything["class_accuracy_real"]) == (1.0, 0.99)
    assert (everything["class_accuracy_low"], everything["class_accuracy_high"]) == (1.0, 1.0)
    asked = labels.copy()
    asked[:10] = (asked[:10] + 1) % 10
    result = judge(samples, {"label": asked})
    assert result["class_accuracy_low"] < result["class_accuracy"] == 0.75 < result["class_accuracy_high"]
    with pytest.raises(ValueError, match="needs the labels"):
        judge(samples, {})
    with pytest.raises(ValueError, match="40 samples and 39 labels"):
        judge(samples, {"label": labels[1:]})


def test_nearest_neighbour_finds_copies():
    judge = evaluator("nearest_neighbour", DIGITS)
    copied = judge(DIGITS.reference("train", 100)["data"], {})
    assert copied["copies"] == 1 and copied["nearest_train"] == 0
    held_out = judge(DIGITS.reference("test")["data"], {})
    assert held_out["nearest_train_ratio"] == 1
    assert held_out["copies"] == pytest.approx(0.01, abs=0.005)
    assert held_out["copies_low"] <= held_out["copies"] <= held_out["copies_high"]
    assert judge.description["features"] == {"name": "identity"}


def test_the_closest_pairs_are_shown_side_by_side():
    train = DIGITS.reference("train")["data"]
    wobble = np.random.default_rng(0).uniform(0.3, 1.0, (20, 1, 1, 1)).astype(np.float32)
    samples = np.concatenate([train[100:105], -train[:20] * wobble])  # five copies among others
    judge = evaluator("nearest_neighbour", DIGITS, pairs=4)
    generated, real, gaps = judge.closest(samples)
    np.testing.assert_array_equal(generated, real)
    assert (gaps == 0).all() and len(gaps) == 4
    picture = judge.picture(samples, {})
    assert picture.dtype == np.uint8 and picture.ndim == 3
    # Rows of two pairs: the left and the right image of each pair are the same pixels.
    scale = picture.shape[1] // (4 * 9 + 1)
    small = picture[::scale, ::scale]
    np.testing.assert_array_equal(small[1:9, 1:9], small[1:9, 10:18])


def test_the_closest_pairs_of_masked_images_are_shown_without_what_is_hidden():
    mask = np.zeros((40, 4, 6), bool)
    mask[:20, :2, :3], mask[20:, :4, :2] = True, True
    data = np.where(mask[..., None], np.random.default_rng(0).uniform(-1, -0.5, (40, 4, 6, 1)), 0).astype(np.float32)
    split = lambda part: {"data": data[part], "pixel_mask": mask[part]}
    wide = ArraySource(split(slice(0, 30)), split(slice(30, 40)), DataSpec((4, 6, 1), visible_shape=(2, 3)))
    judge = evaluator("nearest_neighbour", wide, pairs=1)
    picture = judge.picture(wide.train["data"][:1], {"pixel_mask": wide.train["pixel_mask"][:1]})
    scale = picture.shape[0] // 4  # the pair is 2 x 3, and so is the picture's cell
    assert picture.shape[:2] == (4 * scale, 9 * scale)
    small = picture[::scale, ::scale, 0]
    assert (small[1:3, 1:4] < 70).all() and (small[1:3, 5:8] == small[1:3, 1:4]).all() and (small[3] == 255).all()


def test_nearest_neighbours_in_features_find_what_pixels_miss(monkeypatch):
    # Stand-in features that ignore the sign of an image, so that a negative is a copy.
    from flowjax.evaluation import judging

    unsigned = lambda samples: np.abs(np.asarray(samples, np.float32)).reshape(len(samples), -1)
    monkeypatch.setitem(judging.FEATURES, "unsigned", lambda: Features("unsigned", unsigned))
    negatives = -DIGITS.reference("train", 50)["data"]
    assert evaluator("nearest_neighbour", DIGITS)(negatives, {})["copies"] == 0
    assert evaluator("nearest_neighbour", DIGITS, features="unsigned")(negatives, {})["copies"] == 1


def test_unsuitable_sources_and_samples_are_refused():
    with pytest.raises(ValueError, match="needs a source with an oracle"):
        evaluator("mode_weights", SOURCES["moons"]())
    with pytest.raises(ValueError, match="needs a classifier"):
        evaluator("class_accuracy")
    with pytest.raises(ValueError, match="this source is endless"):
        evaluator("nearest_neighbour")
    with pytest.raises(ValueError, match="has no option 'direction'.*Did you mean 'directions'"):
        evaluator("sliced_w2", direction=3)
    with pytest.raises(ValueError, match="Unknown feature extractor 'inception'"):
        evaluator("frechet", features="inception")
    broken = perfect(10)
    broken[3] = np.nan
    for name in ("sliced_w2", "mode_weights"):
        with pytest.raises(ValueError, match="1 of 10 samples hold NaN"):
            evaluator(name)(broken, {})


def test_psnr_of_a_known_error():
    """A constant error e has 10 log10(4 / e^2) dB; values beyond the range of images are clipped before they count."""
    evaluate = build("evaluator", dict(name="psnr"), EVALUATORS, source=DIGITS, seed=0)
    originals = np.full((4, 8, 8, 1), 0.9, np.float32)
    errors = np.array([0.02, 0.05, 0.1, 3.0])  # 0.9 + 3 is clipped to 1: an error of 0.1
    samples = (originals + errors[:, None, None, None]).astype(np.float32)
    expected = np.mean(10 * np.log10(4 / np.array([0.02, 0.05, 0.1, 0.1]) ** 2))
    assert evaluate(samples, {"data": originals})["psnr"] == pytest.approx(expected, rel=1e-4)
    assert np.isfinite(evaluate(originals, {"data": originals})["psnr"])
    with pytest.raises(ValueError, match="this sampler read none"):
        evaluate(samples, {})

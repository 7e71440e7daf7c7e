"""Text-image agreement: perfect images agree, shuffled ones do as often as chance, and real accuracy is that of the probe."""

import numpy as np
import pytest

from flowjax.choices import build
from flowjax.contract import DataSpec
from flowjax.data import ArraySource
from flowjax.evaluation import EVALUATORS
from flowjax.evaluation.agreement import CaptionVectors

WORDS, LENGTH = 24, 4
GENERATOR = np.random.default_rng(0)
LOOKS = GENERATOR.standard_normal((WORDS + 1, 6, 6, 3)).astype(np.float32)  # what each word looks like
LOOKS[0] = 0


def captions(count, seed):
    """Three different words each, and padding."""
    generator = np.random.default_rng(seed)
    words = np.stack([generator.choice(np.arange(1, WORDS + 1), 3, replace=False) for _ in range(count)])
    return np.concatenate([np.sort(words, axis=1), np.zeros((count, 1), int)], axis=1).astype(np.int32)


def drawn(tokens, noise=0.0, seed=0):
    pictures = LOOKS[tokens].sum(axis=1) / 5
    return (pictures + noise * np.random.default_rng(seed).standard_normal(pictures.shape)).astype(np.float32)


def source(encoded=False, noise=0.05):
    def split(count, seed):
        tokens = captions(count, seed)
        arrays = {"data": drawn(tokens, noise, seed)}
        return arrays | (encode(tokens) if encoded else {"tokens": tokens})

    text = dict(text_channels=8) if encoded else dict(vocabulary=WORDS + 1)
    return ArraySource(split(1500, 1), split(300, 2), DataSpec((6, 6, 3), text_length=LENGTH, **text))


TABLE = np.random.default_rng(5).standard_normal((WORDS + 1, 8)).astype(np.float32)


def encode(tokens):
    return {"text": TABLE[tokens], "text_mask": tokens > 0}


def judge(data, **options):
    spec = dict(name="caption_agreement", features="identity", **options)
    return build("evaluator", spec, EVALUATORS, source=data, seed=0)


@pytest.mark.parametrize("encoded", [False, True])
def test_true_images_agree_and_shuffled_ones_are_at_chance(encoded):
    evaluate, tokens = judge(source(encoded)), captions(400, 3)
    conditions = encode(tokens) if encoded else {"tokens": tokens}
    good = evaluate(drawn(tokens, 0.05, 9), conditions)
    assert good["caption_agreement"] > 0.95 and good["caption_agreement_real"] > 0.95
    assert good["caption_agreement_chance"] == 0.1
    # The expectation is exact: an image knows nothing of another's caption, and ten stand to choose among.
    shuffled = evaluate(np.roll(drawn(tokens), 1, axis=0), conditions)
    assert shuffled["caption_agreement"] == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / 400))
    assert shuffled["caption_agreement_low"] < shuffled["caption_agreement"] < shuffled["caption_agreement_high"]
    halves = np.concatenate([drawn(tokens)[:200], np.roll(drawn(tokens), 1, axis=0)[200:]])
    assert evaluate(halves, conditions)["caption_agreement"] == pytest.approx(0.55, abs=0.06)


def test_vectors_are_compared_where_a_source_keeps_its_own_ids_beside_them():
    vectors, both = source(encoded=True), source(encoded=True)
    for part, seed, count in ((both.train, 1, 1500), (both.test, 2, 300)):
        part["tokens"] = captions(count, seed)  # ids of no vocabulary that the network knows of
    tokens = captions(100, 3)
    images, conditions = drawn(tokens, 0.05, 9), encode(tokens)
    assert judge(both)(images, {**conditions, "tokens": tokens}) == judge(vectors)(images, conditions)


def test_the_real_figure_is_what_real_images_score():
    data = source(noise=1.0)  # so noisy that the probe errs
    evaluate, test = judge(data), data.reference("test")
    result = evaluate(test["data"], {"tokens": test["tokens"]})
    assert 0.2 < result["caption_agreement"] == result["caption_agreement_real"] < 0.95


def test_more_choices_are_harder_and_the_receipt_says_how_many():
    data = source(noise=1.0)
    easy, hard = judge(data, choices=2), judge(data, choices=50)
    tokens = captions(300, 3)
    images, conditions = drawn(tokens, 1.0, 4), {"tokens": tokens}
    assert easy(images, conditions)["caption_agreement"] > hard(images, conditions)["caption_agreement"] + 0.1
    assert hard.description["choices"] == 50 and hard.description["probe"]["ridge"] > 0
    assert hard.description["features"] == {"name": "identity"}


def test_a_repeated_caption_is_no_choice_against_itself():
    data = source()
    twice = {name: np.concatenate([value, value]) for name, value in data.test.items()}  # as styles of one emoji
    doubled = ArraySource(data.train, twice, data.spec)
    assert judge(doubled)(*_asked())["caption_agreement"] == judge(data)(*_asked())["caption_agreement"] > 0.95


def _asked():
    tokens = captions(200, 2)  # held-out captions themselves
    return drawn(tokens, 0.05, 9), {"tokens": tokens}


def test_caption_vectors_weigh_rare_words_and_ignore_padding():
    tokens = np.int32([[1, 2, 0], [1, 3, 0], [1, 1, 4], [1, 5, 5]])
    vectors = CaptionVectors({"tokens": tokens}, 8)
    plain = vectors({"tokens": tokens}) + vectors._mean
    # Word 1 is in every caption and says nothing; each other word is alone in its caption.
    np.testing.assert_allclose(np.abs(plain[:, 0]), 0, atol=1e-12)
    np.testing.assert_allclose(plain[:, 1:], np.eye(4), atol=1e-6)
    unknown = vectors({"tokens": np.int32([[7, 0, 0]])}) + vectors._mean
    np.testing.assert_allclose(unknown, 0, atol=1e-12)  # a word that no training caption has


def test_what_cannot_be_judged_is_refused():
    data = source()
    evaluate, tokens = judge(data), captions(20, 3)
    with pytest.raises(ValueError, match="needs the captions that were asked for"):
        evaluate(drawn(tokens), {})
    with pytest.raises(ValueError, match="20 samples and 19 captions"):
        evaluate(drawn(tokens), {"tokens": tokens[1:]})
    with pytest.raises(ValueError, match="needs data with captions"):
        judge(ArraySource({"data": data.train["data"]}, {"data": data.test["data"]}, DataSpec((6, 6, 3))))
    with pytest.raises(ValueError, match="asks for 5000 captions to choose among, but the held-out split has"):
        judge(data, choices=5000)

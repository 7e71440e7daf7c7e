"""Captions encoded on the way: the encoder's vectors in every batch, each caption encoded once, prompts included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_wordpiece import PIECES, small_json

from flowjax.contract import DataSpec
from flowjax.data.batch import check_batch
from flowjax.data.encoded import PIECE, CaptionTable, encoded, with_minilm
from flowjax.data.pipeline import make_iterator
from flowjax.data.shapes import shapes
from flowjax.data.tokenizers import make_tokenizer
from flowjax.models.text.minilm import BertShape, encode_tokens, init_bert

SHAPE = BertShape(vocabulary=len(PIECES), width=64, depth=1, heads=2, hidden=16, positions=10)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    file = tmp_path_factory.mktemp("minilm") / "tokenizer.json"
    file.write_text(small_json(), encoding="utf-8")
    return make_tokenizer(dict(name="wordpiece", file=str(file), length=10))


@pytest.fixture(scope="module")
def parameters():
    return init_bert(jax.random.key(0), SHAPE)


def test_batches_hold_the_vectors_of_their_own_captions(pieces, parameters):
    inner = shapes(resolution=8, objects=(1, 1))
    source = with_minilm(inner, parameters, pieces)
    assert source.spec.text_channels == 64 and source.spec.text_length == 10 and source.spec.vocabulary == 0
    assert source.size is None and source.levels == inner.levels and source.tokenizer is inner.tokenizer
    batch = next(make_iterator(source, 6, seed=3))  # checks the batch against the spec
    plain = next(make_iterator(inner, 6, seed=3))
    np.testing.assert_array_equal(batch["data"], plain["data"])
    captions = inner.tokenizer.decode(batch["tokens"])
    text, mask = encode_tokens(parameters, jnp.asarray(pieces.encode(captions)), heads=2)
    np.testing.assert_allclose(batch["text"], text, atol=1e-5)
    np.testing.assert_array_equal(batch["text_mask"], mask)
    real = source.reference("test", 5, 1)
    prompted = source.encode_text(real["tokens"])
    np.testing.assert_array_equal(real["text"], prompted["text"])
    assert with_minilm(inner, parameters, pieces).fingerprint() == source.fingerprint()
    moved = jax.tree.map(lambda leaf: leaf + 1e-3, parameters)
    assert with_minilm(inner, moved, pieces).fingerprint() != source.fingerprint()


def counting_table(tokenizer, most=16_384):
    """The vector of a token is its id, whatever stands beside it; calls are kept."""
    calls = []

    def encode(tokens):
        calls.append(tokens)
        return np.where(tokens[..., None] > 0, tokens[..., None], 0).astype(np.float32), tokens > 0

    return CaptionTable(tokenizer, encode, 1, most), calls


def test_a_caption_is_encoded_once_in_pieces_of_one_size_and_old_ones_are_forgotten():
    captions = [f"word {index}" for index in range(PIECE + 3)]
    tokenizer = make_tokenizer(dict(name="words", length=3), captions)
    table, calls = counting_table(tokenizer)
    first = table(captions)
    assert [call.shape for call in calls] == [(PIECE, 3)] * 2 and len(table) == PIECE + 3
    np.testing.assert_array_equal(first["text"][..., 0], tokenizer.encode(captions))
    np.testing.assert_array_equal(first["text_mask"], tokenizer.encode(captions) > 0)
    again = table([captions[5], captions[5], ""])
    assert len(calls) == 2 and not again["text_mask"][2].any() and not again["text"][2].any()
    np.testing.assert_array_equal(again["text"][0], first["text"][5])
    small, calls = counting_table(tokenizer, most=2)
    small(captions[:2]), small(captions[:1]), small(captions[2:3])  # the second is now the oldest
    small(captions[:1])
    assert len(small) == 2 and len(calls) == 2
    small(captions[1:2])
    assert len(calls) == 3


def test_what_cannot_be_encoded_is_refused(pieces, parameters, tmp_path):
    with pytest.raises(ValueError, match="gives none as token ids"):
        encoded_of = DataSpec((2,))
        with_minilm(type("Plain", (), {"spec": encoded_of})(), parameters, pieces)
    with pytest.raises(ValueError, match="Unknown text encoder 'clip'"):
        encoded(dict(name="shapes"), encoder="clip")
    with pytest.raises(ValueError, match="has no model.safetensors"):
        encoded(dict(name="shapes", resolution=8), folder=str(tmp_path))
    source = with_minilm(shapes(resolution=8), parameters, pieces)
    batch = next(make_iterator(source, 2))
    with pytest.raises(ValueError, match="has no 'text_mask'"):
        check_batch({name: value for name, value in batch.items() if name != "text_mask"}, source.spec)

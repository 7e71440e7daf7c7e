"""Captions encoded on the way: the encoder's vectors in every batch, each caption encoded once, prompts included."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_minilm import SHAPE, place_minilm
from small_wordpiece import small_json

from flowjax.contract import DataSpec
from flowjax.data.batch import check_batch
from flowjax.data.cached import with_cache
from flowjax.data.caches import build_cache, encoder_parts
from flowjax.data.encoded import PIECE, CaptionTable, EncodedSource, encoded, with_minilm
from flowjax.data.mixtures import mixed
from flowjax.data.pictures import MemoryPictures, picture_source
from flowjax.data.pipeline import make_iterator
from flowjax.data.shapes import shapes
from flowjax.data.tokenizers import make_tokenizer
from flowjax.data.turns import make_schedule
from flowjax.models.text.minilm import encode_tokens, init_bert


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


def test_a_caption_that_has_lost_a_word_is_refused():
    tokenizer = make_tokenizer(dict(name="words", length=3), ["red apple", "green pear"])
    source = EncodedSource(types.SimpleNamespace(tokenizer=tokenizer), counting_table(tokenizer)[0], DataSpec((1,)), "")
    assert source.encode_text(tokenizer.encode(["red pear"]))["text_mask"].sum() == 2
    tokens = tokenizer.encode(["red pear", "blue apple"])
    with pytest.raises(ValueError, match=r"has lost a word.*'\[unknown\] apple'.*tokenizer=dict\(name='bytes'\)"):
        source.encode_text(tokens)


def sentences(rows):
    """By definition: the mean of the visible vectors, scaled to unit length."""
    means = np.stack([text[mask].mean(axis=0) for text, mask in zip(rows["text"], rows["text_mask"])])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def captioned(count=40):
    captions = [(f"happy dog {'un' * (i % 3)} {'sunny' if i % 2 else 'cafe'}",) for i in range(count)]
    pixels = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    half = [MemoryPictures(pixels[part], None, captions[part]) for part in (slice(8, None), slice(0, 8))]
    return picture_source(*half, (4, 4, 3), 0.5, None, dict(name="bytes"), 0)


def test_a_whole_caption_has_a_vector_of_its_own_where_it_is_asked_for(pieces, parameters):
    inner = shapes(resolution=8, objects=(1, 1))
    source, without = (with_minilm(inner, parameters, pieces, pooled=pooled) for pooled in (True, False))
    assert source.spec.pooled_channels == 64 and without.spec.pooled_channels == 0
    batch, plain = (next(make_iterator(made, 6, seed=3)) for made in (source, without))
    assert set(batch) - set(plain) == {"text_pooled"} and batch["text_pooled"].dtype == np.float32
    np.testing.assert_array_equal(batch["text"], plain["text"])
    np.testing.assert_allclose(batch["text_pooled"], sentences(batch), atol=1e-6)
    prompted = source.encode_text(batch["tokens"] * np.int32([[1]] * 5 + [[0]]))  # the last caption is absent
    np.testing.assert_array_equal(prompted["text_pooled"][:5], batch["text_pooled"][:5])
    assert not prompted["text_pooled"][5].any() and not prompted["text_mask"][5].any()
    np.testing.assert_allclose(np.linalg.norm(source.reference("test", 4)["text_pooled"], axis=1), 1, atol=1e-6)
    assert source.fingerprint() != without.fingerprint()
    with pytest.raises(ValueError, match="has no 'text_pooled'"):
        check_batch({name: value for name, value in batch.items() if name != "text_pooled"}, source.spec)
    with pytest.raises(ValueError, match="differ in pooled_channels"):
        mixed([source, without], make_schedule(2, None, (), None))


def test_vectors_of_whole_captions_are_kept_in_caches(pieces, parameters, tmp_path):
    inner = captioned()
    source = with_minilm(inner, parameters, pieces, pooled=True)
    read = lambda rows: source.encode_text(rows["tokens"])
    kept = with_cache(inner, build_cache(tmp_path / "text", inner, read, encoder_parts("minilm", parameters)))
    assert kept.spec.pooled_channels == 64
    fresh, stored = (next(make_iterator(made, 16, seed=1)) for made in (source, kept))
    for name in ("text", "text_mask", "text_pooled", "data", "tokens"):
        np.testing.assert_array_equal(fresh[name], stored[name])
    # A cache that is made of an encoded source keeps what the source encodes.
    shrink = lambda rows: {**rows, "data": rows["data"][:, ::2, ::2]}
    small = with_cache(source, build_cache(tmp_path / "small", source, shrink, encoder_parts("shrink")))
    batch = next(make_iterator(small, 16))  # checked against the spec
    np.testing.assert_allclose(batch["text_pooled"], sentences(batch), atol=1e-6)
    both = mixed([inner, inner], make_schedule(2, None, (), None))  # has nothing stored under a number
    assert not hasattr(with_minilm(both, parameters, pieces), "examples")


def test_encoded_from_a_folder_of_weights(tmp_path, monkeypatch):
    parameters = place_minilm(tmp_path, monkeypatch)
    spec = dict(source=dict(name="shapes", resolution=8), folder=str(tmp_path), text_length=8)
    source = encoded(**spec, pooled=True)
    assert source.spec.text_length == 8 and source.spec.pooled_channels == 64
    real = source.reference("test", 3)
    ids = source.table.tokenizer.encode(source.tokenizer.decode(real["tokens"]))
    text, mask = encode_tokens(parameters, jnp.asarray(ids), heads=2)
    expected = sentences({"text": np.asarray(text), "text_mask": np.asarray(mask)})
    np.testing.assert_allclose(real["text_pooled"], expected, atol=1e-5)
    assert encoded(**spec).spec.pooled_channels == 0


def counting_table(tokenizer, most=1_000):
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
    small(captions[:2]), small(captions[:1])
    with pytest.warns(UserWarning, match="more than 2 different captions.*data.most"):
        small(captions[2:3])  # the second is now the oldest
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

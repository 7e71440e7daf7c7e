"""Word pieces against cuts made by hand; tests/parity compares them with the `tokenizers` package."""

import numpy as np
import pytest
from small_wordpiece import PIECES, small_json

from flowjax.data.tokenizers import Tokenizer, make_tokenizer
from flowjax.data.wordpiece import Normalizer, read_tokenizer_json, split_text


@pytest.fixture(scope="module")
def model():
    return read_tokenizer_json(small_json(), "tokenizer.json")


CUTS = {
    "unaffable": ["un", "##aff", "##able"],
    "Sunny sun": ["sun", "##ny", "sun"],
    "Cafés!": ["cafe", "##s", "!"],  # accents and case go; the mark stands alone
    "happy,dog": ["happy", ",", "dog"],
    "un-a": ["un", "-", "a"],
    "山水 日日": ["山", "水", "日", "日"],  # each Chinese character is a word
    "happier": ["[UNK]"],  # no piece begins it
    "aaaaaaaaaaaaa": ["[UNK]"],  # thirteen characters, one too many
    "ha\u200bppy\tdog\u00a0\n": ["happy", "dog"],  # an invisible character goes, white space of any kind splits
    "[MASK] dog[SEP]": ["[MASK]", "dog", "[SEP]"],
    "Σ": ["σ"],
    "": [],
}


@pytest.mark.parametrize("text", CUTS)
def test_cuts(model, text):
    assert [PIECES[index] for index in model.pieces(text)] == CUTS[text]


def test_the_parts_of_the_normaliser():
    assert Normalizer(strip_accents=False)("É\x07\tx") == "é x"
    assert Normalizer(lowercase=False)("Éa") == "Ea"
    assert Normalizer(handle_chinese_chars=False)("山水") == "山水"
    assert split_text("it's $5") == ["it", "'", "s", "$", "5"]


def test_rows_are_marked_padded_cut_and_read_back(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(small_json(), encoding="utf-8")
    tokenizer = make_tokenizer(dict(name="wordpiece", file=str(file), length=5))
    assert isinstance(tokenizer, Tokenizer) and tokenizer.vocabulary == len(PIECES)
    ids = tokenizer.encode(["sunny", "", "happy dog, happy dog"])
    pieces = [[PIECES[index] for index in row] for row in ids]
    assert pieces == [
        ["[CLS]", "sun", "##ny", "[SEP]", "[PAD]"],
        ["[CLS]", "[SEP]", "[PAD]", "[PAD]", "[PAD]"],
        ["[CLS]", "happy", "dog", ",", "[SEP]"],
    ]
    assert ids.dtype == np.int32 and tokenizer.decode(ids) == ["sunny", "", "happy dog,"]
    assert make_tokenizer(dict(name="wordpiece", file=str(file)), ["sunny", "a"]).length == 4
    strict = make_tokenizer(dict(name="wordpiece", file=str(file), length=5, strict=True))
    with pytest.raises(ValueError, match="has 5 pieces; at most 3 fit"):
        strict.encode(["happy dog, happy dog"])
    other = small_json(normalizer=dict(type="BertNormalizer", lowercase=False))
    (tmp_path / "other.json").write_text(other, encoding="utf-8")
    cased = make_tokenizer(dict(name="wordpiece", file=str(tmp_path / "other.json"), length=5))
    assert cased.fingerprint() != tokenizer.fingerprint() and cased.encode(["Dog"])[0, 1] == PIECES.index("[UNK]")


@pytest.mark.parametrize(
    "text, message",
    [
        ("not json", "is no JSON file"),
        ("[1]", "its normalizer is None"),
        (small_json(model=dict(type="BPE")), "its model is 'BPE', expected 'WordPiece'"),
        (small_json(pre_tokenizer=dict(type="Metaspace")), "its pre_tokenizer is 'Metaspace'"),
        (small_json(post_processor=None), "its post_processor is None"),
    ],
)
def test_another_kind_of_file_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_tokenizer_json(text, "tokenizer.json")

"""Tokenizers: captions to ids and back, against what the words and bytes say by hand."""

import numpy as np
import pytest

from flowjax.data.tokenizers import (
    TOKENIZERS,
    Bytes,
    Tokenizer,
    Words,
    join_words,
    make_tokenizer,
    meaning,
    split_words,
    text_facts,
)

CAPTIONS = ("A red circle.", "two blue squares", "the word 'HI' (left)")


def test_words_and_marks():
    assert split_words("A dog's ball-room, at 5:30!") == ["a", "dog's", "ball-room", ",", "at", "5", ":", "30", "!"]
    assert split_words("Größe 山", lower_case=False) == ["Größe", "山"]
    assert join_words(["two", "(", "blue", ")", "dogs", ",", "a", "cat", "."]) == "two (blue) dogs, a cat."


def test_words_have_ids_in_alphabetical_order_from_two():
    tokenizer = make_tokenizer(dict(name="words"), ("b a", "c a b"))
    assert tokenizer.words == ("a", "b", "c") and tokenizer.length == 3 and tokenizer.vocabulary == 5
    np.testing.assert_array_equal(
        tokenizer.encode(["c B", "", "a z a a"]),  # z is unknown; the fourth word does not fit
        np.array([[4, 3, 0], [0, 0, 0], [2, 1, 2]], np.int32),
    )
    assert tokenizer.encode(["a"]).dtype == np.int32 and tokenizer.encode([]).shape == (0, 3)
    assert tokenizer.decode(np.array([[4, 3, 0], [0, 0, 0], [2, 1, 2]])) == ["c b", "", "a [unknown] a"]


def test_words_come_back():
    tokenizer = make_tokenizer(dict(name="words"), CAPTIONS)
    assert tokenizer.decode(tokenizer.encode(["two red circle."])) == ["two red circle."]
    cased = make_tokenizer(dict(name="words", lower_case=False), CAPTIONS)
    assert cased.decode(cased.encode(["HI circle"])) == ["HI circle"]
    assert cased.encode(["hi"])[0, 0] == 1


def test_strict_words_name_the_word_and_the_nearest_one():
    tokenizer = make_tokenizer(dict(name="words", strict=True), CAPTIONS)
    with pytest.raises(ValueError, match="Unknown word 'cirle' in the caption 'a cirle'. Did you mean 'circle'"):
        tokenizer.encode(["a red circle", "a cirle"])
    with pytest.raises(ValueError, match="has 9 words and marks; at most 8 fit"):
        tokenizer.encode(["a a a a a a a a a"])


def test_a_saved_list_gives_the_same_tokenizer(tmp_path):
    tokenizer = make_tokenizer(dict(name="words", length=6), CAPTIONS)
    tokenizer.save(str(tmp_path / "words.txt"))
    again = make_tokenizer(dict(name="words", length=6, file=str(tmp_path / "words.txt")))
    assert again == tokenizer and again.fingerprint() == tokenizer.fingerprint()
    with pytest.raises(ValueError, match="cannot be read"):
        make_tokenizer(dict(name="words", file=str(tmp_path / "none.txt")))
    with pytest.raises(ValueError, match="holds 'a' twice"):
        Words(("a", "b", "a"), 3)


def test_bytes_are_utf8_plus_one_and_are_cut_between_characters():
    tokenizer = make_tokenizer(dict(name="bytes", length=4))
    np.testing.assert_array_equal(
        tokenizer.encode(["aé", "", "abc€"]),
        np.array([[98, 196, 170, 0], [0, 0, 0, 0], [98, 99, 100, 0]], np.int32),  # € is 3 bytes: it does not fit
    )
    assert tokenizer.decode(tokenizer.encode(["aé", "", "abc€"])) == ["aé", "", "abc"]
    assert tokenizer.encode(["ÿÿ"]).max() < tokenizer.vocabulary == 257
    assert make_tokenizer(dict(name="bytes"), ("é山",)) == Bytes(5)
    with pytest.raises(ValueError, match="has 6 bytes; at most 4 fit"):
        make_tokenizer(dict(name="bytes", length=4, strict=True)).encode(["山山"])


def test_fingerprints_change_with_whatever_changes_ids():
    make = lambda captions=CAPTIONS, **spec: make_tokenizer(dict(spec), captions).fingerprint()
    different = [
        make(name="words"),
        make(name="words", length=20),
        make(name="words", lower_case=False),
        make((*CAPTIONS, "new"), name="words"),
        make(name="bytes"),
        make(name="bytes", length=90),
    ]
    assert len(set(different)) == len(different)
    assert make(name="words", strict=True) == make(name="words")  # it decides whether there are ids, not which


@pytest.mark.parametrize(
    "spec, message",
    [
        (dict(name="word"), "Unknown tokenizer 'word'.*Did you mean 'words'"),
        (dict(name="words", lenght=3), "no option 'lenght'.*Did you mean 'length'"),
        (dict(name="words"), "has no words"),
        (dict(name="bytes"), "set `length`"),
        (dict(name="bytes", length=-1), "positive"),
        (dict(name="wordpiece"), "needs `file`"),
    ],
)
def test_what_is_missing_is_said(spec, message):
    with pytest.raises(ValueError, match=message):
        make_tokenizer(spec)


def test_what_ids_mean_does_not_depend_on_how_many_there_are():
    long, short = (make_tokenizer(dict(name="words", length=length), ["a red circle"]) for length in (9, 4))
    other = make_tokenizer(dict(name="words", length=4), ["a red square"])
    assert long.fingerprint() != short.fingerprint() and meaning(long) == meaning(short) != meaning(other)
    assert text_facts(short) == dict(text_length=4, vocabulary=5, words=meaning(long)) and text_facts(None) == {}


def test_every_tokenizer_follows_the_protocol():
    assert set(TOKENIZERS) == {"words", "bytes", "wordpiece", "run"}
    assert isinstance(Words(("a",), 1), Tokenizer) and isinstance(Bytes(1), Tokenizer)

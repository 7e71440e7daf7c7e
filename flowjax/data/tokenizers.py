r"""From captions to token ids and back: whole words, bytes, word pieces (flowjax/data/wordpiece.py), or as a finished run did.

A tokenizer turns n captions into int32 ids [n, length], where 0 is padding and nothing else. A row of zeros is the
absent caption that guidance and caption dropout use, and the empty string becomes one (of word pieces: a row that holds
the two marks alone). What decides the ids, and only that, is hashed in `fingerprint`, so that a store of tokens knows
which tokenizer made it.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from flowjax.choices import Spec, build, suggestion
from flowjax.data import wordpiece

PADDING, UNKNOWN = 0, 1
COMMON_LENGTH = 8  # any that all tokenizers allow
UNKNOWN_WORD = "[unknown]"
# Letters and digits of any script, joined by an apostrophe or hyphen; else each character by itself.
WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
GLUED_LEFT, GLUED_RIGHT = ",.;:!?)]}%", "([{"  # which side a mark clings to when words become a caption again


@runtime_checkable
class Tokenizer(Protocol):
    """Captions to ids [n, length] and back.

    Attributes:
      length: ids in a row.
      vocabulary: every id is below it.
    """

    length: int
    vocabulary: int

    def encode(self, texts: Sequence[str]) -> Int[np.ndarray, "n length"]:
        """The ids of each caption, padded with 0; what does not fit is cut off at the end."""
        ...

    def decode(self, ids: Int[np.ndarray, "n length"]) -> list[str]:
        """The captions of rows of ids, up to spaces and what the tokenizer does not keep (letter case, unknown words)."""
        ...

    def fingerprint(self) -> str:
        """A hash of everything that decides the ids."""
        ...


def fingerprint(**facts: object) -> str:
    """Sixteen hexadecimal digits that change when any of the facts (plain values) does."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def padded(rows: Sequence[Sequence[int]], length: int) -> Int[np.ndarray, "n length"]:
    """Rows of ids as one array: each cut to `length` or filled up with 0."""
    ids = np.zeros((len(rows), length), np.int32)
    for row, values in zip(ids, rows):
        row[: len(values)] = values[:length]
    return ids


def split_words(text: str, lower_case: bool = True) -> list[str]:
    """The words and marks of a caption: "A dog's ball." -> ["a", "dog's", "ball", "."]."""
    return WORD.findall(text.lower() if lower_case else text)


def join_words(words: Sequence[str]) -> str:
    """Words and marks as a caption, with a space wherever one is usual."""
    text = ""
    for word in words:
        glue = not text or word in GLUED_LEFT or text[-1] in GLUED_RIGHT
        text += word if glue else f" {word}"
    return text


@dataclasses.dataclass(frozen=True)
class Words:
    """One id for each word of a list, from 2 on; 1 stands for every other word.

    Attributes:
      words: the list; the id of a word is its place plus 2.
      length: ids in a row.
      lower_case: whether captions are read in lower case.
      strict: refuse unknown words and captions that are too long, instead of writing 1 and cutting off.
    """

    words: tuple[str, ...]
    length: int
    lower_case: bool = True
    strict: bool = False

    def __post_init__(self):
        if len(set(self.words)) != len(self.words):
            twice = next(word for word in self.words if self.words.count(word) > 1)
            raise ValueError(f"The word list of the tokenizer 'words' holds '{twice}' twice. Give each word one place.")

    @property
    def vocabulary(self) -> int:
        """The words, padding and the unknown word."""
        return len(self.words) + 2

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {word: index + 2 for index, word in enumerate(self.words)}

    def encode(self, texts: Sequence[str]) -> Int[np.ndarray, "n length"]:
        """Ids of words; with `strict`, an unknown word or a caption that does not fit is a ValueError."""
        rows = [split_words(text, self.lower_case) for text in texts]
        if self.strict:
            for text, row in zip(texts, rows):
                self._check(text, row)
        return padded([[self._ids.get(word, UNKNOWN) for word in row] for row in rows], self.length)

    def _check(self, text: str, row: list[str]) -> None:
        for word in row:
            if word not in self._ids:
                raise ValueError(
                    f"Unknown word '{word}' in the caption '{text}'.{suggestion(word, self.words)} "
                    f"The vocabulary has {len(self.words)} words."
                )
        if len(row) > self.length:
            raise ValueError(f"The caption '{text}' has {len(row)} words and marks; at most {self.length} fit.")

    def decode(self, ids: Int[np.ndarray, "n length"]) -> list[str]:
        """Words joined by spaces where they are usual; an unknown word comes back as [unknown]."""
        names = ("", UNKNOWN_WORD, *self.words)
        return [join_words([names[index] for index in row if index != PADDING]) for row in np.asarray(ids).tolist()]

    def fingerprint(self) -> str:
        """Of the words, the length and the case."""
        return fingerprint(name="words", words=self.words, length=self.length, lower_case=self.lower_case)

    def save(self, file: str) -> None:
        """Writes the word list, a word a line, for `words(file=...)`."""
        pathlib.Path(file).write_text("".join(f"{word}\n" for word in self.words), encoding="utf-8")


def words(
    captions: Sequence[str] = (), length: int = 0, file: str = "", lower_case: bool = True, strict: bool = False
) -> Words:
    """Word level: every word of the captions, in alphabetical order, or a saved list.

    Args:
      captions: all captions there are (a list of all words will do); with `file`, they are read for the length alone.
      length: ids in a row; 0 for the longest of the captions.
      file: a saved list, a word a line.
      lower_case: read captions in lower case.
      strict: refuse unknown words and captions that are too long, naming the word most like it.
    """
    split = [split_words(caption, lower_case) for caption in captions]
    if file:
        known = tuple(line.strip() for line in _read(file).splitlines() if line.strip())
    else:
        known = tuple(sorted({word for row in split for word in row}))
    if not known:
        raise ValueError("The tokenizer 'words' has no words: give it captions, or a `file` with a word a line.")
    return Words(known, _length("words", length, (len(row) for row in split)), lower_case, strict)


@dataclasses.dataclass(frozen=True)
class Bytes:
    """UTF-8: the id of a byte is its value plus 1. No word is unknown, and captions are long.

    Attributes:
      length: ids in a row.
      strict: refuse captions that are too long instead of cutting them off, between two characters.
    """

    length: int
    strict: bool = False
    vocabulary: int = 257

    def encode(self, texts: Sequence[str]) -> Int[np.ndarray, "n length"]:
        """Bytes plus 1."""
        rows = []
        for text in texts:
            row = text.encode("utf-8")
            if len(row) > self.length:
                if self.strict:
                    raise ValueError(f"The caption '{text}' has {len(row)} bytes; at most {self.length} fit.")
                row = row[: self.length].decode("utf-8", errors="ignore").encode("utf-8")
            rows.append([byte + 1 for byte in row])
        return padded(rows, self.length)

    def decode(self, ids: Int[np.ndarray, "n length"]) -> list[str]:
        """The captions as they were; bytes that make no character become U+FFFD."""
        rows = np.asarray(ids).tolist()
        return [bytes(index - 1 for index in row if index).decode("utf-8", errors="replace") for row in rows]

    def fingerprint(self) -> str:
        """Of the length."""
        return fingerprint(name="bytes", length=self.length)


def utf8(captions: Sequence[str] = (), length: int = 0, strict: bool = False) -> Bytes:
    """Bytes of UTF-8.

    Args:
      captions: all captions there are, for the length.
      length: ids in a row; 0 for the longest of the captions.
      strict: refuse captions that are too long.
    """
    return Bytes(_length("bytes", length, (len(caption.encode("utf-8")) for caption in captions)), strict)


def _read(file: str) -> str:
    try:
        return pathlib.Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The tokenizer file '{file}' cannot be read: {error}. Give a UTF-8 text file.") from error


def _length(name: str, length: int, lengths) -> int:
    if length < 0:
        raise ValueError(f"The tokenizer '{name}' has length={length}; give a positive number, or 0 for the longest.")
    length = length or max(lengths, default=0)
    if not length:
        raise ValueError(f"The tokenizer '{name}' has no captions to take its length from: set `length`.")
    return length


def word_pieces(captions: Sequence[str] = (), file: str = "", length: int = 0, strict: bool = False) -> Tokenizer:
    """Word pieces of BERT, from its `tokenizer.json`.

    Args:
      captions: all captions there are, for the length.
      file: the tokenizer.json; needed.
      length: ids in a row, the marks [CLS] and [SEP] included; 0 for the longest of the captions.
      strict: refuse captions that are too long.
    """
    if not file:
        raise ValueError("The tokenizer 'wordpiece' needs `file`, the path of a tokenizer.json.")
    pieces = wordpiece.read_tokenizer_json(_read(file), file)
    length = _length("wordpiece", length, (len(pieces.pieces(caption)) + 2 for caption in captions))
    return WordPieces(pieces, length, strict)


@dataclasses.dataclass(frozen=True)
class WordPieces:
    """BERT's [CLS] pieces [SEP], padded with 0.

    Attributes:
      model: the normaliser, the vocabulary and the marks.
      length: ids in a row; longer captions lose pieces at the end and keep [SEP].
      strict: refuse them instead.
    """

    model: wordpiece.WordPieceModel
    length: int
    strict: bool = False

    def __post_init__(self):
        if self.length < 3:
            raise ValueError(f"The tokenizer 'wordpiece' has length={self.length}; [CLS], a piece and [SEP] need 3.")

    @property
    def vocabulary(self) -> int:
        """One more than the largest id."""
        return self.model.vocabulary

    def encode(self, texts: Sequence[str]) -> Int[np.ndarray, "n length"]:
        """[CLS] pieces [SEP]."""
        rows = []
        for text in texts:
            pieces = self.model.pieces(text)
            if self.strict and len(pieces) > self.length - 2:
                raise ValueError(f"The caption '{text}' has {len(pieces)} pieces; at most {self.length - 2} fit.")
            rows.append([self.model.first, *pieces[: self.length - 2], self.model.last])
        return padded(rows, self.length)

    def decode(self, ids: Int[np.ndarray, "n length"]) -> list[str]:
        """Pieces glued to words, without the marks, in the case and accents that the normaliser left."""
        return [join_words(self.model.words(row)) for row in np.asarray(ids).tolist()]

    def fingerprint(self) -> str:
        """Of the tokenizer.json and the length."""
        return fingerprint(name="wordpiece", model=self.model.digest, length=self.length)


def strictly(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer that refuses what it does not know: for prompts, where a person is there to be told."""
    has_choice = any(field.name == "strict" for field in dataclasses.fields(tokenizer))
    return dataclasses.replace(tokenizer, strict=True) if has_choice else tokenizer


def meaning(tokenizer: Tokenizer) -> str:
    """A hash of what the ids mean, whatever the length of a row."""
    fields = {field.name for field in dataclasses.fields(tokenizer)} if dataclasses.is_dataclass(tokenizer) else {}
    return (dataclasses.replace(tokenizer, length=COMMON_LENGTH) if "length" in fields else tokenizer).fingerprint()


def text_facts(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """What a DataSpec says of captions as ids: length, vocabulary, words."""
    if tokenizer is None:
        return {}
    return dict(text_length=tokenizer.length, vocabulary=tokenizer.vocabulary, words=meaning(tokenizer))


def of_run(captions: Sequence[str] = (), restore_from: str = "", length: int = 0, strict: bool = False) -> Tokenizer:
    """The tokenizer that a finished run reads captions with, for other pictures: words keep the ids that its network knows.

    Args:
      captions: not read.
      restore_from: the run's folder; needed.
      length: ids in a row, which the run has settled; 0 for as many.
      strict: refuse what it does not know, also where the run itself does not.
    """
    # Other tokenizers need neither a checkpoint nor all the sources, of which the run's is one.
    from flowjax.data import SOURCES
    from flowjax.models import stored

    config = stored.config_of_run(restore_from, "The tokenizer 'run'")
    source = build("data source", config["data"], SOURCES, seed=config["seed"], total_steps=config["steps"])
    known = getattr(source, "tokenizer", None)
    if known is None:
        raise ValueError(f"The tokenizer 'run' is that of '{restore_from}', whose data have no captions. Leave it out.")
    if length not in (0, known.length):
        raise ValueError(
            f"The tokenizer 'run' has captions of {known.length} ids, as '{restore_from}' reads them; {length} are asked for. "
            "Leave the length out."
        )
    return strictly(known) if strict else known


TOKENIZERS: dict[str, Callable[..., Tokenizer]] = {
    "words": words,
    "bytes": utf8,
    "wordpiece": word_pieces,
    "run": of_run,
}


def make_tokenizer(spec: Spec, captions: Sequence[str] = ()) -> Tokenizer:
    """Builds a tokenizer from its spec, for example dict(name='words', strict=True), for a list of captions."""
    return build("tokenizer", spec, TOKENIZERS, captions=captions)

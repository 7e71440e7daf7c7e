r"""BERT's word pieces (Devlin et al. 2018), read from a `tokenizer.json`.

    text -> special tokens, taken as they are
         -> normaliser: control characters out, white space to a space, spaces about Chinese characters, accents off
            (canonical decomposition without its non-spacing marks), lower case
         -> words: split at white space and at every punctuation mark, which stands alone
         -> pieces: of each word the longest piece that is in the vocabulary, again and again; every piece but the
            first is looked up behind '##'. A word that cannot be cut up so, or a very long one, is [UNK].

Ids are those of the `tokenizers` package; tests/parity compares them. Marks and accents that came with a late version of
Unicode may differ, for its tables and Python's are not of one version.
"""

import dataclasses
import functools
import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

# CJK ideographs: each is a word by itself. Not Hangul, Hiragana and Katakana, which are written with spaces or in words.
CHINESE = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
ASCII_MARKS = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def is_mark(character: str) -> bool:
    """Punctuation: Unicode's, and everything of ASCII that is neither letter, digit, space nor control."""
    return character in ASCII_MARKS or unicodedata.category(character).startswith("P")


def is_chinese(character: str) -> bool:
    """A CJK ideograph."""
    point = ord(character)
    return any(low <= point <= high for low, high in CHINESE)


def clean(text: str) -> str:
    """Without control characters, U+0000 and U+FFFD; every kind of white space becomes a space."""
    kept = []
    for character in text:
        if character in "\t\n\r":
            kept.append(" ")
        elif character in "\0�" or unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs"):
            continue
        else:
            kept.append(" " if character.isspace() else character)
    return "".join(kept)


def strip_accents(text: str) -> str:
    """The canonical decomposition without non-spacing marks: 'é' -> 'e'."""
    return "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")


def split_text(text: str) -> list[str]:
    """Words between white space and marks, and each mark."""
    words, current = [], ""
    for character in text:
        if character.isspace() or is_mark(character):
            words += [current] if current else []
            words += [character] if not character.isspace() else []
            current = ""
        else:
            current += character
    return words + ([current] if current else [])


@dataclasses.dataclass(frozen=True)
class Normalizer:
    """What happens to a text before it is split."""

    clean_text: bool = True
    handle_chinese_chars: bool = True
    strip_accents: bool = True
    lowercase: bool = True

    def __call__(self, text: str) -> str:
        if self.clean_text:
            text = clean(text)
        if self.handle_chinese_chars:
            text = "".join(f" {c} " if is_chinese(c) else c for c in text)
        if self.strip_accents:
            text = strip_accents(text)
        # character by character: a final sigma has a rule of its own in str.lower(), and none here
        return "".join(c.lower() for c in text) if self.lowercase else text


@dataclasses.dataclass(frozen=True, eq=False)
class WordPieceModel:
    """Texts to ids of pieces and back.

    Attributes:
      ids: piece -> id.
      special: the tokens that are taken from a text as they are, with their ids.
      normalizer: what happens to the text between them.
      unknown, first, last: the ids of [UNK], [CLS] and [SEP].
      prefix: what stands before every piece of a word but its first.
      longest: a word of more characters is unknown.
      digest: the hash of the file.
    """

    ids: Mapping[str, int]
    special: Mapping[str, int]
    normalizer: Normalizer
    unknown: int
    first: int
    last: int
    prefix: str
    longest: int
    digest: str

    @property
    def vocabulary(self) -> int:
        """One more than the largest id."""
        return 1 + max(*self.ids.values(), *self.special.values())

    @functools.cached_property
    def _names(self) -> dict[int, str]:
        return {index: piece for piece, index in self.ids.items()}

    @functools.cached_property
    def _special(self) -> re.Pattern:
        names = sorted(self.special, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, names)) + ")")

    def pieces(self, text: str) -> list[int]:
        """The ids of a text, without [CLS] and [SEP] around them."""
        ids = []
        for part in self._special.split(text):
            if part in self.special:
                ids.append(self.special[part])
            else:
                for word in split_text(self.normalizer(part)):
                    ids += self._word(word)
        return ids

    def _word(self, word: str) -> list[int]:
        if len(word) > self.longest:
            return [self.unknown]
        ids, start = [], 0
        while start < len(word):
            for stop in range(len(word), start, -1):
                index = self.ids.get((self.prefix if start else "") + word[start:stop])
                if index is not None:
                    break
            else:
                return [self.unknown]
            ids.append(index)
            start = stop
        return ids

    def words(self, ids: Sequence[int]) -> list[str]:
        """Pieces glued to words; special tokens other than [UNK] are left out."""
        words, silent = [], set(self.special.values()) - {self.unknown}
        for index in ids:
            if index in silent:
                continue
            piece = self._names[index]
            if piece.startswith(self.prefix) and words:
                words[-1] += piece[len(self.prefix) :]
            else:
                words.append(piece)
        return words


def read_tokenizer_json(text: str, file: str) -> WordPieceModel:
    """A WordPieceModel from the text of a tokenizer.json; anything it could not follow to the letter is refused.

    Args:
      text: the JSON.
      file: where it is from, for the messages.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"'{file}' is no JSON file: {error}. Give the tokenizer.json of a BERT-type model.") from error

    def refuse(what: str, found: Any, expected: str) -> ValueError:
        return ValueError(
            f"'{file}' is a tokenizer of another type: its {what} is {found!r}, expected {expected}. Give the "
            "tokenizer.json of a BERT-type model."
        )

    part = lambda name: (content.get(name) if isinstance(content, dict) else None) or {}
    for name, kind in dict(normalizer="BertNormalizer", pre_tokenizer="BertPreTokenizer", model="WordPiece").items():
        if part(name).get("type") != kind:
            raise refuse(name, part(name).get("type"), f"'{kind}'")
    model, normalizer = part("model"), part("normalizer")
    ids = model["vocab"]
    special = {}
    for token in content.get("added_tokens", ()):
        if any(token.get(flag) for flag in ("single_word", "lstrip", "rstrip", "normalized")):
            raise refuse(f"added token '{token['content']}'", token, "one that is taken from the text as it is")
        special[token["content"]] = token["id"]
    processor = part("post_processor")
    if processor.get("type") == "TemplateProcessing":
        marks = [item.get("SpecialToken", {}).get("id") for item in processor["single"]]
        if len(marks) != 3 or None in (marks[0], marks[2]) or marks[1] is not None:
            raise refuse("template", processor["single"], "one mark, the text, one mark")
        first, last = (processor["special_tokens"][mark]["ids"][0] for mark in (marks[0], marks[2]))
    elif processor.get("type") == "BertProcessing":
        first, last = processor["cls"][1], processor["sep"][1]
    else:
        raise refuse("post_processor", processor.get("type"), "'TemplateProcessing' or 'BertProcessing'")
    if special.get("[PAD]", ids.get("[PAD]")) != 0:
        raise refuse("id of [PAD]", special.get("[PAD]", ids.get("[PAD]")), "0, which means padding everywhere here")
    lowercase, accents = normalizer.get("lowercase", True), normalizer.get("strip_accents")
    return WordPieceModel(
        ids=ids,
        special=special,
        normalizer=Normalizer(
            normalizer.get("clean_text", True),
            normalizer.get("handle_chinese_chars", True),
            lowercase if accents is None else accents,
            lowercase,
        ),
        unknown=ids[model["unk_token"]],
        first=first,
        last=last,
        prefix=model["continuing_subword_prefix"],
        longest=model["max_input_chars_per_word"],
        digest=hashlib.sha256(text.encode()).hexdigest(),
    )

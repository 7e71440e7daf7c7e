"""Word pieces have the ids of the `tokenizers` package: on a small vocabulary, and on MiniLM's where it is at hand.

The second needs `python -m flowjax.data.prepare minilm`.
"""

import unicodedata

import numpy as np
import pytest
from small_wordpiece import PIECES, small_json

from flowjax.data.tokenizers import make_tokenizer
from flowjax.models.weights import MissingWeights, find_weights

tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.parity

CAPTIONS = (
    "a small red circle to the left of two large, blue squares.",
    "the word 'HELLO' above a café — naïve résumé",
    "woman: medium-light skin tone, curly hair",
    "日本語のテキスト and 中文字符, 한국어",
    "Ünïcödé ﬁ İstanbul ΑΣ ΣΑΣ straße ǅ",
    "tabs\tand\nnewlines\r\u00a0\u2003\u200d\ufeff!\x00\x1f\ufffd",
    "emoji 🎉👩‍🚀 $5 100% a@b.c x=y^z `~|<>",
    "[CLS] [MASK] nested [SEP][PAD] [unk] [UNK]",
    "a" * 100 + " " + "b" * 101,
    "",
    "   ",
)


def random_texts(count: int, alphabet: str) -> list[str]:
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(list(alphabet), rng.integers(1, 40))) for _ in range(count)]


def unequal(file: str, texts, length: int) -> list[str]:
    """The texts whose ids differ from the package's."""
    reference = tokenizers.Tokenizer.from_file(file)
    reference.enable_truncation(length)
    reference.enable_padding(length=length)
    ours = make_tokenizer(dict(name="wordpiece", file=file, length=length))
    expected = np.array([encoding.ids for encoding in reference.encode_batch(list(texts))])
    wrong = np.flatnonzero((ours.encode(texts) != expected).any(axis=1))
    return [texts[index] for index in wrong]


def test_small_vocabulary(tmp_path, within):
    file = tmp_path / "tokenizer.json"
    alphabet = "".join(piece.removeprefix("##") for piece in PIECES[5:]) + "  ÉéÑ\u0301\u200b\tΣ!,-'"
    texts = [*CAPTIONS, *random_texts(500, alphabet), "".join(PIECES[:5]), "[MASK]dog[ SEP]"]
    for accents in (None, False, True):
        for lowercase in (True, False):
            normalizer = dict(
                type="BertNormalizer",
                clean_text=True,
                handle_chinese_chars=True,
                strip_accents=accents,
                lowercase=lowercase,
            )
            file.write_text(small_json(normalizer=normalizer), encoding="utf-8")
            wrong = len(unequal(str(file), texts, 24)) + len(unequal(str(file), texts, 5))
            assert within(f"word pieces, {len(texts):,} texts", "tokenizers", wrong, 0, "texts with other ids")


def test_minilm_vocabulary(within):
    try:
        file = str(find_weights("minilm").parent / "tokenizer.json")
    except MissingWeights as error:
        pytest.skip(str(error))
    # every letter, mark, symbol and space below U+3100, alone and in words; late Unicode (above 6.0) is left aside
    points = [chr(p) for p in range(0x3100) if unicodedata.category(chr(p)) not in ("Cs", "Co")]
    early = [c for c in points if unicodedata.ucd_3_2_0.category(c) == unicodedata.category(c)]
    texts = [*CAPTIONS, *(f"a{c}b {c} {c}s" for c in early), *random_texts(500, "".join(early[:800]))]
    assert len(early) > 5000
    wrong = unequal(file, texts, 32)
    assert within(f"word pieces of MiniLM, {len(texts):,} texts", "tokenizers", len(wrong), 0, "texts with other ids")

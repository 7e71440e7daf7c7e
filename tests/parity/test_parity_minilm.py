"""MiniLM's vectors equal those of the reference implementation: with random weights, and with the published ones.

The second needs `python -m flowjax.data.prepare minilm`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import apart

from flowjax.data.tokenizers import make_tokenizer
from flowjax.models.text.minilm import encode_tokens, from_published, load_minilm, sentence_vectors
from flowjax.models.weights import MissingWeights, find_weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

# The first four and their cosines are the published example of the model.
CAPTIONS = (
    "That is a happy person",
    "That is a very happy person",
    "That is a happy dog",
    "Today is a sunny day",
    "woman: medium-light skin tone",
    "é山!",
    "",
)


def reference(model, tokens):
    with torch.no_grad():
        mask = torch.tensor(tokens != 0)
        hidden = model(torch.tensor(tokens), attention_mask=mask.long()).last_hidden_state
        return (hidden * mask[..., None]).numpy()


def test_random_weights(within):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=36,
        max_position_embeddings=16, hidden_act="gelu",
    )  # fmt: skip
    model = transformers.BertModel(config).eval()
    for parameter in model.parameters():  # norms and biases too, and large enough to matter
        torch.nn.init.normal_(parameter, 0.3, 0.4)
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 50, (6, 12)) * (np.arange(12) < rng.integers(2, 13, (6, 1)))
    tree = from_published({name: value.detach().numpy() for name, value in model.named_parameters()})
    ours, mask = encode_tokens(tree, jnp.asarray(tokens, jnp.int32), heads=4)
    np.testing.assert_array_equal(mask, tokens != 0)
    assert within("MiniLM, random weights", "transformers", apart(ours, reference(model, tokens)), 1e-4)


def test_published_weights_and_known_cosines(within):
    try:
        folder = str(find_weights("minilm").parent)
    except MissingWeights as error:
        pytest.skip(str(error))
    tokenizer = make_tokenizer(dict(name="wordpiece", file=f"{folder}/tokenizer.json", length=16))
    tokens, tree = tokenizer.encode(CAPTIONS), load_minilm(folder)
    text, mask = jax.jit(encode_tokens)(tree, jnp.asarray(tokens))
    model = transformers.BertModel.from_pretrained(folder).eval()
    expected = reference(model, tokens.astype(np.int64))
    assert within("MiniLM, published weights", "transformers", apart(text, expected), 1e-4)
    sentences = np.asarray(sentence_vectors(text, mask))
    np.testing.assert_allclose(sentences[0] @ sentences[1:4].T, [0.943, 0.695, 0.257], atol=5e-4)

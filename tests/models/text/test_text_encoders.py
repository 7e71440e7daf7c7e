"""Text encoders and networks that train one along: padding, absent captions, dropping, preparing, what depends on what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.contract import DataSpec
from flowjax.models import NETWORKS
from flowjax.models.network import count_parameters
from flowjax.models.preconditioning import edm
from flowjax.models.text import TEXT_ENCODERS, NoText, embedding, transformer, with_text
from flowjax.paths.path import make_path

DATA = DataSpec((8, 8, 3), num_classes=4, text_length=5, vocabulary=11)
TOKENS = jnp.asarray([[2, 3, 4, 0, 0], [4, 3, 2, 0, 0], [10, 9, 8, 7, 6], [0, 0, 0, 0, 0]], jnp.int32)
SMALL = {"embedding": dict(width=12), "transformer": dict(width=12, depth=2, heads=3)}
ENCODERS = ["embedding", "transformer"]


def make(name, **options):
    encoder = TEXT_ENCODERS[name](DATA, **{**SMALL[name], **options})
    return encoder, encoder.init(jax.random.key(0))


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_is_masked_zero_and_without_influence(name):
    encoder, tree = make(name)
    text, mask = encoder.apply(tree, TOKENS)
    assert text.shape == (4, 5, encoder.channels) and text.dtype == jnp.float32
    np.testing.assert_array_equal(mask, np.asarray(TOKENS) != 0)
    assert not np.asarray(text)[~np.asarray(mask)].any() and np.isfinite(text).all()
    # a caption alone, cut to its own length, has the same vectors: padding was not attended to
    positions = {**tree, "positions": tree["positions"][:3]}
    short, _ = encoder.apply(positions, TOKENS[:2, :3])
    np.testing.assert_allclose(short, text[:2, :3], rtol=1e-5, atol=1e-5)


def test_the_transformer_reads_both_neighbours_and_the_table_reads_none():
    def influence(name):
        encoder, tree = make(name)
        other = TOKENS.at[:, 1].set(5)
        moved = encoder.apply(tree, other)[0] - encoder.apply(tree, TOKENS)[0]
        return np.abs(np.asarray(moved)[2]).max(axis=-1) > 1e-4

    np.testing.assert_array_equal(influence("embedding"), [False, True, False, False, False])
    np.testing.assert_array_equal(influence("transformer"), [True] * 5)


def test_parameters_are_as_counted_by_hand():
    width, depth, ratio = 12, 2, 4
    table = (DATA.vocabulary + DATA.text_length) * width + 2 * width
    block = 4 * (width * width + width) + 2 * ratio * width * width + ratio * width + width + 4 * width
    assert count_parameters(make("embedding")[1])[""] == table
    assert count_parameters(make("transformer")[1])[""] == table + depth * block


def test_bfloat16_stays_near_float32():
    encoder, tree = make("transformer")
    low, _ = make("transformer", dtype="bfloat16")
    wide, narrow = encoder.apply(tree, TOKENS)[0], low.apply(tree, TOKENS)[0]
    assert narrow.dtype == jnp.float32
    assert 0 < np.abs(wide - narrow).max() < 0.1


def small_network(data):
    return NETWORKS["dit"](data, width=16, depth=2, heads=2, patch=4)


@pytest.fixture(scope="module")
def trained():
    """A network whose output layers are not zero, so that what it reads shows."""
    network = with_text(small_network, transformer(DATA, width=12, depth=1, heads=2), DATA)
    tree = network.init(jax.random.key(1))
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noisy = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)]
    return network, jax.tree.unflatten(structure, noisy)


X = jax.random.normal(jax.random.key(3), (4, 8, 8, 3))
T = jnp.linspace(0.1, 0.9, 4)
COND = {"tokens": TOKENS, "label": jnp.arange(4), "scene": jnp.arange(4.0)}


def test_one_tree_one_network(trained):
    network, tree = trained
    assert set(tree) == {"text", "network"} and set(network.conditions) == {"tokens", "label"}
    assert network.conditions["tokens"].shape == (5,) and network.conditions["tokens"].null == 0
    gradient = jax.grad(lambda tree: jnp.sum(network.apply(tree, X, T, COND) ** 2))(tree)
    words = np.asarray(gradient["text"]["words"]["embedding"])
    used = np.unique(TOKENS)[1:]
    assert (np.abs(words[used]).max(axis=-1) > 0).all() and not words[np.setdiff1d(np.arange(11), used)].any()


def test_prepared_conditions_give_the_same_and_are_not_encoded_again(trained):
    network, tree = trained
    plain = network.apply(tree, X, T, COND)
    prepared = network.prepare(tree, COND)
    assert set(prepared) == {*COND, "text", "text_mask"}
    assert network.prepare(tree, prepared) is prepared
    broken = {**tree, "text": jax.tree.map(lambda leaf: leaf * jnp.nan, tree["text"])}
    np.testing.assert_allclose(network.apply(broken, X, T, prepared), plain, rtol=1e-5, atol=1e-6)


def test_a_dropped_caption_is_an_absent_one_prepared_or_not(trained):
    network, tree = trained
    dropped = jnp.asarray([True, False, True, False])
    absent = {**COND, "tokens": COND["tokens"].at[jnp.array([0, 2])].set(0), "label": jnp.asarray([4, 1, 4, 3])}
    expected = network.apply(tree, X, T, absent)
    np.testing.assert_allclose(network.apply(tree, X, T, network.drop(COND, dropped)), expected, rtol=1e-5, atol=1e-6)
    late = network.drop(network.prepare(tree, COND), dropped)
    np.testing.assert_allclose(network.apply(tree, X, T, late), expected, rtol=1e-5, atol=1e-6)
    plain = network.apply(tree, X, T, COND)
    moved = np.abs(np.asarray(plain - expected)).max(axis=(1, 2, 3)) > 1e-3
    np.testing.assert_array_equal(moved, dropped)


def test_hidden_tokens_and_preconditioning_pass_through(trained):
    network, tree = trained
    output, tokens = network.hidden(tree, X, T, COND, layer=1)
    np.testing.assert_allclose(output, network.apply(tree, X, T, COND), rtol=1e-5, atol=1e-6)
    assert tokens.shape == (4, 2, 2, 16)
    wrapped = edm(network, make_path("edm"), "data", DATA)
    prepared = wrapped.prepare(tree, COND)
    np.testing.assert_allclose(
        wrapped.apply(tree, X, T, prepared), wrapped.apply(tree, X, T, COND), rtol=1e-5, atol=1e-6
    )
    assert "text" in prepared


def test_what_cannot_work_is_refused(trained):
    network, tree = trained
    encoder = embedding(DATA, width=12)
    with pytest.raises(ValueError, match="was given label. Add them to the batch"):
        network.apply(tree, X, T, {"label": COND["label"]})
    with pytest.raises(NoText, match="does not read text"):
        with_text(lambda data: NETWORKS["dit"](data, width=16, depth=1, heads=2, text_conditional=False), encoder, DATA)
    with pytest.raises(ValueError, match="vocabulary is 0"):
        with_text(small_network, encoder, DataSpec((8, 8, 3), text_length=5, text_channels=3))
    with pytest.raises(ValueError, match="must be a multiple of its number of heads"):
        transformer(DATA, width=10, heads=3)
    with pytest.raises(ValueError, match="use 1 or more, or the encoder 'embedding'"):
        transformer(DATA, depth=0)

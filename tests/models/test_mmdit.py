"""MM-DiT: the published sizes, and what hidden text may change: nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.contract import DataSpec
from flowjax.models import NETWORKS
from flowjax.models.embeddings import coordinate_features
from flowjax.models.mmdit import window_features
from flowjax.models.network import count_parameters

LATENTS = DataSpec((64, 64, 16), text_length=154, text_channels=4096, pooled_channels=2048)
SMALL = DataSpec((8, 8, 1), text_length=4, text_channels=5)
compile_quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def shapes(network):
    return jax.eval_shape(network.init, jax.random.key(0))


def random_tree(network, seed=0):
    draw = np.random.default_rng(seed)
    scale = lambda leaf: 1 / np.sqrt(leaf.shape[0] if len(leaf.shape) > 1 else 4.0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale(leaf) * draw.normal(size=leaf.shape), jnp.float32), shapes(network)
    )


def small(**options):
    network = NETWORKS["mmdit"](SMALL, depth=2, width=16, heads=2, **options)
    return network, random_tree(network)


def inputs(length=4, seed=1):
    draw = np.random.default_rng(seed)
    x, text = (jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in ((2, 8, 8, 1), (2, length, 5)))
    mask = jnp.arange(length)[None] < jnp.array([[2], [3]])
    return x, jnp.array([0.2, 0.7]), {"text": text, "text_mask": mask}


@pytest.mark.parametrize(
    "depth,billions", [(12, None), (15, 0.50), (18, 0.86), (21, 1.36), (24, 2.03), (30, 3.96), (38, 8.06)]
)
def test_published_parameter_counts(depth, billions):
    w, text, pooled, values = 64 * depth, 4096, 2048, 2 * 2 * 16
    if f"mmdit_d{depth}" in NETWORKS:
        network = NETWORKS[f"mmdit_d{depth}"](LATENTS, qk_norm="none")
    else:
        network = NETWORKS["mmdit"](LATENTS, depth=depth, qk_norm="none")
    count = count_parameters(shapes(network))[""]
    stream = 6 * (w * w + w) + 3 * (w * w + w) + (w * w + w) + (4 * w * w + 4 * w) + (4 * w * w + w)
    last = stream + 2 * (w * w + w) + 2 * (w * w + w)
    embeddings = (256 * w + w) + (w * w + w) + (pooled * w + w) + (w * w + w) + (text * w + w) + (values * w + w)
    final = 2 * (w * w + w) + (w + 1) * values
    assert count == 2 * (depth - 1) * stream + last + embeddings + final
    published = count + w * w + w  # the queries of the text in the last block, which nobody reads
    if billions is not None:
        assert published / 1e9 == pytest.approx(billions, abs=0.006)
    if depth == 24:
        assert published == 2_028_328_000  # SD3-M, without its table of positions: see tests/parity


def test_padding_changes_nothing():
    network, tree = small()
    run = compile_quickly(network.apply)
    x, t, cond = inputs()
    base = run(tree, x, t, cond)
    noisy = jnp.where(cond["text_mask"][..., None], cond["text"], 1e3)
    np.testing.assert_array_equal(run(tree, x, t, cond | {"text": noisy}), base)
    longer = {
        "text": jnp.pad(cond["text"], ((0, 0), (0, 3), (0, 0)), constant_values=9.0),
        "text_mask": jnp.pad(cond["text_mask"], ((0, 0), (0, 3))),
    }
    np.testing.assert_allclose(run(tree, x, t, longer), base, atol=1e-5)
    shorter = {name: array[:, :3] for name, array in cond.items()}
    np.testing.assert_allclose(run(tree, x, t, shorter), base, atol=1e-5)
    changed = run(tree, x, t, cond | {"text": cond["text"].at[0, 1].add(1.0)})
    assert float(jnp.abs(changed - base)[0].max()) > 1e-3
    np.testing.assert_allclose(changed[1], base[1], atol=1e-6)


def test_a_hidden_text_is_one_finite_null_whatever_it_says():
    network, tree = small()
    run = compile_quickly(network.apply)
    x, t, cond = inputs()
    null = network.drop(cond, jnp.array([True, False]))
    first, second = run(tree, x, t, null), run(tree, x, t, null | {"text": cond["text"] * 5})
    assert jnp.isfinite(first).all() and float(jnp.abs(first - run(tree, x, t, cond))[0].max()) > 1e-3
    np.testing.assert_array_equal(first[0], second[0])
    # The null is learned: it moves with the biases of the layers of the pooled vector.
    gradient = compile_quickly(jax.grad(lambda tree: jnp.sum(network.apply(tree, x, t, null)[0] ** 2)))(tree)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert float(jnp.abs(gradient["pooled_in"]["bias"]).max()) > 1e-4


def test_text_reaches_the_image_through_attention_and_through_the_pooled_vector():
    data = DataSpec((8, 8, 1), text_length=4, text_channels=5, pooled_channels=3)
    network = NETWORKS["mmdit"](data, depth=2, width=16, heads=2)
    tree, run = random_tree(network), compile_quickly(network.apply)
    x, t, cond = inputs()
    cond["text_pooled"] = jnp.ones((2, 3))
    base = run(tree, x, t, cond)
    for name in ("text", "text_pooled"):
        assert float(jnp.abs(run(tree, x, t, cond | {name: cond[name] + 1.0}) - base).max()) > 1e-3
    dropped = network.drop(cond, jnp.array([True, True]))
    np.testing.assert_array_equal(dropped["text_pooled"], 0)
    without, _ = small()
    assert set(network.conditions) - set(without.conditions) == {"text_pooled"}
    # Without a pooled vector the mean of the visible tokens takes its place: order does not matter to it, so a
    # network whose text stream is silenced cannot tell two orders of the same words apart.
    plain, tree = small()
    silent = tree | {"text_embedding": jax.tree.map(jnp.zeros_like, tree["text_embedding"])}
    words = {name: cond[name] for name in ("text", "text_mask")}
    swapped = words | {"text": words["text"][:, jnp.array([1, 0, 2, 3])]}
    run = compile_quickly(plain.apply)
    np.testing.assert_allclose(run(silent, x, t, swapped), run(silent, x, t, words), atol=1e-5)
    other = run(silent, x, t, words | {"text": words["text"].at[:, 0].add(1.0)})
    assert float(jnp.abs(other - run(silent, x, t, words)).max()) > 1e-3


def test_positions_are_the_middle_of_one_plane():
    """An image of any size sees a window around the same centre, in units of the trained grid."""
    large, little = window_features(8, 8, 16, 8, (4, 4)), window_features(4, 2, 16, 8, (4, 4))
    np.testing.assert_array_equal(large.reshape(8, 8, 16)[2:6, 3:5], little.reshape(4, 2, 16))
    expected = coordinate_features(np.array([1.0]), np.array([1.5]), 16)  # cell (2, 3) of 8 x 8, spanning 4 x 4
    np.testing.assert_allclose(little[0], expected[0], atol=1e-6)
    with pytest.raises(ValueError, match="larger than position_grid=8"):
        window_features(9, 2, 16, 8, (4, 4))
    network, tree = small(position_grid=8)
    cond = inputs()[2]
    output = jax.eval_shape(network.apply, tree, jnp.zeros((2, 16, 4, 1)), jnp.zeros(2), cond)
    assert output.shape == (2, 16, 4, 1)
    away = network.apply(tree, *inputs()[:2], cond) - small()[0].apply(tree, *inputs()[:2], cond)
    assert float(jnp.abs(away).max()) > 1e-3


def test_recomputing_blocks_changes_no_number():
    x, t, cond = inputs()
    keys = jax.random.split(jax.random.key(0), 2)
    results = []
    for remat in (False, True):
        network, tree = small(remat=remat, dropout=0.2)
        loss = lambda tree, network=network: jnp.sum(network.apply(tree, x, t, cond, keys=keys) ** 2)
        assert ("remat" in str(jax.make_jaxpr(jax.grad(loss))(tree))) == remat
        results.append(compile_quickly(jax.value_and_grad(loss))(tree))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *results)


def test_misuse_is_refused_with_the_fix():
    for data, options, message in [
        (DataSpec((8, 8, 1)), {}, "text encoder"),
        (SMALL, {"width": 20, "heads": 3}, "multiple of 4"),
        (SMALL, {"patch": 3}, "tile"),
        (SMALL, {"dual_blocks": 7}, "between 0 and the depth"),
        (SMALL, {"qk_norm": "rns"}, "Did you mean 'rms'"),
    ]:
        with pytest.raises(ValueError, match=message):
            NETWORKS["mmdit"](data, **options)

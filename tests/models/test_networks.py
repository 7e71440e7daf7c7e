"""What every network of the table owes the rooms above: shapes, zero start, gradients, conditions, dropout, jvp."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.choices import build
from flowjax.contract import DataSpec
from flowjax.models import NETWORKS
from flowjax.models.text import TEXT_ENCODERS, with_text

POINTS, IMAGES = DataSpec((2,), 3), DataSpec((8, 8, 1), 3)
UNET = {"name": "unet", "channels": 8, "blocks": 1, "attention": (4,), "head_channels": 8}
DIT = {"name": "dit", "width": 16, "depth": 2, "heads": 2}
FIT = {"feed_forward": "swiglu", "modulation": "lora", "position": "rope", "masked": True, "max_tokens": 12}
MMDIT = {"name": "mmdit", "width": 16, "depth": 2, "heads": 2, "dual_blocks": 1}
CAPTIONED = DataSpec((8, 8, 1), 3, text_length=3, text_channels=5)
SPECS = {
    "mlp": (POINTS, {"name": "mlp", "width": 16, "depth": 2, "zero_output": True}),
    "unet": (CAPTIONED, UNET),
    "unet_conv": (IMAGES, UNET | {"resampling": "conv"}),
    "dit": (CAPTIONED, DIT),
    "dit_norm": (IMAGES, DIT | {"qk_norm": "rms", "patch": 4, "depth": 1}),
    "fit": (CAPTIONED, DIT | FIT | {"qk_norm": "layer", "remat": True}),
    "mmdit": (CAPTIONED, MMDIT),
}
BATCH = 4


def make(name, **options):
    data, spec = SPECS[name]
    return build("network", spec | options, NETWORKS, data=data)


# The tests run each program a few times on small arrays: compiling quickly matters more than running quickly.
compile_quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@cache
def compiled(name, **options):
    """A network and its compiled apply, shared by the tests."""
    network = make(name, **options)
    return network, compile_quickly(network.apply)


def inputs(name, seed=1):
    data, spec = SPECS[name]
    keys = jax.random.split(jax.random.key(seed), 4)
    x = jax.random.normal(keys[0], (BATCH, *data.shape))
    t = jax.random.uniform(keys[1], (BATCH,))
    cond = {"label": jnp.arange(BATCH) % data.num_classes}
    if data.text_channels:
        cond["text"] = jax.random.normal(keys[2], (BATCH, 3, 5))
        cond["text_mask"] = jnp.array([[True, True, False]] * BATCH)
    if name == "fit":
        cond["pixel_mask"] = jnp.ones((BATCH, 8, 8), bool).at[:, 6:].set(False)
    return x, t, cond


def perturbed(network, seed=2):
    """Parameters with no zeros among them, as after training: normal, divided by the root of the fan-in."""
    draw = np.random.default_rng(seed)
    tree = jax.eval_shape(network.init, jax.random.key(0))
    fan_in = lambda leaf: np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 4.0
    return jax.tree.map(
        lambda leaf: jnp.asarray(draw.normal(size=leaf.shape) / np.sqrt(fan_in(leaf)), jnp.float32), tree
    )


@pytest.mark.parametrize("name", SPECS)
def test_starts_as_the_zero_function_of_the_right_shape(name):
    network, apply = compiled(name)
    x, t, cond = inputs(name)
    tree = compile_quickly(network.init)(jax.random.key(0, impl="rbg"))  # a generator that compiles quickly
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(tree))
    output = apply(tree, x, t, cond)
    assert output.shape == x.shape and output.dtype == jnp.float32
    np.testing.assert_array_equal(output, 0)
    assert (jnp.abs(apply(perturbed(network), x, t, cond)).reshape(BATCH, -1).max(axis=1) > 1e-3).all()


@pytest.mark.parametrize("name", SPECS)
def test_gradient_reaches_every_parameter_once_off_the_zero_start(name):
    network = make(name, two_times=True)
    x, t, cond = inputs(name)

    def loss(tree):
        return jnp.sum(jnp.sin(network.apply(tree, x, t, cond, s=t + 0.3)))

    gradient = compile_quickly(jax.grad(loss))(perturbed(network))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert float(jnp.abs(leaf).max()) > 1e-6, f"no gradient at {jax.tree_util.keystr(path)}"


@pytest.mark.parametrize("name", ["mlp", "unet", "dit", "mmdit", "text"])
def test_the_last_layer_is_where_the_network_says(name):
    """The output is an affine function of its parameters, and of no other layer's."""
    if name == "text":
        data = DataSpec((8, 8, 1), 3, text_length=3, vocabulary=7)
        encoder = TEXT_ENCODERS["transformer"](data, width=8, depth=1, heads=2)
        network = with_text(lambda data: build("network", DIT, NETWORKS, data=data), encoder, data)
        x, t, cond = inputs("dit")
        cond = {"label": cond["label"], "tokens": jnp.array([[1, 2, 0]] * BATCH)}
    else:
        network, (x, t, cond) = make(name), inputs(name)
    tree = perturbed(network)
    layer, whole = network.split_output(tree)
    assert jax.tree.all(jax.tree.map(np.array_equal, whole(layer), tree))
    scaled = lambda factor: jax.tree.map(lambda leaf: factor * leaf, layer)
    run = compile_quickly(lambda layer: network.apply(whole(layer), x, t, cond))
    np.testing.assert_array_equal(run(scaled(0.0)), 0)
    np.testing.assert_allclose(run(scaled(3.0)), 3 * run(layer), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "unet", "dit", "fit", "mmdit"])
def test_every_input_matters_and_only_for_its_own_example(name):
    network, run = compiled(name, two_times=True)
    x, t, cond = inputs(name)
    tree = perturbed(network)
    apply = lambda x, t, s, cond: run(tree, x, t, cond, s=s)
    base = apply(x, t, t, cond)
    changed = {
        "x": apply(x.at[1].add(1.0), t, t, cond),
        "t": apply(x, t.at[1].add(0.2), t, cond),
        "s": apply(x, t, t.at[1].add(0.2), cond),
        "label": apply(x, t, t, cond | {"label": cond["label"].at[1].set(2)}),
    }
    if "text" in cond:
        changed["text"] = apply(x, t, t, cond | {"text": cond["text"].at[1, 0].add(1.0)})
        changed["mask"] = apply(x, t, t, cond | {"text_mask": cond["text_mask"].at[1, 0].set(False)})
    for what, output in changed.items():
        assert float(jnp.abs(output - base)[1].max()) > 1e-4, what
        np.testing.assert_allclose(np.delete(output, 1, 0), np.delete(base, 1, 0), atol=1e-5, err_msg=what)
    # s = t is the case without s.
    np.testing.assert_allclose(run(tree, x, t, cond), base, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "unet", "dit", "fit", "mmdit"])
def test_dropped_conditions_are_null(name):
    network, run = compiled(name)
    x, t, cond = inputs(name)
    tree = perturbed(network)
    dropped = jnp.array([True, False, True, False])
    null = network.drop(cond, dropped)
    np.testing.assert_array_equal(null["label"], [3, 1, 3, 0])
    apply = lambda cond: run(tree, x, t, cond)
    base, unconditional = apply(cond), apply(null)
    kept, gone = np.array([1, 3]), np.array([0, 2])
    np.testing.assert_allclose(unconditional[kept], base[kept], atol=1e-5)
    assert (jnp.abs(unconditional - base)[gone].reshape(2, -1).max(axis=1) > 1e-4).all()
    # Other labels and another text lead to the same null.
    other = {"label": (cond["label"] + 1) % 3} | {key: cond[key] for key in cond if key.endswith("mask")}
    if "text" in cond:
        other["text"] = cond["text"] + 2.0
        masked = apply(cond | {"text": cond["text"].at[:, 2].add(5.0)})
        np.testing.assert_array_equal(masked, base)
    np.testing.assert_allclose(apply(network.drop(other, dropped))[gone], unconditional[gone], atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "unet", "dit", "fit", "mmdit"])
def test_dropout_depends_on_the_example_key_alone(name):
    (network, run), (_, plain) = compiled(name, dropout=0.3), compiled(name)
    x, t, cond = inputs(name)
    tree = perturbed(network)
    keys = jax.random.split(jax.random.key(5), BATCH)
    apply = lambda x, t, cond, keys: run(tree, x, t, cond, keys=keys)
    whole = apply(x, t, cond, keys)
    half = lambda tree_of_arrays, rows: jax.tree.map(lambda a: a[rows], tree_of_arrays)
    parts = [apply(*half((x, t, cond, keys), rows)) for rows in (slice(0, 2), slice(2, 4))]
    np.testing.assert_allclose(whole, jnp.concatenate(parts), atol=1e-5)
    without = plain(tree, x, t, cond)
    np.testing.assert_allclose(run(tree, x, t, cond), without, atol=1e-6)
    assert (jnp.abs(whole - without).reshape(BATCH, -1).max(axis=1) > 1e-3).all()
    others = apply(x, t, cond, jax.random.split(jax.random.key(6), BATCH))
    assert (jnp.abs(whole - others).reshape(BATCH, -1).max(axis=1) > 1e-3).all()


@pytest.mark.parametrize("name", ["mlp", "unet", "dit", "dit_norm", "fit", "mmdit"])
def test_jvp_is_the_derivative_and_bfloat16_is_close(name):
    slow = {} if name == "mlp" else {"time_scale": 4.0}  # slow waves, so that finite differences can follow them
    network, half = make(name, two_times=True, **slow), make(name, two_times=True, dtype="bfloat16", **slow)
    x, t, cond = inputs(name)
    tree = perturbed(network)
    step = 1e-2 if slow else 5e-4
    direction = (jax.random.normal(jax.random.key(3), x.shape), jnp.ones_like(t), -0.5 * jnp.ones_like(t))
    point = (x, t, t + 0.3)
    run = lambda network: lambda x, t, s: network.apply(tree, x, t, cond, s=s)
    value, derivative = compile_quickly(lambda *point: jax.jvp(run(network), point, direction))(*point)
    moved = compile_quickly(lambda h: run(network)(*(a + h * d for a, d in zip(point, direction))))
    first, second = moved(step) - moved(-step), moved(2 * step) - moved(-2 * step)
    expected = (8 * first - second) / (12 * step)  # fourth order
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(derivative, expected, atol=3e-3 * scale)
    coarse_value, coarse = compile_quickly(lambda *point: jax.jvp(run(half), point, direction))(*point)
    error = lambda a, b: float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
    assert error(coarse_value, value) < 0.05 and 0 < error(coarse, derivative) < 0.1


def test_misuse_is_refused_with_the_fix():
    x, t, cond = inputs("dit")
    network = make("dit")
    tree = jax.eval_shape(network.init, jax.random.key(0))
    with pytest.raises(ValueError, match="reads the condition.*text"):
        network.apply(tree, x, t, {"label": cond["label"]})
    with pytest.raises(ValueError, match="two_times=True"):
        network.apply(tree, x, t, cond, s=t)
    for spec, message in [
        (DIT | {"patch": 3}, "tile"),
        (DIT | {"heads": 3}, "multiple"),
        (UNET | {"multipliers": (1, 1, 1, 1, 1)}, "divisible"),
        (UNET | {"attention": (16,)}, "none of the heights"),
        (UNET | {"patch": 3}, "divisible by 6"),
        (UNET | {"patch": 0}, "1 or more"),
        (UNET | {"resampling": "blok"}, "Did you mean 'block'"),
        ({"name": "mlp", "depth": 0}, "depth"),
        ({"name": "mlp", "activation": "silo"}, "Did you mean 'silu'"),
    ]:
        with pytest.raises(ValueError, match=message):
            build("network", spec, NETWORKS, data=IMAGES)
    for name in ("dit", "unet"):
        with pytest.raises(ValueError, match="height, width, channels"):
            build("network", {"name": name}, NETWORKS, data=POINTS)


def test_a_larger_u_net_and_odd_images_have_the_right_shapes():
    for shape, options in [
        ((64, 64, 3), {"multipliers": (1, 2, 2, 4)}),
        ((28, 20, 1), {"multipliers": (1, 2, 2), "convolution": "matmul"}),
    ]:
        network = NETWORKS["unet"](DataSpec(shape), channels=16, attention=(16, 7), **options)
        tree = jax.eval_shape(network.init, jax.random.key(0))
        x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        output = jax.eval_shape(partial(network.apply, cond={}), tree, x, jax.ShapeDtypeStruct((2,), jnp.float32))
        assert output.shape == (2, *shape)


def test_a_u_net_of_cells_is_that_of_a_smaller_image_of_more_channels():
    """The values of a square of pixels, row by row, are the channels of its cell; the parameters are the same."""
    folds = lambda image: np.stack([image[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=-1)
    network = build("network", UNET | {"patch": 2}, NETWORKS, data=DataSpec((16, 16, 1)))
    small = build("network", UNET, NETWORKS, data=DataSpec((8, 8, 4)))
    tree = perturbed(network)
    assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, perturbed(small))
    x, t = jax.random.normal(jax.random.key(3), (2, 16, 16, 1)), jnp.array([0.2, 0.7])
    found = folds(compile_quickly(network.apply)(tree, x, t, {})[..., 0])
    np.testing.assert_allclose(found, compile_quickly(small.apply)(tree, folds(x[..., 0]), t, {}), atol=1e-5)


def test_a_u_net_reads_every_shape_of_the_buckets_with_attention_at_the_same_levels():
    data = DataSpec((8, 8, 3), shapes=((8, 8, 3), (4, 8, 3), (16, 16, 3)))
    network = build("network", UNET, NETWORKS, data=data)
    tree = jax.eval_shape(network.init, jax.random.key(0))
    assert "down_1_0_attention" in tree and "down_0_0_attention" not in tree
    for shape in data.shapes:
        x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        output = jax.eval_shape(partial(network.apply, cond={}), tree, x, jax.ShapeDtypeStruct((2,), jnp.float32))
        assert output.shape == (2, *shape)
    with pytest.raises(ValueError, match=r"\(5, 8\) is not divisible by 2"):
        build("network", UNET, NETWORKS, data=DataSpec((8, 8, 3), shapes=((8, 8, 3), (5, 8, 3))))


@pytest.mark.parametrize("name", ["unet", "dit", "fit", "mmdit"])
def test_hidden_returns_the_prediction_and_the_tokens_after_a_block(name):
    network, run = compiled(name, two_times=True)
    x, t, cond = inputs(name)
    tree = perturbed(network)
    hidden = compile_quickly(network.hidden, static_argnames="layer")
    prediction, tokens = hidden(tree, x, t, cond, layer=network.layers, s=t + 0.3)
    np.testing.assert_allclose(prediction, run(tree, x, t, cond, s=t + 0.3), atol=1e-5)
    assert tokens.dtype == jnp.float32 and jnp.std(tokens) > 0
    shapes = jax.eval_shape(
        lambda *given: [network.hidden(*given, layer=k + 1)[1] for k in range(network.layers)], tree, x, t, cond
    )
    expected = dict.fromkeys(("dit", "fit", "mmdit"), [(BATCH, 4, 4, 16)] * 2)
    down, up = [(BATCH, 8, 8, 8), (BATCH, 4, 4, 16)], [(BATCH, 4, 4, 16)] * 2 + [(BATCH, 8, 8, 8)] * 2
    expected["unet"] = [*down, (BATCH, 4, 4, 16), *up]
    assert [shape.shape for shape in shapes] == expected[name]
    if name == "dit":  # the tokens after a block are a function of the parameters up to it
        gradient = compile_quickly(jax.grad(lambda tree: jnp.sum(network.hidden(tree, x, t, cond, layer=1)[1] ** 2)))
        touched = {
            path for path, part in gradient(tree).items() if any(jnp.any(leaf) for leaf in jax.tree.leaves(part))
        }
        assert touched == {"patch_embedding", "block_0", "embedding"}
    with pytest.raises(ValueError, match="blocks 1"):
        network.hidden(tree, x, t, cond, layer=0)
    assert make("mlp").hidden is None

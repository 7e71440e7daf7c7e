"""FiTv2's options on a DiT: its published size, images of any shape in one array, other resolutions than the trained."""

import inspect
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.choices import build
from flowjax.contract import DataSpec
from flowjax.models import NETWORKS
from flowjax.models.network import count_parameters
from flowjax.models.packing import pack, unpack, visible_first

DATA = DataSpec((8, 8, 1))
FIT = {"feed_forward": "swiglu", "qk_norm": "layer", "modulation": "lora", "position": "rope"}
compile_quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def make(data=DATA, **options):
    return NETWORKS["dit"](data, width=16, depth=2, heads=2, **FIT | options)


@cache
def tree():
    """The parameters of all networks here: they do not depend on masks, slots or resolution."""
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(make().init, jax.random.key(0))
    scale = lambda leaf: 1 / np.sqrt(leaf.shape[0] if len(leaf.shape) > 1 else 4.0)
    return jax.tree.map(lambda leaf: jnp.asarray(scale(leaf) * draw.normal(size=leaf.shape), jnp.float32), shapes)


def run(network, x, mask=None):
    cond = {} if mask is None else {"pixel_mask": jnp.asarray(mask)}
    return compile_quickly(network.apply)(tree(), jnp.asarray(x, jnp.float32), jnp.full(len(x), 0.4), cond)


def images(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def canvas(image, top=0, left=0, fill=0.0):
    """The image somewhere on an 8 x 8 canvas, and the mask that says where."""
    whole, mask = np.full((len(image), 8, 8, 1), fill, np.float32), np.zeros((len(image), 8, 8), bool)
    place = (slice(None), slice(top, top + image.shape[1]), slice(left, left + image.shape[2]))
    whole[place], mask[place] = image, True
    return whole, mask


def test_the_published_size():
    network = NETWORKS["fit_xl"](DataSpec((32, 32, 4), 1000))
    count = count_parameters(jax.eval_shape(network.init, jax.random.key(0)))[""]
    w, hidden, rank, values = 1152, 3072, 288, 16
    attention = 3 * (w * w + w) + (w * w + w)
    swiglu = 2 * (w * hidden + hidden) + (hidden * w + w)
    modulation = (w * rank + rank) + (rank * 6 * w + 6 * w)
    embeddings = (256 * w + w) + (w * w + w) + 1001 * w + (values * w + w)
    ends = 6 * (w * w + w) + 2 * (w * w + w) + (w + 1) * values
    assert count == 36 * (attention + swiglu + modulation) + embeddings + ends
    assert count / 1e6 == pytest.approx(671, abs=0.5)


def test_presets_list_what_is_still_free():
    free = inspect.signature(NETWORKS["dit_s"]).parameters
    assert "width" not in free and free["patch"].default == 2
    assert inspect.signature(NETWORKS["fit_xl"]).parameters["position"].default == "rope"
    with pytest.raises(ValueError, match="no option 'width'"):
        build("network", {"name": "dit_s", "width": 8}, NETWORKS, data=DATA)
    network = build("network", {"name": "fit_xl", "modulation": "full", "patch": 4}, NETWORKS, data=DATA)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert "linear" in shapes["block_35"]["modulation"] and shapes["patch_embedding"]["kernel"].shape == (16, 1152)


def test_an_image_on_a_canvas_is_the_image_alone_wherever_it_stands():
    image, network = images(2, 6, 4, 1), make(masked=True)
    alone = run(make(DataSpec((6, 4, 1))), image)
    for top, left, fill in ((0, 0, 0.0), (0, 0, 50.0), (2, 4, -3.0)):
        whole = run(network, *canvas(image, top, left, fill))
        # Rotary positions know differences alone, so the place on the canvas does not matter.
        np.testing.assert_allclose(whole[:, top : top + 6, left : left + 4], alone, atol=2e-5)
        outside = np.asarray(whole)[~canvas(image, top, left)[1]]
        np.testing.assert_array_equal(outside, 0)
    fixed = make(masked=True, position="fixed")
    corner, moved = run(fixed, *canvas(image)), run(fixed, *canvas(image, 2, 4))
    assert float(jnp.abs(corner[:, :6, :4] - moved[:, 2:, 4:]).max()) > 1e-2


def test_slots_for_the_visible_tokens_change_no_number_and_too_few_are_loud():
    mask = np.ones((3, 8, 8), bool)
    mask[0, 4:], mask[1, :, 4:], mask[2, 1:, :2] = False, False, False  # 8, 8 and 13 visible tokens
    x = images(3, 8, 8, 1)
    for position in ("rope", "fixed"):
        expected = run(make(masked=True, position=position), x, mask)
        slots = make(masked=True, position=position, max_tokens=13)
        np.testing.assert_allclose(run(slots, x, mask), expected, atol=2e-5)
    few = run(make(masked=True, position=position, max_tokens=8), x, mask)
    np.testing.assert_allclose(few[:2], expected[:2], atol=2e-5)
    assert jnp.isnan(few[2][mask[2]]).all()
    seen = jax.make_jaxpr(partial(slots.apply, cond={"pixel_mask": jnp.asarray(mask)}))(tree(), x, jnp.full(3, 0.4))
    assert "f32[3,2,13,13]" in str(seen) and "f32[3,2,16,16]" not in str(seen)  # attention over the slots alone


def test_packing_is_undone_by_unpacking():
    visible = jnp.array([[True, False, True, False, True], [False, True, False, False, True]])
    tokens = jnp.arange(10.0).reshape(2, 5, 1)
    order = visible_first(visible, 3)
    np.testing.assert_array_equal(order, [[0, 2, 4], [1, 4, 0]])
    packed = pack(tokens, order)
    np.testing.assert_array_equal(packed[..., 0], [[0, 2, 4], [6, 9, 5]])
    np.testing.assert_array_equal(unpack(packed, order, visible)[..., 0], [[0, 0, 2, 0, 4], [5, 6, 0, 0, 9]])
    np.testing.assert_array_equal(pack(tokens[:1], order)[1, :, 0], [1, 4, 0])


def test_a_fully_hidden_image_is_zero():
    output = run(make(masked=True), images(1, 8, 8, 1), np.zeros((1, 8, 8), bool))
    np.testing.assert_array_equal(output, 0)


@pytest.mark.parametrize("extrapolation", ["none", "interpolation", "ntk", "ntk_by_parts", "yarn"])
def test_a_larger_image_of_the_same_things_gets_a_larger_answer_of_the_same_kind(extrapolation):
    """Each patch repeated 2 x 2: the answer resembles the small image's, each patch repeated 2 x 2."""
    network = make(extrapolation=extrapolation, scale_logits=True, theta=100.0)
    repeat = lambda x: np.asarray(x).reshape(-1, 4, 2, 4, 2).repeat(2, 1).repeat(2, 3).reshape(-1, 16, 16, 1)
    x = images(4, 8, 8, 1)
    large, expected = run(network, repeat(x)), repeat(run(network, x))
    assert large.shape == (4, 16, 16, 1) and jnp.isfinite(large).all()
    assert np.corrcoef(large.reshape(-1), expected.reshape(-1))[0, 1] > 0.9
    assert float(jnp.abs(large - expected).max()) > 1e-3


def test_the_trained_grid_decides_what_is_larger():
    """A network built for the larger images but trained on the smaller is the small network, applied to the larger."""
    x = images(2, 16, 16, 1)
    for options in ({"extrapolation": "ntk"}, {"position": "fixed", "extrapolation": "interpolation"}):
        small = make(**options)
        large = make(DataSpec((16, 16, 1)), trained_grid=(4, 4), **options)
        np.testing.assert_array_equal(run(large, x), run(small, x))
        own = make(DataSpec((16, 16, 1)), **options)
        assert float(jnp.abs(run(own, x) - run(small, x)).max()) > 1e-3


def test_recomputing_blocks_changes_no_number():
    x, t = jnp.asarray(images(2, 8, 8, 1)), jnp.array([0.2, 0.7])
    keys, results = jax.random.split(jax.random.key(0), 2), []
    for remat in (False, True):
        network = make(remat=remat, dropout=0.2)
        loss = lambda tree, network=network: jnp.sum(network.apply(tree, x, t, {}, keys=keys) ** 2)
        assert ("remat" in str(jax.make_jaxpr(jax.grad(loss))(tree()))) == remat
        results.append(compile_quickly(jax.value_and_grad(loss))(tree()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *results)


def test_misuse_is_refused_with_the_fix():
    for options, message in [
        ({"max_tokens": 8}, "masked=True"),
        ({"modulation": "full", "modulation_rank": 4}, "modulation='lora'"),
        ({"modulation": "low"}, "Unknown modulation"),
        ({"feed_forward": "swigl"}, "Did you mean 'swiglu'"),
        ({"heads": 4}, "heads of 8, 12"),
    ]:
        with pytest.raises(ValueError, match=message):
            NETWORKS["dit"](DATA, **{"width": 16, "depth": 1, "heads": 2} | FIT | options)

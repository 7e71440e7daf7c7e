"""Attention in chunks is plain attention: value, derivative and gradient of a derivative; its memory grows with the tokens."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.choices import build
from flowjax.contract import DataSpec
from flowjax.models import NETWORKS
from flowjax.models.attention import attend

compile_quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
ROUNDING = 2.0**-8  # of a bfloat16, half of its eps
HEAD = 4  # whose root is a power of two: nothing is rounded when queries are scaled by it


def arrays(queries, keys, seed):
    """Queries, keys and values that bfloat16 holds exactly."""
    draw, heads = np.random.default_rng(seed), 2
    shapes = [(3, count, heads, HEAD) for count in (queries, keys, keys)]
    return tuple(jnp.asarray(draw.normal(size=shape), jnp.bfloat16).astype(jnp.float32) for shape in shapes)


def answers(chunk, point, direction, mask, dtype=jnp.float32):
    """The value, its derivative, and the gradient of a sum of both, as float32."""
    point, direction = jax.tree.map(lambda leaf: leaf.astype(dtype), (point, direction))
    function = lambda *point: attend(*point, mask, chunk)
    along = lambda point: jax.jvp(function, point, direction)
    weigh = jnp.cos(jnp.arange(point[0].size, dtype=jnp.float32)).reshape(point[0].shape)

    def both(point):
        value, derivative = along(point)
        return jnp.sum(weigh * value + weigh[::-1] * derivative), (value, derivative)

    gradient, (value, derivative) = compile_quickly(jax.grad(both, has_aux=True))(point)
    assert value.dtype == derivative.dtype == dtype
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), (value, derivative, gradient))


def masks(keys):
    """None; or one that hides every third, all but the last, and all."""
    index = np.arange(keys)
    return None, jnp.asarray(np.stack([index % 3 > 0, index == keys - 1, index < 0]))


@pytest.mark.parametrize("queries, keys, chunk", [(6, 9, 3), (2, 7, 4)])
def test_value_derivative_and_gradient_are_those_of_plain_attention(queries, keys, chunk):
    point, direction = arrays(queries, keys, 0), arrays(queries, keys, 1)
    for mask in masks(keys):
        plain = answers(0, point, direction, mask)
        for ours, expected in zip(jax.tree.leaves(answers(chunk, point, direction, mask)), jax.tree.leaves(plain)):
            np.testing.assert_allclose(ours, expected, atol=1e-5 * max(1.0, np.abs(expected).max()))


def test_bfloat16_is_as_near_the_exact_derivative_as_its_roundings_allow():
    """Each p_j and p_j ds_j is rounded once, and so is the result: with `largest` of |v|, |dv| and |ds|, the errors of

        o = sum p v                              are at most 2 u |v|,
        do = sum p dv + sum (p ds) v - o sum p ds            2 u (|dv| + 2 |ds| |v|).

    The terms of the gradient pass through no more than eight roundings.
    """
    point, direction = arrays(6, 9, 0), arrays(6, 9, 1)
    (q, k, v), (dq, dk, dv) = point, direction
    slope = np.abs(np.einsum("bnhd,bmhd->bhnm", dq, k) + np.einsum("bnhd,bmhd->bhnm", q, dk)).max() * HEAD**-0.5
    largest = np.abs(v).max()
    bounds = 2 * ROUNDING * largest, 2 * ROUNDING * (np.abs(dv).max() + 2 * slope * largest)
    exact = answers(0, point, direction, None)
    coarse = answers(3, point, direction, None, jnp.bfloat16)
    for ours, expected, bound in zip(coarse[:2], exact[:2], bounds):
        assert 0 < np.abs(ours - expected).max() < bound < np.abs(expected).max()
    for ours, expected in zip(coarse[2], exact[2]):
        assert np.linalg.norm(ours - expected) < 8 * ROUNDING * np.linalg.norm(expected)


def test_memory_grows_with_the_tokens_and_not_with_their_square():
    def bytes_of(what, tokens, chunk):
        function = lambda *point: attend(*point, None, chunk)
        along = lambda point: jax.jvp(function, point, point)

        def loss(point):  # as of a mean flow
            value, derivative = along(point)
            return jnp.sum((value - jax.lax.stop_gradient(derivative)) ** 2)

        programs = {"value": lambda point: function(*point), "derivative": along, "gradient": jax.grad(loss)}
        shape = jax.ShapeDtypeStruct((1, tokens, 1, HEAD), jnp.float32)
        compiled = compile_quickly(programs[what]).lower((shape,) * 3).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    for what in ("value", "derivative", "gradient"):
        few, many = (bytes_of(what, tokens, 32) for tokens in (512, 2048))
        assert many < 4.2 * few, what
        assert bytes_of(what, 2048, 0) > 15 * bytes_of(what, 512, 0) > 4 * many, what


IMAGES = DataSpec((8, 8, 1), 3, text_length=3, text_channels=5)
SMALL = dict(width=16, depth=1, heads=2, time_scale=4.0)
FIT = dict(position="rope", masked=True, max_tokens=12, qk_norm="layer", feed_forward="swiglu", remat=True)


@pytest.mark.parametrize("spec", [dict(name="dit", **FIT), dict(name="mmdit", qk_norm="rms", dual_blocks=1)])
def test_networks_compute_the_same_in_chunks(spec):
    draw = np.random.default_rng(0)
    numbers = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)
    x, t = numbers(2, 8, 8, 1), jnp.array([0.2, 0.7])
    cond = dict(label=jnp.array([0, 2]), text=numbers(2, 3, 5), text_mask=jnp.array([[True, True, False]] * 2))
    if spec["name"] == "dit":
        cond["pixel_mask"] = jnp.ones((2, 8, 8), bool).at[:, 6:].set(False)
    make = lambda chunk: build("network", {**spec, **SMALL, "attention_chunk": chunk}, NETWORKS, data=IMAGES)
    tree = jax.tree.map(lambda leaf: 0.3 * numbers(*leaf.shape), jax.eval_shape(make(0).init, jax.random.key(0)))

    def answer(chunk):
        run = lambda x, t: make(chunk).apply(tree, x, t, cond)
        traced = compile_quickly(lambda *point: jax.jvp(run, point, (x[::-1], jnp.ones_like(t)))).trace(x, t)
        assert ("scan[" in str(traced.jaxpr)) == (chunk > 0)
        return traced.lower().compile()(x, t)

    for ours, expected in zip(answer(5), answer(0)):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * float(jnp.abs(expected).max()))
    with pytest.raises(ValueError, match="attention_chunk is -1; expected"):
        make(-1)

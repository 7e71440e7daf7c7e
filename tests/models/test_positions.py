"""Rotary positions against complex numbers, their relative form, and the published ways beyond the trained length."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.models.attention import attend
from flowjax.models.embeddings import position_features
from flowjax.models.positions import Positions, frequencies, rotate

HEAD, ROWS, COLUMNS = 16, 4, 5


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def rotation(rows=ROWS, columns=COLUMNS, trained=(ROWS, COLUMNS), **options):
    return Positions("rope", trained, **options).rotation(rows, columns, HEAD)


def window(table, top, left, size=(2, 2)):
    """The tables of the cells of a window of the 4 x 5 grid."""
    rows, columns = np.meshgrid(np.arange(size[0]) + top, np.arange(size[1]) + left, indexing="ij")
    return tuple(array[:, (rows * COLUMNS + columns).reshape(-1)] for array in table)


def test_rotation_is_multiplication_by_a_complex_phase_and_keeps_norms():
    x = normal(2, ROWS * COLUMNS, 3, HEAD)
    turned = np.asarray(rotate(x, rotation()), np.float64)
    pairs = np.asarray(x[..., 0::2] + 1j * x[..., 1::2])
    f = 10000.0 ** (-np.arange(4) / 4)
    for n in range(ROWS * COLUMNS):
        row, column = divmod(n, COLUMNS)
        phase = np.exp(1j * np.concatenate([row * f, column * f]))
        expected = pairs[:, n] * phase
        np.testing.assert_allclose(turned[:, n, :, 0::2] + 1j * turned[:, n, :, 1::2], expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    assert rotate(x.astype(jnp.bfloat16), rotation()).dtype == jnp.bfloat16


def test_logits_depend_on_the_difference_of_positions_alone():
    """One query and one key placed everywhere: the matrix of logits is constant along equal differences."""
    query, key = (jnp.broadcast_to(normal(HEAD, seed=i), (1, ROWS * COLUMNS, 1, HEAD)) for i in (1, 2))
    q, k = (np.asarray(rotate(a, rotation()))[0, :, 0] for a in (query, key))
    logits, seen = q @ k.T, {}
    for n in range(len(q)):
        for m in range(len(k)):
            difference = tuple(np.subtract(divmod(n, COLUMNS), divmod(m, COLUMNS)))
            seen.setdefault(difference, []).append(logits[n, m])
    assert all(np.ptp(values) < 1e-4 for values in seen.values())
    assert np.std([values[0] for values in seen.values()]) > 0.1


def test_attention_does_not_change_when_all_tokens_move():
    q, k, v = (normal(1, 4, 2, HEAD, seed=seed) for seed in range(3))
    at = lambda top, left: (rotate(a, window(rotation(), top, left)) for a in (q, k))
    here, there = attend(*at(0, 0), v), attend(*at(2, 3), v)
    np.testing.assert_allclose(here, there, atol=1e-5)
    assert float(jnp.abs(here - attend(q, k, v)).max()) > 1e-2


def test_nothing_changes_up_to_the_trained_grid():
    for extrapolation in ("interpolation", "ntk", "ntk_by_parts", "yarn"):
        for grid in ((4, 5), (3, 2)):
            got = rotation(*grid, extrapolation=extrapolation, scale_logits=True)
            np.testing.assert_array_equal(got, rotation(*grid))


def test_closed_forms_beyond_the_trained_grid():
    m, stretch = 8, 3.0
    plain = frequencies(m)
    np.testing.assert_allclose(plain, [1, 1e-1, 1e-2, 1e-3], rtol=1e-12)
    np.testing.assert_allclose(frequencies(m, extrapolation="interpolation", stretch=stretch), plain / 3, rtol=1e-12)
    ntk = frequencies(m, extrapolation="ntk", stretch=stretch)
    np.testing.assert_allclose(ntk[[0, -1]], [plain[0], plain[-1] / 3], rtol=1e-12)  # why the exponent is m / (m - 2)
    np.testing.assert_allclose(ntk[1] / ntk[2], ntk[2] / ntk[3], rtol=1e-12)
    # Waves that turn hundreds of times keep their speed; those that turn less than once are interpolated.
    long = dict(stretch=stretch, trained_length=4096)
    turns = 4096 * frequencies(64) / (2 * math.pi)
    for name, fast, slow in (("yarn", 40.0, 0.6), ("ntk_by_parts", 20.0, 0.5)):
        ratio = frequencies(64, extrapolation=name, **long) / frequencies(64)
        np.testing.assert_allclose(ratio[turns > fast], 1.0)
        np.testing.assert_allclose(ratio[turns < slow], 1 / stretch)
        assert (np.diff(ratio) <= 1e-12).all() and ((ratio > 0.34) & (ratio < 0.99)).any()


@pytest.mark.parametrize("kind", ["rope", "fixed"])
def test_interpolation_puts_a_larger_grid_inside_the_trained_one(kind):
    """Every second cell of a grid of twice the side stands where the trained grid's cells stood."""
    positions = Positions(kind, (3, 3), extrapolation="interpolation")

    def tables(side):
        return positions.rotation(side, side, HEAD) if kind == "rope" else [positions.features(side, side, HEAD)]

    for before, after in zip(tables(3), tables(6)):
        picked = np.asarray(after).reshape(6, 6, -1)[::2, ::2]
        np.testing.assert_allclose(picked, np.asarray(before).reshape(3, 3, -1), atol=1e-6)
    np.testing.assert_array_equal(Positions("fixed", (3, 3)).features(6, 6, HEAD), position_features(6, 6, HEAD))


def test_axes_stretch_by_their_own_factor_or_by_the_larger():
    own = rotation(8, 5, extrapolation="interpolation")
    both = rotation(8, 5, extrapolation="interpolation", per_axis=False)
    column = lambda table: np.arctan2(table[1], table[0])[0].reshape(8, 5, -1)[0, 1, 4]
    row = lambda table: np.arctan2(table[1], table[0])[0].reshape(8, 5, -1)[1, 0, 0]
    np.testing.assert_allclose([row(own), column(own), row(both), column(both)], [0.5, 1.0, 0.5, 0.5], rtol=1e-6)


def test_magnitudes():
    size = lambda table: float(jnp.sqrt(table[0] ** 2 + table[1] ** 2).mean())
    grid = dict(rows=8, columns=10)
    assert size(rotation(**grid)) == pytest.approx(1.0, rel=1e-5)
    assert size(rotation(**grid, extrapolation="yarn")) == pytest.approx(1 + 0.1 * math.log(2), rel=1e-5)
    scaled = size(rotation(**grid, scale_logits=True))
    assert scaled == pytest.approx(math.sqrt(math.log(80) / math.log(20)), rel=1e-5)


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'rope'"):
        Positions("rop", (4, 4))
    with pytest.raises(ValueError, match="position='rope'"):
        Positions("fixed", (4, 4), extrapolation="ntk")
    with pytest.raises(ValueError, match="scale_logits act on rotary"):
        Positions("fixed", (4, 4), scale_logits=True)
    with pytest.raises(ValueError, match="Did you mean 'ntk'"):
        Positions("rope", (4, 4), extrapolation="nkt")
    with pytest.raises(ValueError, match="heads of 8, 12"):
        Positions("rope", (4, 4)).rotation(4, 4, 6)
    with pytest.raises(ValueError, match="trained grid"):
        Positions("rope", (4,))

"""Pairs of times: the published numbers of levels, cells in order and as likely as they should be, ECT's ratios."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.paths.pairs import doubling_levels, grid_pairs, karras_spacing, ratio_pairs, square_root_levels
from flowjax.paths.path import linear_path, make_path
from flowjax.paths.times import TIMES

LAW = TIMES["edm_log_normal"](mean=-1.1, std=2.0)


def test_the_published_numbers_of_levels():
    steps = jnp.array([0, 2_000, 4_000, 8_000])
    np.testing.assert_array_equal(square_root_levels(8_000)(steps), [2, 76, 107, 151])
    interval = 8_000 // 8
    found = doubling_levels(8_000)(jnp.arange(8) * interval)
    np.testing.assert_array_equal(found, [11, 21, 41, 81, 161, 321, 641, 1281])
    assert doubling_levels(8_003)(jnp.array([8_002])) == 1281


def test_karras_levels_and_the_clean_end():
    path = linear_path()
    spacing = karras_spacing(path, sigma_min=0.002, sigma_max=80.0)
    u = jnp.linspace(0.0, 1.0, 18)
    t = spacing.time(u)
    expected = (80 ** (1 / 7) + np.arange(18) / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(path.noise_to_signal(t), expected, rtol=1e-3)
    np.testing.assert_allclose(spacing.place(t), u, atol=1e-3)


@pytest.mark.parametrize("spacing", ["uniform", "karras"])
@pytest.mark.parametrize("path_name", ["linear", "vp", "edm"])
def test_cells_are_neighbours_and_even(path_name, spacing):
    path = make_path(path_name)
    pairs = grid_pairs(path, LAW, 100, dict(name="constant", count=9), dict(name=spacing))
    t = pairs.times.quantile((jnp.arange(80) + 0.5) / 80)
    first, second = pairs.pair(t, jnp.zeros(80, jnp.int32))
    assert (np.diff(np.unique(first)) > 0).all() and (second > first).all()
    levels, counts = np.unique(np.asarray(first), return_counts=True)
    assert len(levels) == 8 and set(counts) <= {9, 10, 11}
    ends = np.unique(np.asarray(second))
    np.testing.assert_array_equal(ends[:-1], levels[1:])  # one cell ends where the next begins, to the last bit
    assert ends[-1] == np.float32(path.end) and not pairs.reads_times


def test_cells_have_the_mass_of_the_law():
    # p(i) of iCT: the normal mass of ln sigma between neighbouring levels; the last cell reaches clean data.
    path, count = linear_path(), 11
    pairs = grid_pairs(path, LAW, 100, dict(name="constant", count=count), dict(name="karras"), cells="times")
    first, _ = pairs.pair(pairs.times.quantile((jnp.arange(20_000) + 0.5) / 20_000), jnp.zeros((), jnp.int32))
    levels = karras_spacing(path).time(jnp.arange(count) / (count - 1.0)).at[-1].set(1.0)
    mass = jnp.diff(LAW.cumulative(levels))
    found = [(np.asarray(first) == level).mean() for level in np.asarray(levels[:-1])]
    np.testing.assert_allclose(found, mass / mass.sum(), atol=2e-3)


def test_ratios_start_at_clean_data_and_end_at_the_neighbour():
    path = linear_path()
    pairs = ratio_pairs(path, LAW, 800, stages=8)
    t = 1 / (1 + jnp.array([0.05, 0.5, 3.0, 40.0]))
    _, first = pairs.pair(t, jnp.zeros((), jnp.int32))
    np.testing.assert_array_equal(first[:2], 1.0)  # below sigma = 1.95 the other end is clean data: diffusion training
    level = np.array([3.0, 40.0])
    kept = 1 - 0.5 * (1 + 8 / (1 + np.exp(level)))
    np.testing.assert_allclose(path.noise_to_signal(first[2:]), level * kept, rtol=1e-4)
    _, last = pairs.pair(t, jnp.full((), 799))
    ratio = path.noise_to_signal(last) / path.noise_to_signal(t)
    assert (ratio > 0.979).all() and (ratio < 0.997).all()


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="cells are 'uneven'; expected 'even' or 'times'"):
        grid_pairs(linear_path(), LAW, 10, cells="uneven")
    with pytest.raises(ValueError, match="expected 2 <= first <= last"):
        doubling_levels(10, first=1)
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        karras_spacing(linear_path(), sigma_min=2.0, sigma_max=1.0)
    with pytest.raises(ValueError, match="stages >= 1"):
        ratio_pairs(linear_path(), LAW, 10, stages=0)
    assert jax.jit(lambda t: ratio_pairs(linear_path(), LAW, 10).pair(t, 3)[1])(jnp.full(2, 0.3)).shape == (2,)

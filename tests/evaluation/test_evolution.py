"""The search finds the optimum of a quadratic in the plane of coefficients whose sum is one, which is known."""

import numpy as np
import pytest

from flowjax.evaluation.evolution import averages, evolve

RNG = np.random.default_rng(0)


def test_starts_are_averages_of_the_last():
    expected = [[0, 0, 0, 0, 1], [0, 0, 0, 1 / 2, 1 / 2], [0, 1 / 4, 1 / 4, 1 / 4, 1 / 4], [1 / 5] * 5]
    np.testing.assert_allclose(averages(5), expected)
    assert averages(1).tolist() == [[1.0]]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_optimum_of_noisy_points_around_a_centre_is_found(seed):
    """theta_i = centre + noise, the judge |theta(c) - centre|^2: its minimum on the plane is 1 / (1^T G^-1 1)."""
    noise = RNG.normal(size=(8, 40)) * np.linspace(1.0, 0.5, 8)[:, None]
    gram = noise @ noise.T
    best = 1 / np.linalg.inv(gram).sum()
    judge = lambda c: float(c @ gram @ c)
    found = evolve(judge, averages(8), 600, seed)
    assert best <= found.value < 1.005 * best and found.start > 1.1 * best
    assert found.coefficients.sum() == pytest.approx(1)
    assert judge(found.coefficients) == found.value
    np.testing.assert_allclose(found.coefficients, np.linalg.inv(gram).sum(0) * best, atol=0.06)


def test_negative_coefficients_are_found_where_points_drift():
    """Points on a line that lead away from the goal: only an extrapolation reaches it."""
    points = np.array([[1.0, 0.0], [2.0, 0.1]])
    found = evolve(lambda c: float(np.sum((c @ points) ** 2)), averages(2), 200)
    assert found.value == pytest.approx(0.0099, rel=0.01)  # 2 theta_0 - theta_1, nearly
    assert found.coefficients[1] == pytest.approx(-1, abs=0.05)


def test_the_start_stays_where_nothing_is_better_and_values_that_are_no_numbers_are_passed_over():
    only = evolve(lambda c: 0.0 if c.tolist() == [0.0, 0.0, 1.0] else float("nan"), averages(3)[:1], 20)
    assert (only.value, only.coefficients.tolist()) == (0.0, [0.0, 0.0, 1.0])
    started = evolve(lambda c: float("nan") if c[2] == 1 else abs(c[0]), averages(3), 200)
    assert started.value < 0.01
    assert evolve(lambda c: 1.0, averages(1), 20).coefficients.tolist() == [1.0]


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match="add up to .*; expected 1"):
        evolve(lambda c: 0.0, np.ones((1, 2)), 3)
    with pytest.raises(ValueError, match="trials=-1"):
        evolve(lambda c: 0.0, averages(2), -1)

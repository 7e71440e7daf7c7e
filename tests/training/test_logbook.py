"""What the log lines say: means over the updates that a metric had, and the same after a resume."""

import numpy as np

from flowjax.training.logbook import MetricSums


def add_three(sums):
    sums.add({"fake/loss": np.array([1.0, 2.0, 0.0], np.float32), "healthy": np.ones(3, bool)}, 2)
    sums.add({"fake/loss": np.array([6.0], np.float32), "student/loss": np.array([5.0], np.float32)}, 1)


def test_a_phase_that_is_not_always_due_is_averaged_over_its_own_updates():
    sums = MetricSums()
    add_three(sums)
    means, by_time = sums.flush()
    assert means == {"fake/loss": 3.0, "student/loss": 5.0} and by_time == {}
    assert sums.flush() == ({}, {})


def test_histograms_give_mean_losses_and_counts():
    sums = MetricSums()
    sums.add(
        {"by_time/count": np.array([[2.0, 0.0], [1.0, 1.0]]), "by_time/loss": np.array([[4.0, 0.0], [5.0, 7.0]])}, 2
    )
    losses, counts = sums.flush()[1][""]
    np.testing.assert_array_equal(counts, [3, 1])
    np.testing.assert_array_equal(losses, [3, 7])


def test_sums_go_through_a_checkpoint():
    sums, again = MetricSums(), MetricSums()
    add_three(sums)
    sums.add({"a/by_time/count": np.ones((1, 2), np.float32), "a/by_time/loss": np.ones((1, 2), np.float32)}, 1)
    again.set_state(sums.get_state())
    first, second = sums.flush(), again.flush()
    assert first[0] == second[0]
    np.testing.assert_array_equal(first[1]["a"], second[1]["a"])

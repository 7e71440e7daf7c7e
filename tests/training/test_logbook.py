"""What the log lines say: means over the updates that a metric had, and the same after a resume."""

import errno
import json
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

from flowjax.evaluation.run_files import LineFile, read_lines, seconds_until
from flowjax.main import main
from flowjax.training import logbook
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


def test_measurements_are_no_training(tmp_path, monkeypatch):
    def slow(*arguments):
        time.sleep(1.0)
        return {"measured": 1.0}, []

    monkeypatch.setattr(logbook, "evaluate", slow)
    changes = ["config.steps=60", "config.when.evaluate.at_percent=(50,)", "config.when.sample.at_percent=(50,)"]
    changes += ["config.when.log.every_steps=30", "config.steps_per_dispatch=10", "config.writers.tensorboard=False"]
    assert main(["--config=configs/points.py:tiny", f"--workdir={tmp_path}", *(f"--{c}" for c in changes)]) == 0
    lines = [line for line in read_lines(tmp_path / "metrics.jsonl") if "loss" in line]
    first, last = lines
    assert first["seconds"] - first["training_seconds"] < 0.01
    assert last["seconds"] - last["training_seconds"] > 1.0
    batch = json.loads((tmp_path / "config.json").read_text())["batch_size"]
    between = last["training_seconds"] - first["training_seconds"]
    assert last["images_per_second"] == pytest.approx(30 * batch / between, rel=0.02)
    assert seconds_until(tmp_path, 60, "training_seconds") == last["training_seconds"] < seconds_until(tmp_path, 60)


NO_ROOM = "RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code='28']"  # as TensorStore says it
QUICK = ["steps=30", "steps_per_dispatch=10", "network.width=16", "evaluators={}", "when.sample.at_percent=()"]
QUICK += ["when.log.every_steps=10", "when.checkpoint.every_steps=10"]


@pytest.mark.parametrize("what, at, whole", [("log", 20, 10), ("save", 10, None), ("write", 30, 20)])
def test_a_full_disk_ends_a_run_in_one_message_and_the_same_command_goes_on(
    tmp_path, monkeypatch, capsys, what, at, whole
):
    lost = []

    def append(lines, line, real=LineFile.append):
        if line["step"] == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(lines, line)

    def save(manager, step, real=ocp.CheckpointManager.save, **options):
        if step < at:
            real(manager, step, **options)
        elif what == "save":
            raise ValueError(NO_ROOM)
        else:
            lost.append(step)

    def wait(manager, real=ocp.CheckpointManager.wait_until_finished):  # where errors of writing in the background show
        real(manager)
        if lost:
            lost.clear()
            raise ValueError(NO_ROOM)

    def run():
        options = [f"--config.{change}" for change in QUICK]
        return main(["--config=configs/points.py:tiny", f"--workdir={tmp_path}", *options])

    with monkeypatch.context() as patch:
        if what == "log":
            patch.setattr(LineFile, "append", append)
        else:
            patch.setattr(ocp.CheckpointManager, "save", save)
            patch.setattr(ocp.CheckpointManager, "wait_until_finished", wait)
        assert run() == 1
    kept = f"The checkpoint of step {whole} is whole" if whole else "There is no whole checkpoint yet"
    goes_on = f"make room, then the same command goes on from {f'step {whole}' if whole else 'the start'}."
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("flowjax: The disk is full: ") and message.endswith(f"{kept}: {goes_on}")
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"
    assert run() == 0
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [10, 20, 30]
    assert f"resuming from step {whole}" in capsys.readouterr().out or whole is None

"""The share of time that the device waits for data: high with a slow source, low with a fast one; what threads do for it."""

import io
import json
import time

import numpy as np
import pytest

from flowjax.config import defaults, schedule
from flowjax.contract import DataSpec
from flowjax.data import SOURCES
from flowjax.data.sources import endless
from flowjax.training.progress import Progress
from flowjax.training.run import Run
from flowjax.training.speed import DeviceClock, data_wait
from flowjax.training.trainer import Trainer

SECONDS = 0.1  # a slow batch
EVERY, STEPS = 6, 18


class Sleepy:
    """Points that take their time."""

    spec, size, oracle, levels = DataSpec((2,)), None, None, None

    def __init__(self, seconds):
        self.seconds = seconds

    def dataset(self, seed, batch_size, start, stop):
        def item(step):
            time.sleep(self.seconds)
            return {"data": np.full((stop - start, 2), step % 7, np.float32)}

        return endless(item)

    def reference(self, split="test", count=None, seed=0):
        return {"data": np.zeros((count or 10, 2), np.float32)}


def shares(workdir, monkeypatch, seconds, threads):
    monkeypatch.setitem(SOURCES, "sleepy", lambda: Sleepy(seconds))
    config = defaults()
    config.update(dict(steps=STEPS, batch_size=8))
    config.data = dict(name="sleepy")
    config.network.width = 16
    config.loader.threads = threads
    never = schedule()
    config.when = dict(log=schedule(every_steps=EVERY), sample=never, evaluate=never, checkpoint=never)
    config.writers.tensorboard = False
    workdir.mkdir()
    Trainer(Run(config, workdir)).train()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = [(line["data_wait"], line["images_per_second"]) for line in lines if "data_wait" in line]
    assert len(found) == STEPS // EVERY and all(0 <= share <= 1 for share, _ in found)
    return zip(*found[1:])  # the first stretch of steps is mostly compilation


def test_a_slow_source_shows_and_a_fast_one_does_not(tmp_path, monkeypatch):
    slow, speed = shares(tmp_path / "slow", monkeypatch, SECONDS, 0)
    fast, _ = shares(tmp_path / "fast", monkeypatch, 0.0, 0)
    assert max(slow) > 0.6 and min(fast) < 0.4
    assert max(speed) < 8 / SECONDS
    page = (tmp_path / "slow" / "report.html").read_text()
    assert "Waiting for data, median" in page and "Share of the time spent waiting for data" in page


def test_threads_make_slow_batches_side_by_side(tmp_path, monkeypatch):
    _, speed = shares(tmp_path / "threads", monkeypatch, SECONDS, 8)
    assert min(speed) > 2 * 8 / SECONDS  # at most 8 / SECONDS without threads


class Slow:
    """A result that is not there yet."""

    def block_until_ready(self):
        time.sleep(SECONDS)
        return self


def test_the_clock_knows_since_when_there_is_nothing_to_do():
    clock, now = DeviceClock(), time.perf_counter
    assert clock.idle(1.0, 3.5) == 2.5  # nothing was sent yet
    began = now()
    clock.sent({"loss": Slow()})
    time.sleep(0.2 * SECONDS)
    assert clock.idle(began, now()) == 0.0
    time.sleep(2 * SECONDS)
    ended = now()
    assert 0.3 * SECONDS < clock.idle(began, ended) < ended - began - 0.9 * SECONDS
    assert clock.idle(ended - 0.5 * SECONDS, ended) == pytest.approx(0.5 * SECONDS)
    clock.close()


def test_the_share_is_a_share():
    assert data_wait(1.0, 4.0) == 0.25 and data_wait(0.0, 0.0) == 0.0 and data_wait(5.0, 4.0) == 1.0


@pytest.mark.parametrize("share, shown", [(0.05, False), (0.32, True)])
def test_the_progress_line_says_so_when_it_matters(share, shown):
    text = Progress(10, plain_every=1.0, stream=io.StringIO())
    text.update(1, {"loss": 1.0, "data_wait": share})
    assert ("waiting for data" in text.text(1, 0.0)) == shown
    if shown:
        assert "32% waiting for data" in text.text(1, 0.0)

"""Writers: what is on disk after a kill, a resume, a clean end; and what the terminal shows."""

import io
import json
import os
import sys
import types

import numpy as np
import pytest

from flowjax.config import ConfigError
from flowjax.evaluation.run_files import read_lines
from flowjax.training.progress import Progress, duration
from flowjax.training.writers import Writers

QUIET = dict(backends={}, terminal=False)


def test_lines_are_on_disk_before_close(tmp_path):
    writers = Writers(tmp_path, **QUIET)
    writers.scalars(3, {"loss": np.float32(0.5), "bad": float("nan")})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["step"] == 3 and line["loss"] == 0.5 and line["bad"] == "NaN" and line["seconds"] >= 0
    writers.close()
    writers.close()


def test_resume_drops_later_steps_and_a_torn_line(tmp_path):
    picture = np.zeros((4, 4, 3), np.uint8)
    with Writers(tmp_path, **QUIET) as writers:
        for step in (10, 20, 30):
            writers.scalars(step, {"loss": step, "seconds": float(step)})
            writers.by_time(step, "train", [0.0, 0.5, 1.0], [1.0, 2.0], [3, 4])
            writers.image(step, "heun", picture)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')
    with Writers(tmp_path, **QUIET) as writers:
        writers.rewind(20)
        writers.scalars(25, {"loss": 25})
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [10, 20, 25]
    assert lines[-1]["seconds"] >= 20.0
    assert [line["step"] for line in read_lines(tmp_path / "by_time.jsonl")] == [10, 20]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["00000010_heun.png", "00000020_heun.png"]


def test_by_time_refuses_bins_that_do_not_match(tmp_path):
    with Writers(tmp_path, **QUIET) as writers, pytest.raises(ValueError, match="3 edges make 2 bins"):
        writers.by_time(1, "train", [0.0, 0.5, 1.0], [1.0], [3, 4])


def test_other_processes_write_nothing(tmp_path):
    with Writers(tmp_path / "run", active=False) as writers:
        writers.scalars(1, {"loss": 1.0})
        writers.by_time(1, "train", [0.0, 1.0], [1.0], [1])
        writers.image(1, "a", np.zeros((2, 2, 3), np.uint8))
        writers.rewind(0)
    assert not (tmp_path / "run").exists()


def test_tensorboard_events_hold_scalars_images_and_the_purge(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    with Writers(tmp_path, terminal=False) as writers:
        writers.rewind(4)
        writers.scalars(5, {"loss": 0.25})
        writers.image(5, "heun", np.zeros((2, 2, 3), np.uint8))
    (path,) = (tmp_path / "events").iterdir()
    raw, events = path.read_bytes(), []
    while raw:  # a record: length (8 bytes), checksum (4), event, checksum (4)
        size = int.from_bytes(raw[:8], "little")
        events.append(Event.FromString(raw[12 : 12 + size]))
        raw = raw[16 + size :]
    values = {value.tag: (event.step, value) for event in events for value in event.summary.value}
    assert values["loss"][0] == 5 and values["loss"][1].simple_value == 0.25
    assert values["heun"][1].image.width == 2
    assert any(event.session_log.status == 1 and event.step == 5 for event in events)  # 1: START, purge from here


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's file that is always full")
def test_events_on_a_full_disk_are_an_error_and_no_endless_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "tensorboardX.record_writer.open_file", lambda path: io.BufferedWriter(io.FileIO("/dev/full", "wb"))
    )
    writers = Writers(tmp_path, terminal=False)
    with pytest.raises(OSError, match="No space left on device"):
        writers.scalars(1, {"loss": 0.25})


@pytest.mark.parametrize("name, extra", [("wandb", "wandb"), ("clu", "tensorflow")])
def test_a_missing_package_names_its_extra(tmp_path, monkeypatch, name, extra):
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(ImportError, match=rf"flowjax-research\[{extra}\]"):
        Writers(tmp_path, backends={name: True}, terminal=False)


class FakeWandb(types.ModuleType):
    """Remembers what it is told; without a key it starts as wandb does: not at all, unless told to stay offline."""

    class Error(Exception):
        pass

    def __init__(self, key=True):
        super().__init__("wandb")
        self.key, self.started, self.lines, self.finished, self.axes = key, [], [], 0, {}

    def init(self, **options):
        self.started.append(options)
        if not self.key and options["mode"] != "offline":
            raise self.Error("No API key configured.")
        return self

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, values):
        self.lines.append(values)

    def finish(self):
        self.finished += 1

    def Image(self, picture):
        return ("picture", picture.shape)


def test_wandb_goes_on_with_one_page_on_our_own_axis(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with Writers(tmp_path, backends={"wandb": True}, terminal=False) as writers:
        assert not fake.started  # not before this process holds the directory
        writers.rewind(0)
        writers.scalars(10, {"loss": 1.0})
        writers.image(10, "heun", np.zeros((2, 3, 3), np.uint8))
    with Writers(tmp_path, backends={"wandb": {"project": "p", "mode": "offline"}}, terminal=False) as writers:
        writers.rewind(5)
        writers.scalars(7, {"loss": 2.0})
    assert fake.finished == 2 and fake.axes == {"step": None, "*": "step"}
    first, second = fake.started
    assert first["id"] == second["id"] == (tmp_path / "wandb_id.txt").read_text()
    assert first["mode"] is None and first["project"] == "flowjax"  # WANDB_MODE decides
    assert second["mode"] == "offline" and second["project"] == "p" and second["resume"] == "allow"
    assert fake.lines == [
        {"loss": 1.0, "step": 10},
        {"heun": ("picture", (2, 3, 3)), "step": 10},
        {"resumed_from": 5, "step": 5},
        {"loss": 2.0, "step": 7},
    ]


def test_wandb_without_a_key_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(key=False))
    writers = Writers(tmp_path, backends={"wandb": True}, terminal=False)
    with pytest.raises(
        ConfigError, match="No API key configured. Run `wandb login`, or .*'mode': 'offline'.*wandb=False"
    ):
        writers.rewind(0)
    assert not (tmp_path / "wandb_id.txt").exists()
    writers.close()


def test_the_real_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for start in (0, 4):
        with Writers(tmp_path, backends={"wandb": True}, terminal=False) as writers:
            writers.rewind(start)
            writers.scalars(start + 5, {"loss": 0.25})
            writers.image(start + 5, "heun", np.zeros((2, 2, 3), np.uint8))
    identity = (tmp_path / "wandb_id.txt").read_text()
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))) >= 1


def test_the_real_clu(tmp_path):
    tensorflow = pytest.importorskip("tensorflow", reason="needs the extra tensorflow")
    with Writers(tmp_path, backends={"clu": True}, terminal=False) as writers:
        assert not (tmp_path / "events_clu").exists()
        writers.rewind(0)
        writers.scalars(5, {"loss": 0.25})
        writers.image(5, "heun", np.zeros((2, 2, 3), np.uint8))
    (path,) = (tmp_path / "events_clu").iterdir()
    events = list(tensorflow.compat.v1.train.summary_iterator(str(path)))
    values = {value.tag: (event.step, value.tensor) for event in events for value in event.summary.value}
    assert values["loss"][0] == 5 and tensorflow.make_ndarray(values["loss"][1]) == 0.25
    assert values["heun"][0] == 5


def test_unknown_backends_and_options_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'tensorboard'"):
        Writers(tmp_path, backends={"tensorbord": True}, terminal=False)
    with pytest.raises(ValueError, match="no option 'projct'.*'project'"):
        Writers(tmp_path, backends={"wandb": {"projct": "x"}}, terminal=False)
    Writers(tmp_path, backends={"wandb": False, "clu": False}, terminal=False).close()


def test_plain_progress_every_few_seconds_with_time_left():
    now, stream = [0.0], io.StringIO()
    progress = Progress(1000, plain_every=10.0, stream=stream, clock=lambda: now[0])
    for step in range(100, 501, 100):
        now[0] += 4.0
        progress.update(step, {"loss": 1.5, "images_per_second": 12345.0, "mfu": 0.417})
    progress.close()
    lines = stream.getvalue().splitlines()
    # 4 s for every 100 steps: at step 400, 600 steps are left, which is 24 s. The last figures are printed on closing.
    assert lines[0] == "step 100/1,000 · loss 1.5 · 12,345 images/s · MFU 41.7%"
    assert lines[1] == "step 400/1,000 · loss 1.5 · 12,345 images/s · MFU 41.7% · ETA 24s"
    assert lines[2].startswith("step 500/1,000") and len(lines) == 3


def test_live_progress_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    progress = Progress(10, plain_every=1.0, stream=stream)
    progress.update(5, {"loss": 0.125})
    progress.close()
    assert "step 5/10 · loss 0.125" in stream.getvalue()


@pytest.mark.parametrize("seconds, text", [(4.2, "4s"), (200, "3m20s"), (7500, "2h05m"), (273600, "3d04h")])
def test_duration(seconds, text):
    assert duration(seconds) == text

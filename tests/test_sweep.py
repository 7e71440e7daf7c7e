"""Sweeps: what the helpers make, how runs are named and launched, and what a sweep leaves."""

import functools
import json
import pathlib
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from flowjax import sweep as hyper
from flowjax.config import ConfigError
from flowjax.evaluation import tables
from flowjax.evaluation.receipts import make_receipt, write_receipt
from flowjax.evaluation.run_files import plain, write_atomically
from flowjax.sweep import __main__ as command_line
from flowjax.sweep import launch, results
from flowjax.sweep.jobs import Job, as_text, label, plan, short_names, telling
from flowjax.sweep.points import points_of

ROOT = pathlib.Path(__file__).parent.parent
POINTS = str(ROOT / "configs" / "points.py")

CONFIG = """
import runpy
get_config = runpy.run_path({points!r})["get_config"]
from flowjax import sweep as hyper

def sweep():
    return {body}
"""


def config_file(folder: pathlib.Path, body: str) -> str:
    file = folder / "swept.py"
    file.write_text(CONFIG.format(points=POINTS, body=body))
    return f"{file}:tiny"


def test_product_varies_the_last_fastest():
    got = hyper.product(hyper.sweep("a", [1, 2]), hyper.fix("b", "x"), hyper.sweep("c", [3, 4]))
    assert got == [
        {"a": 1, "b": "x", "c": 3},
        {"a": 1, "b": "x", "c": 4},
        {"a": 2, "b": "x", "c": 3},
        {"a": 2, "b": "x", "c": 4},
    ]
    assert hyper.product() == [{}]
    assert hyper.product(hyper.sweep("a", []), hyper.fix("b", 1)) == []


def test_zipped_goes_side_by_side_and_chain_one_after_the_other():
    a, b = hyper.sweep("a", [1, 2]), hyper.sweep("b", [3, 4])
    assert hyper.zipped(a, b) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert hyper.chain(a, b) == [{"a": 1}, {"a": 2}, {"b": 3}, {"b": 4}]
    assert hyper.product(hyper.zipped(a, b), hyper.chain(hyper.fix("c", 0), hyper.fix("d", 1)))[1] == {
        "a": 1,
        "b": 3,
        "d": 1,
    }
    with pytest.raises(ValueError, match="one length; got 2, 3"):
        hyper.zipped(a, hyper.sweep("b", range(3)))
    with pytest.raises(ValueError, match="set 'a' in one point: 1 and 5"):
        hyper.product(a, hyper.fix("a", 5))


def test_names_are_short_unique_and_readable():
    assert short_names(["seed", "optimizer.learning_rate", "coupling.name", ":preset"]) == {
        "seed": "seed",
        "optimizer.learning_rate": "learning_rate",
        "coupling.name": "coupling",
        ":preset": "preset",
    }
    assert telling([{"steps": 5, "seed": 0}, {"steps": 5, "seed": 1}]) == ["seed"]
    assert telling([{"steps": 5}, {"steps": 5, "seed": 1}]) == ["seed"]
    assert telling([{"steps": 5, "seed": 1}]) == ["steps", "seed"]
    assert short_names(["a.width", "b.width"]) == {"a.width": "a.width", "b.width": "b.width"}
    assert label(dict(name="vp", beta_max=15.0)) == "vp(beta_max=15.0)"
    assert [as_text(v) for v in ("vp", "1", "none", 0.5, True, dict(name="vp"))] == [
        "vp",
        "'1'",
        "'none'",
        "0.5",
        "True",
        "{'name': 'vp'}",
    ]


def test_jobs_have_deterministic_names_that_follow_the_whole_config(tmp_path):
    body = "hyper.product(hyper.sweep(':preset', ['sd3', 'v']), hyper.sweep('optimizer.learning_rate', [1e-3, 3e-3]))"
    config = config_file(tmp_path, body)
    jobs, again = plan(config, [], tmp_path / "out"), plan(config, [], tmp_path / "out")
    assert [job.name for job in jobs] == [job.name for job in again]
    assert [job.name.rsplit("-", 1)[0] for job in jobs] == [
        "preset=sd3,learning_rate=0.001",
        "preset=sd3,learning_rate=0.003",
        "preset=v,learning_rate=0.001",
        "preset=v,learning_rate=0.003",
    ]
    assert jobs[0].config_argument.endswith("swept.py:tiny,preset=sd3")
    assert jobs[0].config["time"]["name"] == "logit_normal"
    assert "--config.optimizer.learning_rate=0.001" in jobs[0].command
    longer = plan(config, ["steps=80"], tmp_path / "out")
    assert not {job.name for job in longer} & {job.name for job in jobs}
    assert longer[0].config["steps"] == 80


def test_points_that_mean_the_same_config_are_run_once(tmp_path):
    body = "hyper.chain(hyper.sweep('seed', [0, 1]), hyper.fix('coupling', dict(name='independent')))"
    assert len(plan(config_file(tmp_path, body), [], tmp_path)) == 2  # seed 0 is the default


def test_every_mistake_is_told_before_anything_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(launch, "start_process", lambda *_: pytest.fail("launched"))
    wrong = "hyper.fix('sede', 1), hyper.fix('path.name', 'lineer'), hyper.fix(':preset', 'edn')"
    body = f"hyper.chain(hyper.fix('seed', 0), {wrong})"
    config = config_file(tmp_path, body)
    assert command_line.main(["--config", config, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "3 of 4 points cannot be run" in told
    for words in ("Did you mean 'seed'", "Did you mean 'linear'", "Did you mean 'edm'"):
        assert words in told
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="'seed' is set by the sweep and by --config.seed"):
        plan(config_file(tmp_path, "hyper.sweep('seed', [1])"), ["seed=2"], tmp_path)


def test_points_that_cannot_be_run_are_left_out_where_that_is_asked_for(tmp_path, capsys):
    body = "hyper.chain(hyper.fix('seed', 0), hyper.fix('path.name', 'lineer'))"
    arguments = ["--config", config_file(tmp_path, body), "--out", str(tmp_path / "out"), "--skip-refused", "--dry-run"]
    assert command_line.main(arguments) == 0
    printed = capsys.readouterr()
    assert "left out, because they cannot be run: 1\n  path=lineer: Unknown path" in printed.err
    assert printed.out.count("python") == 1
    assert command_line.main(["--config", config_file(tmp_path, "hyper.fix('sede', 1)"), *arguments[2:]]) == 2
    assert "1 of 1 points cannot be run" in capsys.readouterr().err


def test_a_config_file_needs_a_sweep_of_its_own(tmp_path):
    module = types.ModuleType("config")
    module.sweep = hyper.sweep  # imported, not its own
    with pytest.raises(ConfigError, match="has no function sweep"):
        points_of(module, "config.py")
    exec("def get_hyper(hyper):\n    return hyper.sweep('seed', [1, 2])", module.__dict__)
    assert points_of(module, "config.py") == [{"seed": 1}, {"seed": 2}]


def test_workers_share_cores_and_gpus():
    env = launch.worker_environments(0, 10, 8, [], {"HOME": "h"})
    assert len(env) == 8 and {e["PJRT_NPROC"] for e in env} == {"1"} and env[0]["HOME"] == "h"
    assert launch.worker_environments(2, 10, 8, [], {"PJRT_NPROC": "3"})[0]["PJRT_NPROC"] == "3"
    assert len(launch.worker_environments(4, 2, 8, [], {})) == 2
    shared = launch.worker_environments(3, 9, 8, ["0", "1"], {})
    assert [e["CUDA_VISIBLE_DEVICES"] for e in shared] == ["0", "1", "0"]
    assert shared[0]["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.450" and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in shared[1]
    assert len(launch.worker_environments(0, 9, 8, ["0", "1"], {})) == 2


class StubProcess:
    """A run in no time: writes what a run leaves, or a log of a failure."""

    def __init__(self, job, environment):
        job.directory.mkdir(parents=True, exist_ok=True)
        self.code = 1 if job.config["seed"] == 1 else 0
        if self.code:
            job.log.write_text("starting\nValueError: the loss is a cat\n")
            return
        (job.directory / "config.json").write_text(json.dumps(job.config))
        # As runs do: the launcher reads the states of others while one ends.
        write_atomically(job.directory / "status.json", json.dumps(dict(state="finished", step=60)))
        rate = job.config["optimizer"]["learning_rate"]
        line = dict(step=60, seconds=2.0, loss=rate)
        (job.directory / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        about = dict(config=job.config, config_path="config.json", seed=job.config["seed"], images_seen=1, seconds=2.0)
        about |= dict(sampler="heun", nfe=40, guidance_scale=None, ema="ema", evaluator="e", samples=10)
        for step, value in ((30, 99.0), (60, 1000 * rate + job.config["seed"])):
            write_receipt(job.directory / "receipts", make_receipt("distance", value, step=step, **about))

    def wait(self, timeout=None):
        return self.code


def test_failed_runs_are_told_finished_ones_are_kept_and_the_table_is_made(tmp_path, capsys, monkeypatch):
    started = []

    def start(job, environment):
        started.append(job.name)
        return StubProcess(job, environment)

    monkeypatch.setattr(launch, "start_process", start)
    body = "hyper.product(hyper.sweep('optimizer.learning_rate', [1e-3, 3e-3]), hyper.sweep('seed', [0, 1, 2]))"
    arguments = ["--config", config_file(tmp_path, body), "--out", str(tmp_path / "out"), "--workers", "2"]
    assert command_line.main(arguments) == 1
    assert len(started) == 6
    told = capsys.readouterr()
    assert told.err.count("ValueError: the loss is a cat") == 2 and "seed=1" in told.err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert sorted(run["state"] for run in manifest["runs"]) == ["finished"] * 4 + ["new"] * 2

    # Means and standard deviations over seeds 0 and 2: 1 and 3 -> 2 ± 1.41, 3 and 5 -> 4 ± 1.41; step 30 is left out.
    page = (tmp_path / "out" / "results.md").read_text()
    rows = [line.split(" | ")[:2] for line in page.splitlines() if line.startswith("| 0.00")]
    assert rows == [["| 0.001", "2 ± 1.41"], ["| 0.003", "4 ± 1.41"]]
    assert (tmp_path / "out" / "results.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "out" / "receipts").glob("distance*.json"))) == 4
    assert tables.main([str(tmp_path / "out" / "results.md"), "--check"]) == 0

    started.clear()
    assert command_line.main(arguments) == 1
    assert len(started) == 2 and all("seed=1" in name for name in started)  # the finished ones are not run again


def test_choosing_runs_keeps_the_results_of_the_others(tmp_path, capsys, monkeypatch):
    started = []

    def start(job, environment):
        started.append(job.config["seed"])
        return StubProcess(job, environment)

    monkeypatch.setattr(launch, "start_process", start)
    out = tmp_path / "out"
    body = "hyper.product(hyper.sweep('optimizer.learning_rate', [1e-3, 3e-3]), hyper.sweep('seed', [0, 2]))"
    arguments = ["--config", config_file(tmp_path, body), "--out", str(out), "--workers", "1"]

    def table():
        return [
            line.split(" | ")[:2] for line in (out / "results.md").read_text().splitlines() if line.startswith("| 0.0")
        ]

    assert command_line.main([*arguments, "--only", "*seed=2*"]) == 0
    assert started == [2, 2] and table() == [["| 0.001", "3"], ["| 0.003", "5"]]
    assert command_line.main([*arguments, "--only", "*seed=0*"]) == 0
    assert started == [2, 2, 0, 0] and table() == [["| 0.001", "2 ± 1.41"], ["| 0.003", "4 ± 1.41"]]
    assert command_line.main([*arguments, "--only", "*rate=0.001,seed=2*"]) == 0  # finished already: nothing to run
    assert len(started) == 4 and table() == [["| 0.001", "2 ± 1.41"], ["| 0.003", "4 ± 1.41"]]
    assert len(list((out / "receipts").glob("distance*.json"))) == 4
    # An unfinished run leaves the table until it is finished again.
    (unfinished,) = (out / "runs").glob("learning_rate=0.003,seed=2*")
    (unfinished / "status.json").write_text(json.dumps(dict(state="stopped", step=30)))
    assert command_line.main([*arguments, "--only", "*rate=0.001*"]) == 0
    assert table() == [["| 0.001", "2 ± 1.41"], ["| 0.003", "3"]]


def test_a_run_that_its_watchdog_has_ended_is_told_of_and_not_started_again(tmp_path, capsys, monkeypatch):
    started = []

    class Watched(StubProcess):
        """It finishes, or of seed 1 is ended by its watchdog."""

        def __init__(self, job, environment):
            super().__init__(job, environment)
            if job.config["seed"] == 1:
                about = dict(state="stopped", step=30, message="the watchdog saw it", watched=dict(gain=1.0))
                (job.directory / "status.json").write_text(json.dumps(about))
                (job.directory / "config.json").write_text(json.dumps(plain(job.config)))
                self.code = 143

    monkeypatch.setattr(launch, "start_process", lambda *given: started.append(given) or Watched(*given))
    body = "hyper.sweep('seed', [0, 1])"
    arguments = ["--config", config_file(tmp_path, body), "--out", str(tmp_path / "out"), "--workers", "1"]
    for count in (2, 0):
        assert command_line.main(arguments) == 0
        told = capsys.readouterr()
        assert "was ended by its watchdog at step 30: the watchdog saw it" in told.err and "seed=1" in told.err
        assert len(started) == count and (": ended after" in told.out) == (count > 0)
        started.clear()
    assert "1 finished before, 1 ended by their watchdogs, 0 to run" in told.out
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [run["state"] for run in manifest["runs"]] == ["finished", "ended"]


def test_ctrl_c_ends_the_children_and_starts_no_more(tmp_path):
    body = "hyper.sweep('seed', [0, 1, 2])"
    jobs = plan(config_file(tmp_path, body), [], tmp_path / "out")
    began, children = threading.Event(), []

    def start(job, environment):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        children.append(child)
        began.set()
        return child

    def press():
        began.wait()
        time.sleep(0.2)
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        launch.run_locally(jobs, [{}], start=start)
    assert len(children) == 1 and children[0].wait(5) == -signal.SIGTERM


def test_slurm_without_submitit_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    arguments = ["--config", config_file(tmp_path, "hyper.fix('seed', 3)"), "--out", str(tmp_path / "out")]
    assert command_line.main([*arguments, "--launcher", "slurm"]) == 2
    assert "pip install 'flowjax-research[sweep]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_pattern_that_matches_nothing_is_told_of_the_one_that_would(tmp_path, capsys):
    body = "hyper.sweep('seed', [0, 1, 2])"
    arguments = ["--config", config_file(tmp_path, body), "--out", str(tmp_path / "out")]
    assert command_line.main([*arguments, "--only", "seed=1"]) == 2
    told = capsys.readouterr().err
    assert "No run matches --only 'seed=1'. Did you mean '*seed=1*', which matches 1?" in told and "\n  seed=2-" in told


@pytest.fixture
def submitit():
    return pytest.importorskip("submitit", reason="needs the extra sweep")


def test_slurm_arrays_run_report_and_fail_one_by_one(submitit, tmp_path, capsys, monkeypatch):
    """The launcher 'slurm' on submitit's local cluster: pickled, run by real processes, and collected."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(launch, "run_on_slurm", functools.partial(launch.run_on_slurm, cluster="local"))
    body = "hyper.product(hyper.sweep('optimizer.learning_rate', [1e-3, 1e30]), hyper.fix('optimizer.clip_norm', None))"
    arguments = ["--config", config_file(tmp_path, body), "--out", str(tmp_path / "out"), "--launcher", "slurm"]
    assert command_line.main([*arguments, "--config.steps=20", "--slurm", "timeout_min=5", "slurm_partition=any"]) == 1
    told = capsys.readouterr()
    assert "learning_rate=0.001" in told.out and ": finished after" in told.out and ": failed after" in told.out
    assert "Training stopped at step" in told.err and "learning_rate=1e+30" in told.err
    assert "1 runs." in (tmp_path / "out" / "results.md").read_text()


class WaitForSignal(Job):
    """It says that it is up, and ends when it is asked to."""

    @property
    def command(self):
        script = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); print('up', flush=True)"
        return [sys.executable, "-c", f"{script}; time.sleep(60)"]


def test_a_task_is_stopped_from_a_signal_handler_and_queued_again(tmp_path, monkeypatch):
    """submitit calls checkpoint() in a signal handler, on top of the frame that waits for the process."""
    helpers = types.SimpleNamespace(DelayedSubmission=lambda task: task)
    monkeypatch.setitem(sys.modules, "submitit", types.SimpleNamespace(helpers=helpers))
    job = WaitForSignal("job", {}, "", (), tmp_path, {})
    task, queued = launch.SlurmTask(job), []

    def press():
        while not job.log.exists() or "up" not in job.log.read_text():
            time.sleep(0.02)
        signal.raise_signal(signal.SIGUSR2)

    previous = signal.signal(signal.SIGUSR2, lambda *_: queued.append(task.checkpoint()))
    try:
        threading.Thread(target=press, daemon=True).start()
        began = time.monotonic()
        assert task() == 143
    finally:
        signal.signal(signal.SIGUSR2, previous)
    assert time.monotonic() - began < launch.GRACE / 2  # it was not killed
    assert len(queued) == 1 and queued[0] is not task and queued[0].job is job


def test_nodes_get_the_environment_of_the_user(tmp_path, monkeypatch):
    """Looking at configs happens on the CPU, but what Slurm hands on to the nodes must not say so."""
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    seen = []

    def run_on_slurm(jobs, *_):
        seen.append(dict(launch.os.environ))
        return []

    monkeypatch.setitem(sys.modules, "submitit", types.ModuleType("submitit"))
    monkeypatch.setattr(launch, "run_on_slurm", run_on_slurm)
    arguments = ["--config", config_file(tmp_path, "hyper.fix('seed', 3)"), "--out", str(tmp_path / "out")]
    assert command_line.main([*arguments, "--launcher", "slurm"]) == 0
    assert len(seen) == 1 and "JAX_PLATFORMS" not in seen[0]


def test_bars_where_nothing_swept_is_a_number(tmp_path):
    results.bars(tmp_path / "bars.png", {"a": [1.0, 2.0], "b": [3.0]}, "distance", "title")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_a_real_run_is_stopped_resumed_and_then_left_alone(tmp_path, capsys, monkeypatch):
    """Two real processes: the first is stopped after its first checkpoint, the second ends the same run."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.chdir(ROOT)
    body = "hyper.fix('seed', 3)"
    overrides = ["when.checkpoint.every_steps=100", "steps=3000", "when.evaluate.at_percent=(100,)"]
    config = config_file(tmp_path, body)
    (job,) = plan(config, overrides, tmp_path / "out")

    environment = launch.worker_environments(1, 1, 1, [], dict(launch.os.environ))[0]
    process = launch.start_process(job, environment)
    deadline = time.monotonic() + 120
    while not (job.directory / "checkpoints" / "100").exists() and time.monotonic() < deadline:
        assert process.poll() is None, job.log.read_text()
        time.sleep(0.05)
    launch.end([process])
    assert launch.outcome(job, process.returncode, 0.0).state == "stopped", job.log.read_text()

    arguments = ["--config", config, "--out", str(tmp_path / "out"), *(f"--config.{item}" for item in overrides)]
    assert command_line.main(arguments) == 0
    assert "resuming from step" in job.log.read_text()
    assert "| points mixture rectified flow tiny |" in (tmp_path / "out" / "results.md").read_text()
    capsys.readouterr()
    assert command_line.main(arguments) == 0
    assert "1 finished before, 0 to run" in capsys.readouterr().out

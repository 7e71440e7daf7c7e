"""Two real processes on one machine train as one: the same numbers as a single process with as many devices."""

import json
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
from test_runs import ROOT, SMALL, command, digest, environment, metrics, run

SHORT = ["--config.steps=20", "--config.when.log.every_steps=5", "--config.when.sample.at_percent=(100,)"]


def launch_two(workdir, *arguments):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    started = []
    for index in range(2):
        where = [f"--coordinator=localhost:{port}", "--processes=2", f"--process={index}"]
        line = command(workdir, *SMALL, *SHORT, *where, *arguments)
        started.append(
            subprocess.Popen(
                line, cwd=ROOT, env=environment(2), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    return started


def end_of(started):
    try:
        outputs = [process.communicate(timeout=400)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], outputs


def start_two(workdir, *arguments):
    return end_of(launch_two(workdir, *arguments))


@pytest.mark.parametrize("arguments", [[], ["--config.sharding=zero3"]], ids=["replicated", "zero3"])
def test_two_processes_of_two_devices_are_one_of_four(tmp_path, arguments):
    codes, outputs = start_two(tmp_path / "two", *arguments)
    assert codes == [0, 0], outputs
    single = run(tmp_path / "one", *SHORT, *arguments, devices=4)
    assert single.returncode == 0, single.stderr
    ours, theirs = metrics(tmp_path / "two"), metrics(tmp_path / "one")
    keep = lambda lines: [[line[k] for k in ("step", "loss", "grad_norm")] for line in lines if "loss" in line]
    np.testing.assert_allclose(keep(ours), keep(theirs), rtol=1e-5)
    assert digest(tmp_path / "two")[0] == 20
    evaluated = lambda lines: [line["eval/sliced_w2"] for line in lines if "eval/sliced_w2" in line]
    np.testing.assert_allclose(evaluated(ours), evaluated(theirs), rtol=1e-3)


def test_sigterm_to_one_process_saves_and_ends_both_and_the_same_command_goes_on(tmp_path):
    """The processes agree on a step at which both stop: one that went on would wait for the other for ever."""
    long = ["--config.steps=100000", "--config.optimizer.decay=constant", "--config.when.checkpoint.every_steps=30"]
    long += ["--config.when.checkpoint.at_percent=()", "--config.evaluators={}"]
    saved = lambda: [int(path.name) for path in (tmp_path / "run" / "checkpoints").glob("*") if path.name.isdigit()]
    started = launch_two(tmp_path / "run", *long)
    deadline = time.monotonic() + 200
    while not saved() and time.monotonic() < deadline and all(process.poll() is None for process in started):
        time.sleep(0.05)
    started[1].send_signal(signal.SIGTERM)
    codes, outputs = end_of(started)
    assert codes == [143, 143], outputs
    told = [line for line in outputs[0].splitlines() if line.startswith("flowjax: ")]
    assert len(told) == 1 and "the same command goes on from here" in told[0], outputs
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "stopped" and status["step"] == max(saved()) and f"step {status['step']}" in told[0]
    codes, outputs = start_two(tmp_path / "run", *long[1:], f"--config.steps={status['step'] + 10}")
    assert codes == [0, 0] and f"resuming from step {status['step']}" in outputs[0], outputs


def test_pmap_with_several_processes_is_refused(tmp_path):
    codes, outputs = start_two(tmp_path / "run", "--config.parallel=pmap")
    assert codes == [2, 2], outputs
    for output in outputs:
        lines = [line for line in output.splitlines() if line.strip()]
        assert lines == ["flowjax: parallel='pmap' works within one process. With several, use parallel='jit'."], output
    assert not (tmp_path / "run").exists()

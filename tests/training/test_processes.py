"""Two real processes on one machine train as one: the same numbers as a single process with as many devices."""

import socket
import subprocess

import numpy as np
import pytest
from test_runs import ROOT, SMALL, command, digest, environment, metrics, run

SHORT = ["--config.steps=20", "--config.when.log.every_steps=5", "--config.when.sample.at_percent=(100,)"]


def start_two(workdir, *arguments):
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
    outputs = [process.communicate(timeout=400)[0] for process in started]
    return [process.returncode for process in started], outputs


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

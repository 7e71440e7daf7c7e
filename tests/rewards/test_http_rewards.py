"""Rewards behind HTTP, both ends together: the server of flowjax.rewards.serve, and servers that do everything wrong."""

import contextlib
import functools
import http.server
import io
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import host_functions
import numpy as np
import pytest

from flowjax.rewards import REWARDS, RewardMistake, make_rewards
from flowjax.rewards.remote import pack, read_scores, unpack
from flowjax.rewards.serve import main, make_server

SAMPLES = np.array([[1.0, 2.0], [-1.0, 0.5], [0.0, 0.0]], np.float32)
LABELS = np.array([10, 20, 30])


@contextlib.contextmanager
def running(server):
    """A server at work, and its address."""
    with server:
        threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def serving(function, limit=1 << 20, **options):
    return running(make_server(functools.partial(function, **options), "127.0.0.1", 0, limit))


def replying(text, status=200, delay=0.0):
    """A server that says the same to everybody."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(delay)
            self.send_response(status)
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(text)

        def log_request(self, *arguments):
            pass

    return running(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))


def scored(url, failures="stop", samples=SAMPLES, **options):
    rewards = make_rewards({"own": dict(name="http", url=url, **options)}, REWARDS, failures)
    return rewards.score(samples, {"label": LABELS})["own"]


def test_samples_go_and_scores_come_back():
    with serving(host_functions.first, scale=0.5) as url:
        np.testing.assert_array_equal(scored(url), 0.5 * SAMPLES[:, 0] + LABELS)
        np.testing.assert_array_equal(scored(url, batch=2), 0.5 * SAMPLES[:, 0] + LABELS)
    with serving(host_functions.nan_for_negative) as url:
        np.testing.assert_array_equal(scored(url), [11, 19, 30])
        np.testing.assert_array_equal(scored(url, samples=SAMPLES - 30), [np.nan, np.nan, 0])


def test_a_server_that_is_not_there_stops_or_is_skipped(capsys):
    with serving(host_functions.first) as url:
        pass
    with pytest.raises(
        RuntimeError, match=f"The reward 'own' failed: {url} cannot be reached.* refused.*Does its server run"
    ):
        scored(url)
    assert np.isnan(scored(url, "skip")).all()
    assert "3 samples are left out" in capsys.readouterr().err


def test_a_function_that_raises_is_tried_again_and_told(tmp_path, capsys):
    with serving(host_functions.fails_first, file=str(tmp_path / "calls")) as url:
        with pytest.raises(
            RuntimeError, match="replied 500 Internal Server Error: ConnectionError: not yet. It was tried 2"
        ):
            scored(url, retries=1)
        np.testing.assert_array_equal(scored(url, retries=1), [11, 19, 30])
    assert "raise ConnectionError" in capsys.readouterr().err  # the server says where


def test_a_server_that_hangs_is_given_up():
    with replying(b'{"scores": [1, 2, 3]}', delay=1.5) as url:
        began = time.perf_counter()
        with pytest.raises(
            TimeoutError, match=r"gave no reply for 3 samples within timeout=0.2 s. It was tried 2 times"
        ):
            scored(url, timeout=0.2, retries=1)
        assert time.perf_counter() - began < 1.2
        assert np.isnan(scored(url, "skip", timeout=0.2)).all()


@pytest.mark.parametrize("failures", ["stop", "skip"])
@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        (b"not here", 404, "replied 404 Not Found: not here"),
        (b"no JSON", 200, "replied 'no JSON'; expected JSON"),
        (b"[1, 2, 3]", 200, "expected JSON"),
        (b'{"score": [1, 2, 3]}', 200, "expected JSON"),
        (b'{"scores": [1, 2]}', 200, r"shape \(2,\) for 3 samples"),
        (b'{"scores": [1, 2, "many"]}', 200, "expected one real number"),
        (b'{"scores": 1}', 200, r"shape \(\) for 3 samples"),
    ],
)
def test_a_wrong_reply_is_always_an_error_and_never_asked_for_again(text, status, message, failures):
    with replying(text, status) as url, pytest.raises(RewardMistake, match=f"The reward 'own' is wrong: .*{message}"):
        scored(url, failures, retries=1)


def test_the_server_says_what_is_wrong_with_a_request():
    with (
        serving(host_functions.too_short) as url,
        pytest.raises(RewardMistake, match=r"422 .*shape \(2,\) for 3 samples"),
    ):
        scored(url)
    with (
        serving(host_functions.first, limit=500) as url,
        pytest.raises(RewardMistake, match="413 .* 500 are allowed. Use a"),
    ):
        scored(url)
    file = io.BytesIO()
    np.savez(file, samples=np.array([None, None]))
    with serving(host_functions.first) as url:
        for body, message in ((b"hello", "no .npz file"), (file.getvalue(), "Object arrays cannot be loaded")):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, body, timeout=10)
            assert caught.value.code == 400 and message in caught.value.read().decode()
            caught.value.close()


def test_a_request_is_arrays_and_nothing_else():
    samples, cond = unpack(pack(SAMPLES, {"file": LABELS, "words": np.array(["a", "bb", ""])}), 1 << 20)
    np.testing.assert_array_equal(samples, SAMPLES)
    assert cond.keys() == {"file", "words"} and list(cond["words"]) == ["a", "bb", ""]
    with np.load(io.BytesIO(pack(SAMPLES, {"label": LABELS})), allow_pickle=False) as file:  # what other programs see
        assert set(file) == {"samples", "label"} and file["samples"].dtype == np.float32
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        pack(SAMPLES, {"words": np.array([None, 1, 2])})
    with pytest.raises(RewardMistake, match="A condition is named 'samples'"):
        pack(SAMPLES, {"samples": SAMPLES})
    zeros = io.BytesIO()
    np.savez_compressed(zeros, samples=np.zeros((1, 1 << 20)))  # small on its way, large when it is there
    assert len(zeros.getvalue()) < 1 << 16
    with pytest.raises(ValueError, match="bytes, and 65,536 are allowed"):
        unpack(zeros.getvalue(), 1 << 16)
    for arrays, message in (
        (dict(data=SAMPLES), "no array 'samples', only data"),
        (dict(samples=SAMPLES, n=3), "'n' has"),
    ):
        file = io.BytesIO()
        np.savez(file, **arrays)
        with pytest.raises(ValueError, match=message):
            unpack(file.getvalue(), 1 << 20)
    np.testing.assert_array_equal(read_scores(b'{"scores": [1.5, null, 2]}', 3, "it"), [1.5, np.nan, 2])


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="expected one such as 'http://127.0.0.1:8000'"):
        make_rewards({"own": dict(name="http", url=url)}, REWARDS)


def test_one_command_puts_a_function_behind_http(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("def score(samples, cond, scale):\n    return scale * samples[:, 1]\n")
    command = [sys.executable, "-m", "flowjax.rewards.serve", "--function=mine:score", "--port=0"]
    command += ["--options", json.dumps(dict(scale=2))]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline()
            assert line.startswith("mine:score on http://127.0.0.1:")
            np.testing.assert_array_equal(scored(line.split()[2]), 2 * SAMPLES[:, 1])
        finally:
            server.terminate()
    assert main(["--function=no_such_module:score"]) == 2
    assert "cannot be imported: No module named" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--function=host_functions:first", "--options=[1]"])
    assert "expected a JSON object" in capsys.readouterr().err

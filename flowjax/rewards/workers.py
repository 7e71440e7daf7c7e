"""A pool of processes that call a function of the host, each of which can be ended when it hangs.

Processes are started afresh, never forked: JAX has threads, and a fork would copy their locks. They start when they are first
needed, make the function once, and answer one call at a time (worker.py). One that does not answer in time is killed, and the
next call starts another in its place. They end with the pool and with the program; if the program is killed, by themselves.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import queue
import subprocess
import sys
import weakref
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from flowjax.rewards.calls import Conditions, RewardMistake, checked

PROGRAM = pathlib.Path(__file__).with_name("worker.py")
STARTING = 600.0  # seconds in which a process must have imported and made its function
ENDING = 1.0  # seconds in which a process that closed its connection must be gone


@dataclasses.dataclass(frozen=True, eq=False)
class _Worker:
    process: subprocess.Popen
    connection: Connection

    def end(self) -> int:
        """Kills the process, waits until it is gone, and returns its exit code."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()


class Workers:
    """Processes that call one function; any number of threads may ask."""

    def __init__(self, function: str, options: Mapping[str, Any], processes: int):
        """Remembers what to start; nothing is started yet.

        Args:
          function: 'package.module:callable'.
          options: keyword arguments.
          processes: the most at a time.
        """
        self._function, self._options = function, dict(options)
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()  # None: a place where no process runs
        for _ in range(processes):
            self._idle.put(None)
        self._running: set[_Worker] = set()
        weakref.finalize(self, _end, self._running)

    def score(self, samples: Shaped[np.ndarray, "b ..."], cond: Conditions, timeout: float) -> Float[np.ndarray, " b"]:
        """The function's scores, from the first process that is free.

        Args:
          samples: of one call.
          cond: their conditions.
          timeout: seconds for the call; waiting for a free process, or for one to start, does not count.
        """
        worker = self._idle.get()
        try:
            worker = worker or self._start()
            late = (
                f"'{self._function}' gave no scores for {len(samples)} samples within timeout={timeout:g} s; its process "
                "was ended. Allow more seconds, or make batch smaller."
            )
            reply = self._reply(worker, (samples, dict(cond)), timeout, late)
        except BaseException:
            worker = None
            raise
        finally:
            self._idle.put(worker)
        return checked(self._meant(*reply), len(samples), f"'{self._function}'")

    def _start(self) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            # -P: the folder of the program is no place to import from. JAX on the CPU: the accelerator is the training's.
            process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM), str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
            )
        worker = _Worker(process, ours)
        self._running.add(worker)
        late = f"A process of '{self._function}' was not ready within {STARTING:g} s, and was ended."
        reply = self._reply(worker, (sys.path, self._function, self._options), STARTING, late)
        try:
            self._meant(*reply)
        except Exception:
            self._stop(worker)
            raise
        return worker

    def _reply(self, worker: _Worker, message: Any, timeout: float, late: str) -> tuple:
        """What a process says to a message. One that says nothing is stopped."""
        try:
            worker.connection.send(message)
            if worker.connection.poll(timeout):
                return worker.connection.recv()
            failure = TimeoutError(late)
        except (EOFError, OSError):
            failure = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(ENDING)  # so that it can be told how it ended
        except BaseException:
            self._stop(worker)
            raise
        code = self._stop(worker)
        raise failure or RuntimeError(
            f"The process of '{self._function}' ended with exit code {code} and gave nothing."
        )

    def _stop(self, worker: _Worker) -> int:
        self._running.discard(worker)
        return worker.end()

    def _meant(self, kind: str, said: Any, trace: str = "") -> Any:
        if kind == "odd":
            raise RewardMistake(f"'{self._function}' gave {said}; expected one real number for each sample.")
        if kind == "failed":
            error = RuntimeError(said)
            error.add_note(trace)
            raise error
        return said


def _end(workers: set[_Worker]) -> None:
    for worker in list(workers):
        worker.end()

"""What a process of the pool in workers.py does: makes the function once, then answers one call after another.

It is run as a file, not imported: a process that needs neither JAX nor this package is there in a moment, and small.

    python worker.py FILE_DESCRIPTOR PARENT

Over the connection come the import path, the function's name and its options, and then (samples, cond) for each call. Back go,
a first time once the function is made, "scores" and the array, "odd" and what was given that is no array of numbers, or
"failed", what was raised, and where.
"""

import importlib
import inspect
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np


def reply(call: Callable[[], Any]) -> tuple[Any, ...]:
    """What is sent back for a call.

    Args:
      call: a function of nothing, which gives scores.
    """
    try:
        scores = call()
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}", traceback.format_exc()
    try:
        array = np.asarray(scores)
    except ValueError as error:  # lists of several lengths
        return "odd", f"{type(scores).__name__} that is no array: {error}"
    return ("scores", array) if array.dtype.kind in "fiub" else ("odd", f"{type(scores).__name__} of {array.dtype}")


def follow(parent: int) -> None:
    """Ends this process when the one that started it is gone, even if the function hangs.

    Args:
      parent: its number.
    """
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main(descriptor: str, parent: str) -> None:
    """Answers until nobody can ask any more.

    Args:
      descriptor: of the connection.
      parent: the number of the process that asks.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training, which may want scores before it stops
    threading.Thread(target=follow, args=(int(parent),), daemon=True).start()
    connection = multiprocessing.connection.Connection(int(descriptor))
    path, function, options = connection.recv()
    sys.path[:] = path
    made = []

    def make() -> list:
        module, _, name = function.partition(":")
        found = getattr(importlib.import_module(module), name)
        made.append(found(**options) if inspect.isclass(found) else lambda *given: found(*given, **options))
        return []

    connection.send(reply(make))
    while made:
        try:
            given = connection.recv()
        except EOFError:
            return
        connection.send(reply(lambda given=given: made[0](*given)))


if __name__ == "__main__":
    main(*sys.argv[1:])

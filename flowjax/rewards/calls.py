"""Calls that may fail: made side by side, within a time limit, in parts, and again.

Two kinds of failure are told apart. A call that raises, ends its process or takes too long is tried again, and is passed over
where rewards are made with failures='skip'. Scores of a wrong number or type, or a request that a server refuses, come from a
mistake in a program: they are errors at once, whatever is configured (`RewardMistake`).
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Shaped

T = TypeVar("T")
Conditions = Mapping[str, np.ndarray]
Score = Callable[[np.ndarray, Conditions], np.ndarray]

BACK_OFF, LONGEST = 0.1, 5.0  # seconds before the second try, which double from try to try, and the most


class RewardMistake(ValueError):
    """What no second try mends: always an error."""


def checked(scores: Any, count: int, what: str) -> Float[np.ndarray, " b"]:
    """Scores as float64 [count]; anything but one real number for each sample is a RewardMistake.

    Args:
      scores: what a function gave.
      count: of the samples.
      what: gave it, for the message.
    """
    try:
        array = np.asarray(scores)
    except ValueError as error:  # lists of several lengths
        raise RewardMistake(f"{what} gave {type(scores).__name__} that is no array: {error}") from error
    if array.dtype.kind not in "fiub":
        raise RewardMistake(
            f"{what} gave {type(scores).__name__} of {array.dtype}; expected one real number for each sample, such as "
            f"float32 of shape ({count},)."
        )
    if array.shape != (count,):
        raise RewardMistake(
            f"{what} gave an array of shape {array.shape} for {count} samples; expected one number for each, shape ({count},)."
        )
    return array.astype(np.float64)


def concurrently(calls: Sequence[Callable[[], T]], threads: int | None = None) -> list[T]:
    """Makes calls in threads and returns what they gave, in order.

    The first failure is raised at once, and calls that have not begun are then not made. Threads cannot be ended: those still
    at work are left behind, and do not keep the program from ending.

    Args:
      calls: functions of nothing.
      threads: how many run at a time; all unless told.
    """
    waiting, lock, done = list(enumerate(calls))[::-1], threading.Lock(), queue.SimpleQueue()

    def work() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                place, call = waiting.pop()
            done.put((place, *_made(call)))

    for _ in range(min(len(calls), threads or len(calls))):
        threading.Thread(target=work, daemon=True).start()
    results: list[Any] = [None] * len(calls)
    try:
        for _ in calls:
            place, results[place], error = done.get()
            if error is not None:
                raise error
    finally:
        with lock:
            waiting.clear()
    return results


def within(call: Callable[[], T], timeout: float, late: str) -> T:
    """Makes a call in a thread, which is left behind if it takes longer than it may.

    Args:
      call: a function of nothing.
      timeout: seconds.
      late: what the TimeoutError then says.
    """
    done = queue.SimpleQueue()
    threading.Thread(target=lambda: done.put(_made(call)), daemon=True).start()
    try:
        result, error = done.get(timeout=timeout)
    except queue.Empty:
        raise TimeoutError(late) from None
    if error is not None:
        raise error
    return result


def _made(call: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return call(), None
    except BaseException as error:
        return None, error


def patiently(call: Callable[[], T], retries: int) -> T:
    """Makes a call, and again after a failure, `retries` times at most; the last failure is raised."""
    failures = 0
    while True:
        try:
            return call()
        except RewardMistake:
            raise
        except Exception as error:
            failures += 1
            if failures > retries:
                if not retries:
                    raise
                kind = TimeoutError if isinstance(error, TimeoutError) else RuntimeError
                raise kind(f"{told(error)} It was tried {failures} times.") from error
        time.sleep(min(BACK_OFF * 2 ** (failures - 1), LONGEST))


def told(error: BaseException) -> str:
    """An error in one line: what raised it in this room says itself what was wrong, anything else by its type."""
    text = " ".join(str(error).split())
    text = text if type(error) in (TimeoutError, RuntimeError) and text else f"{type(error).__name__}: {text}"
    return text if text.endswith(".") else f"{text}."


def in_parts(
    score: Score, samples: Shaped[np.ndarray, "b ..."], cond: Conditions, size: int, threads: int = 1
) -> Float[np.ndarray, " b"]:
    """The scores of samples, asked for in parts and joined in order.

    Args:
      score: of a part.
      samples: all of them.
      cond: their conditions, each with one row for each sample.
      size: samples in a part.
      threads: how many parts are asked for at a time.
    """
    for name, array in cond.items():
        if len(array) != len(samples):
            raise RewardMistake(
                f"There are {len(samples)} samples and {len(array)} rows of the condition '{name}'; expected one for each."
            )
    rows = [slice(first, first + size) for first in range(0, len(samples), size)]
    cut = lambda row: lambda: score(samples[row], {name: array[row] for name, array in cond.items()})
    return np.concatenate(concurrently([cut(row) for row in rows], threads)) if rows else np.zeros(0)


def check_limits(kind: str, batch: int | None, timeout: float, retries: int) -> None:
    """Refuses limits of a kind of reward that mean nothing."""
    if (batch is not None and batch < 1) or not timeout > 0 or retries < 0:
        raise ValueError(
            f"The reward '{kind}' has batch={batch}, timeout={timeout} and retries={retries}; expected a batch of 1 or more, "
            "or None, a timeout above 0 seconds, and retries of 0 or more."
        )

"""How well the devices are used: model FLOP utilisation, and the share of time that they wait for data.

Model FLOP utilisation is the operations of updates and rollouts (operations.py) over what the devices could have done in the
time these took. Peaks are the vendors' dense figures for bfloat16 matrix products. On a device that is not listed (any CPU)
there is no figure rather than a guess, unless config.peak_flops says what it can do.
"""

import contextlib
import time
from concurrent.futures import Future, ThreadPoolExecutor

import jax
from jaxtyping import PyTree

PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(device_kind: str) -> float | None:
    """The peak of one device of this kind, by the longest listed name it starts with; None when it is not listed."""
    names = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(names, key=len)] if names else None


def data_wait(waited: float, elapsed: float) -> float:
    """The share of the time in which the devices had nothing to do because a batch was not there: at most 1.

    `waited` sums what `DeviceClock.idle` finds of the time that batches took to come. Where the share is not small, raise
    config.loader.threads, or cache what is slow to make.
    """
    return min(1.0, waited / max(elapsed, 1e-9))


class DeviceClock:
    """Knows since when the devices have done everything they were sent: a thread of its own waits for them."""

    def __init__(self):
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="device-clock")
        self._done: Future | None = None

    def sent(self, arrays: PyTree) -> None:
        """Takes note of what the devices were sent last, by its results."""
        self._done = self._pool.submit(_ready_at, arrays)

    def idle(self, begin: float, end: float) -> float:
        """For how long between two readings of time.perf_counter, the second just now, there was nothing left to do."""
        if self._done is None:
            return end - begin
        return max(0.0, end - max(begin, self._done.result())) if self._done.done() else 0.0

    def close(self) -> None:
        """Lets the thread go."""
        self._pool.shutdown(wait=False)


def _ready_at(arrays: PyTree) -> float:
    with contextlib.suppress(Exception):  # an update that failed is over too; the training loop meets the error itself
        jax.block_until_ready(arrays)
    return time.perf_counter()

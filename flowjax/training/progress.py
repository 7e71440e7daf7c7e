"""The progress line of a run: live on a terminal (rich), a plain line every few seconds elsewhere.

The time left is the steps left over the mean speed since this process started: restored steps cost nothing and are not
counted, and the first update only starts the clock, because compilation is behind it.
"""

import io
import sys
import time
from collections.abc import Mapping

WAIT_SHOWN = 0.1  # the share of time spent waiting for data from which the line says so


def duration(seconds: float) -> str:
    """Seconds as 45s, 3m20s, 2h05m or 3d04h."""
    whole = int(round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


class Progress:
    """Shows step, loss, images/s, time left, and MFU when given.

    Args:
      total_steps: the length of the run, or None.
      plain_every: seconds between lines where there is no terminal.
      stream: where to write; by default standard error.
      clock: seconds, for the tests.
    """

    def __init__(
        self, total_steps: int | None, *, plain_every: float, stream: io.TextIOBase | None = None, clock=time.monotonic
    ):
        self._total = total_steps
        self._every = plain_every
        self._stream = stream or sys.stderr
        self._clock = clock
        self._first: tuple[int, float] | None = None
        self._last_line = -float("inf")
        self._pending = ""
        self._seen: dict[str, float] = {}
        self._live = None
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress

            columns = (BarColumn(bar_width=24), TextColumn("{task.description}"))
            self._live = RichProgress(*columns, console=Console(file=self._stream), refresh_per_second=4)
            self._task = self._live.add_task("compiling", total=total_steps)
            self._live.start()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the newest figures; names not given keep their last value."""
        now = self._clock()
        self._first = self._first or (step, now)
        self._seen.update(values)
        text = self.text(step, now)
        if self._live is not None:
            self._live.update(self._task, completed=step, description=text)
        elif now - self._last_line >= self._every:
            self._print(text)
            self._last_line = now
        else:
            self._pending = text

    def text(self, step: int, now: float) -> str:
        """The line itself."""
        parts = [f"step {step:,}" + (f"/{self._total:,}" if self._total else "")]
        if "loss" in self._seen:
            parts.append(f"loss {self._seen['loss']:.4g}")
        if "images_per_second" in self._seen:
            parts.append(f"{self._seen['images_per_second']:,.0f} images/s")
        if self._seen.get("data_wait", 0.0) >= WAIT_SHOWN:
            parts.append(f"{100 * self._seen['data_wait']:.0f}% waiting for data")
        if "mfu" in self._seen:
            parts.append(f"MFU {100 * self._seen['mfu']:.1f}%")
        first_step, start = self._first or (step, now)
        if self._total and step > first_step and now > start:
            parts.append(f"ETA {duration((self._total - step) * (now - start) / (step - first_step))}")
        return " · ".join(parts)

    def close(self) -> None:
        """Leaves the last figures on the screen."""
        if self._live is not None:
            self._live.stop()
        elif self._pending:
            self._print(self._pending)

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)
        self._pending = ""

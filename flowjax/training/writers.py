"""Where a run's figures go: lines of JSON, TensorBoard, optionally wandb and clu, and a progress line on the terminal.

`metrics.jsonl` and `by_time.jsonl` are the record: plain, line-buffered, complete after a kill. The backends in
BACKENDS are views of the same figures. A resumed run calls `rewind(step)` with the step it restored: everything later
is dropped, and written again. On many hosts only process 0 writes.
"""

import contextlib
import io
import os
import pathlib
import re
import time
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped, UInt8

from flowjax.choices import build
from flowjax.config import ConfigError
from flowjax.evaluation.pictures import encode_png
from flowjax.evaluation.run_files import BY_TIME, EVENTS, METRICS, SAMPLES, LineFile, number, plain, write_atomically
from flowjax.training.progress import Progress


class TensorBoard:
    """TensorBoard event files through tensorboardX, which needs no TensorFlow.

    Its SummaryWriter writes in a thread, which a full disk ends without a word: then its queue fills and the run waits for
    ever. So events are written here, one by one.
    """

    def __init__(self, workdir: str):
        self._directory = os.path.join(workdir, EVENTS)
        self._writer = None
        self._purge_step = None

    def _write(self, step: int, *summaries: Any) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        if self._writer is None:
            os.makedirs(self._directory, exist_ok=True)
            self._writer = EventsWriter(os.path.join(self._directory, "events"))
            if self._purge_step is not None:
                start = SessionLog(status=SessionLog.START)
                self._writer.write_event(Event(wall_time=time.time(), step=self._purge_step, session_log=start))
        for summary in summaries:
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one scalar summary per value."""
        from tensorboardX.summary import scalar

        self._write(step, *(scalar(name, value) for name, value in values.items()))

    def image(self, step: int, name: str, picture: UInt8[np.ndarray, "h w c"]) -> None:
        """Writes one image summary."""
        from tensorboardX.summary import image

        self._write(step, image(name, picture, dataformats="HWC"))

    def rewind(self, step: int) -> None:
        """The next event file tells TensorBoard to forget what older ones say of later steps."""
        self.close()
        self._purge_step = step + 1

    def close(self) -> None:
        """Flushes and closes the event file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


class Clu:
    """clu.metric_writers, which writes event files through TensorFlow."""

    def __init__(self, workdir: str):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow tells of its own start otherwise
        try:
            import tensorflow
            from clu import metric_writers
        except ImportError as error:
            raise ImportError(
                f"The writer 'clu' needs clu, TensorFlow and tensorboard ({error}): run "
                "`pip install 'flowjax-research[tensorflow]'`, or use the writer 'tensorboard', which needs none of them."
            ) from error
        with contextlib.suppress(RuntimeError):  # where TensorFlow is at work already, its devices are set
            tensorflow.config.set_visible_devices([], "GPU")  # it would take the memory of a GPU for itself
        self._make = lambda: metric_writers.SummaryWriter(os.path.join(workdir, "events_clu"))
        self._writer = None

    def _open(self):
        if self._writer is None:
            self._writer = self._make()
        return self._writer

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values as scalar summaries."""
        self._open().write_scalars(step, dict(values))

    def image(self, step: int, name: str, picture: UInt8[np.ndarray, "h w c"]) -> None:
        """Writes one image summary."""
        self._open().write_images(step, {name: picture[None]})

    def rewind(self, step: int) -> None:
        """Event files only grow: the steps after the restored one appear twice, the later writing last."""
        self.close()

    def close(self) -> None:
        """Flushes and closes."""
        if self._writer is not None:
            self._writer.flush()
            self._writer.close()
            self._writer = None


class Wandb:
    """Weights & Biases; the run's id is kept in the run directory, so that a resumed run continues the same page.

    Args:
      workdir: the run directory.
      project: where the page is listed.
      run_name: of the page; empty for one that wandb makes up.
      mode: online, offline, shared or disabled; empty for what WANDB_MODE or wandb's own settings say.
    """

    def __init__(self, workdir: str, project: str = "flowjax", run_name: str = "", mode: str = ""):
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                "The writer 'wandb' needs wandb: run `pip install 'flowjax-research[wandb]'`, or drop it from "
                "the config's writers."
            ) from error
        self._wandb, self._workdir, self._run = wandb, pathlib.Path(workdir), None
        self._options = dict(project=project, name=run_name or None, mode=mode or None)

    def _open(self):
        # Not at construction: by now this process holds the run directory, and no other writes to the page.
        if self._run is None:
            kept = self._workdir / "wandb_id.txt"
            identity = kept.read_text().strip() if kept.exists() else os.urandom(6).hex()
            try:
                self._run = self._wandb.init(dir=str(self._workdir), id=identity, resume="allow", **self._options)
            except self._wandb.Error as error:
                raise ConfigError(
                    f"The writer 'wandb' cannot start: {str(error).strip()} Run `wandb login`, or keep the run on this machine "
                    "with --config.writers.wandb=\"{'mode': 'offline'}\", or turn it off: --config.writers.wandb=False."
                ) from error
            write_atomically(kept, identity)
            # Our own step axis: wandb's counter can only grow, but a resumed run goes back.
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        return self._run

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the values against our step."""
        self._open().log({**values, "step": step})

    def image(self, step: int, name: str, picture: UInt8[np.ndarray, "h w c"]) -> None:
        """Logs one picture against our step."""
        self._open().log({name: self._wandb.Image(picture), "step": step})

    def rewind(self, step: int) -> None:
        """A wandb history only grows: the steps after the restored one are logged twice on the same axis."""
        run = self._open()
        if step:
            run.log({"resumed_from": step, "step": step})

    def close(self) -> None:
        """Finishes the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None


BACKENDS = dict(tensorboard=TensorBoard, wandb=Wandb, clu=Clu)


class Writers:
    """Sends scalars, loss by time and pictures to everything that listens.

    Args:
      workdir: the run directory.
      total_steps: the length of the run, for the progress line; None when it is open-ended.
      backends: name in BACKENDS -> True, False, or a mapping of that backend's options.
      terminal: whether to show progress.
      plain_every: seconds between progress lines when the terminal is no TTY (a log file, a batch job).
      stream: where progress goes; by default standard error.
      active: whether this process writes at all; by default process 0 alone does.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        total_steps: int | None = None,
        backends: Mapping[str, bool | Mapping[str, Any]] = types.MappingProxyType({"tensorboard": True}),
        terminal: bool = True,
        plain_every: float = 10.0,
        stream: io.TextIOBase | None = None,
        active: bool | None = None,
    ):
        self.workdir = pathlib.Path(workdir)
        self.active = jax.process_index() == 0 if active is None else active
        self._backends, self._progress = [], None
        if not self.active:
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._metrics = LineFile(self.workdir / METRICS)
        self._by_time = LineFile(self.workdir / BY_TIME)
        self._start = time.monotonic()
        for name, options in backends.items():
            if options is not False:
                spec = {**({} if options is True else options), "name": name}
                self._backends.append(build("writer", spec, BACKENDS, workdir=str(self.workdir)))
        if terminal:
            self._progress = Progress(total_steps, plain_every=plain_every, stream=stream)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes scalars of a step: one flat line of metrics.jsonl (with `seconds` since the start unless given)."""
        if not self.active:
            return
        values = {
            name: np.asarray(value).item() if hasattr(value, "shape") else value for name, value in values.items()
        }
        seconds = values.pop("seconds", time.monotonic() - self._start)
        self._metrics.append({"step": step, "seconds": round(float(seconds), 3), **values})
        numbers = {name: value for name, raw in values.items() if (value := number(plain(raw))) is not None}
        for backend in self._backends:
            backend.scalars(step, numbers)
        if self._progress is not None:
            self._progress.update(step, numbers)

    def by_time(
        self,
        step: int,
        phase: str,
        edges: Sequence[float] | Shaped[np.ndarray, " edges"],
        loss: Sequence[float] | Shaped[np.ndarray, " n"],
        count: Sequence[float] | Shaped[np.ndarray, " n"],
    ) -> None:
        """Writes the mean loss and the number of examples in each bin of t, since the line before."""
        if not self.active:
            return
        if not len(edges) - 1 == len(loss) == len(count):
            raise ValueError(
                f"Loss by time needs one loss and one count per bin: {len(edges)} edges make {len(edges) - 1} bins, "
                f"but there are {len(loss)} losses and {len(count)} counts."
            )
        self._by_time.append(
            {"step": step, "phase": phase, "edges": list(edges), "loss": list(loss), "count": list(count)}
        )

    def image(self, step: int, name: str, picture: UInt8[np.ndarray, "h w c"]) -> None:
        """Writes a picture to samples/{step:08d}_{name}.png and to the backends."""
        if not self.active:
            return
        safe = re.sub(r"[^\w.=-]+", "-", name)
        write_atomically(self.workdir / SAMPLES / f"{step:08d}_{safe}.png", encode_png(picture))
        for backend in self._backends:
            backend.image(step, name, picture)

    def rewind(self, step: int) -> None:
        """Forgets everything after `step`, the step a resumed run restored."""
        if not self.active:
            return
        self._metrics.rewind(step)
        self._by_time.rewind(step)
        for picture in self.workdir.glob(f"{SAMPLES}/*.png"):
            match = re.match(r"(\d{8,})_", picture.name)
            if match and int(match[1]) > step:
                picture.unlink()
        for backend in self._backends:
            backend.rewind(step)
        last = self._metrics.last()
        # `seconds` goes on from where the restored run was, so that curves over time do not fold back.
        self._start = time.monotonic() - float(last["seconds"] if last else 0.0)

    def close(self) -> None:
        """Flushes and closes everything; safe to call twice."""
        if not self.active:
            return
        self._metrics.close()
        self._by_time.close()
        for backend in self._backends:
            backend.close()
        if self._progress is not None:
            self._progress.close()
        self._backends, self._progress = [], None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

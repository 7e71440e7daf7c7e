"""Where jobs run: in a pool of processes on this machine, or on Slurm through submitit.

Every run is a process of its own, so a crash is its own. N workers share the machine: XLA's thread pools are as large
as PJRT_NPROC says (unset: one thread a core in every process, N times too many), and BLAS reads OMP_NUM_THREADS and
OPENBLAS_NUM_THREADS. On GPUs the workers take turns over the devices, and those on one device share its memory.
"""

import contextlib
import dataclasses
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

from flowjax.sweep.jobs import Job

GRACE = 60.0  # seconds in which an interrupted run may save a checkpoint
TAIL = 15  # lines of the log of a failed run
THREADS = ("PJRT_NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
Environment = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
      job: the job.
      state: finished, failed, stopped (a checkpoint was saved), ended (by its watchdog) or new (never started).
      seconds: of this launch.
      tail: the last lines of its log, when it failed.
    """

    job: Job
    state: str
    seconds: float = 0.0
    tail: str = ""


def core_count() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu_names(environ: Mapping[str, str]) -> list[str]:
    """The GPUs that runs would see, found without starting JAX, which would take their memory."""
    if environ.get("JAX_PLATFORMS", "") == "cpu":
        return []
    if "CUDA_VISIBLE_DEVICES" in environ:
        return [name for name in environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(i) for i, line in enumerate(x for x in listed.stdout.splitlines() if x.startswith("GPU "))]


def worker_environments(
    workers: int, jobs: int, cores: int, gpus: Sequence[str], environ: Mapping[str, str]
) -> list[Environment]:
    """The environment of each worker; what the user has set is left alone.

    Args:
      workers: how many; 0 for one a GPU, or one a core where there is none.
      jobs: how many jobs there are: no more workers than that.
      cores: to be shared.
      gpus: to be shared.
      environ: the environment of this process.
    """
    count = max(1, min(workers or len(gpus) or cores, jobs))
    threads = str(max(1, cores // count))
    environments = []
    for index in range(count):
        added = {name: threads for name in THREADS if name not in environ}
        if gpus:
            added["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
            sharing = len(range(index % len(gpus), count, len(gpus)))
            if sharing > 1 and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in environ:
                added["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / sharing:.3f}"
        environments.append({**environ, **added})
    return environments


def start_process(job: Job, environment: Mapping[str, str]) -> subprocess.Popen:
    """Starts a run in a process group of its own: Ctrl-C on the terminal reaches it only through `end`."""
    job.directory.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        return subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )


def outcome(job: Job, code: int | None, seconds: float) -> Outcome:
    """How a job ended, from its exit status and its status.json."""
    state = job.state()
    if code == 0 and state == "finished":
        return Outcome(job, "finished", seconds)
    if code == 143 and state == "ended":
        return Outcome(job, "ended", seconds)
    if code == 143 or (code is not None and code < 0 and state == "stopped"):
        return Outcome(job, "stopped", seconds)
    lines = job.log.read_text(errors="replace").splitlines() if job.log.exists() else []
    return Outcome(job, "failed", seconds, "\n".join(lines[-TAIL:] or [f"exit status {code}, and no output"]))


def run_locally(
    jobs: Sequence[Job],
    environments: Sequence[Environment],
    report: Callable[[Outcome], None] = lambda outcome: None,
    start: Callable[[Job, Environment], Any] | None = None,
) -> list[Outcome]:
    """Runs every job, one to an environment at a time; a failure does not stop the others.

    Ctrl-C or SIGTERM starts no further job, stops the running ones (they save a checkpoint) and raises
    KeyboardInterrupt.

    Args:
      jobs: what to run, in this order.
      environments: one for each worker.
      report: called with each outcome as it comes.
      start: (job, environment) -> a process: wait(timeout) -> exit status, terminate(), pid; by default
        `start_process`.
    """
    start = start or start_process
    free: queue.SimpleQueue = queue.SimpleQueue()
    for environment in environments:
        free.put(environment)
    running: dict[str, Any] = {}
    lock, stopping = threading.Lock(), threading.Event()

    def one(job: Job) -> Outcome:
        environment, began = free.get(), time.perf_counter()
        try:
            with lock:
                if stopping.is_set():
                    return Outcome(job, "new")
                running[job.name] = start(job, environment)
            code = running[job.name].wait()
            return outcome(job, code, time.perf_counter() - began)
        finally:
            running.pop(job.name, None)
            free.put(environment)

    outcomes = []
    with ThreadPoolExecutor(len(environments)) as pool, _terminated_as_interrupt():
        futures = [pool.submit(one, job) for job in jobs]
        try:
            pending = set(futures)
            while pending:
                # A signal may reach any thread, and Python handles it when the main one wakes: so it wakes by itself.
                ended, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in ended:
                    outcomes.append(future.result())
                    report(outcomes[-1])
        except BaseException:
            with lock:
                stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            end(list(running.values()))
            raise
    return outcomes


def end(processes: Sequence[Any], grace: float = GRACE) -> None:
    """Asks processes to stop, waits, and kills what is left; a second Ctrl-C kills at once."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + grace
    try:
        for process in processes:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the pool as Ctrl-C does."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: signals go elsewhere
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class SlurmTask:
    """What submitit runs on a node: the job's process; when Slurm ends the allocation, it saves and is queued again."""

    def __init__(self, job: Job):
        self.job, self._process = job, None

    def __call__(self) -> int:
        """The exit status of the run."""
        self._process = start_process(self.job, os.environ)
        # submitit calls `checkpoint` in a signal handler, on top of this frame: were this thread in Popen.wait, which holds
        # a lock, the handler could never see the process end.
        threading.Thread(target=self._process.wait, daemon=True).start()
        while self._process.returncode is None:
            time.sleep(0.1)
        return self._process.returncode

    def checkpoint(self) -> Any:
        """Called by submitit before a timeout or a pre-emption: the same run, from the checkpoint it saves now."""
        import submitit

        if self._process is not None:
            end([self._process])
        return submitit.helpers.DelayedSubmission(SlurmTask(self.job))


def import_submitit() -> Any:
    """The package submitit, or what to install."""
    try:
        import submitit
    except ImportError as error:
        raise ImportError(
            "The launcher 'slurm' needs submitit: pip install 'flowjax-research[sweep]'. Or use --launcher local."
        ) from error
    return submitit


def run_on_slurm(
    jobs: Sequence[Job],
    folder: str | os.PathLike,
    at_once: int,
    options: Mapping[str, Any],
    report: Callable[[Outcome], None] = lambda outcome: None,
    cluster: str = "slurm",
) -> list[Outcome]:
    """Submits one Slurm array, waits for it, and cancels it on Ctrl-C.

    Args:
      jobs: what to run.
      folder: for submitit's own files; the nodes must see it and the run directories.
      at_once: how many tasks of the array may run at a time; 0 for all.
      options: submitit's parameters: timeout_min, gpus_per_node, cpus_per_task, mem_gb, slurm_partition, ...
      report: called with each outcome, in the order of the jobs.
      cluster: of submitit: slurm, or local and debug for tests.
    """
    submitit = import_submitit()
    executor = submitit.AutoExecutor(folder=str(folder), cluster=cluster)
    executor.update_parameters(slurm_array_parallelism=at_once or len(jobs), **options)
    began = time.perf_counter()
    with executor.batch():
        tasks = [executor.submit(SlurmTask(job)) for job in jobs]
    outcomes = []
    try:
        for job, task in zip(jobs, tasks):
            try:
                code = task.result()
            except submitit.core.utils.UncompletedJobError:  # killed by Slurm: no exit status
                code = None
            outcomes.append(outcome(job, code, time.perf_counter() - began))
            report(outcomes[-1])
    except BaseException:
        for task in tasks:
            task.cancel()
        raise
    return outcomes

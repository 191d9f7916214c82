"""Run jobs in worker processes that can crash, hang or run out of memory without hurting one another.

The pool is pebble's: it keeps a process for many jobs, gives each job a time limit, kills what hangs and replaces
what died. What it lacks, a memory limit and an end when the parent is killed, a guard thread in each worker adds.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from repro.errors import ReproError

if TYPE_CHECKING:
    import queue

GIB = 2**30
_OUT_OF_MEMORY = 86  # exit status of a worker whose guard saw too much memory in use
_ORPHANED = 87
_END_SECONDS = 15.0  # what the pool's processes get to end by themselves
_WAKE_SECONDS = 0.5  # how long a Ctrl-C can go unseen
_UNUSABLE = "unusable"
_unusable = ""  # in a worker: why nothing can run in it
#: What counts a variant: the task of every measurement that is a table's.
COUNTING = "repro.measure.tasks:measure"


class WorkerError(ReproError):
    """An installation in which no worker can do anything."""


class Job(Protocol):
    """One piece of work: a name to show and plain data for the worker."""

    @property
    def name(self) -> str:
        """What progress shows."""

    def payload(self) -> dict[str, Any]:
        """The job as plain data."""


J = TypeVar("J", bound=Job)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one job may take."""

    seconds: float = 300.0
    memory: int = 6 * GIB

    @property
    def too_slow(self) -> str:
        """The message of a job that was stopped."""
        return f"stopped after {self.seconds:g} s (--timeout)"

    @property
    def too_large(self) -> str:
        """The message of a job that took too much memory."""
        return f"more than {self.memory / GIB:g} GiB of memory (--memory)"


def _guard(parent: int, memory: int) -> None:
    """End this worker when its parent is gone or its memory passes the limit."""
    import psutil

    process = psutil.Process()
    while True:
        if os.getppid() != parent:
            os._exit(_ORPHANED)
        if process.memory_info().rss > memory:
            os._exit(_OUT_OF_MEMORY)
        time.sleep(0.1)


def _start(parent: int, memory: int, threads: int, paths: list[str], task: str) -> None:
    """Prepare a fresh worker: limits first, then the imports that every job needs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.dup2(2, 1)  # what models and libraries print must not spoil the parent's output
    sys.path[:0] = [path for path in paths if path not in sys.path]
    threading.Thread(target=_guard, args=(parent, memory), daemon=True).start()
    if sys.platform == "linux":
        # The guard needs Python to run; a single allocation inside C code does not let it. The kernel's limit on
        # private memory stops that one. What is mapped before any job (libraries, allocator arenas) comes on top.
        import resource

        with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 - procfs
            mapped = int(statm.read().split()[5]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (mapped + memory + 2 * GIB, hard))
    import warnings

    warnings.filterwarnings("ignore")
    try:
        importlib.import_module(task.partition(":")[0])
    except Exception as error:  # an older timm, a torch without its libraries: every job would say so
        global _unusable
        _unusable = f"a worker cannot be started here: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)

    # Tracing makes many small objects that live as long as the job: collecting after it saves a tenth of the time.
    gc.freeze()
    gc.disable()


def _work(task: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Run one job in a worker; whatever the model raises becomes its outcome."""
    if _unusable:
        return {"error": {"reason": _UNUSABLE, "message": _unusable}}
    try:
        module, _, name = task.partition(":")
        outcome: dict[str, Any] = getattr(importlib.import_module(module), name)(payload)
        return outcome
    except MemoryError:
        return {"error": {"reason": "out_of_memory", "message": ""}}
    except ReproError as error:
        return {"error": {"reason": "refused", "message": str(error)}}
    except Exception as error:
        if "can't allocate memory" in str(error) or "out of memory" in str(error):
            return {"error": {"reason": "out_of_memory", "message": ""}}
        first = (str(error).splitlines() or [""])[0]
        return {"error": {"reason": "raised", "message": f"{type(error).__name__}: {first}"}}
    finally:
        gc.collect()


def _outcome(future: Future[dict[str, Any]], limits: Limits) -> dict[str, Any]:
    from pebble import ProcessExpired

    try:
        outcome = future.result()
    except TimeoutError:
        return {"error": {"reason": "timed_out", "message": limits.too_slow}}
    except ProcessExpired as error:
        code = error.exitcode
        if code == _OUT_OF_MEMORY:
            return {"error": {"reason": "out_of_memory", "message": limits.too_large}}
        if code is not None and code < 0:
            message = f"the worker was killed by signal {-code} ({signal.Signals(-code).name})"
        else:
            message = f"the worker ended with exit status {code}"
        return {"error": {"reason": "crashed", "message": message}}
    failure = outcome.get("error")
    if failure is not None and failure["reason"] == "out_of_memory":
        failure["message"] = limits.too_large
    return outcome


def _take(finished: queue.SimpleQueue[T]) -> T:
    """Wait for the next thing, open to Ctrl-C.

    A signal that comes after the last bytecode and before the wait interrupts neither, and a wait without a limit
    would leave it unseen until the next job ends. Sent at once after a printed line, one in a hundred fell there.
    """
    import queue

    while True:
        with contextlib.suppress(queue.Empty):
            return finished.get(timeout=_WAKE_SECONDS)


def _end(pool: Any) -> None:
    """Wait for the pool's processes to end, for a while.

    Every outcome is known or given up by now. The pool's own ``join`` waits without a limit for a thread that reads
    from the workers' pipe; a worker that died in the middle of a message leaves that read waiting for the rest of it.
    The pool's threads are daemons and die with this process; its workers are killed here.
    """
    import multiprocessing

    joining = threading.Thread(target=pool.join, daemon=True)
    joining.start()
    joining.join(_END_SECONDS)
    if joining.is_alive():
        for process in multiprocessing.active_children():
            process.kill()
        joining.join(_END_SECONDS / 3)  # with nobody left to wait for, so that its semaphores are given back


def run(
    jobs: Sequence[J],
    *,
    workers: int,
    limits: Limits,
    done: Callable[[J, dict[str, Any]], None],
    started: Callable[[J], None] | None = None,
    paths: Sequence[str] = (),
    task: str = COUNTING,
) -> None:
    """Run ``jobs`` on ``workers`` processes and hand each outcome to ``done``, in the order of finishing.

    ``task`` names the function, as module:function, that each worker calls with a job's payload.
    ``done`` is called from this thread. A job that fails in any way has an outcome with an ``error``. On
    ``KeyboardInterrupt`` the workers are stopped; what ``done`` was given is finished.

    Raises
    ------
    WorkerError
        When what the task needs cannot be imported.
    """
    if not jobs:
        return
    import multiprocessing
    import queue

    from pebble import ProcessPool

    workers = max(1, min(workers, len(jobs)))
    finished: queue.SimpleQueue[tuple[J, Future[dict[str, Any]]]] = queue.SimpleQueue()
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPool(
        max_workers=workers,
        context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(os.getpid(), limits.memory, threads, list(paths), task),
    )
    try:
        waiting = iter(jobs)
        running = 0

        def submit() -> int:
            job = next(waiting, None)
            if job is None:
                return 0
            # pebble's clock for a job starts when a worker takes it; one job a worker keeps start-up out of it
            future = pool.schedule(_work, args=(task, job.payload()), timeout=limits.seconds)
            future.add_done_callback(lambda future, job=job: finished.put((job, future)))
            if started is not None:
                started(job)
            return 1

        for _ in range(workers):
            running += submit()
        while running:
            job, future = _take(finished)
            outcome = _outcome(future, limits)
            if (failure := outcome.get("error")) is not None and failure["reason"] == _UNUSABLE:
                raise WorkerError(failure["message"])
            done(job, outcome)
            running += submit() - 1
        pool.close()
    except BaseException:
        pool.stop()
        raise
    finally:
        _end(pool)

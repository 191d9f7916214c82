"""Runs an evaluation in a child process with its own environment and its own decoders."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import IO

from repro.accuracy.errors import EvaluationError
from repro.accuracy.job import BatchDone, Event, Job, ModelFailed

# glibc returns large blocks to the kernel at every free, and a network's activations are large blocks: up to half of
# the CPU time of an evaluation goes into mapping the same pages again. Other C libraries ignore these.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(10**12)}


class LostError(Exception):
    """The child, or one of its workers, ended without a word."""


def child_environment() -> dict[str, str]:
    """The environment of a process that runs models: allocator thresholds, one thread, the parent's import paths."""
    paths = [path for path in sys.path if path]
    return {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


class LocalExecutor:
    """The executor of one machine.

    A child that dies, or a worker in it, is replaced, and only what it had not finished is done again. Three times in
    a row without a finished batch between is an error: something kills them.
    """

    def run(self, job: Job) -> Iterator[Event]:
        """Yield the events of a job."""
        need = {name: needed.copy() for name, needed in job.need.items()}
        names = [entry.name for entry in job.entries]
        losses = 0
        while True:
            try:
                for event in _in_child(replace(job.only(names), need=need)):
                    if isinstance(event, BatchDone):
                        losses = 0
                        for name in (*event.top5, *event.failed):
                            need[name][event.batch] = False
                    elif isinstance(event, ModelFailed):
                        names.remove(event.name)
                    yield event
                return
            except LostError as error:
                losses += 1
                names = [name for name in names if need[name].any()]
                if not names:
                    return
                if losses > 2:
                    raise EvaluationError(
                        f"the evaluation's process ended three times without a result; the last time: {error} "
                        "(too little memory? fewer workers or a smaller batch take less)"
                    ) from error


class DirectExecutor:
    """Runs a job in this very process: for a debugger, and where the process is already made for it.

    With ``workers`` 0 in the options nothing is started at all.
    """

    def run(self, job: Job) -> Iterator[Event]:
        """Yield the events of a job."""
        from repro.accuracy.worker import run_job

        return run_job(job)


def _in_child(job: Job) -> Iterator[Event]:
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryFile() as log, ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "repro.accuracy.child", str(theirs.fileno())],
                env=child_environment(),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is the parent's, and the whole session can be ended
            )
        connection = Connection(ours.detach())
        try:
            yield from _events(connection, job, process, log)
        finally:
            connection.close()
            with suppress(ProcessLookupError, PermissionError):  # macOS refuses for a group that has just ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _events(connection: Connection, job: Job, process: subprocess.Popen[bytes], log: IO[bytes]) -> Iterator[Event]:
    try:
        connection.send_bytes(pickle.dumps(job))
        while True:
            kind, content = connection.recv()
            if kind == "event":
                yield content
            elif kind == "end":
                return
            elif kind == "refused":
                raise EvaluationError(content)
            elif kind == "lost":
                raise LostError(" ".join(content.split()))
            else:
                raise RuntimeError(f"in the evaluation's process:\n{content}")
    except (EOFError, ConnectionError) as error:
        status = process.wait()
        raise LostError(_ending(status, log)) from error


def _ending(status: int, log: IO[bytes]) -> str:
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return f"{how}: {lines[-1]}" if lines else how

"""What keeps the end of a run from waiting forever."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import pytest

from repro.measure import workers


class Stuck:
    """A pool whose reading thread waits for the rest of a message."""

    def join(self) -> None:
        threading.Event().wait()


def test_a_pool_that_does_not_end_is_left_and_its_processes_are_killed(monkeypatch):
    monkeypatch.setattr(workers, "_END_SECONDS", 0.2)
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True)
    process.start()
    workers._end(Stuck())
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@dataclass(frozen=True)
class Anything:
    name: str = "anything"

    def payload(self) -> dict[str, Any]:
        return {}


def test_an_installation_that_cannot_run_a_task_is_said_once(tmp_path):
    (tmp_path / "needs_more.py").write_text("raise ImportError('timm has no such layer')")
    with pytest.raises(workers.WorkerError, match="ImportError: timm has no such layer"):
        workers.run(
            [Anything(), Anything()],
            workers=1,
            limits=workers.Limits(seconds=60),
            done=lambda job, outcome: pytest.fail("no job ran"),
            paths=[str(tmp_path)],
            task="needs_more:work",
        )


# A thread of its own that takes the signal leaves the main thread's wait as uninterrupted as a signal that comes just
# before the wait begins: the second needs luck, the first none.
MISSED = """
import queue, signal, threading, time
from repro.measure.workers import _take

def interrupt():
    time.sleep(0.5)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Thread(target=interrupt).start()
try:
    _take(queue.SimpleQueue())
except KeyboardInterrupt:
    print("seen")
"""


def test_an_interruption_that_does_not_wake_the_wait_is_seen():
    done = subprocess.run([sys.executable, "-c", MISSED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("seen\n", "")

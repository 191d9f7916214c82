"""What keeps the end of a run from waiting forever."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time

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

"""Entry point of the process that an evaluation runs in (``python -m repro.accuracy.child DESCRIPTOR``).

It is a process of its own for its environment: glibc reads its allocator's thresholds when a program starts.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection


def _watch(connection: Connection) -> None:
    """End this process and its workers when the parent is gone: it never sends anything after the job."""
    with suppress(EOFError, OSError):
        connection.recv_bytes()
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> None:
    """Receive a job, send its events, then ``("end", None)``, ``("refused", line)`` or ``("bug", traceback)``."""
    connection = Connection(int(sys.argv[1]))
    payload = connection.recv_bytes()
    threading.Thread(target=_watch, args=(connection,), daemon=True).start()
    from repro.errors import ReproError

    try:
        from repro.accuracy.worker import run_job

        for event in run_job(pickle.loads(payload)):
            connection.send(("event", event))
        connection.send(("end", None))
    except ReproError as error:
        connection.send(("refused", str(error)))
    except RuntimeError as error:
        # torch's DataLoader says in words, not in a type, that one of its processes died
        kind = "lost" if "exited unexpectedly" in str(error) or "killed by signal" in str(error) else "bug"
        connection.send((kind, str(error) if kind == "lost" else traceback.format_exc()))
    except Exception:  # whatever it is, the other side raises it with this traceback
        connection.send(("bug", traceback.format_exc()))


if __name__ == "__main__":
    main()

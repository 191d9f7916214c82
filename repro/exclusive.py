"""Who may run beside whom: what measures or converts shares the machine, a latency has it alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from repro.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows, where nothing of Core ML runs either
    fcntl = None  # type: ignore[assignment]


class BusyError(UsageError):
    """Something of repro runs that this cannot run beside."""


@contextmanager
def _lock(folder: Path, *, alone: bool) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".running").open("a+", encoding="ascii") as stream:
        try:
            fcntl.flock(stream, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError:
            stream.seek(0)
            holder = stream.read().strip()
            who = f"process {holder}" if holder else "another process"
            what = "something else of repro runs" if alone else f"a latency is being measured ({who})"
            raise BusyError(f"{what}: a latency is measured with nothing else of repro running; wait for it") from None
        if alone:
            stream.truncate(0)
            stream.write(str(os.getpid()))
            stream.flush()
        try:
            yield
        finally:
            if alone:
                stream.truncate(0)


def alone(folder: Path) -> AbstractContextManager[None]:
    """Hold the machine for a latency measurement.

    Raises
    ------
    BusyError
        When anything of repro that measures, converts or evaluates is running with the same store.
    """
    return _lock(folder, alone=True)


def beside_others(folder: Path) -> AbstractContextManager[None]:
    """Run beside others that do the same, but not beside a latency measurement.

    Raises
    ------
    BusyError
        When a latency is being measured.
    """
    return _lock(folder, alone=False)

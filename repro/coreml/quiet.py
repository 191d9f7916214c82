"""Keep coremltools' noise off the user's screen, and keep it at hand for the day that something fails.

coremltools logs a page at import on Linux, draws progress bars and prints; torch's tracer warns. All of it goes to
file descriptors 1 and 2, by several ways, so that only a redirection of the descriptors catches it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from types import ModuleType


class Muffled:
    """What was printed while the screen was kept quiet; :attr:`text` is complete once the context has ended."""

    text: str = ""

    def last_words(self) -> str:
        """The last line that is no progress bar."""
        lines = [line.strip() for line in self.text.splitlines()]
        return next((line for line in reversed(lines) if line and "passes/s]" not in line and "ops/s]" not in line), "")


@contextlib.contextmanager
def muffled() -> Iterator[Muffled]:
    """Send everything that this process prints to a file instead of the screen.

    Concerns the whole process: while it lasts, another thread's output is swallowed too. Conversions therefore run in
    worker processes wherever a progress display has the screen.
    """
    found = Muffled()
    logger = logging.getLogger("coremltools")
    level = logger.level
    with tempfile.TemporaryFile() as sink, io.StringIO() as written:
        saved: list[tuple[int, int]] = []
        for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
            with contextlib.suppress(OSError):  # a process without a screen has nothing to keep quiet
                saved.append((descriptor, os.dup(descriptor)))
                os.dup2(sink.fileno(), descriptor)
        try:
            logger.setLevel(logging.ERROR)
            with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield found
        finally:
            logger.setLevel(level)
            for descriptor, copy in saved:
                os.dup2(copy, descriptor)
                os.close(copy)
            sink.seek(0)
            found.text = sink.read().decode(errors="replace") + written.getvalue()


def import_coremltools() -> ModuleType:
    """``import coremltools`` without a word. It takes several seconds the first time."""
    if "coremltools" in sys.modules:
        return sys.modules["coremltools"]
    with muffled():
        import coremltools
    module: ModuleType = coremltools
    return module

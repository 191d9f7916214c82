"""Progress of a run: a bar with the model's name and the time left, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Progress(Protocol):
    """What a run tells about itself."""

    def started(self, name: str) -> None:
        """A job was handed to a worker."""

    def done(self, name: str, error: str | None) -> None:
        """A job ended; ``error`` says how it failed."""


class _Lines:
    def __init__(self, total: int, verb: str) -> None:
        self.total, self.verb, self.count, self.start = total, verb, 0, time.monotonic()

    def started(self, name: str) -> None:
        pass

    def done(self, name: str, error: str | None) -> None:
        self.count += 1
        outcome = f"failed: {error}" if error else self.verb
        elapsed = time.monotonic() - self.start
        print(f"[{self.count}/{self.total}] {name}: {outcome} ({elapsed:.1f} s)", file=sys.stderr, flush=True)


@contextmanager
def progress(total: int, verb: str = "measured") -> Iterator[Progress]:
    """Report ``total`` jobs on standard error; ``verb`` says what became of one that did not fail."""
    if not sys.stderr.isatty():
        yield _Lines(total, verb)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=total)

        class _Bar:
            def __init__(self) -> None:
                self.running: list[str] = []

            def show(self) -> None:
                bar.update(task, description=", ".join(self.running) or "finishing")

            def started(self, name: str) -> None:
                self.running.append(name)
                self.show()

            def done(self, name: str, error: str | None) -> None:
                self.running.remove(name)
                bar.advance(task)
                if error:
                    bar.console.print(f"{name}: failed: {error}", markup=False, highlight=False)
                self.show()

        yield _Bar()


_EVERY = 10.0  # seconds between two lines where there is no terminal


@contextmanager
def images_progress() -> Iterator[Callable[[Any], None]]:
    """Report a pass over images on standard error: how many, images a second, time left."""
    if not sys.stderr.isatty():
        last = [-_EVERY]

        def tell(status: Any) -> None:
            if time.monotonic() - last[0] >= _EVERY or status.done == status.total:
                last[0] = time.monotonic()
                print(_where(status), file=sys.stderr, flush=True)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda status: bar.update(task, description=_where(status), completed=status.done, total=status.total)


def _where(status: Any) -> str:
    left = "" if status.seconds_left is None else f", {status.seconds_left / 60:.1f} min left"
    models = status.models[0] if len(status.models) == 1 else f"{len(status.models)} models"
    return f"{models}: {status.done:,} of {status.total:,} images, {status.images_per_second:.1f} images/s{left}"

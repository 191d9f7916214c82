"""The errors a user can cause. Anything else that is raised is a bug and keeps its traceback."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class ReproError(Exception):
    """Base of every error that ends in one line and exit code 2."""

    @property
    def lines(self) -> list[str]:
        """What to print, one mistake a line."""
        return [str(self)]


@dataclass(frozen=True, kw_only=True, order=True)
class Problem:
    """One mistake in an input file."""

    file: str
    line: int
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: "
        return where + (f"{self.path}: " if self.path else "") + self.message


class InputError(ReproError):
    """Mistakes in input files, gathered so that a user mends them in one go."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems)
        super().__init__("; ".join(map(str, self.problems)))

    @property
    def lines(self) -> list[str]:
        """One line a problem, in the order of the file."""
        return [str(problem) for problem in self.problems]


class UsageError(ReproError):
    """A command line that asks for something that does not exist or cannot be."""


class ModelError(ReproError):
    """A model that cannot be built as asked, or a state dict that does not fit it."""

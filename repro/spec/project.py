"""Where a paper's specs, templates, manifests and ledger lie: a project folder, or what this package ships."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from repro.errors import InputError, Problem, UsageError
from repro.spec.manifest import Manifest, load_manifest
from repro.spec.parse import load_table
from repro.spec.tables import Table

_PACKAGE = Path(__file__).resolve().parent.parent


def _shipped(name: str) -> Path:
    """A data folder of this package: inside it when installed, beside it in a checkout."""
    inside = _PACKAGE / "data" / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


@dataclass(frozen=True, kw_only=True)
class Project:
    """One paper: ``root`` is ``None`` for the paper that this package ships."""

    root: Path | None = None

    @classmethod
    def find(cls, given: Path | None) -> Project:
        """The given folder, else the working folder when it has tables, else the shipped paper.

        Raises
        ------
        UsageError
            When a given folder has no ``tables/``.
        """
        if given is not None:
            if not (given / "tables").is_dir():
                raise UsageError(f"{given}: no project there: it has no folder tables/")
            return cls(root=given.resolve())
        here = Path.cwd()
        return cls(root=here) if any((here / "tables").glob("table_*.yaml")) else cls()

    def folder(self, name: str) -> Path:
        """``tables``, ``checkpoints_manifest`` or ``results`` of this project."""
        return self.root / name if self.root is not None else _shipped(name)

    def put_on_path(self) -> None:
        """Let the project's own modules be imported, and before any of the same name elsewhere."""
        if self.root is not None and sys.path[:1] != [str(self.root)]:
            sys.path.insert(0, str(self.root))

    @property
    def template_folders(self) -> list[Path]:
        """Where templates are looked for: the project's own win over the shipped ones."""
        own = [self.root / "templates"] if self.root is not None and (self.root / "templates").is_dir() else []
        return [*own, _shipped("templates")]

    @cached_property
    def manifest(self) -> Manifest:
        """The released checkpoints that this project lists."""
        return load_manifest(self.folder("checkpoints_manifest"))

    @cached_property
    def paths(self) -> dict[int, Path]:
        """The spec file of each table number."""
        found: dict[int, Path] = {}
        for path in sorted(self.folder("tables").glob("table_*.yaml")):
            suffix = path.stem.removeprefix("table_")
            if not (suffix.isascii() and suffix.isdigit()):
                continue
            if int(suffix) in found:
                raise UsageError(f"{path}: table {int(suffix)} has a second spec, {found[int(suffix)].name}")
            found[int(suffix)] = path
        return found

    def table(self, number: int) -> Table:
        """Load one table.

        Raises
        ------
        UsageError
            When there is no such table.
        InputError
            When its spec has mistakes, or states another number than its file name.
        """
        if number not in self.paths:
            have = ", ".join(map(str, self.paths)) or "none"
            raise UsageError(f"no table {number} in {self.folder('tables')}; it has {have}")
        table = load_table(self.paths[number])
        if table.number != number:
            message = f"says table {table.number}, its file name says {number}"
            raise InputError([Problem(file=str(self.paths[number]), line=1, path="table", message=message)])
        return table

    def tables(self, numbers: tuple[int, ...] = ()) -> list[Table]:
        """Load several tables (all by default); the mistakes of all of them are raised together."""
        loaded, problems = [], []
        for number in numbers or tuple(self.paths):
            try:
                loaded.append(self.table(number))
            except InputError as error:
                problems += error.problems
        if problems:
            raise InputError(problems)
        if not loaded:
            raise UsageError(f"{self.folder('tables')}: no table_*.yaml there")
        return loaded

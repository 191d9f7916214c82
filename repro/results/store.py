"""Where records lie: one file each, found by their key without looking at any other."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repro.errors import ReproError, UsageError
from repro.files import write_atomically
from repro.results.record import DamagedRecordError, Record, Subject, digest, key, parse


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a store knows about one measurement: a current record, or one that other versions made."""

    record: Record
    stale: bool


def default_folder() -> Path:
    """The user's own store: ``REPRO_STORE``, else the platform's cache folder."""
    if given := os.environ.get("REPRO_STORE"):
        return Path(given)
    from platformdirs import user_cache_path

    return user_cache_path("repro", appauthor=False) / "records"


@dataclass(frozen=True)
class Store:
    """A folder of records: ``<variant>-<digest>/<metric>-<key>-<id>.json``.

    ``warnings`` gathers what was found damaged. In a store that is only a cache that is no more than a warning: the
    value is measured again.
    """

    folder: Path
    warnings: list[str] = field(default_factory=list)
    _listed: dict[str, list[str]] = field(default_factory=dict, repr=False)

    def place(self, subject: Subject) -> Path:
        """The folder of all records of one subject, whatever its code's version."""
        name = re.sub(r"[^\w.+-]", "_", subject.variant)
        return self.folder / f"{name}-{digest(subject.identity(), 8)}"

    def put(self, record: Record) -> Path:
        """Keep a record; an equal one that is there already is left as it is."""
        path = self.path(record)
        if not path.exists():
            write_atomically(path, record.text())
        self._listed.pop(str(path.parent), None)
        return path

    def path(self, record: Record) -> Path:
        """The file of a record."""
        return self.place(record.subject) / f"{record.metric}-{record.key()}-{record.id}.json"

    def find(
        self, subject: Subject, metric: str, protocol: Mapping[str, Any], versions: Mapping[str, str]
    ) -> Found | None:
        """The newest record of one measurement; a failed one only where none succeeded.

        Where no record has these versions, the newest that has the same subject, metric and protocol is returned
        as stale.

        Raises
        ------
        UsageError
            When the store cannot be read.
        NewerRecordError
            When a later release wrote the record.
        """
        names = self._names(self.place(subject))
        wanted = f"{metric}-{key(subject, metric, protocol, versions)}-"
        current = self._newest(self.place(subject), [name for name in names if name.startswith(wanted)])
        if current is not None:
            return Found(record=current, stale=False)
        others = [
            record
            for record in self._read(self.place(subject), [name for name in names if name.startswith(f"{metric}-")])
            if dict(record.protocol) == dict(protocol) and record.error is None
        ]
        return Found(record=max(others, key=_when), stale=True) if others else None

    def every(self, subject: Subject, metric: str) -> list[Record]:
        """Every record of a subject's metric, whatever its protocol and its code's version."""
        folder = self.place(subject)
        return list(self._read(folder, [name for name in self._names(folder) if name.startswith(f"{metric}-")]))

    def all(self) -> Iterator[Record]:
        """Every whole record."""
        for folder in sorted(path for path in _listing(self.folder) if path.is_dir()):
            yield from self._read(folder, self._names(folder))

    def _names(self, folder: Path) -> list[str]:
        listed = self._listed.get(str(folder))
        if listed is None:
            listed = [path.name for path in _listing(folder) if path.suffix == ".json" and path.name[0] != "."]
            self._listed[str(folder)] = listed
        return listed

    def _read(self, folder: Path, names: list[str]) -> Iterator[Record]:
        for name in names:
            path = folder / name
            try:
                yield parse(path.read_text(encoding="utf-8"), str(path))
            except (DamagedRecordError, UnicodeDecodeError) as error:
                message = str(error) if isinstance(error, ReproError) else f"{path}: damaged record: {error}"
                if message not in self.warnings:
                    self.warnings.append(message)
            except OSError as error:
                raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error

    def _newest(self, folder: Path, names: list[str]) -> Record | None:
        records = list(self._read(folder, names))
        return max(records, key=lambda record: (record.error is None, _when(record)), default=None)


def _when(record: Record) -> str:
    return str(record.provenance.get("time", ""))


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read: {error.strerror or error}") from error

"""Records between machines: one file of many, and what to do where two machines measured the same thing.

A record's id is a digest of its content, so that what arrives is what was sent. Two records of one measurement that
do not agree are a conflict: it is shown, and nothing is overwritten.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.errors import UsageError
from repro.files import write_atomically
from repro.results.record import Record, parse
from repro.results.store import Store

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """Two records of one measurement that say different things."""

    kept: Record
    other: Record
    where: str
    """Where the other one comes from."""

    def __str__(self) -> str:
        kept, other = self.kept, self.other
        size = kept.protocol.get("input_size")
        return (
            f"{kept.subject.variant} {kept.metric} at {size}: {_said(kept)} is kept, "
            f"{_said(other)} from {self.where} is not"
        )


def _said(record: Record) -> str:
    value = "failed" if record.value is None else f"{record.value:.6g} {record.unit}"
    made = record.provenance
    device = record.details.get("device_model")
    who = [part for part in (device, made.get("host"), str(made.get("time", ""))[:19]) if part]
    return f"{value} ({', '.join(map(str, who))}, {record.id})"


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What came of merging."""

    added: tuple[Record, ...]
    known: int
    """Records that were there already, or that say the same as one that was."""
    conflicts: tuple[Conflict, ...]


def write(path: Path, records: Iterable[Record]) -> int:
    """Write records to one file; returns how many."""
    items = [json.loads(record.text()) for record in sorted(records, key=lambda r: (r.subject.variant, r.metric, r.id))]
    text = json.dumps({"schema": SCHEMA, "records": items}, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text + "\n")
    return len(items)


def read(path: Path) -> list[Record]:
    """The records of a file that :func:`write` wrote, or of a folder of records.

    Raises
    ------
    UsageError
        When there is nothing there, or something else.
    DamagedRecordError, NewerRecordError
        For a record that was altered, cut short or written by a later release.
    """
    if path.is_dir():
        store = Store(path)
        records = list(store.all())
        if store.warnings:
            raise UsageError("; ".join(store.warnings))
        return records
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{path}: not a file of records: {error}") from None
    items = data.get("records") if isinstance(data, dict) else None
    if not isinstance(items, list) or not isinstance(data.get("schema"), int):
        raise UsageError(f"{path}: not a file of records: write one with repro records export")
    if data["schema"] > SCHEMA:
        raise UsageError(
            f"{path}: records of schema {data['schema']}, this release reads up to {SCHEMA}: upgrade repro"
        )
    return [parse(json.dumps(item), f"{path}: records[{index}]") for index, item in enumerate(items)]


def merge(mine: Iterable[Record], others: Sequence[tuple[str, Sequence[Record]]], *, both: bool = False) -> Merged:
    """What others have that is not there yet.

    Parameters
    ----------
    mine
        The records that are kept in any case.
    others
        Further ones, with a name for where they come from; earlier sources win over later ones.
    both
        Take a record that conflicts as well; tables then show the newer one.
    """
    by_key: dict[tuple[str, str], Record] = {}
    ids = set()
    for record in mine:
        ids.add(record.id)
        by_key[record.metric, record.key()] = _newer(by_key.get((record.metric, record.key())), record)
    added, known, conflicts = [], 0, []
    for where, records in others:
        for record in records:
            here = by_key.get((record.metric, record.key()))
            if record.id in ids or (here is not None and _same(here, record)):
                known += 1
                continue
            if here is not None:
                conflicts.append(Conflict(kept=here, other=record, where=where))
                if not both:
                    continue
            ids.add(record.id)
            by_key[record.metric, record.key()] = _newer(here, record)
            added.append(record)
    return Merged(added=tuple(added), known=known, conflicts=tuple(conflicts))


def _newer(one: Record | None, other: Record) -> Record:
    if one is None:
        return other
    return max(one, other, key=lambda record: str(record.provenance.get("time", "")))


def _same(one: Record, other: Record) -> bool:
    """Whether two records say the same of a measurement, whoever made them: counts do, timings hardly ever."""
    return (one.value, one.error, list(one.samples)) == (other.value, other.error, list(other.samples)) and (
        one.metric == "latency" or one.details == other.details
    )

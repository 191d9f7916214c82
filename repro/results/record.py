"""One measurement, immutable, as one JSON object.

A record is found by its *key*: the variant and where its code comes from, the metric, the protocol under which the
number was taken, and the versions of whatever changes it. It is named by its *id*, a digest of all its content, so that
a file that was edited or cut short is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from repro.errors import ReproError
from repro.results.latency import check_details

SCHEMA = 1


class DamagedRecordError(ReproError):
    """A record file that is not JSON, lacks fields, or does not hash to its own id."""


class NewerRecordError(ReproError):
    """A record written by a later release, in a schema that this one does not know."""


def canonical(data: object) -> str:
    """JSON text that is equal exactly when the data is."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(data: object, length: int = 16) -> str:
    """A short hexadecimal digest of plain data."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()[:length]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What was measured: a variant and the source of its code."""

    variant: str
    builder: str
    model: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    source: str

    def identity(self) -> dict[str, Any]:
        """The subject without the code's version: what a stale record still shares."""
        return {"builder": self.builder, "model": self.model, "arguments": dict(self.arguments)}


@dataclass(frozen=True, kw_only=True)
class Record:
    """A measured value with everything needed to believe it.

    ``value`` is in the metric's own unit (see ``repro.spec.metrics``) and is ``None`` where the measurement failed;
    then ``error`` says how: ``{"reason": code, "message": text}``. ``samples`` are the raw numbers where there were
    several. ``details`` belongs to the metric: counts by operator and by convention, placement, statistics.
    """

    subject: Subject
    metric: str
    protocol: Mapping[str, Any]
    value: float | int | None
    unit: str
    versions: Mapping[str, str]
    provenance: Mapping[str, Any]
    samples: tuple[float, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, str] | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.metric == "latency" and self.error is None:
            check_details(self.details)

    def key(self) -> str:
        """Digest of what defines the value."""
        return key(self.subject, self.metric, self.protocol, self.versions)

    def content(self) -> dict[str, Any]:
        """The record as plain data, without its id."""
        data = asdict(self)
        data["samples"] = list(self.samples)
        return data

    @property
    def id(self) -> str:
        """Digest of the whole content."""
        return digest(self.content())

    def text(self) -> str:
        """The record as it is stored."""
        return json.dumps({"id": self.id, **self.content()}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def key(subject: Subject, metric: str, protocol: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """Digest of what defines a value: equal keys mean that one measurement serves."""
    return digest(
        {
            "subject": {**subject.identity(), "source": subject.source},
            "metric": metric,
            "protocol": dict(protocol),
            "versions": dict(versions),
        }
    )


def parse(text: str, where: str) -> Record:
    """Read a record.

    Raises
    ------
    NewerRecordError
        When its schema is later than this release's.
    DamagedRecordError
        When it is not a whole, unaltered record.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise DamagedRecordError(f"{where}: damaged record: not JSON ({error})") from None
    if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
        raise DamagedRecordError(f"{where}: damaged record: no schema version")
    if data["schema"] > SCHEMA:
        raise NewerRecordError(
            f"{where}: record of schema {data['schema']}, this release reads up to {SCHEMA}: "
            "upgrade repro, or give another --store"
        )
    stated = data.pop("id", None)
    names = {item.name for item in fields(Record)}
    if set(data) != names:
        odd = ", ".join(sorted(set(data) ^ names))
        raise DamagedRecordError(f"{where}: damaged record: fields missing or unknown: {odd}")
    try:
        found = digest(data)  # of what the file says: making it from the record again takes twice as long
        record = Record(**{**data, "subject": Subject(**data["subject"]), "samples": tuple(data["samples"])})
    except (TypeError, ValueError) as error:
        raise DamagedRecordError(f"{where}: damaged record: {error}") from None
    if found != stated:
        raise DamagedRecordError(f"{where}: damaged record: its content does not hash to its id")
    return record

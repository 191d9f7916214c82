"""Where comparing looks measurements up: the user's own records, then the published ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from repro.measure.needs import Need, subject_of
from repro.results.record import Record
from repro.results.store import Found, Store
from repro.spec.manifest import Manifest
from repro.spec.tables import Variant


@dataclass(frozen=True)
class Records:
    """The user's store first, then the ledger."""

    store: Store
    ledger: Store | None = None
    manifest: Manifest = field(default_factory=lambda: Manifest(folder=Path()))  # whose weights an accuracy may be of

    def find(self, need: Need) -> Found | None:
        """The record of a measurement: current before stale, the user's own before the published one."""
        found = [
            item
            for source in (self.store, self.ledger)
            if source is not None
            for item in [source.find(need.subject, need.metric, need.protocol, need.versions)]
            if item is not None
        ]
        return min(found, key=lambda item: (item.stale, item.record.error is not None), default=None)

    def every(self, variant: Variant, metric: str) -> list[Record]:
        """All records of a variant's metric, the user's own and the published ones, each once."""
        subject = subject_of(variant)
        sources = [source for source in (self.store, self.ledger) if source is not None]
        return list({record.id: record for source in sources for record in source.every(subject, metric)}.values())

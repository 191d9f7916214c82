"""Accuracies that others published of a table's weights: shown in columns of their own, never compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from repro.measure.needs import input_size_of
from repro.spec.manifest import Checkpoint, Figure, Manifest
from repro.spec.tables import Row, Table

OFFICIAL = "official"
METRIC = "top1"


@dataclass(frozen=True, kw_only=True)
class PublishedFigure:
    """One accuracy as its source prints it, and of which weights."""

    text: str
    checkpoint: str
    same: bool
    """Whether the weights are those of the paper's row."""
    where: str
    protocol: str | None = None


@dataclass(frozen=True, kw_only=True)
class PublishedColumn:
    """What one source says of a table's rows, by the row's model."""

    source: str
    header: str
    figures: Mapping[str, PublishedFigure]

    @property
    def note(self) -> str:
        """What the column is, in one sentence."""
        by = "their authors" if self.source == OFFICIAL else self.source
        others = any(not figure.same for figure in self.figures.values())
        return f"{self.header}: as published by {by}; shown, never compared." + (
            " ≠ of other weights than the row's." if others else ""
        )


def published(table: Table, rows: Sequence[Row], manifest: Manifest) -> tuple[PublishedColumn, ...]:
    """The published top-1 of the rows' released weights, a column a source; the row's own weights before others."""
    column = table.column(METRIC)
    if column is None:
        return ()
    found: dict[str, dict[str, PublishedFigure]] = {}
    for row in rows:
        if row.variant is None:
            continue
        checkpoints = manifest.of(row.variant.id, input_size_of(table.protocol_of(row, METRIC)))
        for checkpoint in sorted(checkpoints, key=lambda checkpoint: checkpoint.paper_row != "same"):
            for figure in _figures(checkpoint):
                made = PublishedFigure(
                    text=figure.top1,
                    checkpoint=checkpoint.id,
                    same=checkpoint.paper_row == "same",
                    where=figure.where,
                    protocol=figure.protocol,
                )
                found.setdefault(figure.source, {}).setdefault(row.model, made)
    order = sorted(found, key=lambda source: (source != OFFICIAL, source))
    return tuple(
        PublishedColumn(source=source, header=f"{column.header} {source}", figures=found[source]) for source in order
    )


def _figures(checkpoint: Checkpoint) -> list[Figure]:
    stated = [checkpoint.official] if checkpoint.official is not None else []
    return [figure for figure in (*stated, *checkpoint.others) if figure.top1]

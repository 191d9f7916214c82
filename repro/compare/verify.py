"""Which cells reproduce: the same comparison as a table, read for its verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from repro.compare.architecture import StructureCell, text
from repro.compare.cells import COMPARED, STATUSES, Cell, TableResult
from repro.compare.tolerance import Tolerance
from repro.spec.tables import Column, Reported, Row, Table

# Reasons for "not measured" that this machine could have mended.
MEASURABLE_HERE = ("not_run", "stale")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One cell of one table."""

    table: Table
    row: Row
    cell: Cell
    part: str = ""  # of an architecture table: which stage and block

    @property
    def what(self) -> str:
        """What was compared: the metric, or the part of an architecture."""
        return self.part or self.cell.metric

    @property
    def size(self) -> Decimal:
        """How far off, as a share of the printed value: the order in which cells are listed."""
        if self.cell.difference is None or self.cell.reported.text is None:
            return Decimal("Infinity")
        reported = abs(Decimal(self.cell.reported.text))
        return abs(self.cell.difference) / reported if reported else abs(self.cell.difference)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What ``repro verify`` says."""

    findings: tuple[Finding, ...]
    tolerance: Tolerance
    strict: bool = False

    def summary(self) -> dict[str, int]:
        """How many cells have each status."""
        counted = Counter(finding.cell.status for finding in self.findings)
        return {status: counted[status] for status in STATUSES}

    def reasons(self) -> dict[str, int]:
        """Why cells were not measured."""
        counted = Counter(
            finding.cell.reason or "unknown" for finding in self.findings if finding.cell.status == "not_measured"
        )
        return dict(counted.most_common())

    @property
    def off(self) -> list[Finding]:
        """The cells that do not hold, largest difference first; with ``strict`` also what could be measured here."""
        bad = [finding for finding in self.findings if finding.cell.status in ("outside", "failed")]
        if self.strict:
            bad += [
                finding
                for finding in self.findings
                if finding.cell.status == "not_measured" and finding.cell.reason in MEASURABLE_HERE
            ]
        order = {"outside": 0, "failed": 1, "not_measured": 2}
        return sorted(
            bad,
            key=lambda finding: (
                order[finding.cell.status or "outside"],
                -finding.size,
                finding.table.number,
                finding.row.model,
            ),
        )

    @property
    def exit_code(self) -> int:
        """0 all compared cells hold, 1 some does not, 3 nothing could be compared."""
        if self.off:
            return 1
        return 0 if any(finding.cell.status in COMPARED for finding in self.findings) else 3


def verify(results: Sequence[TableResult], tolerance: Tolerance, *, strict: bool = False) -> Verdict:
    """Gather the cells of compared tables."""
    findings = []
    for result in results:
        findings += [Finding(table=result.table, row=row, cell=cell) for row, cell in result.cells]
        findings += [
            Finding(table=result.table, row=cell.row, cell=_as_cell(cell), part=cell.name)
            for cell in result.architecture
        ]
    return Verdict(findings=tuple(findings), tolerance=tolerance, strict=strict)


def _as_cell(cell: StructureCell) -> Cell:
    """A part of an architecture, told as a cell without a number."""
    column = Column(metric="architecture", unit="", header=cell.name, decimals=0, better=None, descriptive=False)
    blocks = [part for part in (cell.reported,) if not isinstance(part, str) and part is not None]
    return Cell(
        column=column,
        reported=Reported(text=text(cell.reported), line=blocks[0].line if blocks else None),
        status=cell.status,
        reason=cell.reason,
        message=cell.message,
        record=cell.record,
    )

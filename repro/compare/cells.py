"""A table as it stands: every printed cell beside what was measured, and what the two mean together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any

from repro.compare.accuracy import find_accuracy
from repro.compare.architecture import StructureCell, architecture_needs, compare_architecture
from repro.compare.dense import find_dense
from repro.compare.latency import Beside, imported, other_devices
from repro.compare.published import PublishedColumn, published
from repro.compare.records import Records
from repro.compare.tolerance import Tolerance, exact, rounds_to, truncates_to
from repro.errors import UsageError
from repro.measure.needs import DEFAULT_SIZE, Need, Unmeasurable, latency_need, need_of
from repro.results.record import Record
from repro.spec.metrics import METRICS, scale
from repro.spec.parse import is_number
from repro.spec.reader import suggestion
from repro.spec.tables import COUNTERS, Column, Deviation, Reported, Row, Table, plain_size

STATUSES = ("match", "within", "explained", "outside", "failed", "not_measured", "not_reported")
COMPARED = ("match", "within", "explained", "outside")
# What finds the record of a cell whose weights somebody released, by the metric's kind.
_FINDERS = {"accuracy": find_accuracy, "detection": find_dense, "segmentation": find_dense}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A deviation's evidence, measured: it holds when the pipeline's value says what the spec says."""

    deviation: Deviation
    value: Decimal | None
    holds: bool
    record: str | None
    why_not: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One printed cell and its measurement. Numbers are in the column's printed unit."""

    column: Column
    reported: Reported
    measured: Decimal | None = None
    status: str | None = None  # None for descriptive columns
    reason: str | None = None
    message: str = ""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    record: Record | None = None
    stale: bool = False
    counters_disagree: bool = False
    evidence: Evidence | None = None

    @property
    def metric(self) -> str:
        """The column's metric."""
        return self.column.metric

    @property
    def difference(self) -> Decimal | None:
        """Measured less reported, exactly."""
        if self.measured is None or not is_number(self.reported.text):
            return None
        return self.measured - Decimal(self.reported.text or "0")


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """A row and its cells, in the order of the table's columns."""

    row: Row
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class TableResult:
    """A table and its rows; the rows and metrics that were asked for."""

    table: Table
    rows: tuple[RowResult, ...]
    tolerance: Tolerance
    architecture: tuple[StructureCell, ...] = ()
    beside: tuple[Beside, ...] = ()  # shown in columns of their own, never compared
    published: tuple[PublishedColumn, ...] = ()  # likewise

    @property
    def cells(self) -> list[tuple[Row, Cell]]:
        """All cells that can have a status."""
        return [(result.row, cell) for result in self.rows for cell in result.cells if cell.status is not None]

    def summary(self) -> dict[str, int]:
        """How many cells have each status."""
        counted = Counter(cell.status for _, cell in self.cells)
        return {status: counted[status] for status in STATUSES}


# What the cell of a table, row and metric prints; None where there is no such cell.
Printed = Callable[[int, str, str], str | None]


def _of_one(table: Table) -> Printed:
    return lambda number, row, metric: printed_cell(table, row, metric) if number == table.number else None


def printed_cell(table: Table, row: str, metric: str) -> str | None:
    """What one cell prints."""
    return next((item.reported(metric).text for item in table.rows if item.model == row), None)


def select_rows(tables: Sequence[Table], patterns: Sequence[str]) -> dict[int, tuple[Row, ...]]:
    """The rows of each table whose model matches one of the patterns (``*`` and ``?``); all without a pattern.

    Raises
    ------
    UsageError
        When a pattern matches no row of any table.
    """
    if not patterns:
        return {table.number: table.rows for table in tables}
    names = {row.model for table in tables for row in table.rows}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            where = (
                f"table {tables[0].number}"
                if len(tables) == 1
                else f"tables {', '.join(str(t.number) for t in tables)}"
            )
            raise UsageError(f"no row {pattern!r} in {where}{suggestion(pattern, names)}")
    return {
        table.number: tuple(row for row in table.rows if any(fnmatchcase(row.model, pattern) for pattern in patterns))
        for table in tables
    }


def select_columns(table: Table, metrics: Sequence[str]) -> tuple[Column, ...]:
    """The columns to show: descriptive ones, and the asked metrics (all by default)."""
    return tuple(column for column in table.columns if column.descriptive or not metrics or column.metric in metrics)


def check_metrics(metrics: Sequence[str]) -> None:
    """Refuse metrics that no table can have.

    Raises
    ------
    UsageError
        Naming the unknown metric.
    """
    compared = [name for name, metric in METRICS.items() if not metric.descriptive]
    for name in metrics:
        if name not in compared:
            raise UsageError(
                f"--metrics: unknown metric {name!r}{suggestion(name, compared)}; known: {', '.join(compared)}"
            )


def needs(tables: Iterable[Table], rows: Mapping[int, Sequence[Row]], metrics: Sequence[str]) -> list[Need]:
    """All measurements behind the selected cells, deviations' evidence included."""
    found = []
    for table in tables:
        for row in rows[table.number]:
            for column in select_columns(table, metrics):
                if column.descriptive:
                    continue
                found.append(need_of(table, row, column.metric))
                found += [
                    evidence_need(table, row, deviation)
                    for deviation in table.deviations
                    if deviation.row == row.model and deviation.metric == column.metric
                ]
        if not metrics:
            found += architecture_needs(table, rows[table.number])
    return [need for need in found if isinstance(need, Need)]


def evidence_need(table: Table, row: Row, deviation: Deviation) -> Need | Unmeasurable:
    """The measurement that a deviation's evidence rests on."""
    if deviation.measure is None:
        return Unmeasurable(reason="no_evidence")

    changed = replace(row, variant=deviation.variant or row.variant, protocol=deviation.protocol.over(row.protocol))
    return need_of(table, changed, deviation.measure)


def compare(
    table: Table,
    records: Records,
    *,
    rows: Sequence[Row] | None = None,
    metrics: Sequence[str] = (),
    tolerance: Tolerance | None = None,
    printed: Printed | None = None,
    beside: Sequence[Beside] = (),
) -> TableResult:
    """Set a table's printed cells beside the records.

    ``printed`` tells what a cell of any table prints; ``beside`` are further columns that are never compared.
    """
    tolerance = tolerance or Tolerance()
    printed = printed or _of_one(table)
    columns = select_columns(table, metrics)
    chosen = table.rows if rows is None else rows
    return TableResult(
        table=table,
        rows=tuple(
            RowResult(
                row=row, cells=tuple(_cell(table, row, column, records, tolerance, printed) for column in columns)
            )
            for row in chosen
        ),
        tolerance=tolerance,
        architecture=() if metrics else compare_architecture(table, chosen, records),
        beside=(*(other_devices(table, chosen, records) if not metrics or "latency" in metrics else ()), *beside),
        published=published(table, chosen, records.manifest) if not metrics or "top1" in metrics else (),
    )


def _cell(table: Table, row: Row, column: Column, records: Records, tolerance: Tolerance, printed: Printed) -> Cell:
    reported = row.reported(column.metric)
    if column.descriptive:
        return Cell(column=column, reported=reported)
    if column.kind.kind in _FINDERS:
        return _accuracy_cell(table, row, column, records, tolerance, printed)
    protocol = table.protocol_of(row, column.metric)
    need = need_of(table, row, column.metric)
    if column.metric == "latency" and row.variant is not None:
        own = latency_need(row.variant, protocol)  # a record may have come from another machine than this
        need = own if records.find(own) is not None else need
    if isinstance(need, Unmeasurable):
        base = Cell(column=column, reported=reported, protocol=protocol)
        return _with_status(base, "not_measured", need.reason, need.hint)
    found = records.find(need)
    if found is None:
        base = Cell(column=column, reported=reported, protocol=protocol)
        return _with_status(base, "not_measured", "not_run", "no record yet; run without --no-measure")
    record = found.record
    base = Cell(column=column, reported=reported, protocol=protocol, record=record, stale=found.stale)
    if found.stale:
        return _with_status(base, "not_measured", "stale", _stale_message(record, need))
    source = imported(record) if column.metric == "latency" else None
    base = replace(base, message="" if source is None else f"imported: {source}")
    if record.error is not None:
        if column.metric == "latency" and (reported.text or "").lower() == "failed":
            return replace(base, status="match", reason="failed_too", message=record.error["message"])
        return _with_status(base, "failed", record.error["reason"], record.error["message"])
    measured = _value(record, column.metric, protocol, reported.unit or column.unit)
    base = replace(base, protocol=_counted_as(column.metric, protocol) if column.kind.kind == "count" else protocol)
    base = replace(base, measured=measured, counters_disagree=_disagree(record, protocol))
    return _judge(table, row, base, records, tolerance, printed)


def _accuracy_cell(
    table: Table, row: Row, column: Column, records: Records, tolerance: Tolerance, printed: Printed
) -> Cell:
    """Judged where the weights are the paper's own; other weights' accuracy is shown as such."""
    base = Cell(column=column, reported=row.reported(column.metric), protocol=table.protocol_of(row, column.metric))
    accuracy = _FINDERS[column.kind.kind](table, row, column.metric, records)
    if isinstance(accuracy, Unmeasurable):
        return _with_status(base, "not_measured", accuracy.reason, accuracy.hint)
    record = accuracy.found.record
    base = replace(base, record=record, stale=accuracy.found.stale)
    if accuracy.found.stale:
        return _with_status(base, "not_measured", "stale", _stale_message(record, accuracy.need))
    if record.error is not None:
        return _with_status(base, "failed", record.error["reason"], record.error["message"])
    base = replace(base, measured=_value(record, column.metric, base.protocol, base.reported.unit or column.unit))
    if accuracy.reason is not None:
        return _with_status(base, "not_measured", accuracy.reason, accuracy.message)
    return _judge(table, row, base, records, tolerance, printed)


def _judge(table: Table, row: Row, cell: Cell, records: Records, tolerance: Tolerance, printed: Printed) -> Cell:
    reason = "counters_disagree" if cell.counters_disagree else None
    text = cell.reported.text
    if text is None:
        return replace(cell, status="not_reported", reason="lost_in_extraction" if cell.reported.lost else None)
    if not is_number(text) or cell.measured is None or cell.difference is None:
        return replace(cell, status="outside", reason="reported_as_text", message=f"the paper prints {text!r}")
    if rounds_to(cell.measured, text):
        return replace(cell, status="match", reason=reason)
    if tolerance.of(cell.metric).allows(cell.difference, Decimal(text)):
        return replace(cell, status="within", reason=reason)
    for deviation in table.deviations:
        if deviation.row == row.model and deviation.metric == cell.metric:
            evidence = _evidence(table, row, deviation, cell, records, tolerance, printed)
            status = "explained" if evidence.holds else "outside"
            return replace(
                cell,
                status=status,
                reason=deviation.reason if evidence.holds else "evidence_does_not_hold",
                message=deviation.says if evidence.holds else evidence.why_not,
                evidence=evidence,
            )
    return replace(cell, status="outside", reason=reason)


def _evidence(
    table: Table,
    row: Row,
    deviation: Deviation,
    cell: Cell,
    records: Records,
    tolerance: Tolerance,
    printed: Printed,
) -> Evidence:
    """Look the evidence's own measurement up and see whether it says what the deviation claims."""
    if deviation.measure is None or deviation.equals is None:
        return Evidence(deviation=deviation, value=None, holds=False, record=None, why_not="no evidence was given")
    need = evidence_need(table, row, deviation)
    found = records.find(need) if isinstance(need, Need) else None
    if found is None or found.stale or found.record.error is not None:
        return Evidence(
            deviation=deviation, value=None, holds=False, record=None, why_not="the evidence is not measured"
        )

    changed = replace(row, protocol=deviation.protocol.over(row.protocol))
    unit = deviation.unit or cell.reported.unit or cell.column.unit
    value = _value(found.record, deviation.measure, table.protocol_of(changed, deviation.measure), unit)
    why_not = _speaks_of_another(deviation, cell, printed) or _misses(deviation, value, tolerance)
    return Evidence(deviation=deviation, value=value, holds=not why_not, record=found.record.id, why_not=why_not)


def _speaks_of_another(deviation: Deviation, cell: Cell, printed: Printed) -> str:
    """What the evidence equals must be printed, in this cell or the one it names, or it explains another number."""
    stated, text = deviation.equals, cell.reported.text
    if deviation.cell is not None:
        text = printed(*deviation.cell)
        where = f"table {deviation.cell[0]}, {deviation.cell[1]}, {deviation.cell[2]} prints {text}"
        return "" if stated == text else f"the evidence speaks of {stated}, {where}"
    slipped = deviation.reason == "unit_slip" and is_number(stated) and is_number(text)
    if slipped and Decimal(stated or "0") * 1000 in (Decimal(text or "0"), Decimal(text or "0") * 1_000_000):
        return ""
    return "" if stated == text else f"the evidence speaks of {stated}, the paper prints {text}"


def _misses(deviation: Deviation, value: Decimal, tolerance: Tolerance) -> str:
    """The evidence is held to the same standard as a cell: it rounds to what is stated, or is inside the tolerance."""
    stated = Decimal(deviation.equals or "0")
    at = stated
    if deviation.decimals is not None:  # the source printed fewer decimals than the paper pads to
        at = stated.quantize(Decimal(1).scaleb(-deviation.decimals))
    agrees = truncates_to if deviation.truncated else rounds_to
    near = tolerance.of(deviation.measure or deviation.metric).allows(value - stated, stated)
    if at == stated and (agrees(value, f"{at:f}") or near):
        return ""
    return f"the evidence measures {value:f}, not {deviation.equals}"


def _with_status(cell: Cell, status: str, reason: str, message: str) -> Cell:
    """Nothing is measured; where the paper prints nothing either, that is what matters."""
    if cell.reported.text is None:
        return replace(cell, status="not_reported", reason="lost_in_extraction" if cell.reported.lost else None)
    return replace(cell, status=status, reason=reason, message=message)


def _counted_as(metric: str, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol of a count in full: what the spec does not say has a default, and the value stands under that."""
    defaults = {"input_size": plain_size(DEFAULT_SIZE), "form": "folded"}
    if metric == "gmacs":
        defaults["counting"] = "macs"
        if protocol.get("counting") in COUNTERS:  # other programs are given the network as it is created
            protocol = {**protocol, "form": "as_trained"}
    return {**protocol, **{name: value for name, value in defaults.items() if name not in protocol}}


def convention(metric: str, protocol: Mapping[str, Any]) -> str:
    """Under which of a record's conventions a cell's value stands."""
    form = str(protocol.get("form", "folded"))
    return form if metric == "params" else f"{form}/{protocol.get('counting', 'macs')}"


def _value(record: Record, metric: str, protocol: Mapping[str, Any], unit: str) -> Decimal:
    if metric in ("params", "gmacs") and record.details:
        counts = record.details["forms" if metric == "params" else "macs"]
        base = Decimal(counts[convention(metric, protocol)]).scaleb(-6 if metric == "params" else -9)
    else:
        base = exact(record.value if record.value is not None else 0)
    return base * scale(metric, unit)


def _disagree(record: Record, protocol: Mapping[str, Any]) -> bool:
    """Whether the two independent counters gave different matrix products."""
    check = record.details.get("cross_check", {}).get(protocol.get("form", "folded"))
    return check is not None and check["fvcore"] != check["flop_counter"]


def _stale_message(record: Record, need: Need) -> str:
    then, now = record.versions, need.versions
    moved = [f"{name} {then.get(name)} -> {now.get(name)}" for name in now if then.get(name) != now[name]]
    if record.subject.source != need.subject.source:
        moved.append(f"{record.subject.source} -> {need.subject.source}")
    return "measured with other versions: " + ", ".join(moved)

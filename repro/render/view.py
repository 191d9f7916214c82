"""What every format shows of a table: texts, marks and notes, but no markup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal

from repro.compare.cells import COMPARED, STATUSES, Cell, RowResult, TableResult
from repro.compare.latency import imported, told
from repro.compare.published import PublishedColumn
from repro.compare.tolerance import decimals, exact
from repro.spec.metrics import scale
from repro.spec.tables import Column, Row

SIGNS = {
    "match": "✓",
    "within": "≈",
    "explained": "*",
    "outside": "✗",
    "failed": "!",
    "not_measured": "·",
    "not_reported": "–",
}
TEX_SIGNS = {
    "match": r"\surd",
    "within": r"\approx",
    "explained": "*",
    "outside": r"\times",
    "failed": "!",
    "not_measured": r"\cdot",
    "not_reported": "-",
}
OTHER_WEIGHTS = " ≠"  # behind a published accuracy that is not of the row's own weights
IMPORTED = "°"  # behind every value that was measured elsewhere and read from a file
MEANINGS = {
    "match": "rounds to the printed value",
    "within": "inside the tolerance",
    "explained": "differs for a stated reason whose evidence was measured",
    "outside": "differs, unexplained",
    "failed": "the measurement failed",
    "not_measured": "not measured",
    "not_reported": "not printed by the paper, or lost",
}
REASONS = {
    "no_builder": "no library or port builds the model",
    "needs_macos": "Core ML predicts only on macOS",
    "needs_device": "no record of the paper's device",
    "needs_dataset": "needs the data set and a released checkpoint",
    "no_released_checkpoint": "no checkpoint was released",
    "different_recipe": "the released weights were trained otherwise",
    "local_weights": "weights that no manifest lists",
    "not_run": "no record yet",
    "stale": "the record was made with other versions",
    "lost_in_extraction": "lost in extraction",
}


@dataclass(frozen=True, kw_only=True)
class ShownCell:
    """One cell as text: the printed string, and the measured value with one decimal more."""

    cell: Cell
    reported: str
    measured: str
    sign: str
    exact: str  # the measured value at the paper's own decimals
    best_reported: bool = False
    best_measured: bool = False


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """One row: its name with what the paper prints beside it, and its cells."""

    row: Row
    name: str
    inline: str
    marks: str
    cells: tuple[ShownCell, ...]
    beside: tuple[str, ...] = ()  # of what is shown and never compared, in the order of the view's ``beside``


@dataclass(frozen=True, kw_only=True)
class ShownColumn:
    """One column: ``measured`` says whether any of its cells has a measured value to show."""

    column: Column
    header: str
    unit: str
    arrow: str
    measured: bool
    prose: bool  # descriptive, and words rather than numbers

    @property
    def width(self) -> int:
        """How many columns of a comparing table it takes."""
        return 2 if self.measured else 1


@dataclass(frozen=True, kw_only=True)
class View:
    """A table as every format shows it."""

    result: TableResult
    columns: tuple[ShownColumn, ...]
    groups: tuple[tuple[str, tuple[ShownRow, ...]], ...]
    notes: tuple[str, ...]
    beside: tuple[str, ...] = ()  # heads of the columns that are never compared
    used: tuple[str, ...] = field(default=())  # statuses that occur, in the order of STATUSES

    @property
    def heads(self) -> list[tuple[str, int, int]]:
        """The upper level of the head: name, columns that it spans when comparing, and when not."""
        spans: list[tuple[str, int, int]] = []
        for shown in self.columns:
            name = shown.column.group or ""
            if spans and spans[-1][0] == name:
                spans[-1] = (name, spans[-1][1] + shown.width, spans[-1][2] + 1)
            else:
                spans.append((name, shown.width, 1))
        return spans if any(name for name, _, _ in spans) else []


def shown_number(value: Decimal, places: int) -> str:
    """A number at a fixed count of decimals, rounded half away from zero."""
    return f"{value.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP):f}"


def _places(cell: Cell) -> int:
    text = cell.reported.text or ""
    return decimals(text) if text.replace(".", "", 1).isdigit() else cell.column.decimals


def _shown(cell: Cell) -> ShownCell:
    sign = SIGNS.get(cell.status or "", "")
    reported = cell.reported.text
    if reported is None:
        reported = "lost" if cell.reported.lost else "–"
    measured = exactly = ""
    if cell.measured is not None:
        mark = IMPORTED if cell.metric == "latency" and imported(cell.record) is not None else ""
        measured = shown_number(cell.measured, _places(cell) + 1) + mark
        exactly = shown_number(cell.measured, _places(cell)) + mark
    elif cell.status == "failed" or cell.reason == "failed_too":
        measured = exactly = "failed"
    elif cell.status == "not_measured":
        measured = exactly = "n.m."
    else:
        measured = exactly = "–"
    return ShownCell(cell=cell, reported=reported, measured=measured, sign=sign, exact=exactly)


def _beside(result: TableResult, index: int, model: str) -> str:
    """A value that is never compared, at the decimals of the table's latencies and one more."""
    column = result.table.column("latency")
    beside = result.beside[index]
    if model not in beside.values or column is None:
        return "–"
    value = exact(beside.values[model]) * scale("latency", column.unit)
    mark = IMPORTED if imported(beside.records.get(model)) is not None else ""
    return shown_number(value, column.decimals + 1) + mark


def _published(column: PublishedColumn, model: str) -> str:
    """A published figure as printed, with a sign where it is of other weights than the row's."""
    figure = column.figures.get(model)
    return "–" if figure is None else figure.text + ("" if figure.same else OTHER_WEIGHTS)


def _best(rows: Sequence[RowResult], position: int, measured: bool) -> set[int]:
    """Which rows of a group hold the best value of a column; none where fewer than two have one."""
    values: dict[int, Decimal] = {}
    for index, result in enumerate(rows):
        cell = result.cells[position]
        if measured and cell.measured is not None:
            values[index] = Decimal(shown_number(cell.measured, _places(cell)))
        elif not measured and cell.status is not None and cell.difference is not None:
            values[index] = exact(float(cell.reported.text or "0"))
        elif not measured and cell.status is not None and (cell.reported.text or "").replace(".", "", 1).isdigit():
            values[index] = Decimal(cell.reported.text or "0")
    better = rows[0].cells[position].column.better if rows else None
    if len(values) < 2 or better is None:
        return set()
    best = min(values.values()) if better == "lower" else max(values.values())
    return {index for index, value in values.items() if value == best}


def _grouped(result: TableResult) -> list[tuple[int, list[RowResult]]]:
    groups: list[tuple[int, list[RowResult]]] = []
    for row in result.rows:
        if not groups or groups[-1][0] != row.row.group:
            groups.append((row.row.group, []))
        groups[-1][1].append(row)
    return groups


def view_of(result: TableResult) -> View:
    """Lay a compared table out."""
    table = result.table
    columns = [cell.column for cell in result.rows[0].cells] if result.rows else list(table.columns)
    kept = [index for index, column in enumerate(columns) if not column.inline]
    inline = [index for index, column in enumerate(columns) if column.inline]
    groups = []
    for number, rows in _grouped(result):
        best = {
            (position, measured): _best(rows, position, measured) for position in kept for measured in (False, True)
        }
        shown_rows = []
        for index, row in enumerate(rows):
            cells = []
            for position in kept:
                shown = _shown(row.cells[position])
                cells.append(
                    ShownCell(
                        cell=shown.cell,
                        reported=shown.reported,
                        measured=shown.measured,
                        sign=shown.sign,
                        exact=shown.exact,
                        best_reported=index in best[position, False],
                        best_measured=index in best[position, True],
                    )
                )
            shown_rows.append(
                ShownRow(
                    row=row.row,
                    name=row.row.model,
                    inline=" ".join(text for position in inline if (text := row.cells[position].reported.text)),
                    marks="".join(_mark(mark) for mark in row.row.marks),
                    cells=tuple(cells),
                    beside=(
                        *(_beside(result, index, row.row.model) for index in range(len(result.beside))),
                        *(_published(column, row.row.model) for column in result.published),
                    ),
                )
            )
        groups.append((table.groups.get(number, ""), tuple(shown_rows)))
    return View(
        result=result,
        columns=tuple(_shown_column(columns[position], result, position) for position in kept),
        groups=tuple(groups),
        notes=tuple(_notes(result)),
        beside=(*(column.header for column in result.beside), *(column.header for column in result.published)),
        used=tuple(status for status in STATUSES if result.summary()[status]),
    )


def _shown_column(column: Column, result: TableResult, position: int) -> ShownColumn:
    return ShownColumn(
        column=column,
        header=column.header,
        unit=column.unit,
        arrow={"lower": "↓", "higher": "↑"}.get(column.better or "", ""),
        measured=any(
            row.cells[position].measured is not None
            or row.cells[position].reason in ("failed", "failed_too")
            or row.cells[position].status == "failed"
            for row in result.rows
        ),
        prose=column.descriptive
        and not all((row.cells[position].reported.text or "0")[:1].isdigit() for row in result.rows),
    )


def _mark(mark: str) -> str:
    return {"dagger": "†", "double_dagger": "‡", "star": "⋆"}.get(mark, f"[{mark}]")


def conventions(result: TableResult) -> list[str]:
    """The conventions under which the shown values stand, most frequent first."""
    found: Counter[str] = Counter()
    for _, cell in result.cells:
        if cell.measured is not None:
            found[f"{cell.column.header}: {describe(cell)}"] += 1
    return [text for text, _ in found.most_common()]


def describe(cell: Cell) -> str:
    """A cell's protocol in words, shortened to what a reader needs beside the table."""
    form = {
        "as_trained": "as trained",
        "reparameterised": "reparameterised",
        "folded": "reparameterised, BatchNorm folded, heads averaged",
        "folded_two_heads": "reparameterised, BatchNorm folded, two heads kept",
    }.get(str(cell.protocol.get("form")), "")
    counting = {
        "macs": "a multiply-add is one, attention counted, norms not",
        "macs+norms": "attention and norms counted",
        "macs-attention": "attention not counted",
        "fvcore": "fvcore's default handles",
        "thop": "counted by thop",
        "ptflops": "counted by ptflops",
    }.get(str(cell.protocol.get("counting")), "")
    return "; ".join(part for part in (form, counting) if part)


def _notes(result: TableResult) -> list[str]:
    """Everything below a table: conventions, marks, reasons, the paper's own notes."""
    notes = [f"{text}." for text in conventions(result)]
    reasons: dict[tuple[str, str], Counter[str]] = {}
    for _, cell in result.cells:
        if cell.status == "not_measured":
            reasons.setdefault((cell.status, cell.reason or ""), Counter())[cell.column.header] += 1
    for (_, reason), headers in reasons.items():
        counted = ", ".join(f"{header} {count}" for header, count in headers.items())
        notes.append(f"Not measured, {reason} ({REASONS.get(reason, reason)}): {counted}.")
    for row, cell in result.cells:
        if cell.status == "failed":
            notes.append(f"{row.model}, {cell.column.header}: failed, {cell.reason}: {cell.message}.")
        elif cell.status == "explained":
            notes.append(f"{row.model}, {cell.column.header}: {cell.reason}: {cell.message}")
        if cell.counters_disagree:
            notes.append(f"{row.model}, {cell.column.header}: two counters disagree; see repro explain.")
    notes += _latency_notes(result)
    notes += [column.note for column in result.published]
    for mark, text in result.table.marks.items():
        notes.append(f"{_mark(mark)} {text}")
    if result.table.lost:
        notes.append(result.table.lost)
    notes += result.table.notes
    return notes


def _latency_notes(result: TableResult) -> list[str]:
    """What stands behind the latencies: device, system, placement, samples; and which columns are never compared."""
    measured = [cell.record for _, cell in result.cells if cell.metric == "latency" and cell.measured is not None]
    kept = [record for record in measured if record is not None]
    notes = [f"Latency: {text}." for text in sorted({told(record) for record in kept})[:3]]
    shown = [*kept, *(record for column in result.beside for record in column.records.values())]
    if any(imported(record) is not None for record in shown):
        notes.append(f"{IMPORTED} imported: measured elsewhere with another tool and read from a file.")
    for column in result.beside:
        notes.append(f"{column.header}: shown, never compared. " + " ".join(column.notes))
    return notes


def legend(statuses: Sequence[str]) -> str:
    """The signs that a table uses and what they mean."""
    return "  ".join(f"{SIGNS[status]} {MEANINGS[status]}" for status in statuses)


def verdict(summary: dict[str, int]) -> str:
    """One line: how many cells have each status."""
    counted = ", ".join(f"{count} {status}" for status, count in summary.items() if count)
    if not counted:
        return "no cell to compare"
    return f"{counted}; {sum(summary[status] for status in COMPARED)} compared"

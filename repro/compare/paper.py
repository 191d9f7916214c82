"""Numbers that a paper's author typed by hand, beside the records: a newer record makes them stale too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from repro.compare.cells import Cell, TableResult
from repro.compare.tolerance import decimals, rounds_to
from repro.spec.latex import Tabular, TypedCell
from repro.spec.parse import is_number

_HEADS = (
    ("params", r"\bparam"),
    ("gmacs", r"\bg?macs?\b|\bg?flops?\b|\bmadds?\b|\bmult-?adds?\b"),
    ("latency", r"\blatency\b"),
    ("top1", r"\btop-?\s?1\b|\bacc(uracy)?\b"),
    ("miou", r"\bmiou\b"),
)


@dataclass(frozen=True, kw_only=True)
class Typed:
    """A typed number that is not what the record says."""

    file: Path
    line: int
    typed: str
    table: int
    model: str
    header: str
    measured: Decimal
    status: str
    reason: str | None


def _name(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "", re.sub(r"\([^)]*\)\s*$", "", text.strip()).lower())


def _columns(rows: Sequence[Sequence[TypedCell]]) -> dict[int, str]:
    """Which metric stands in which column, by the words of the rows above the models."""
    found: dict[int, str] = {}
    for row in rows:
        position = 0
        for cell in row:
            for metric, pattern in _HEADS:
                if cell.span == 1 and position not in found and re.search(pattern, cell.text, re.I):
                    found[position] = metric
            position += cell.span
    return found


def typed_numbers(tabular: Tabular, results: Sequence[TableResult]) -> list[Typed]:
    """The numbers of a tabular that disagree with a record; its rows are found by the models' names.

    Of several tables that print the models, the one that prints most of them is meant. A number agrees when the
    measured value rounds to it at its own decimals.
    """
    best: list[Typed] = []
    most = 0
    for result in results:
        rows = {_name(row.row.model): row for row in result.rows}
        known = [(index, rows[_name(cells[0].text)]) for index, cells in enumerate(tabular.rows)
                 if _name(cells[0].text) in rows]  # fmt: skip
        if len(known) <= most:
            continue
        most = len(known)
        columns = _columns(tabular.rows[: known[0][0]])
        best = []
        for index, row in known:
            cells = {cell.metric: cell for cell in row.cells}
            position = 0
            for cell in tabular.rows[index]:
                metric = columns.get(position)
                position += cell.span
                if metric in cells and (wrong := _wrong(cell.text, cells[metric])) is not None:
                    best.append(
                        Typed(
                            file=tabular.file,
                            line=cell.line,
                            typed=wrong,
                            table=result.table.number,
                            model=row.row.model,
                            header=cells[metric].column.header,
                            measured=cells[metric].measured or Decimal(0),
                            status=cells[metric].status or "",
                            reason=cells[metric].reason,
                        )
                    )
    return best


def _wrong(text: str, cell: Cell) -> str | None:
    """The typed number, where it disagrees; a cell without a compared measurement disagrees with nothing."""
    number = re.match(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
    if number is None or cell.measured is None or cell.status in (None, "not_measured", "failed"):
        return None
    if not is_number(number[0]) or rounds_to(cell.measured, number[0]):
        return None
    return number[0]


def shown(value: Decimal, typed: str) -> str:
    """A measured value at one decimal more than was typed."""
    return f"{value.quantize(Decimal(1).scaleb(-decimals(typed) - 1)):f}"

"""The formats of one table. A format is a function from a compared table to text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from repro.compare.cells import Cell, RowResult, TableResult
from repro.compare.latency import Beside, imported
from repro.compare.published import METRIC, PublishedColumn
from repro.render.architecture import architecture_of
from repro.render.architecture import as_data as architecture_data
from repro.render.engine import render
from repro.render.terminal import terminal
from repro.render.view import MEANINGS, SIGNS, TEX_SIGNS, verdict, view_of

SCHEMA = 1
_STAMPED = {"table.tex": "latex", "table_measured.tex": "latex-measured"}


@dataclass(frozen=True, kw_only=True)
class Format:
    """How one format is named, stored and made."""

    name: str
    suffix: str
    make: Callable[[TableResult, Sequence[Path]], str]


def _template(name: str) -> Callable[[TableResult, Sequence[Path]], str]:
    def make(result: TableResult, folders: Sequence[Path]) -> str:
        return render(
            name,
            folders,
            view=view_of(result),
            table=result.table,
            result=result,
            signs=SIGNS,
            meanings=MEANINGS,
            tex_signs=TEX_SIGNS,
            verdict=verdict(result.summary()),
            architecture=architecture_of(result),
            stamp=stamp(result, name),
        )

    return make


def stamp(result: TableResult, template: str) -> str:
    """How a table was made, in one line: what ``repro check-tables`` needs to make it again."""
    table = result.table
    made: dict[str, Any] = {"table": table.number, "format": _STAMPED.get(template, template)}
    if len(result.rows) != len(table.rows):
        made["rows"] = [row.row.model for row in result.rows]
    shown = [cell.metric for cell in result.rows[0].cells if not cell.column.descriptive] if result.rows else []
    if result.rows and shown != [column.metric for column in table.columns if not column.descriptive]:
        made["metrics"] = shown
    return json.dumps({**made, "tolerance": str(result.tolerance)}, ensure_ascii=True)


def _cell(cell: Cell) -> dict[str, Any]:
    data: dict[str, Any] = {
        "reported": cell.reported.text,
        "measured": None if cell.measured is None else float(cell.measured),
        "difference": None if cell.difference is None else float(cell.difference),
        "status": cell.status,
        "reason": cell.reason,
        "protocol": dict(cell.protocol),
        "record": None if cell.record is None else cell.record.id,
    }
    if cell.message:
        data["message"] = cell.message
    return data


def _row(result: RowResult) -> dict[str, Any]:
    return {
        "model": result.row.model,
        "variant": None if result.row.variant is None else result.row.variant.id,
        "group": result.row.group,
        "cells": {cell.metric: _cell(cell) for cell in result.cells},
    }


def as_data(result: TableResult) -> dict[str, Any]:
    """A compared table as plain data: the contract of ``repro table N --format json``."""
    columns = [cell.column for cell in result.rows[0].cells] if result.rows else result.table.columns
    return {
        "schema": SCHEMA,
        "table": result.table.number,
        "title": result.table.title,
        "columns": [
            {"metric": column.metric, "unit": column.unit, "decimals": column.decimals, "better": column.better}
            for column in columns
        ],
        "rows": [_row(row) for row in result.rows],
        "summary": result.summary(),
        **({"beside": [_beside(column) for column in result.beside]} if result.beside else {}),
        **({"published": [_published(column) for column in result.published]} if result.published else {}),
        **({"architecture": architecture_data(result)} if result.architecture else {}),
    }


def _beside(column: Beside) -> dict[str, Any]:
    """A column that is never compared."""
    return {
        "key": column.key,
        "kind": column.kind,
        "metric": "latency",
        "unit": "ms",
        "values": {
            model: {
                "value": value,
                "record": column.records[model].id if model in column.records else None,
                "imported": imported(column.records.get(model)) is not None,
            }
            for model, value in column.values.items()
        },
        "notes": list(column.notes),
    }


def _published(column: PublishedColumn) -> dict[str, Any]:
    """What one source published of the rows' weights, as it printed it."""
    figures = {model: asdict(figure) for model, figure in column.figures.items()}
    return {"source": column.source, "metric": METRIC, "unit": "%", "values": figures}


def _json(result: TableResult, folders: Sequence[Path]) -> str:
    return json.dumps(as_data(result), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_frame(result: TableResult) -> Any:
    """A compared table as a pandas DataFrame, one line a cell: the tidy form that CSV shares.

    Numbers of ``measured`` and ``difference`` are in the column's printed unit; ``reported`` is the printed string.
    """
    import pandas as pd  # a third of a second that other formats need not spend

    lines = []
    for row in result.rows:
        for cell in row.cells:
            data = _cell(cell)
            lines.append(
                {
                    "table": result.table.number,
                    "group": row.row.group,
                    "model": row.row.model,
                    "variant": row.row.variant.id if row.row.variant else None,
                    "metric": cell.metric,
                    "unit": cell.reported.unit or cell.column.unit,
                    **{name: data[name] for name in ("reported", "measured", "difference", "status", "reason")},
                    "protocol": json.dumps(data["protocol"], sort_keys=True) if data["protocol"] else None,
                    "record": data["record"],
                }
            )
    return pd.DataFrame(lines)


def _csv(result: TableResult, folders: Sequence[Path]) -> str:
    return str(as_frame(result).to_csv(index=False, lineterminator="\n"))


FORMATS: dict[str, Format] = {
    item.name: item
    for item in (
        Format(name="terminal", suffix=".txt", make=lambda result, folders: terminal(result)),
        Format(name="markdown", suffix=".md", make=_template("table.md")),
        Format(name="latex", suffix=".tex", make=_template("table.tex")),
        Format(name="latex-measured", suffix="_measured.tex", make=_template("table_measured.tex")),
        Format(name="html", suffix=".html", make=_template("table.html")),
        Format(name="csv", suffix=".csv", make=_csv),
        Format(name="json", suffix=".json", make=_json),
    )
}

"""Tables for a terminal, at most 100 columns wide; a status is a sign as well as a colour."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import click
from tabulate import SEPARATING_LINE, tabulate

from repro.compare.cells import TableResult
from repro.render.view import ShownCell, ShownColumn, View, legend, verdict, view_of

WIDTH = 100
COLOURS = {
    "match": "green",
    "within": "cyan",
    "explained": "blue",
    "outside": "red",
    "failed": "magenta",
    "not_measured": "bright_black",
    "not_reported": "bright_black",
}
_NAME = 30


def paint(text: str, status: str | None) -> str:
    """Colour a text by status; click takes the colour away again where the output is no terminal."""
    return click.style(text, fg=COLOURS[status]) if status in COLOURS else text


def terminal(result: TableResult) -> str:
    """The whole table, its notes and its standing."""
    view = view_of(result)
    title = textwrap.fill(f"Table {result.table.number}: {result.table.title}", WIDTH)
    notes = "\n".join(textwrap.fill(note, WIDTH, subsequent_indent="  ") for note in view.notes)
    signs = textwrap.fill(legend(view.used), WIDTH)
    return "\n".join([title, "", _body(view), "", signs, notes, "", verdict(result.summary())]) + "\n"


def _body(view: View) -> str:
    heads = ["Model", *(head for shown in view.columns for head in _heads(shown))]
    lines: list[list[str] | str] = []
    for _, rows in view.groups:
        if lines:
            lines.append(SEPARATING_LINE)
        for row in rows:
            name = f"{row.name}{row.marks}" + (f" ({row.inline})" if row.inline else "")
            cells = [text for shown, cell in zip(view.columns, row.cells, strict=True) for text in _cells(shown, cell)]
            lines.append([textwrap.shorten(name, _NAME, placeholder="…"), *cells])
    align = ["left", *("right" for _ in heads[1:])]
    return str(tabulate(lines, headers=heads, tablefmt="simple", colalign=align, disable_numparse=True))


def _heads(shown: ShownColumn) -> Sequence[str]:
    head = shown.header.replace(" ", "\n")
    unit = f"({shown.unit})" if shown.unit else ""
    first = "\n".join(part for part in (f"{head}{shown.arrow}", unit) if part)
    return [first, "measured"] if shown.measured else [first]


def _cells(shown: ShownColumn, cell: ShownCell) -> Sequence[str]:
    if shown.measured:
        return [cell.reported, paint(f"{cell.measured} {cell.sign}", cell.cell.status)]
    if cell.cell.status is None:
        return [cell.reported]
    return [f"{cell.reported} {paint(cell.sign, cell.cell.status)}"]

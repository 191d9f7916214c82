"""Tables for a terminal, at most 100 columns wide; a status is a sign as well as a colour."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace

import click
import tabulate as tabulate_module
from tabulate import SEPARATING_LINE, tabulate

from repro.compare.cells import TableResult
from repro.render.architecture import architecture_of
from repro.render.architecture import terminal as architecture_grid
from repro.render.view import SIGNS, ShownCell, ShownColumn, ShownRow, View, legend, verdict, view_of

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
_PROSE = 60
# tabulate widens every column to its head and two more, which a table of eleven columns cannot afford.
tabulate_module.MIN_PADDING = 0


def paint(text: str, status: str | None) -> str:
    """Colour a text by status; click takes the colour away again where the output is no terminal."""
    return click.style(text, fg=COLOURS[status]) if status in COLOURS else text


def terminal(result: TableResult) -> str:
    """The whole table, its notes and its standing."""
    view = view_of(result)
    if result.published and not _fits(_grid(view, _names(view, False))):
        view = view_of(replace(result, published=()))
        left_out = (f"{column.header}: no room here; see the other formats." for column in result.published)
        view = replace(view, notes=(*view.notes, *left_out))
    title = textwrap.fill(f"Table {result.table.number}: {result.table.title}", WIDTH)
    notes = "\n".join(textwrap.fill(note, WIDTH, subsequent_indent="  ") for note in view.notes)
    signs = textwrap.fill(legend(view.used), WIDTH)
    architecture = architecture_of(result)
    structure = [architecture_grid(architecture, WIDTH), ""] if architecture is not None else []
    return "\n".join([title, "", _body(view), "", *structure, signs, notes, "", verdict(result.summary())]) + "\n"


def _body(view: View) -> str:
    """The grid: with what the paper prints beside names if that fits, else without, else with shortened names.

    Columns that are never compared stand in it where there is room, else in a grid of their own below.
    """
    if view.beside:
        grid = _grid(view, _names(view, False))
        if _fits(grid):
            return grid
        return f"{_body(replace(view, beside=()))}\n\n{_below(view)}"
    room = WIDTH
    for inline in (True, False):
        names = _names(view, inline)
        grid = _grid(view, names)
        over = _wide(grid) - WIDTH
        if over <= 0:
            return grid
        room = max(len(name) for name in names) - over
    return _grid(view, [name if len(name) <= room else f"{name[: max(room, 8) - 1]}…" for name in names])


def _wide(grid: str) -> int:
    return max(len(click.unstyle(line)) for line in grid.splitlines())


def _fits(grid: str) -> bool:
    return _wide(grid) <= WIDTH


def _names(view: View, inline: bool) -> list[str]:
    return [_name(row, inline) for _, rows in view.groups for row in rows]


def _below(view: View) -> str:
    """The columns that are never compared, beside what the paper prints, for the rows that have any."""
    latency = next(index for index, shown in enumerate(view.columns) if shown.column.metric == "latency")
    lines = [
        [_name(row, False), row.cells[latency].reported, *row.beside]
        for _, rows in view.groups
        for row in rows
        if set(row.beside) != {"–"}
    ]
    heads = ["Model", "Paper (ms)", *(textwrap.fill(head, 16) for head in view.beside)]
    align = ["left"] + ["right"] * (len(heads) - 1)
    return str(tabulate(lines, headers=heads, tablefmt="simple", colalign=align, disable_numparse=True))


def _name(row: ShownRow, inline: bool) -> str:
    return f"{row.name}{row.marks}" + (f" ({row.inline})" if row.inline and inline else "")


def _grid(view: View, names: Sequence[str]) -> str:
    common = [_common_status(view, index) for index in range(len(view.columns))]
    heads = ["Model"]
    for shown, status in zip(view.columns, common, strict=True):
        heads += _heads(shown, status)
    heads += [textwrap.fill(head, 12) for head in view.beside]
    left = iter(names)
    lines: list[list[str] | str] = []
    for _, rows in view.groups:
        if lines:
            lines.append(SEPARATING_LINE)
        for row in rows:
            line = [next(left)]
            for shown, cell, status in zip(view.columns, row.cells, common, strict=True):
                line += _cells(shown, cell, status)
            line += row.beside[: len(view.beside)]
            lines.append(line)
    align = ["left"]
    for shown in view.columns:
        align += ["left" if shown.prose else "right"] * shown.width
    align += ["right"] * len(view.beside)
    return str(tabulate(lines, headers=heads, tablefmt="simple", colalign=align, disable_numparse=True))


def _common_status(view: View, index: int) -> str | None:
    """The one status that all cells of a column without measured values have; it is then shown in the head."""
    if view.columns[index].measured:
        return None
    statuses = {row.cells[index].cell.status for _, rows in view.groups for row in rows}
    return statuses.pop() if len(statuses) == 1 else None


def _heads(shown: ShownColumn, status: str | None) -> Sequence[str]:
    unit = (f"({shown.unit})" if shown.unit else "") + shown.arrow
    parts = (shown.header.replace(" ", "\n"), unit, SIGNS[status] if status is not None else "")
    head = "\n".join(part for part in parts if part)
    return [head, "measured"] if shown.measured else [head]


def _cells(shown: ShownColumn, cell: ShownCell, common: str | None) -> Sequence[str]:
    if shown.measured:
        return [cell.reported, paint(f"{cell.measured} {cell.sign}", cell.cell.status)]
    if cell.cell.status is None:
        return [textwrap.fill(cell.reported, _PROSE)]
    if common is not None:
        return [cell.reported]
    return [f"{cell.reported} {paint(cell.sign, cell.cell.status)}"]

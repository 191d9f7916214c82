"""``repro check-tables``."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import click

from repro.commands.options import NOTHING, OFF, OK, open_run, project_option, store_option, warn


@click.command(name="check-tables")
@click.argument("paper", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--fix", is_flag=True, help="Renew the stale tables that the paper takes in; typed numbers are left.")
@project_option
@store_option
def check_tables(paper: Path, fix: bool, project: Path | None, store: Path | None) -> int:
    """Find what the records have made stale in a LaTeX PAPER: tables taken in by \\input, and numbers typed by hand.

    Exit codes: 0 all is current, 1 something is stale or disagrees, 2 bad usage or input, 3 the paper has no table
    that could be checked.
    """
    from repro.compare.paper import shown, typed_numbers
    from repro.files import write_atomically
    from repro.render.stamp import STAMP, current
    from repro.spec.latex import read, sources, tabulars

    run = open_run(project, store)
    own, made = sources(paper, STAMP)
    stale = fixed = 0
    checked = len(made)
    for item in made:
        text = read(item.path)
        fresh = current(text, str(item.path), lambda number, **chosen: _compared(run, number, **chosen),
                        run.project.template_folders)  # fmt: skip
        if fresh == text:
            continue
        stale += 1
        click.echo(f"{item.file}:{item.line}: {item.path} is stale: {_difference(text, fresh)}")
        if fix:
            write_atomically(item.path, fresh)
            fixed += 1
            click.echo(f"repro: renewed {item.path}", err=True)
    results = [run.compare(spec) for spec in run.project.tables()]
    warn(run)
    wrong = 0
    for source in own:
        for tabular in tabulars(source):
            names = {row.row.model for result in results for row in result.rows}
            checked += bool(names)
            for typed in typed_numbers(tabular, results):
                wrong += 1
                why = f" ({typed.status}{f': {typed.reason}' if typed.reason else ''})"
                why = why if typed.status in ("explained", "outside") else ""
                click.echo(
                    f"{typed.file}:{typed.line}: {typed.model}, {typed.header}: typed {typed.typed}, the record says "
                    f"{shown(typed.measured, typed.typed)}; Table {typed.table}{why}"
                )
    if not checked:
        click.echo(f"{paper}: no table that could be checked")
        return NOTHING
    click.echo(f"{len(made)} tables taken in, {stale} stale{f', {fixed} renewed' if fixed else ''}; "
               f"{wrong} typed numbers disagree")  # fmt: skip
    return OFF if stale > fixed or wrong else OK


def _compared(run: Any, number: int, *, rows: list[str] | None, metrics: list[str], tolerance: str) -> Any:
    """The table as the stamp says it was made, from today's records."""
    from repro.compare.tolerance import parse_tolerance

    spec = run.project.table(number)
    chosen = spec.rows if rows is None else tuple(row for row in spec.rows if row.model in rows)
    return run.compare(spec, rows=chosen, metrics=metrics, tolerance=parse_tolerance(tolerance))


def _difference(old: str, new: str) -> str:
    """How many lines differ, and the first of them."""
    lines = [line for line in difflib.ndiff(old.splitlines(), new.splitlines()) if line[:2] in ("- ", "+ ")]
    gone = [line[2:].strip() for line in lines if line[0] == "-"]
    come = [line[2:].strip() for line in lines if line[0] == "+"]
    first = f"; now {come[0][:100]}" if come else ""
    return f"{max(len(gone), len(come))} lines differ{first}"

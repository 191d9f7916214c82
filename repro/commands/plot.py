"""``repro plot``."""

from __future__ import annotations

from pathlib import Path

import click

from repro.commands.options import (
    NOTHING,
    OK,
    check_writable,
    formats_of,
    open_run,
    output_option,
    project_option,
    store_option,
    tolerance_option,
    warn,
)
from repro.errors import UsageError


@click.command()
@click.argument("names", nargs=-1, metavar="[PLOT]...")
@click.option("--table", "number", type=int, help="Only this table's plots and points.")
@click.option("--format", "formats", default="svg", show_default=True, metavar="LIST",
              help="svg, png, pdf; several separated by commas.")  # fmt: skip
@click.option("--list", "listing", is_flag=True, help="List the plots that these records make, and draw none.")
@output_option
@tolerance_option
@project_option
@store_option
def plot(
    names: tuple[str, ...],
    number: int | None,
    formats: str,
    listing: bool,
    output: Path | None,
    tolerance: str,
    project: Path | None,
    store: Path | None,
) -> int:
    """Draw plots for a paper (default: all; * and ? match): from what is printed and from what was measured.

    Accuracy against latency, params and GMACs with the front of the best; reported against measured with the
    tolerance's band; the deviation by metric; estimates against printed latencies. Nothing is measured.
    """
    from fnmatch import fnmatchcase

    from repro.commands.report import compared
    from repro.compare.tolerance import parse_tolerance
    from repro.render import plots
    from repro.render.figures import figures, only_table
    from repro.spec.reader import suggestion

    chosen = formats_of(formats, plots.FORMATS)
    bound = parse_tolerance(tolerance)
    run = open_run(project, store)
    if number is not None:
        run.project.table(number)
    found = figures(compared(run, run.project.tables(), bound))
    warn(run)
    if number is not None:
        found = only_table(found, number)
    known = [figure.name for figure in found]
    for name in names:
        if not any(fnmatchcase(item, name) for item in known):
            raise UsageError(f"no plot {name!r}{suggestion(name, known)}; these records make: {', '.join(known)}")
    found = [figure for figure in found if not names or any(fnmatchcase(figure.name, name) for name in names)]
    if listing:
        for figure in found:
            click.echo(f"{figure.name}  {figure.title}")
        return OK
    if not found:
        click.echo("repro: no table has enough points for a plot", err=True)
        return NOTHING
    folder = output or Path("out")
    check_writable(folder, True)
    for figure in found:
        for kind in chosen:
            path = folder / f"plot_{figure.name}.{kind}"
            plots.write(figure, path)
            click.echo(f"repro: wrote {path}", err=True)
    return OK

"""``repro report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from repro.commands.options import open_run, project_option, store_option, tolerance_option, warn
from repro.errors import UsageError

MARKER = ".repro-site"  # a folder with this file is a site that may be replaced


@click.command()
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=Path("site"), show_default=True,
              help="Folder of the site; an older site in it is replaced.")  # fmt: skip
@tolerance_option
@project_option
@store_option
def report(output: Path, tolerance: str, project: Path | None, store: Path | None) -> None:
    """Write a static site of all tables, from specs and records; nothing is measured.

    Open index.html in a browser: it needs no server and no network.
    """
    from repro.compare.tolerance import parse_tolerance

    bound = parse_tolerance(tolerance)
    run = open_run(project, store)
    count = write_site(run, bound, output)
    warn(run)
    click.echo(f"repro: wrote {output / 'index.html'} and {count - 1} other files", err=True)


def write_site(run: Any, tolerance: Any, output: Path) -> int:
    """Make the site beside ``output``, then put it in its place; return how many files it has.

    Raises
    ------
    UsageError
        When ``output`` holds something that is no site.
    """
    from repro.files import new_folder_beside, put_in_place, recover
    from repro.render.site import pages

    output = output.absolute()
    recover(output)
    if output.exists() and any(output.iterdir()) and not (output / MARKER).is_file():
        raise UsageError(f"{output}: not empty, and no site of repro: give another --output")
    made = report_of(run, tolerance)
    folder = new_folder_beside(output)
    count = 0
    for name, text in pages(made, run.project.template_folders):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        count += 1
    (folder / MARKER).write_text("made by repro report\n", encoding="utf-8")
    put_in_place(folder, output)
    return count


def report_of(run: Any, tolerance: Any) -> Any:
    """Compare everything that the site shows."""
    from repro.compare.claims import compare_claims
    from repro.compare.verify import verify
    from repro.render.doctor import abilities
    from repro.render.site import Report
    from repro.spec.claims import claims_of

    specs = run.project.tables()
    results = compared(run, specs, tolerance)
    claims = None
    folder = run.project.folder("tables")
    if (folder / "claims.yaml").is_file():
        tables = {spec.number: spec for spec in specs}
        listed = claims_of(folder, tables)
        claims = compare_claims(listed, listed.claims, tables, run.records)
    drawn, no_plots = _plots(results)
    return Report(
        results=results,
        verdict=verify(results, tolerance),
        claims=claims,
        abilities=abilities(),
        warnings=tuple(run.warnings),
        plots=drawn,
        no_plots=no_plots,
    )


def compared(run: Any, specs: Any, tolerance: Any) -> tuple[Any, ...]:
    """The tables beside the records, with estimates of latency where enough programs are on record."""
    try:
        estimator = run.estimator()
    except UsageError:  # too few programs: the tables then have no such column
        estimator = None
    return tuple(run.compare(spec, tolerance=tolerance, estimator=estimator) for spec in specs)


def _plots(results: Any) -> tuple[Any, str]:
    """The site's plots, or why there are none."""
    from repro.render import plots
    from repro.render.figures import figures
    from repro.render.site import SitePlot, page_names, subject

    if not plots.available():
        return (), "Plots need matplotlib: install the extra 'plots' and make the report again."
    names = page_names([row.row for result in results for row in result.rows])
    drawn = tuple(
        SitePlot(
            anchor=f"plot-{figure.name}",
            title=figure.title,
            text=figure.text,
            svg=plots.inline(figure, lambda point: names[subject(point.row)]),
            table=figure.table,
        )
        for figure in figures(results)
    )
    return drawn, "" if drawn else "No table has enough points for a plot."

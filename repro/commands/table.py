"""``repro table``."""

from __future__ import annotations

from pathlib import Path

import click

from repro.commands.options import (
    OFF,
    OK,
    check_writable,
    formats_of,
    measuring_options,
    metrics_of,
    open_run,
    output_option,
    project_option,
    selection_options,
    settings_of,
    store_option,
    tolerance_option,
    warn,
)


@click.command()
@click.argument("number", type=int)
@click.option("--format", "formats", metavar="LIST",
              help="terminal, markdown, latex, latex-measured, html, csv, json; several separated by commas. "
              "Default: the terminal's table, and LaTeX and Markdown files.")  # fmt: skip
@click.option("--estimate", is_flag=True, help="Add a column of estimated latencies (see repro estimate).")
@output_option
@selection_options
@measuring_options
@tolerance_option
@project_option
@store_option
def table(
    number: int,
    formats: str | None,
    estimate: bool,
    output: Path | None,
    only: tuple[str, ...],
    metrics: str | None,
    no_measure: bool,
    refresh: bool,
    jobs: int | None,
    timeout: float,
    memory: float,
    executor: str,
    tolerance: str,
    project: Path | None,
    store: Path | None,
) -> int:
    """Measure what is missing of table NUMBER and show it beside what the paper printed.

    Without --format the table is printed and out/table_NN.tex and out/table_NN.md are written. One --format prints
    that format alone (LaTeX, Markdown, HTML and CSV are written to a file too); of several, JSON or else the
    terminal's table is printed and the others are written.
    """
    from repro.compare.cells import select_rows
    from repro.compare.tolerance import parse_tolerance
    from repro.files import write_atomically
    from repro.render.formats import FORMATS

    chosen = formats_of(formats, list(FORMATS)) if formats is not None else ["terminal", "latex", "markdown"]
    bound = parse_tolerance(tolerance)
    wanted = metrics_of(metrics)
    settings = settings_of(no_measure, refresh, jobs, timeout, memory, executor)
    run = open_run(project, store)
    spec = run.project.table(number)
    rows = select_rows([spec], only)
    folder = output or Path("out")
    files = {name: folder / f"table_{number:02d}{FORMATS[name].suffix}" for name in chosen if name != "terminal"}
    if output is None:
        files.pop("json", None)
    check_writable(folder, bool(files))
    run.measure([spec], rows, wanted, settings)
    warn(run)
    estimator = run.estimator() if estimate and spec.column("latency") is not None else None
    result = run.compare(spec, rows=rows[number], metrics=wanted, tolerance=bound, estimator=estimator)
    texts = {name: FORMATS[name].make(result, run.project.template_folders) for name in chosen}
    for name, path in files.items():
        write_atomically(path, texts[name])
        click.echo(f"repro: wrote {path}", err=True)
    printed = chosen[0] if len(chosen) == 1 else next((name for name in ("json", "terminal") if name in chosen), None)
    if printed is not None:
        click.echo(texts[printed], nl=False)
    return OFF if result.summary()["failed"] else OK

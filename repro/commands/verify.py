"""``repro verify``."""

from __future__ import annotations

from pathlib import Path

import click

from repro.commands.options import (
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
@click.argument("numbers", type=int, nargs=-1)
@tolerance_option
@click.option("--format", "formats", default="terminal", show_default=True, metavar="LIST",
              help="terminal, markdown, json, junit, github; several separated by commas.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Cells that could be measured here but were not fail too.")
@output_option
@selection_options
@measuring_options
@project_option
@store_option
def verify(
    numbers: tuple[int, ...],
    tolerance: str,
    formats: str,
    strict: bool,
    output: Path | None,
    only: tuple[str, ...],
    metrics: str | None,
    no_measure: bool,
    refresh: bool,
    jobs: int | None,
    timeout: float,
    memory: float,
    executor: str,
    project: Path | None,
    store: Path | None,
) -> int:
    """Compare every cell of the tables NUMBERS (default: all) with what was measured.

    One format is printed; of several, the first is printed and all are written to --output (default: out).
    """
    from repro.compare.cells import select_rows
    from repro.compare.tolerance import parse_tolerance
    from repro.compare.verify import verify as judge
    from repro.files import write_atomically
    from repro.render.verdict import FORMATS

    chosen = formats_of(formats, list(FORMATS))
    bound = parse_tolerance(tolerance)
    wanted = metrics_of(metrics)
    settings = settings_of(no_measure, refresh, jobs, timeout, memory, executor)
    run = open_run(project, store)
    specs = run.project.tables(tuple(dict.fromkeys(numbers)))
    rows = select_rows(specs, only)
    folder = output or Path("out")
    write = output is not None or len(chosen) > 1
    check_writable(folder, write)
    run.measure(specs, rows, wanted, settings)
    warn(run)
    results = [run.compare(spec, rows=rows[spec.number], metrics=wanted, tolerance=bound) for spec in specs]
    verdict = judge(results, bound, strict=strict)
    for name in chosen if write else ():
        suffix, make = FORMATS[name]
        write_atomically(folder / f"verify{suffix}", make(verdict))
        click.echo(f"repro: wrote {folder / f'verify{suffix}'}", err=True)
    click.echo(FORMATS[chosen[0]][1](verdict), nl=False)
    return verdict.exit_code

"""The commands, one error boundary and the exit codes."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from repro import __version__
from repro.errors import ReproError, UsageError

OK, OFF, USAGE, NOTHING, INTERRUPTED = 0, 1, 2, 3, 130

F = TypeVar("F", bound=Callable[..., Any])


class _Boundary(click.Group):
    """Turns every user mistake into its lines and exit code 2; a traceback is left to bugs."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        try:
            sys.exit(super().main(*args, **kwargs) or OK)
        except click.exceptions.Exit as error:
            sys.exit(error.exit_code)
        except click.ClickException as error:
            click.echo(f"repro: {error.format_message()}", err=True)
            sys.exit(USAGE)
        except ReproError as error:
            for line in error.lines:
                click.echo(f"repro: {line}", err=True)
            sys.exit(USAGE)
        except (KeyboardInterrupt, click.Abort):
            click.echo("repro: interrupted; what was measured is kept", err=True)
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            sys.stderr.close()  # the reader went away; nothing is left to say
            sys.exit(OK)


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        return functools.reduce(lambda made, option: option(made), reversed(options), command)

    return decorate


_project = click.option(
    "--project",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of another paper's project (one with tables/). Default: the working folder if it has tables/.",
)
_store = click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of your own records. Default: REPRO_STORE, else the platform's cache folder.",
)
_selection = _options(
    click.option("--only", multiple=True, metavar="GLOB", help="Only rows whose model matches; may be repeated."),
    click.option("--metrics", metavar="LIST", help="Only these metrics, separated by commas."),
)
_measuring = _options(
    click.option("--no-measure", is_flag=True, help="Measure nothing; show what the records have."),
    click.option("--refresh", is_flag=True, help="Measure again what the records already have."),
    click.option("--jobs", type=click.IntRange(min=1), help="Worker processes. Default: one for each processor."),
    click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=300.0, show_default=True,
                 help="Seconds that one model may take."),
    click.option("--memory", type=click.FloatRange(min=0.5), default=6.0, show_default=True,
                 help="GiB of memory that one model may take."),
)  # fmt: skip
_tolerance = click.option(
    "--tolerance", default="0", show_default=True, metavar="T",
    help="0.1 (in the printed unit), 5% (of the printed value), or per metric: top1=0.1,params=1%.",
)  # fmt: skip
_output = click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Folder for files. Default: out."
)


@click.group(cls=_Boundary, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="repro")
def main() -> None:
    """Regenerate a paper's tables from its released code and weights, and say cell by cell what reproduces.

    Exit codes: 0 all compared cells hold, 1 some cell is outside or failed, 2 bad usage or input, 3 nothing could be
    compared, 130 interrupted.
    """


def _open(project: Path | None, store: Path | None) -> Any:
    from repro.pipeline import Run
    from repro.results.store import default_folder
    from repro.spec.project import Project

    return Run.open(Project.find(project), store if store is not None else default_folder())


def _settings(no_measure: bool, refresh: bool, jobs: int | None, timeout: float, memory: float) -> Any:
    from repro.measure.workers import GIB, Limits
    from repro.pipeline import Settings

    if no_measure and refresh:
        raise UsageError("--no-measure and --refresh exclude each other")
    limits = Limits(seconds=timeout, memory=int(memory * GIB))
    return Settings(measure=not no_measure, refresh=refresh, jobs=jobs or 0, limits=limits)


def _metrics(text: str | None) -> list[str]:
    from repro.compare.cells import check_metrics

    metrics = [part.strip() for part in (text or "").split(",") if part.strip()]
    if text is not None and not metrics:
        raise UsageError("--metrics names no metric")
    check_metrics(metrics)
    return metrics


def _formats(text: str, known: Sequence[str]) -> list[str]:
    from repro.spec.reader import suggestion

    formats = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in formats:
        if name not in known:
            raise UsageError(f"--format: unknown format {name!r}{suggestion(name, known)}; known: {', '.join(known)}")
    if not formats:
        raise UsageError("--format names no format")
    return formats


def _warn(run: Any) -> None:
    for warning in run.warnings:
        click.echo(f"repro: {warning}", err=True)


@main.command()
@click.argument("number", type=int)
@click.option("--format", "formats", metavar="LIST",
              help="terminal, markdown, latex, latex-measured, html, csv, json; several separated by commas. "
              "Default: the terminal's table, and LaTeX and Markdown files.")  # fmt: skip
@_output
@_selection
@_measuring
@_tolerance
@_project
@_store
def table(
    number: int,
    formats: str | None,
    output: Path | None,
    only: tuple[str, ...],
    metrics: str | None,
    no_measure: bool,
    refresh: bool,
    jobs: int | None,
    timeout: float,
    memory: float,
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

    chosen = _formats(formats, list(FORMATS)) if formats is not None else ["terminal", "latex", "markdown"]
    bound = parse_tolerance(tolerance)
    wanted = _metrics(metrics)
    settings = _settings(no_measure, refresh, jobs, timeout, memory)
    run = _open(project, store)
    spec = run.project.table(number)
    rows = select_rows([spec], only)
    folder = output or Path("out")
    files = {name: folder / f"table_{number:02d}{FORMATS[name].suffix}" for name in chosen if name != "terminal"}
    if output is None:
        files.pop("json", None)
    _check_writable(folder, bool(files))
    run.measure([spec], rows, wanted, settings)
    _warn(run)
    result = run.compare(spec, rows=rows[number], metrics=wanted, tolerance=bound)
    texts = {name: FORMATS[name].make(result, run.project.template_folders) for name in chosen}
    for name, path in files.items():
        write_atomically(path, texts[name])
        click.echo(f"repro: wrote {path}", err=True)
    printed = chosen[0] if len(chosen) == 1 else next((name for name in ("json", "terminal") if name in chosen), None)
    if printed is not None:
        click.echo(texts[printed], nl=False)
    return OFF if result.summary()["failed"] else OK


def _check_writable(folder: Path, needed: bool) -> None:
    """Say before a long run that its files could not be written."""
    if not needed:
        return
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror or error}") from error


@main.command()
@click.argument("numbers", type=int, nargs=-1)
@_tolerance
@click.option("--format", "formats", default="terminal", show_default=True, metavar="LIST",
              help="terminal, markdown, json, junit, github; several separated by commas.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Cells that could be measured here but were not fail too.")
@_output
@_selection
@_measuring
@_project
@_store
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

    chosen = _formats(formats, list(FORMATS))
    bound = parse_tolerance(tolerance)
    wanted = _metrics(metrics)
    settings = _settings(no_measure, refresh, jobs, timeout, memory)
    run = _open(project, store)
    specs = run.project.tables(tuple(dict.fromkeys(numbers)))
    rows = select_rows(specs, only)
    folder = output or Path("out")
    write = output is not None or len(chosen) > 1
    _check_writable(folder, write)
    run.measure(specs, rows, wanted, settings)
    _warn(run)
    results = [run.compare(spec, rows=rows[spec.number], metrics=wanted, tolerance=bound) for spec in specs]
    verdict = judge(results, bound, strict=strict)
    for name in chosen if write else ():
        suffix, make = FORMATS[name]
        write_atomically(folder / f"verify{suffix}", make(verdict))
        click.echo(f"repro: wrote {folder / f'verify{suffix}'}", err=True)
    click.echo(FORMATS[chosen[0]][1](verdict), nl=False)
    return verdict.exit_code


@main.command()
@_project
def tables(project: Path | None) -> None:
    """List the tables: rows, how many have a builder, and which metrics they print."""
    from tabulate import tabulate

    from repro.spec.project import Project

    lines = []
    for spec in Project.find(project).tables():
        built = sum(row.variant is not None for row in spec.rows)
        metrics = ", ".join(column.metric for column in spec.columns if not column.descriptive)
        lines.append([spec.number, len(spec.rows), built, metrics or "settings", spec.title[:60]])
    click.echo(tabulate(lines, headers=["Table", "Rows", "Built", "Metrics", "Title"], tablefmt="simple"))


@main.command()
@click.argument("number", type=int)
@click.argument("row")
@click.argument("metric")
@_measuring
@_tolerance
@_project
@_store
def explain(
    number: int,
    row: str,
    metric: str,
    no_measure: bool,
    refresh: bool,
    jobs: int | None,
    timeout: float,
    memory: float,
    tolerance: str,
    project: Path | None,
    store: Path | None,
) -> None:
    """Tell one cell's whole story: table NUMBER, the ROW's model, the METRIC."""
    from repro.compare.tolerance import parse_tolerance
    from repro.render.explain import explain as story
    from repro.spec.reader import suggestion

    bound = parse_tolerance(tolerance)
    settings = _settings(no_measure, refresh, jobs, timeout, memory)
    run = _open(project, store)
    spec = run.project.table(number)
    models = {item.model: item for item in spec.rows}
    if row not in models:
        raise UsageError(f"no row {row!r} in table {number}{suggestion(row, models)}")
    printed = [column.metric for column in spec.columns]
    if metric not in printed:
        known = ", ".join(printed)
        raise UsageError(f"table {number} has no column {metric!r}{suggestion(metric, printed)}; it has {known}")
    wanted = [models[row]]
    descriptive = spec.column(metric).kind.descriptive
    if not descriptive:
        run.measure([spec], {number: wanted}, [metric], settings)
    _warn(run)
    result = run.compare(spec, rows=wanted, metrics=[] if descriptive else [metric], tolerance=bound)
    cell = next(cell for cell in result.rows[0].cells if cell.metric == metric)
    click.echo(story(spec, models[row], cell), nl=False)


@main.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@_project
def validate(files: tuple[Path, ...], project: Path | None) -> None:
    """Check table specs: the given FILES, or all of the project; a mistake is a line, file:line: path: message."""
    from repro.errors import InputError
    from repro.spec.parse import load_table
    from repro.spec.project import Project

    found = Project.find(project)
    paths = list(files) or list(found.paths.values())
    if not paths:
        raise UsageError(f"{found.folder('tables')}: no table_*.yaml there")
    problems = []
    for path in paths:
        try:
            load_table(path)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    click.echo(f"{len(paths)} table spec{'s' if len(paths) != 1 else ''} without a mistake")


@main.command()
@_project
@_store
def doctor(project: Path | None, store: Path | None) -> None:
    """Say what this machine can measure, and what is missing for the rest."""
    from repro.render.doctor import doctor as report

    run = _open(project, store)
    click.echo(report(run.project, run.store.folder), nl=False)


if __name__ == "__main__":
    main()

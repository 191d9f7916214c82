"""Options that commands share, and what they turn into."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from repro.errors import UsageError

OK, OFF, USAGE, NOTHING, INTERRUPTED = 0, 1, 2, 3, 130

F = TypeVar("F", bound=Callable[..., Any])


def options(*options: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator for several options, in the order of the help text."""

    def decorate(command: F) -> F:
        return functools.reduce(lambda made, option: option(made), reversed(options), command)

    return decorate


project_option = click.option(
    "--project",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of another paper's project (one with tables/). Default: the working folder if it has tables/.",
)
store_option = click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of your own records. Default: REPRO_STORE, else the platform's cache folder.",
)
selection_options = options(
    click.option("--only", multiple=True, metavar="GLOB", help="Only rows whose model matches; may be repeated."),
    click.option("--metrics", metavar="LIST", help="Only these metrics, separated by commas."),
)
executor_option = click.option(
    "--executor", type=click.Choice(["local", "ray"]), default="local", show_default=True,
    help="Where models are built: here, or on a Ray cluster (RAY_ADDRESS; else one on this machine).",
)  # fmt: skip
measuring_options = options(
    click.option("--no-measure", is_flag=True, help="Measure nothing; show what the records have."),
    click.option("--refresh", is_flag=True, help="Measure again what the records already have."),
    click.option("--jobs", type=click.IntRange(min=1), help="Worker processes. Default: one for each processor."),
    click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=300.0, show_default=True,
                 help="Seconds that one model may take."),
    click.option("--memory", type=click.FloatRange(min=0.5), default=6.0, show_default=True,
                 help="GiB of memory that one model may take."),
    executor_option,
)  # fmt: skip
tolerance_option = click.option(
    "--tolerance", default="0", show_default=True, metavar="T",
    help="0.1 (in the printed unit), 5% (of the printed value), or per metric: top1=0.1,params=1%.",
)  # fmt: skip
output_option = click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Folder for files. Default: out."
)


def files_by_name(given: Sequence[str], option: str) -> dict[str, Path]:
    """What an option of the form VARIANT=FILE names, each once and each there."""
    found: dict[str, Path] = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not (name and equals and file):
            raise UsageError(f"{option} {text}: expected VARIANT=FILE")
        if name in found:
            raise UsageError(f"{option} {name}: given twice")
        if not Path(file).is_file():
            raise UsageError(f"{option} {name}: {file}: no such file")
        found[name] = Path(file)
    return found


def open_run(project: Path | None, store: Path | None) -> Any:
    """The project and the records that --project and --store name."""
    from repro.pipeline import Run
    from repro.results.store import default_folder
    from repro.spec.project import Project

    return Run.open(Project.find(project), store if store is not None else default_folder())


def settings_of(
    no_measure: bool, refresh: bool, jobs: int | None, timeout: float, memory: float, executor: str = "local"
) -> Any:
    """How to measure, from the measuring options."""
    from repro.measure.workers import GIB, Limits
    from repro.pipeline import Settings

    if no_measure and refresh:
        raise UsageError("--no-measure and --refresh exclude each other")
    limits = Limits(seconds=timeout, memory=int(memory * GIB))
    return Settings(measure=not no_measure, refresh=refresh, jobs=jobs or 0, limits=limits, executor=executor)


def metrics_of(text: str | None) -> list[str]:
    """The metrics that --metrics names; none means all."""
    from repro.compare.cells import check_metrics

    metrics = [part.strip() for part in (text or "").split(",") if part.strip()]
    if text is not None and not metrics:
        raise UsageError("--metrics names no metric")
    check_metrics(metrics)
    return metrics


def formats_of(text: str, known: Sequence[str]) -> list[str]:
    """The formats that --format names, each once and in order."""
    from repro.spec.reader import suggestion

    formats = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in formats:
        if name not in known:
            raise UsageError(f"--format: unknown format {name!r}{suggestion(name, known)}; known: {', '.join(known)}")
    if not formats:
        raise UsageError("--format names no format")
    return formats


def warn(run: Any) -> None:
    """Say what was found damaged on the way."""
    for warning in run.warnings:
        click.echo(f"repro: {warning}", err=True)


def check_writable(folder: Path, needed: bool) -> None:
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

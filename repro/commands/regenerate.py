"""``repro regenerate``."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from repro.commands.options import (
    OFF,
    OK,
    formats_of,
    options,
    project_option,
    settings_of,
    tolerance_option,
)
from repro.errors import UsageError

MARKER = ".repro-night"
TABLE_FORMATS = ("latex", "latex-measured", "markdown", "csv", "json")
_limits = options(
    click.option("--jobs", type=click.IntRange(min=1), help="Worker processes. Default: one for each processor."),
    click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=300.0, show_default=True,
                 help="Seconds that one model may take."),
    click.option("--memory", type=click.FloatRange(min=0.5), default=6.0, show_default=True,
                 help="GiB of memory that one model may take."),
)  # fmt: skip


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit 1 when something drifted.")
@click.option("--format", "formats", default="terminal", show_default=True, metavar="LIST",
              help="How the drift report is printed: terminal, markdown or json.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=Path("night"), show_default=True,
              help="Folder for tables, report and drift report; an older one of repro's is replaced.")  # fmt: skip
@click.option("--ledger", type=click.Path(path_type=Path, file_okay=False),
              help="Folder of the published records. Default: results/ of the project.")  # fmt: skip
@click.option("--take", multiple=True, type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR",
              help="Records that another machine measured tonight; may be repeated.")  # fmt: skip
@click.option("--no-measure", is_flag=True, help="Measure nothing here: only what --take brings is new.")
@_limits
@tolerance_option
@project_option
def regenerate(
    check: bool,
    formats: str,
    output: Path,
    ledger: Path | None,
    take: tuple[Path, ...],
    no_measure: bool,
    jobs: int | None,
    timeout: float,
    memory: float,
    tolerance: str,
    project: Path | None,
) -> int:
    """Measure all that this machine can from scratch, and renew the ledger, the tables and the report.

    Says what moved since the ledger was published: which rows, by how much, beyond noise or not, and which version
    moved with it. What this machine cannot measure stays as it was published.

    Exit codes: 0 done (with --check: nothing drifted), 1 a measurement failed (with --check: or something drifted),
    2 bad usage or input, 3 nothing could be measured and nothing was changed.
    """
    from repro.compare.tolerance import parse_tolerance
    from repro.files import new_folder_beside, put_in_place, recover
    from repro.pipeline import Run
    from repro.render.drift import FORMATS
    from repro.results.store import Store
    from repro.spec.project import Project

    chosen = formats_of(formats, list(FORMATS))
    bound = parse_tolerance(tolerance)
    settings = settings_of(False, False, jobs, timeout, memory)
    found = Project.find(project)
    folder = _ledger_of(found, ledger)
    output = output.absolute()
    if not check:
        recover(folder)
        recover(output)
        if output.exists() and any(output.iterdir()) and not (output / MARKER).is_file():
            raise UsageError(f"{output}: not empty, and not made by repro regenerate: give another --output")
    place = Path(tempfile.mkdtemp(prefix="repro-")) if check else new_folder_beside(output)
    new_ledger = place / "ledger" if check else new_folder_beside(folder)
    try:
        measured = place / "measured"
        run = Run.open(found, measured)
        # Nothing that was measured before may stand in for a measurement of tonight.
        run = Run(project=run.project, store=run.store, ledger=Store(place / "nothing"))
        wanted = [] if no_measure else _needs(run)
        run.measure_needs(wanted, settings)
        for taken in take:
            for record in Store(taken).all():
                run.store.put(record)
        old = Store(folder)
        result = _renew(old, run.store, new_ledger, wanted, run)
        click.echo(FORMATS[chosen[0]][1](result), nl=False)
        for warning in result.warnings:
            click.echo(f"repro: {warning}", err=True)
        if check or not result.measured:
            return int(result.exit_code)
        shutil.rmtree(measured, ignore_errors=True)
        _write(Run(project=found, store=Store(new_ledger), ledger=Store(place / "nothing")), result, bound, place)
        put_in_place(new_ledger, folder)
        put_in_place(place, output)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(new_ledger, ignore_errors=True)
    click.echo(f"repro: renewed {folder}; wrote {output}", err=True)
    return OFF if result.failed else OK


def _ledger_of(project: Any, given: Path | None) -> Path:
    """Where the published records are renewed: never inside an installed package."""
    if given is not None:
        return given.absolute()
    folder: Path = project.folder("results")
    if project.root is None and folder.parent.name == "data":
        raise UsageError(
            "the installed package's ledger is not yours to renew: run in a checkout, or give --ledger DIR"
        )
    return folder


def _needs(run: Any) -> list[Any]:
    """Every measurement behind every cell and claim that this machine can make, each once."""
    from repro.compare.cells import needs
    from repro.compare.claims import claim_needs
    from repro.spec.claims import claims_of

    tables = run.project.tables()
    wanted = needs(tables, {table.number: table.rows for table in tables}, [])
    folder = run.project.folder("tables")
    if (folder / "claims.yaml").is_file():
        by_number = {table.number: table for table in tables}
        listed = claims_of(folder, by_number)
        wanted += claim_needs(listed, listed.claims, by_number)
    return wanted


def _renew(old: Any, measured: Any, folder: Path, wanted: Sequence[Any], run: Any) -> Any:
    """Fill ``folder`` with the new ledger and say how it differs from the old one.

    A record that says what the published one says, versions included, is not published again: only what moved changes
    the ledger. A failed measurement never takes a published value away.
    """
    from repro.compare.drift import drift, newest, place_of, place_of_need
    from repro.compare.records import Records
    from repro.results.record import canonical
    from repro.results.store import Store

    now: Mapping[str, Any] = newest(measured.all())
    asked = {place_of_need(need) for need in wanted} | set(now)
    built = {canonical(need.subject.identity()) for need in wanted}
    published = list(old.all())
    before = newest(record for record in published if place_of(record) in asked)
    if old.folder.is_dir():
        shutil.copytree(old.folder, folder, dirs_exist_ok=True)  # other records, and whatever else lies there
    new = Store(folder)
    kept = {place for place, record in now.items() if _stays(before.get(place), record)}
    carried = 0
    for record in published:
        place = place_of(record)
        if place not in now:
            carried += 1
        elif place in kept and before[place] == record:
            pass
        elif canonical(record.subject.identity()) not in built - {canonical(now[place].subject.identity())}:
            new.path(record).unlink(missing_ok=True)  # of two variants of one name, the other one's record stays
    for place, record in now.items():
        if place not in kept:
            new.put(record)
    records = Records(Store(folder), None, run.project.manifest)
    return drift(before, now, run.project.tables(), records, carried=carried, warnings=old.warnings)


def _stays(last: Any, record: Any) -> bool:
    """Whether the published record stays: tonight's says the same, moved within noise, or failed."""
    from repro.compare.drift import within_noise

    if last is None or last.error is not None:
        return last is not None and record.error is not None
    if record.error is not None or _says_the_same(last, record):
        return True
    return bool(last.key() == record.key() and within_noise(last, record))


def _says_the_same(last: Any, record: Any) -> bool:
    def of(item: Any) -> dict[str, Any]:
        return {name: value for name, value in item.content().items() if name != "provenance"}

    return of(last) == of(record)


def _write(run: Any, result: Any, tolerance: Any, folder: Path) -> None:
    """Write the tables, the verdict, the site and the drift report."""
    from repro.commands.report import write_site
    from repro.compare.verify import verify
    from repro.files import write_atomically
    from repro.render.drift import FORMATS as DRIFT_FORMATS
    from repro.render.formats import FORMATS
    from repro.render.verdict import FORMATS as VERDICT_FORMATS

    compared = [run.compare(spec, tolerance=tolerance) for spec in run.project.tables()]
    for table in compared:
        for name in TABLE_FORMATS:
            text = FORMATS[name].make(table, run.project.template_folders)
            write_atomically(folder / "tables" / f"table_{table.table.number:02d}{FORMATS[name].suffix}", text)
    verdict = verify(compared, tolerance)
    for name in ("markdown", "json", "junit", "github"):
        suffix, make = VERDICT_FORMATS[name]
        write_atomically(folder / f"verify{suffix}", make(verdict))
    for suffix, make_drift in DRIFT_FORMATS.values():
        write_atomically(folder / f"drift{suffix}", click.unstyle(make_drift(result)))
    write_site(run, tolerance, folder / "site")
    write_atomically(folder / MARKER, "made by repro regenerate\n")

"""``repro records export | import | merge``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from repro.commands.options import OFF, OK, open_run, project_option, store_option
from repro.errors import UsageError


@click.group()
def records() -> None:
    """Move records between machines; conflicts are shown, never overwritten."""


_both = click.option("--both", is_flag=True, help="Take what conflicts as well; tables then show the newer one.")
_source = click.Path(path_type=Path, exists=True)


@records.command("export")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--metrics", metavar="LIST", help="Only these metrics, separated by commas.")
@click.option("--variant", "variants", multiple=True, metavar="GLOB", help="Only these variants; may be repeated.")
@project_option
@store_option
def export_(
    file: Path, metrics: str | None, variants: tuple[str, ...], project: Path | None, store: Path | None
) -> None:
    """Write your own records to one FILE."""
    from fnmatch import fnmatchcase

    from repro.results.transfer import write

    run = open_run(project, store)
    wanted = [part.strip() for part in (metrics or "").split(",") if part.strip()]
    chosen = [
        record
        for record in run.store.all()
        if (not wanted or record.metric in wanted)
        and (not variants or any(fnmatchcase(record.subject.variant, pattern) for pattern in variants))
    ]
    if not chosen:
        raise UsageError(f"{run.store.folder}: no such record")
    click.echo(f"{write(file, chosen)} records written to {file}")


@records.command("import")
@click.argument("files", nargs=-1, required=True, type=_source)
@_both
@project_option
@store_option
def import_(files: tuple[Path, ...], both: bool, project: Path | None, store: Path | None) -> int:
    """Take the records of FILES (or of folders of records) into your own.

    Exit codes: 0 done, 1 some conflict with records that are there, 2 bad input.
    """
    from repro.results.transfer import merge, read

    run = open_run(project, store)
    others = [(str(file), read(file)) for file in files]
    found = merge(run.store.all(), others, both=both)
    for record in found.added:
        run.store.put(record)
    return _tell(found, f"{len(found.added)} records taken into {run.store.folder}", both)


@records.command("merge")
@click.argument("files", nargs=-1, required=True, type=_source)
@click.option("--output", required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Where to write them all.")  # fmt: skip
@_both
def merge_(files: tuple[Path, ...], output: Path, both: bool) -> int:
    """Put the records of several FILES, or folders of records, into one; of two that conflict the first one's is kept.

    Exit codes: 0 done, 1 some conflict, 2 bad input.
    """
    from repro.results.transfer import merge, read, write

    others = [(str(file), read(file)) for file in files]
    found = merge([], others, both=both)
    return _tell(found, f"{write(output, found.added)} records written to {output}", both)


def _tell(found: Any, what: str, both: bool) -> int:
    click.echo(f"{what}; {found.known} were known")
    conflicts: Sequence[Any] = found.conflicts
    for conflict in conflicts:
        click.echo(f"repro: conflict: {conflict}", err=True)
    if conflicts and not both:
        click.echo(f"repro: {len(conflicts)} conflicting records were left out; --both takes them too", err=True)
    return OFF if conflicts and not both else OK

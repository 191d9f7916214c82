"""``repro claims``."""

from __future__ import annotations

from pathlib import Path

import click

from repro.commands.options import (
    check_writable,
    formats_of,
    measuring_options,
    open_run,
    output_option,
    project_option,
    settings_of,
    store_option,
    warn,
)
from repro.errors import UsageError


@click.command()
@click.argument("names", nargs=-1, metavar="[CLAIM]...")
@click.option("--format", "formats", default="terminal", show_default=True, metavar="LIST",
              help="terminal, markdown, json; several separated by commas.")  # fmt: skip
@output_option
@measuring_options
@project_option
@store_option
def claims(
    names: tuple[str, ...],
    formats: str,
    output: Path | None,
    no_measure: bool,
    refresh: bool,
    jobs: int | None,
    timeout: float,
    memory: float,
    executor: str,
    project: Path | None,
    store: Path | None,
) -> int:
    """Check the paper's equations and its sentences with numbers in them (default: all; * and ? match).

    A claim holds, does not hold, or cannot be checked here. One format is printed; of several, the first is printed
    and all are written to --output (default: out).

    Exit codes: 0 all that could be checked holds, 1 some does not, 2 bad usage or input, 3 nothing could be checked.
    """
    from fnmatch import fnmatchcase

    from repro.compare.claims import claim_needs, compare_claims
    from repro.files import write_atomically
    from repro.render.claims import FORMATS
    from repro.spec.claims import claims_of
    from repro.spec.reader import suggestion

    chosen_formats = formats_of(formats, list(FORMATS))
    settings = settings_of(no_measure, refresh, jobs, timeout, memory, executor)
    run = open_run(project, store)
    tables = {spec.number: spec for spec in run.project.tables()}
    spec = claims_of(run.project.folder("tables"), tables)
    known = [claim.id for claim in spec.claims]
    for name in names:
        if not any(fnmatchcase(item, name) for item in known):
            raise UsageError(f"no claim {name!r}{suggestion(name, known)}; repro claims lists all")
    chosen = [claim for claim in spec.claims if not names or any(fnmatchcase(claim.id, name) for name in names)]
    folder = output or Path("out")
    write = output is not None or len(chosen_formats) > 1
    check_writable(folder, write)
    run.measure_needs(claim_needs(spec, chosen, tables), settings)
    warn(run)
    result = compare_claims(spec, chosen, tables, run.records)
    for name in chosen_formats if write else ():
        suffix, make = FORMATS[name]
        write_atomically(folder / f"claims{suffix}", make(result))
        click.echo(f"repro: wrote {folder / f'claims{suffix}'}", err=True)
    click.echo(FORMATS[chosen_formats[0]][1](result), nl=False)
    return result.exit_code

"""``repro recover``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from repro.commands.options import formats_of, project_option, tolerance_option


@click.command()
@click.argument("number", type=int)
@click.argument("rows", nargs=-1, required=True, metavar="ROW...")
@tolerance_option
@click.option("--nearest", type=click.IntRange(min=1), default=5, show_default=True,
              help="How many to list where nothing agrees.")  # fmt: skip
@click.option("--format", "formats", default="terminal", show_default=True, metavar="NAME", help="terminal or json.")
@project_option
def recover(
    number: int, rows: tuple[str, ...], tolerance: str, nearest: int, formats: str, project: Path | None
) -> int:
    """Search for the configurations that cost what table NUMBER prints in a ROW.

    Several rows are searched together: as changes to one baseline, under which all of them must agree. A value agrees
    when it rounds to the printed string, or lies inside the tolerance. The table's spec says what is searched.

    Exit codes: 0 some configuration agrees, 1 none does, 2 bad usage or input.
    """
    from repro.compare.recover import recover as search
    from repro.compare.recover import rows_of
    from repro.compare.tolerance import parse_tolerance
    from repro.errors import UsageError
    from repro.measure.needs import input_size_of
    from repro.render.recover import FORMATS
    from repro.spec.project import Project

    chosen = formats_of(formats, list(FORMATS))
    if len(chosen) != 1:
        raise UsageError("--format: one format at a time")
    bound = parse_tolerance(tolerance)
    found = Project.find(project)
    table = found.table(number)
    wanted = rows_of(table, rows)
    assert table.search is not None
    protocols = [table.protocol_of(row, "gmacs") for row in wanted]
    if any(protocol.get("counting", "macs") != "macs" for protocol in protocols):
        raise UsageError(f"table {number}: a search counts by the convention 'macs' only")
    if any(protocol != protocols[0] for protocol in protocols[1:]):
        raise UsageError(f"table {number}: rows of different protocols cannot be searched together")

    from repro.measure.recover import Space  # torch: only once all else is known to be right

    found.put_on_path()  # its own search spaces
    form = str(protocols[0].get("form", "folded"))
    space = Space(table.search.space, table.search.base, input_size_of(protocols[0]), form)
    start = time.perf_counter()
    recovery = search(table, wanted, space.count, bound, nearest)
    seconds = time.perf_counter() - start
    click.echo(FORMATS[chosen[0]](recovery, space.counted, seconds), nl=False)
    return recovery.exit_code

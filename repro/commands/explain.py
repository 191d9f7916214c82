"""``repro explain``."""

from __future__ import annotations

from pathlib import Path

import click

from repro.commands.options import (
    measuring_options,
    open_run,
    project_option,
    settings_of,
    store_option,
    tolerance_option,
    warn,
)
from repro.errors import UsageError


@click.command()
@click.argument("number", type=int)
@click.argument("row")
@click.argument("metric")
@measuring_options
@tolerance_option
@project_option
@store_option
def explain(
    number: int,
    row: str,
    metric: str,
    no_measure: bool,
    refresh: bool,
    jobs: int | None,
    timeout: float,
    memory: float,
    executor: str,
    tolerance: str,
    project: Path | None,
    store: Path | None,
) -> None:
    """Tell one cell's whole story: table NUMBER, the ROW's model, the METRIC."""
    from repro.compare.tolerance import parse_tolerance
    from repro.measure.needs import input_size_of
    from repro.render.explain import explain as story
    from repro.spec.manifest import HEADS
    from repro.spec.reader import suggestion

    bound = parse_tolerance(tolerance)
    settings = settings_of(no_measure, refresh, jobs, timeout, memory, executor)
    run = open_run(project, store)
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
    warn(run)
    result = run.compare(spec, rows=wanted, metrics=[] if descriptive else [metric], tolerance=bound)
    cell = next(cell for cell in result.rows[0].cells if cell.metric == metric)
    variant = models[row].variant
    manifest, kind = run.project.manifest, spec.column(metric).kind.kind
    if variant is None:
        released = ()
    elif kind in HEADS:
        released = manifest.dense(variant.id, kind)
    else:
        released = manifest.of(variant.id, input_size_of(cell.protocol))
    click.echo(story(spec, models[row], cell, released), nl=False)

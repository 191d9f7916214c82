"""``repro estimate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from repro.commands.options import OFF, OK, formats_of, open_run, project_option, store_option


@click.command()
@click.argument("names", nargs=-1, metavar="[N | VARIANT]...")
@click.option("--format", "formats", default="terminal", show_default=True, metavar="F",
              help="terminal, markdown or json.")  # fmt: skip
@click.option("--no-measure", is_flag=True, help="Convert nothing; use the programs on record.")
@click.option("--refresh", is_flag=True, help="Read again the programs that your own records have.")
@click.option("--jobs", type=click.IntRange(min=1), help="Worker processes. Default: one for each processor.")
@project_option
@store_option
def estimate(
    names: tuple[str, ...],
    formats: str,
    no_measure: bool,
    refresh: bool,
    jobs: int | None,
    project: Path | None,
    store: Path | None,
) -> int:
    """Estimate the latency of tables' rows and variants from their ML programs: not a measurement, and never compared.

    A small non-negative fit to the latencies that the paper prints; what it is worth, on families that it has not seen
    and beside simpler models, is printed with it.

    Exit codes: 0 done, 1 a conversion failed, 2 bad usage or too few programs.
    """
    from repro.commands.packages import select
    from repro.compare.estimate import model_of
    from repro.render.estimate import FORMATS

    form = formats_of(formats, list(FORMATS))[0]
    run = open_run(project, store)
    chosen = list(dict.fromkeys((variant.id, size) for variant, size in select(run.project, names)))
    failures = {} if no_measure else _read_programs(run, refresh, jobs)
    printed, programs = run.programs()
    model = model_of(printed)
    estimates = [model.estimate(name, size, programs[name, size]) for name, size in chosen if (name, size) in programs]
    missing = [f"{name} {size[0]}" for name, size in chosen if (name, size) not in programs]
    click.echo(FORMATS[form](model, estimates, missing), nl=False)
    for name, error in failures.items():
        click.echo(f"repro: {name}: {error['reason']}: {error['message']}", err=True)
    return OFF if failures else OK


def _read_programs(run: Any, refresh: bool, jobs: int | None) -> Mapping[str, Any]:
    """Convert what has no program on record, and keep what each program moves and computes as a record."""
    from repro.commands.packages import Wanted, make, select
    from repro.coreml.export import default_folder, find
    from repro.coreml.features import features_of
    from repro.coreml.package import Package
    from repro.measure.needs import program_need

    wanted = Wanted(weights=None, checkpoints=None, precision="float16", target="iOS15", input_kind="tensor", size=None)
    missing: dict[tuple[str, Any], Any] = {}
    for variant, size in select(run.project, ()):
        need = program_need(variant, size)
        source: Sequence[Any] = [run.store] if refresh else [run.store, run.ledger]
        found = [item.find(need.subject, need.metric, need.protocol, need.versions) for item in source]
        if refresh or not any(item is not None and not item.stale for item in found):
            missing[variant.id, size] = need
    if not missing:
        return {}
    requests = [wanted.request(run.project, need.variant, need.input_size) for need in missing.values()]
    folder = default_folder()
    ready = [request for request in requests if find(request, folder) is not None]
    rest = [request for request in requests if request not in ready]
    failures: dict[str, Any] = {}
    # those that are there first, so that an interrupted run keeps them
    for batch in (ready, rest):
        made = make(batch, folder, jobs=jobs, project=run.project)
        failures |= made.failures
        for request in batch:
            if (item := made.exported.get(request.name)) is not None:
                need = missing[request.variant.id, request.input_size]
                run.store.put(_record(need, features_of(Package.open(item.path))))
    return failures


def _record(need: Any, details: Mapping[str, Any]) -> Any:
    from repro.pipeline import provenance_now
    from repro.results.provenance import provenance
    from repro.results.record import Record
    from repro.results.sources import version

    made = provenance({name: version(name) for name in ("torch", "timm", "coremltools", "numpy")})
    return Record(
        subject=need.subject,
        metric=need.metric,
        protocol=need.protocol,
        value=sum(details["activation_bytes"].values()) / 1e6,
        unit="MB",
        versions=need.versions,
        provenance=provenance_now(made),
        details=details,
    )

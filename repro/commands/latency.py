"""``repro latency``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from repro.commands.options import OFF, OK, formats_of, open_run, options, project_option, store_option
from repro.commands.packages import Wanted, make, package_options
from repro.errors import UsageError

MAC, PHONE = "repro.coreml.apple:Mac", "repro.coreml.apple:Phone"

_timing_options = options(
    click.option("--compute-units", type=click.Choice(["all", "cpu_and_ne", "cpu_and_gpu", "cpu_only"]),
                 default="all", show_default=True, help="What the framework may use."),
    click.option("--warmup", type=click.IntRange(min=1), default=10, show_default=True,
                 help="Predictions that do not count."),
    click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Rounds of iterations."),
    click.option("--iterations", type=click.IntRange(min=1), default=50, show_default=True,
                 help="Predictions in a round."),
    click.option("--pause", type=click.FloatRange(min=0), default=1.0, show_default=True,
                 help="Seconds between rounds."),
    click.option("--limit", type=click.FloatRange(min=0, min_open=True), default=300.0, show_default=True,
                 help="Seconds that one package may take; what takes longer is on record as failed."),
    click.option("--statistic", type=click.Choice(["median", "mean", "minimum"]), default="median", show_default=True,
                 help="What the value is of the samples."),
)  # fmt: skip
_device_options = options(
    click.option("--device", metavar="NAME", help="A connected iPhone, by name or identifier, instead of this Mac."),
    click.option("--team", envvar="REPRO_APPLE_TEAM", metavar="TEAM", help="Development team that signs the runner."),
    click.option("--profile", envvar="REPRO_APPLE_PROFILE", metavar="UUID", help="Provisioning profile that signs it."),
    click.option("--bundle", envvar="REPRO_APPLE_BUNDLE", metavar="ID", help="The profile's bundle identifier."),
    click.option("--backend", metavar="MODULE:FACTORY", help="A backend of your own (repro.coreml.latency)."),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One package to be timed; without a path, the question which device there is."""

    name: str
    plain: Mapping[str, Any]
    request: Any = None
    checked: str = ""

    def payload(self) -> dict[str, Any]:
        """The job as plain data."""
        return dict(self.plain)


@click.command()
@click.argument("names", nargs=-1, metavar="[N | VARIANT | PACKAGE]...")
@click.option("--against", metavar="VARIANT", help="With a PACKAGE: which variant it is.")
@click.option("--import", "source", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Take values measured elsewhere, CSV or JSON; see docs/coreml.md for the fields.")  # fmt: skip
@click.option("--format", "formats", default="terminal", show_default=True, metavar="F", help="terminal or json.")
@click.option("--refresh", is_flag=True, help="Measure again what this device has a record of.")
@_timing_options
@_device_options
@package_options
@project_option
@store_option
def latency(
    names: tuple[str, ...],
    against: str | None,
    source: Path | None,
    formats: str,
    refresh: bool,
    compute_units: str,
    warmup: int,
    rounds: int,
    iterations: int,
    pause: float,
    limit: float,
    statistic: str,
    device: str | None,
    team: str | None,
    profile: str | None,
    bundle: str | None,
    backend: str | None,
    weights: Path | None,
    checkpoints: Path | None,
    precision: str,
    target: str,
    input_kind: str,
    size: str | None,
    jobs: int | None,
    timeout: float,
    memory: float,
    project: Path | None,
    store: Path | None,
) -> int:
    """Measure Core ML latency on this Mac or on a connected iPhone, or import what was measured elsewhere.

    Packages are converted and checked first; one that fails its check is not measured. Then each is timed alone:
    nothing else of repro runs meanwhile. What is timed is the Core ML call, without Python and transfers.

    Exit codes: 0 done, 1 a package failed, 2 bad usage or input.
    """
    from repro.measure.workers import GIB, Limits

    form = formats_of(formats, ["terminal", "json"])[0]
    run = open_run(project, store)
    if source is not None:
        if names:
            raise UsageError("--import FILE goes without a table, variant or package")
        return _import(run, source, form)
    wanted = Wanted(
        weights=weights, checkpoints=checkpoints, precision=precision, target=target, input_kind=input_kind, size=size
    )
    limits = Limits(seconds=timeout, memory=int(memory * GIB))
    chosen = backend or (PHONE if device is not None else MAC)
    given = {"device": device, "team": team, "profile": profile, "bundle": bundle} if chosen == PHONE else {}
    if backend is None:
        _require_macos()
    else:
        _require_module(backend)
    common = {
        "backend": chosen,
        "options": {name: value for name, value in given.items() if value is not None},
        "timing": {"warmup": warmup, "rounds": rounds, "iterations": iterations, "pause": pause},
        "compute_units": compute_units,
    }
    if any(_is_package(name) for name in names):
        packages, failures = _foreign(run, names, against, wanted, limits)
    else:
        if against is not None:
            raise UsageError("--against VARIANT goes with a PACKAGE")
        packages, failures = _own(run, names, wanted, jobs, limits)
    shown = _measure(run, packages, common, statistic, limit, refresh)
    report = {"schema": 1, "latencies": shown, "failures": failures}
    from repro.render.latency import FORMATS

    click.echo(FORMATS[form](report), nl=False)
    return OFF if failures or any(item["error"] is not None for item in shown) else OK


def _require_macos() -> None:
    import platform

    if platform.system() != "Darwin":
        raise UsageError(
            "Core ML predicts only on macOS; take what a Mac measured with repro records import FILE, "
            "or values of other tools with repro latency --import FILE"
        )


def _require_module(backend: str) -> None:
    """Say before anything is converted that a backend does not exist."""
    import importlib.util

    module, _, factory = backend.partition(":")
    try:
        found = module and factory and importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if not found:
        raise UsageError(f"--backend {backend}: no such module; expected MODULE:FACTORY")


def _is_package(name: str) -> bool:
    return name.endswith((".mlpackage", ".zip", ".mlmodel", ".mlmodelc")) or "/" in name


@dataclass(frozen=True, kw_only=True)
class _Package:
    """A checked package and what it is of."""

    path: Path
    variant: Any
    input_size: tuple[int, int]
    precision: str
    target: str
    content_hash: str
    check: str


def _own(
    run: Any, names: Sequence[str], wanted: Wanted, jobs: int | None, limits: Any
) -> tuple[list[_Package], dict[str, Any]]:
    """The packages of tables and variants, made and checked."""
    from repro.coreml.export import default_folder

    requests = wanted.requests(run.project, names)
    made = make(requests, default_folder(), check=True, jobs=jobs, limits=limits, project=run.project)
    failures: dict[str, Any] = dict(made.failures)
    packages = []
    for request in requests:
        item = made.exported.get(request.name)
        if item is None or item.check is None:
            continue
        if item.check["verdict"] != "passed":
            message = "; ".join(item.check["failures"]) or item.check["difference"] or ""
            failures[request.name] = {"reason": "check_failed", "message": message}
            continue
        packages.append(
            _Package(
                path=item.path,
                variant=request.variant,
                input_size=request.input_size,
                precision=request.precision,
                target=request.target,
                content_hash=item.content_hash,
                check="passed",
            )
        )
    return packages, failures


def _foreign(
    run: Any, names: Sequence[str], against: str | None, wanted: Wanted, limits: Any
) -> tuple[list[_Package], dict[str, Any]]:
    """A package that somebody else made, checked against its variant."""
    from repro.commands.export import checked_against
    from repro.coreml.package import Package

    if len(names) != 1 or against is None:
        raise UsageError(f"{names[0]}: one PACKAGE at a time, with --against VARIANT")
    package = Package.open(names[0])
    variant, outcome = checked_against(run.project, names[0], against, wanted, limits)
    if outcome.get("error") is not None:
        return [], {names[0]: outcome["error"]}
    check = outcome["check"]
    if check["verdict"] != "passed":
        message = "; ".join(check["failures"]) or check["difference"] or ""
        return [], {names[0]: {"reason": "check_failed", "message": message}}
    height, width = outcome["input_size"]
    made = _Package(
        path=Path(names[0]).resolve(),
        variant=variant,
        input_size=(height, width),
        precision=check["precision"],
        target=package.target,
        content_hash=outcome["content_hash"],
        check="passed",
    )
    return [made], {}


def _measure(
    run: Any, packages: Sequence[_Package], common: Mapping[str, Any], statistic: str, limit: float, refresh: bool
) -> list[dict[str, Any]]:
    """Time each package in a process of its own kind that can be killed, and keep its record at once."""
    from repro.compare.latency import told
    from repro.coreml.latency import TASK, fallen
    from repro.exclusive import alone
    from repro.measure.workers import Limits
    from repro.measure.workers import run as run_jobs
    from repro.progress import progress
    from repro.results.latency import DRIFT
    from repro.results.store import default_folder

    if not packages:
        return []
    shown: list[dict[str, Any]] = []
    device: dict[str, Any] = {}
    jobs = [_Job(name="device", plain={**common, "path": None})]
    for item in packages:
        have = [] if refresh else [record.details["device_model"] for record in _of_package(run, item, common)]
        height, width = item.input_size
        jobs.append(
            _Job(
                name=f"{item.variant.id} {height if height == width else f'{height}x{width}'}",
                plain={**common, "path": str(item.path), "have": have},
                request=item,
            )
        )
    with progress(len(packages), verb="timed") as report:

        def done(job: _Job, outcome: dict[str, Any]) -> None:
            error = outcome.get("error")
            if job.request is None:
                if error is not None:
                    raise UsageError(error["message"] or error["reason"])
                device.update(outcome["device"])
                return
            record = _record(run, job.request, outcome, device, common, statistic)
            if not outcome.get("on_record"):
                run.store.put(record)
            report.done(job.name, f"{error['reason']}: {error['message']}" if error is not None else None)
            details = record.details
            line = {
                "variant": job.request.variant.id,
                "input_size": list(job.request.input_size),
                "value": record.value,
                "error": record.error,
                "record": record.id,
                "on_record": bool(outcome.get("on_record")),
                "told": None if record.error is not None else told(record),
                "spread": details.get("spread"),
                "drift": details.get("drift"),
                "warnings": [],
            }
            if record.error is None:
                off = fallen(details["placement"], common["compute_units"])
                line["warnings"] += [off] if off is not None else []
                drift = details["drift"]
                if drift is not None and not 1 / DRIFT < drift < DRIFT:
                    line["warnings"].append(
                        f"DRIFT: the last quarter of the first round takes {drift:.2f} times its first quarter"
                    )
            shown.append(line)

        def started(job: _Job) -> None:
            if job.request is not None:
                report.started(job.name)

        with alone(default_folder()):
            root = run.project.root
            run_jobs(
                jobs,
                workers=1,
                limits=Limits(seconds=limit),
                done=done,
                started=started,
                paths=[str(root)] if root is not None else [],
                task=TASK,
            )
    return shown


def _of_package(run: Any, item: _Package, common: Mapping[str, Any]) -> list[Any]:
    """The records of one package at one choice of compute units."""
    return [
        record
        for record in run.records.every(item.variant, "latency")
        if record.error is None
        and record.details["package_hash"] == item.content_hash
        and record.details["imported"] is None
        and record.protocol["compute_units"] == common["compute_units"]
    ]


def _record(
    run: Any, item: _Package, outcome: Mapping[str, Any], device: Mapping[str, Any], common: Mapping[str, Any],
    statistic: str,
) -> Any:  # fmt: skip
    from repro import __version__
    from repro.compare.latency import failed_record, latency_record
    from repro.pipeline import provenance_now
    from repro.results.latency import Latency
    from repro.results.provenance import provenance
    from repro.results.sources import version

    if outcome.get("on_record"):
        known = [r for r in _of_package(run, item, common) if r.details["device_model"] == device["model"]]
        return max(known, key=lambda record: str(record.provenance.get("time", "")))
    now = provenance_now(provenance({name: version(name) for name in ("coremltools", "torch", "timm", "numpy")}))
    if outcome.get("error") is not None:
        asked = {"precision": item.precision, "compute_units": common["compute_units"], "target": item.target,
                 "input_type": "tensor"}  # fmt: skip
        return failed_record(
            item.variant,
            item.input_size,
            device=device["model"],
            latency=asked,
            error=outcome["error"],
            provenance=now,
            details={"device": dict(device), "package_hash": item.content_hash, "imported": None},
        )
    before, after = outcome["conditions"]
    timing = common["timing"]
    found = Latency(
        device_model=device["model"],
        device_identifier=device["identifier"],
        os_version=device["os_version"],
        os_build=device["os_build"],
        chip=device["chip"],
        coremltools=device["coremltools"],
        xcode=device["xcode"],
        package_hash=outcome["package_hash"],
        precision=item.precision,
        input_type=outcome["input_type"],
        input_shape=tuple(outcome["input_shape"]),
        target=item.target,
        compute_units=common["compute_units"],
        placement=outcome["placement"],
        warmup=timing["warmup"],
        rounds=timing["rounds"],
        iterations=timing["iterations"],
        samples=tuple(tuple(part) for part in outcome["samples"]),
        statistic=statistic,
        thermal_state=f"{before['thermal_state']}; after: {after['thermal_state']}",
        low_power_mode=f"{before['low_power_mode']}; after: {after['low_power_mode']}",
        date=str(now["time"]),
        how=f"repro {__version__}, {common['backend'].rpartition(':')[2]}, duration of the prediction call",
        check=item.check,
        imported=None,
    )
    return latency_record(item.variant, item.input_size, found, now)


def _import(run: Any, source: Path, form: str) -> int:
    """Keep the values of a file, marked as imported."""
    from repro.compare.latency import failed_record, latency_record
    from repro.compare.latency_import import read
    from repro.pipeline import provenance_now
    from repro.results.provenance import provenance

    variants = {row.variant.id: row.variant for table in run.project.tables() for row in table.rows if row.variant}
    found = read(source, variants)
    now = provenance_now(provenance({}))
    shown = []
    for item in found:
        size = item.input_size
        if item.failed:
            record = failed_record(
                variants[item.variant],
                size,
                device=item.latency.device_model,
                latency=vars(item.latency),
                error={"reason": "failed", "message": f"as {source.name} says: {item.latency.how}"},
                provenance=now,
                details=item.latency.details(),
                batch_size=item.batch_size,
            )
        else:
            record = latency_record(
                variants[item.variant], size, item.latency, now, value=item.value, batch_size=item.batch_size
            )
        run.store.put(record)
        shown.append({"variant": item.variant, "value": record.value, "record": record.id,
                      "device": item.latency.device_model, "error": record.error})  # fmt: skip
    if form == "json":
        click.echo(json.dumps({"schema": 1, "imported": shown}, indent=1))
    else:
        click.echo(f"{len(shown)} latencies imported from {source}; tables mark them as imported")
    return OK

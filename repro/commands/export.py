"""``repro export`` and ``repro run-package``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from repro.commands.options import OFF, OK, check_writable, executor_option, formats_of, project_option
from repro.commands.packages import Wanted, make, package_options, weights_of
from repro.errors import UsageError


@click.command()
@click.argument("names", nargs=-1, metavar="[N | VARIANT]...")
@click.option("--check", is_flag=True, help="Hold each package against PyTorch (or give a PACKAGE and --against).")
@click.option("--against", metavar="VARIANT", help="With --check PACKAGE: what somebody else's package should be.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Folder of the packages. Default: REPRO_PACKAGES, else the platform's cache folder.")  # fmt: skip
@click.option("--format", "formats", default="terminal", show_default=True, metavar="F",
              help="terminal, markdown or json.")  # fmt: skip
@click.option("--refresh", is_flag=True, help="Convert again what is there.")
@package_options
@executor_option
@project_option
def export(
    names: tuple[str, ...],
    check: bool,
    against: str | None,
    output: Path | None,
    formats: str,
    refresh: bool,
    weights: Path | None,
    checkpoints: Path | None,
    precision: str,
    target: str,
    input_kind: str,
    size: str | None,
    jobs: int | None,
    timeout: float,
    memory: float,
    executor: str,
    project: Path | None,
) -> int:
    """Convert variants to Core ML packages: of tables' numbers, of variants, or of every table with latencies.

    Branches are merged, heads averaged and BatchNorm folded first. A package that is there already, made from the same
    code, weights and options by the same versions, is not made again.

    Exit codes: 0 done, 1 a conversion or a check failed, 2 bad usage or input, 3 the checks prove nothing.
    """
    from repro.coreml.export import default_folder
    from repro.measure.workers import GIB, Limits
    from repro.render.packages import FORMATS
    from repro.spec.project import Project

    chosen = formats_of(formats, list(FORMATS))
    if len(chosen) > 1:
        raise UsageError(f"--format: one format of {', '.join(FORMATS)}")
    wanted = Wanted(
        weights=weights, checkpoints=checkpoints, precision=precision, target=target, input_kind=input_kind, size=size
    )
    limits = Limits(seconds=timeout, memory=int(memory * GIB))
    found = Project.find(project)
    if against is not None:
        return _foreign(found, names, against, wanted, limits, check, chosen[0])
    for name in names:
        if name.endswith((".mlpackage", ".zip", ".mlmodel")):
            raise UsageError(f"{name}: say which variant it should be: repro export --check {name} --against VARIANT")
    requests = wanted.requests(found, names)
    folder = output or default_folder()
    check_writable(folder, True)
    made = make(
        requests, folder, check=check, refresh=refresh, jobs=jobs, limits=limits, project=found, executor=executor
    )
    items = [made.exported[request.name] for request in requests if request.name in made.exported]
    failures = {request.name: made.failures[request.name] for request in requests if request.name in made.failures}
    click.echo(FORMATS[chosen[0]](items, failures, check), nl=False)
    verdicts = {item.check["verdict"] for item in items if check and item.check is not None}
    if failures or "failed" in verdicts:
        return OFF
    return 3 if verdicts == {"unproven"} else OK


def _foreign(
    project: Any, names: tuple[str, ...], against: str, wanted: Wanted, limits: Any, check: bool, form: str
) -> int:
    """Check a package that somebody else made."""
    from repro.render.packages import CHECKS

    if len(names) != 1 or not check:
        raise UsageError("--against goes with --check and one PACKAGE")
    variant, outcome = checked_against(project, names[0], against, wanted, limits)
    if "error" in outcome:
        click.echo(f"repro: {names[0]}: {outcome['error']['reason']}: {outcome['error']['message']}", err=True)
        return OFF
    click.echo(CHECKS[form](names[0], variant.id, outcome["weights"], outcome), nl=False)
    return {"passed": OK, "failed": OFF, "unproven": 3}[outcome["check"]["verdict"]]


def checked_against(project: Any, name: str, against: str, wanted: Wanted, limits: Any) -> tuple[Any, dict[str, Any]]:
    """Hold a package against a variant, in a worker; returns the variant and the worker's outcome.

    Raises
    ------
    UsageError
        When the package cannot be read, or nobody says whose weights it holds.
    """
    from repro.commands.packages import select
    from repro.coreml.package import Package
    from repro.measure.workers import run

    package = Package.open(name)  # what is wrong with it is said before a worker starts
    if against.isdigit():
        raise UsageError(f"--against {against}: a variant's name is wanted, not a table's number")
    variant, size = select(project, [against])[0]
    listed = project.manifest.of(variant.id, size)
    source, build = weights_of(variant, listed, wanted.weights, wanted.checkpoints)
    stated = package.metadata.get("repro.weights", "")
    if source.path is None and not stated.startswith("seeded"):
        raise UsageError(
            f"{name}: whose weights does it hold? give --weights FILE, or fetch the released checkpoint: "
            f"repro checkpoints fetch {variant.id}"
        )
    job = _Foreign(path=Path(name).resolve(), build=build, weights=source)
    outcomes: list[dict[str, Any]] = []
    run(
        [job],
        workers=1,
        limits=limits,
        done=lambda job, outcome: outcomes.append(outcome),
        paths=[str(project.root)] if project.root is not None else [],
        task="repro.coreml.exporting:check_against",
    )
    outcome = outcomes[0]
    if "error" in outcome and outcome["error"]["reason"] == "refused":
        raise UsageError(outcome["error"]["message"])
    return variant, {**outcome, "weights": source.said}


@dataclass(frozen=True, kw_only=True)
class _Foreign:
    """The job of checking one package."""

    path: Path
    build: Any
    weights: Any
    name: str = "check"

    def payload(self) -> dict[str, Any]:
        """The job as plain data."""
        return {"path": str(self.path), "build": asdict(self.build), "weights": asdict(self.weights)}


@click.command("run-package")
@click.argument("package", type=click.Path(path_type=Path))
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--crop", type=click.FloatRange(min=0, max=1, min_open=True), default=0.875, show_default=True,
              help="The part of the resized image's shorter side that is kept.")  # fmt: skip
@click.option("--round-float16", is_flag=True, help="Round every float16 intermediate, as a device does.")
@click.option("--format", "formats", default="terminal", show_default=True, metavar="F", help="terminal or json.")
def run_package(package: Path, image: Path, crop: float, round_float16: bool, formats: str) -> None:
    """Execute a Core ML PACKAGE on an IMAGE on any system, and print its five likeliest classes.

    A package with a tensor input is given the normalisation that its metadata names, else ImageNet's usual one.
    """
    import json

    form = formats_of(formats, ["terminal", "json"])[0]

    import repro.coreml.images as images
    from repro.coreml.interpreter import Program
    from repro.render.packages import classes

    picture = images.load(image)
    program = Program.load(package)
    given = images.prepare(picture, program.package, crop=crop)
    run = program.execute({program.inputs[0].name: given}, round_float16=round_float16)
    best = program.top(run.outputs)
    if form == "json":
        top = [{"class": label, "probability": p} for label, p in best]
        click.echo(json.dumps({"schema": 1, "package": str(package), "image": str(image), "top": top,
                               "overflows": [str(item) for item in run.overflows]}, indent=1))  # fmt: skip
        return
    click.echo(classes(best), nl=False)
    for overflow in run.overflows:
        click.echo(f"repro: float16 overflows in {overflow}", err=True)

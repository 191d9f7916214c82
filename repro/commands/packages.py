"""Which packages a command line names, and how they come to be: shared by export and latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from repro.commands.options import options
from repro.coreml.export import TASK, Exported, ExportJob, Request, WeightSource, find, keep
from repro.errors import UsageError
from repro.exclusive import beside_others
from repro.measure.needs import input_size_of
from repro.measure.workers import GIB, Limits
from repro.progress import progress
from repro.spec.manifest import Checkpoint
from repro.spec.project import Project
from repro.spec.reader import suggestion
from repro.spec.tables import InputSize, Variant, printed_size

package_options = options(
    click.option("--weights", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
                 help="A state dict of one VARIANT. Default: its released checkpoint where it is here, else seeded weights."),  # noqa: E501
    click.option("--checkpoints", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                 help="Folder of downloaded checkpoints. Default: REPRO_CHECKPOINTS, else the platform's cache."),
    click.option("--precision", type=click.Choice(["float16", "float32"]), default="float16", show_default=True,
                 help="Of arithmetic and constants."),
    click.option("--target", type=click.Choice(["iOS15", "iOS16", "iOS17", "iOS18"]), default="iOS15",
                 show_default=True, help="The oldest system that can run it."),
    click.option("--input", "input_kind", type=click.Choice(["tensor", "image"]), default="tensor", show_default=True,
                 help="A float tensor, or an image with the checkpoint's normalisation in the program."),
    click.option("--size", metavar="PX", help="224 or 384x512 (height x width). Default: what the rows print."),
    click.option("--jobs", type=click.IntRange(min=1), help="Worker processes. Default: one for each processor."),
    click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=900.0, show_default=True,
                 help="Seconds that one conversion with its check may take."),
    click.option("--memory", type=click.FloatRange(min=0.5), default=8.0, show_default=True,
                 help="GiB of memory that it may take."),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How packages are asked for on the command line."""

    weights: Path | None
    checkpoints: Path | None
    precision: str
    target: str
    input_kind: str
    size: str | None

    def requests(self, project: Project, names: Sequence[str]) -> list[Request]:
        """The packages of table numbers and variants, each once; without a name, of every table with latencies.

        Raises
        ------
        UsageError
            For a table, variant, size or weight file that does not exist.
        """
        project.put_on_path()  # its own models' code is part of a package's name
        size = printed_size(self.size) if self.size is not None else None
        if self.size is not None and size is None:
            raise UsageError(f"--size {self.size}: expected pixels, as 224 or 384x512")
        chosen = select(project, names)
        if self.weights is not None and len({variant.id for variant, _ in chosen}) != 1:
            raise UsageError("--weights FILE goes with one VARIANT")
        pairs = dict.fromkeys((variant.id, size or own) for variant, own in chosen)
        by_id = {variant.id: variant for variant, _ in chosen}
        return [self.request(project, by_id[name], size) for name, size in pairs]

    def request(self, project: Project, variant: Variant, size: InputSize) -> Request:
        """The package of one variant at one size (height, width)."""
        listed = project.manifest.of(variant.id, size)
        checkpoint = next((item for item in listed if item.preprocessing is not None), None)
        stated = checkpoint.preprocessing if checkpoint is not None else None
        source, build = weights_of(variant, listed, self.weights, self.checkpoints)
        normalisation = {"mean": stated.mean, "std": stated.std} if stated is not None else {}
        return Request(
            variant=variant,
            build=build,
            input_size=size,
            weights=source,
            precision=self.precision,
            target=self.target,
            input_kind=self.input_kind,
            **normalisation,
        )


def select(project: Project, names: Sequence[str]) -> list[tuple[Variant, InputSize]]:
    """Variants and input sizes of table numbers and variants' names, as the rows print them.

    Raises
    ------
    UsageError
        For a name that is neither.
    """
    tables = project.tables()
    timed = [table for table in tables if table.column("latency") is not None]
    rows = [(table, row, row.variant) for table in timed for row in table.rows if row.variant is not None]
    chosen: list[tuple[Variant, InputSize]] = []
    known = {variant.id for _, _, variant in rows}
    for name in names or [str(table.number) for table in timed]:
        if name.isdigit():
            table = project.table(int(name))
            found = [(table, row, row.variant) for row in table.rows if row.variant is not None]
            if not found:
                raise UsageError(f"table {name} has no row with a builder")
        else:
            found = [item for item in rows if item[2].id == name]
            if not found:
                raise UsageError(f"no variant {name!r} in the tables with latencies{suggestion(name, known)}")
        chosen += [(variant, input_size_of(table.protocol_of(row, "latency"))) for table, row, variant in found]
    return chosen


def weights_of(
    variant: Variant, listed: Sequence[Checkpoint], given: Path | None, checkpoints: Path | None
) -> tuple[WeightSource, Variant]:
    """The weights of a variant and what to build for them: a given file, a released one that is here, or seeded ones.

    Raises
    ------
    UsageError
        When a given file is not there.
    """
    from repro.checkpoints import Folder, hash_file

    if given is not None:
        if not given.is_file():
            raise UsageError(f"--weights {given}: no such file")
        return WeightSource(path=str(given.resolve()), sha256=hash_file(given)), variant
    place = Folder.open(checkpoints)
    for item in listed:
        if item.released and place.place(item).is_file():
            # the worker hashes the file before it loads it; here a stated hash will do
            sha256 = item.sha256 if item.sha256 is not None and len(item.sha256) == 64 else place.hash_of(item)
            source = WeightSource(
                path=str(place.place(item).resolve()), sha256=sha256, checkpoint=item.id, wrapper=item.wrapper
            )
            return source, item.build or variant
    return WeightSource(), variant


@dataclass(kw_only=True)
class Made:
    """What became of the requests, in their order."""

    exported: dict[str, Exported] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)


def make(
    requests: Sequence[Request],
    folder: Path,
    *,
    check: bool = False,
    refresh: bool = False,
    jobs: int | None = None,
    limits: Limits | None = None,
    project: Project | None = None,
    executor: str = "local",
) -> Made:
    """Convert what is not there yet, in worker processes; a failure is its own request's alone."""
    made = Made()
    known: dict[str, Exported | None] = {}
    wanted: list[ExportJob] = []
    for request in requests:
        found = None if refresh else find(request, folder)
        known[request.name] = found
        if found is not None and (found.check is not None or not check):
            made.exported[request.name] = found
            continue
        wanted.append(ExportJob(request=request, folder=folder, check=check, convert=found is None))
    if not wanted:
        return made

    from repro.pipeline import Settings
    from repro.results.store import default_folder as store_folder

    with beside_others(store_folder()), progress(len(wanted), verb="checked" if check else "converted") as report:

        def done(job: ExportJob, outcome: dict[str, Any]) -> None:
            outcome.pop("provenance", None)  # of another machine: a package is the same from any
            error = outcome.get("error")
            if error is not None:
                made.failures[job.request.name] = error
            else:
                made.exported[job.request.name] = keep(job, outcome, known[job.request.name])
            report.done(job.name, f"{error['reason']}: {error['message']}" if error is not None else None)

        limits = limits or Limits(seconds=900.0, memory=8 * GIB)
        Settings(jobs=jobs or 0, limits=limits, executor=executor).run(
            wanted,
            done=done,
            started=lambda job: report.started(job.name),
            paths=[str(project.root)] if project is not None and project.root is not None else [],
            task=TASK,
        )
    return made

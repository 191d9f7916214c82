"""The one way from a spec to a compared table: see what is missing, measure it, keep it, compare."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repro.compare.cells import TableResult, compare, needs, printed_cell
from repro.compare.estimate import Printed, Programs, estimated, model_of
from repro.compare.latency import Beside
from repro.compare.records import Records
from repro.compare.tolerance import Tolerance
from repro.errors import UsageError
from repro.exclusive import beside_others
from repro.measure.needs import Need, input_size_of, program_need
from repro.measure.plan import Job, missing, records_of
from repro.measure.workers import COUNTING, J, Limits, run
from repro.progress import progress
from repro.results.provenance import provenance
from repro.results.sources import version
from repro.results.store import Store, default_folder
from repro.spec.metrics import scale
from repro.spec.parse import is_number
from repro.spec.project import Project
from repro.spec.tables import Row, Table

Estimator = Callable[[Table, Sequence[Row]], Beside]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run measures."""

    measure: bool = True
    refresh: bool = False
    jobs: int = 0  # workers; 0: one for each processor this process may use
    limits: Limits = field(default_factory=Limits)
    executor: str = "local"  # or ray: the machines of a cluster

    @property
    def workers(self) -> int:
        """How many workers to run."""
        return self.jobs or len(
            os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        )

    def run(
        self,
        jobs: Sequence[J],
        *,
        done: Callable[[J, dict[str, Any]], None],
        started: Callable[[J], None],
        paths: Sequence[str],
        task: str = COUNTING,
    ) -> None:
        """Run jobs where these settings say, and hand each outcome to ``done``."""
        if self.executor == "ray":
            from repro.measure.cluster import run_on_ray

            run_on_ray(jobs, limits=self.limits, done=done, started=started, paths=paths, task=task)
        else:
            run(jobs, workers=self.workers, limits=self.limits, done=done, started=started, paths=paths, task=task)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A project and where its records are."""

    project: Project
    store: Store
    ledger: Store

    @classmethod
    def open(cls, project: Project, folder: Path) -> Run:
        """A run over a project with the user's store in ``folder``."""
        project.put_on_path()  # its own models are imported by its specs' python builder
        return cls(project=project, store=Store(folder), ledger=Store(project.folder("results")))

    @property
    def records(self) -> Records:
        """Where comparing looks values up."""
        return Records(self.store, self.ledger, self.project.manifest)

    def measure(
        self, tables: Sequence[Table], rows: Mapping[int, Sequence[Row]], metrics: Sequence[str], settings: Settings
    ) -> int:
        """Measure what the store lacks and return how many jobs ran.

        A finished job is stored before the next outcome is looked at, so that an interrupted run loses only what was
        under way. The ledger does not count: a value is trusted here when this machine has measured it.

        Raises
        ------
        UsageError
            When nothing may be measured and a needed record is damaged.
        """
        return self.measure_needs(needs(tables, rows, metrics), settings)

    def measure_needs(self, wanted: Sequence[Need], settings: Settings) -> int:
        """The same for measurements that are no table's."""
        jobs = missing(wanted, self.store, refresh=settings.refresh)
        if not settings.measure:
            self._refuse_damage()
            return 0
        if not jobs:
            return 0
        packages = ("torch", "torchvision", "timm", "fvcore", "numpy")
        made = provenance({name: version(name) for name in packages})
        paths = [str(self.project.root)] if self.project.root is not None else []
        with beside_others(default_folder()), progress(len(jobs)) as report:

            def done(job: Job, outcome: dict[str, Any]) -> None:
                where = outcome.pop("provenance", None)  # of another machine
                for record in records_of(job, outcome, where if isinstance(where, dict) else provenance_now(made)):
                    self.store.put(record)
                errors = outcome.get("errors")
                error = next(iter(errors.values())) if isinstance(errors, dict) else outcome.get("error")
                report.done(job.name, f"{error['reason']}: {error['message']}" if isinstance(error, dict) else None)

            settings.run(jobs, done=done, started=lambda job: report.started(job.name), paths=paths)
        return len(jobs)

    def compare(
        self,
        table: Table,
        *,
        rows: Sequence[Row] | None = None,
        metrics: Sequence[str] = (),
        tolerance: Tolerance | None = None,
        estimator: Estimator | None = None,
    ) -> TableResult:
        """Set the table beside the records; with an estimator a column of estimated latencies, never compared."""
        beside = []
        if estimator is not None and table.column("latency") is not None:
            beside.append(estimator(table, table.rows if rows is None else rows))
        return compare(
            table,
            self.records,
            rows=rows,
            metrics=metrics,
            tolerance=tolerance,
            printed=self._printed,
            beside=beside,
        )

    def estimator(self) -> Estimator:
        """What estimates the latencies of a table's rows; the fit is done once, for any number of tables.

        Raises
        ------
        UsageError
            When too few programs are on record.
        """
        printed, programs = self.programs()
        model = model_of(printed)
        return lambda table, rows: estimated(table, rows, model, programs)

    def programs(self) -> tuple[list[Printed], Programs]:
        """Every printed latency whose program is on record, and every program on record, by variant and size."""
        printed, programs = [], {}
        for table in self.project.tables():
            column = table.column("latency")
            for row in table.rows if column is not None else ():
                if row.variant is None or column is None:
                    continue
                size = input_size_of(table.protocol_of(row, "latency"))
                known = (row.variant.id, size) in programs
                found = None if known else self.records.find(program_need(row.variant, size))
                if found is not None and not found.stale and found.record.error is None:
                    programs[row.variant.id, size] = found.record.details
                text = row.reported("latency").text
                if is_number(text) and (row.variant.id, size) in programs:
                    unit = row.reported("latency").unit or column.unit
                    printed.append(
                        Printed(
                            variant=row.variant.id,
                            input_size=size,
                            where=f"Table {table.number}, {row.model}",
                            latency=float(text or "0") / float(scale("latency", unit)),
                            program=programs[row.variant.id, size],
                        )
                    )
        return printed, programs

    def _printed(self, number: int, row: str, metric: str) -> str | None:
        return printed_cell(self.project.table(number), row, metric) if number in self.project.paths else None

    @property
    def warnings(self) -> list[str]:
        """What was found damaged on the way."""
        return [*self.store.warnings, *self.ledger.warnings]

    def _refuse_damage(self) -> None:
        if self.store.warnings:
            raise UsageError("; ".join(self.store.warnings) + "; run without --no-measure to measure again")


def provenance_now(made: Mapping[str, object]) -> dict[str, object]:
    """The same provenance at this moment."""
    from datetime import UTC, datetime

    return {**made, "time": datetime.now(UTC).isoformat(timespec="milliseconds")}

"""Which measurements are missing, and as which jobs they are run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from repro.measure.needs import Need
from repro.results.record import Record, canonical
from repro.results.store import Store
from repro.spec.tables import Variant


@dataclass(frozen=True, kw_only=True)
class Job:
    """One build of one variant at one input size, and all the measurements that come from it."""

    needs: tuple[Need, ...]

    @property
    def variant(self) -> Variant:
        """The variant to build."""
        return self.needs[0].variant

    @property
    def name(self) -> str:
        """What progress shows."""
        height, width = self.needs[0].input_size
        by = f" by {self.needs[0].counter}" if self.needs[0].counter else ""
        if self.needs[0].task == "operators":
            return f"{self.variant.id} on {'x'.join(map(str, self.needs[0].shape))}"
        what = " architecture" if self.needs[0].task == "architecture" else ""
        return f"{self.variant.id} {height if height == width else f'{height}x{width}'}{by}{what}"

    def payload(self) -> dict[str, Any]:
        """The job as plain data, for a worker."""
        plain: dict[str, Any] = json.loads(
            canonical(
                {
                    "variant": asdict(self.variant),
                    "input_size": list(self.needs[0].input_size),
                    "counter": self.needs[0].counter,
                    "task": self.needs[0].task,
                    "shape": list(self.needs[0].shape),
                }
            )
        )
        return plain


def missing(needs: Iterable[Need], store: Store, *, refresh: bool = False) -> list[Job]:
    """Group the measurements that ``store`` does not have into jobs, in order and each once.

    A failed, stale or damaged record is missing; with ``refresh`` every one is.
    """
    wanted: dict[str, dict[str, Need]] = {}
    for need in needs:
        group = canonical([need.subject.identity(), list(need.input_size), need.counter, need.task, list(need.shape)])
        wanted.setdefault(group, {})
        if need.metric in wanted[group]:
            continue
        if not refresh:
            found = store.find(need.subject, need.metric, need.protocol, need.versions)
            if found is not None and not found.stale and found.record.error is None:
                continue
        wanted[group][need.metric] = need
    return [Job(needs=tuple(group.values())) for group in wanted.values() if group]


def records_of(job: Job, outcome: dict[str, Any], provenance: dict[str, Any]) -> list[Record]:
    """The records of a finished job: ``outcome`` is a worker's counts, or ``{"error": {...}}``.

    ``errors`` beside counts are of single metrics.
    """
    return [_record(need, outcome, provenance) for need in job.needs]


def _record(need: Need, outcome: dict[str, Any], provenance: dict[str, Any]) -> Record:
    unit = {"params": "M", "gmacs": "G", "architecture": "layers", "operators": "MACs"}[need.metric]
    error = outcome.get("error") or outcome.get("errors", {}).get(need.metric)
    value: float | None = None
    details: dict[str, Any] = {}
    if error is None and need.metric == "params":
        details = {"forms": outcome["params"]}
        value = outcome["params"]["folded"] / 1e6
    elif error is None and need.task == "architecture":
        details = {"stages": outcome["stages"]}
        blocks = [block for stage in outcome["stages"] for block in stage["blocks"]]
        value = sum(block["repeat"] * len(block["layers"]) for block in blocks)
    elif error is None and need.task == "operators":
        details = {"operators": outcome["operators"]}
        value = sum(outcome["operators"].values())
    elif error is None and need.counter is not None:
        value = outcome["counted"] / 1e9
    elif error is None:
        details = {name: outcome[name] for name in ("macs", "operators", "cross_check")}
        value = outcome["macs"]["folded/macs"] / 1e9
    return Record(
        subject=need.subject,
        metric=need.metric,
        protocol=need.protocol,
        value=value,
        unit=unit,
        versions=need.versions,
        provenance=provenance,
        details=details,
        error=error,
    )

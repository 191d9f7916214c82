"""Latency records: how they are made, which of them belong into a cell, and which stand beside it.

Only a record of the paper's own device, under the paper's protocol, is compared. Other devices' values are shown in
columns of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repro.compare.records import Records
from repro.measure.needs import Need, latency_need
from repro.results.latency import UNKNOWN, Latency, value_of
from repro.results.record import Record
from repro.spec.tables import InputSize, Row, Table, Variant, plain_size

FORM = "folded"
#: Options that a table does not state, and what a latency has unless another is asked for.
DEFAULTS = {"target": "iOS15", "input": "tensor"}


def record_need(
    variant: Variant, input_size: InputSize, *, device: str, latency: Mapping[str, Any], batch_size: int = 1
) -> Need:
    """The measurement that a latency is of; ``latency`` has precision, compute_units, target and input_type."""
    protocol = {
        "input_size": plain_size(input_size),
        "batch_size": batch_size,
        "precision": latency["precision"],
        "form": FORM,
        "device": device,
        "compute_units": latency["compute_units"],
    }
    stated = {"target": latency["target"], "input": latency["input_type"]}
    other = {name: value for name, value in stated.items() if value not in (DEFAULTS[name], UNKNOWN)}
    return latency_need(variant, protocol, **other)


def latency_record(
    variant: Variant,
    input_size: InputSize,
    latency: Latency,
    provenance: Mapping[str, Any],
    *,
    value: float | None = None,
    batch_size: int = 1,
) -> Record:
    """The record of one latency in milliseconds; ``value`` where there are no samples to compute it from."""
    need = record_need(variant, input_size, device=latency.device_model, latency=vars(latency), batch_size=batch_size)
    found = value_of(latency.flat, latency.statistic) if latency.flat else value
    return Record(
        subject=need.subject,
        metric="latency",
        protocol=need.protocol,
        value=found,
        unit="ms",
        versions=need.versions,
        provenance=dict(provenance),
        samples=tuple(latency.flat),
        details=latency.details(),
    )


def failed_record(
    variant: Variant,
    input_size: InputSize,
    *,
    device: str,
    latency: Mapping[str, Any],
    error: Mapping[str, str],
    provenance: Mapping[str, Any],
    details: Mapping[str, Any],
    batch_size: int = 1,
) -> Record:
    """The record of a measurement that hung, crashed or was refused by the framework."""
    need = record_need(variant, input_size, device=device, latency=latency, batch_size=batch_size)
    return Record(
        subject=need.subject,
        metric="latency",
        protocol=need.protocol,
        value=None,
        unit="ms",
        versions=need.versions,
        provenance=dict(provenance),
        details=dict(details),
        error=dict(error),
    )


def imported(record: Record | None) -> str | None:
    """Where an imported record was read; None for one that this program measured."""
    source = record.details.get("imported") if record is not None else None
    return None if source is None else f"{source['file']}, {record.details.get('how', '')}" if record else None


@dataclass(frozen=True, kw_only=True)
class Beside:
    """One column that is shown and never compared: a device and what else tells it from the paper's protocol."""

    key: str
    header: str
    kind: str
    """device or estimate."""
    values: Mapping[str, float]
    """By the row's model, in milliseconds."""
    records: Mapping[str, Record]
    """Behind the values; an estimate has none."""
    notes: tuple[str, ...] = ()


def other_devices(table: Table, rows: Sequence[Row], records: Records) -> tuple[Beside, ...]:
    """The latencies that are not of the paper's protocol, by what they were measured on, newest record first."""
    if table.column("latency") is None:
        return ()
    columns: dict[tuple[str, ...], dict[str, Record]] = {}
    for row in rows:
        if row.variant is None:
            continue
        own = latency_need(row.variant, table.protocol_of(row, "latency")).protocol
        for record in _newest_first(records.every(row.variant, "latency")):
            protocol = record.protocol
            same = all(protocol.get(name) == own.get(name) for name in ("input_size", "batch_size"))
            if same and record.error is None and dict(protocol) != dict(own):
                columns.setdefault(_differs(protocol, own), {}).setdefault(row.model, record)
    found = []
    for name, values in sorted(columns.items()):
        shown = {model: float(record.value) for model, record in values.items() if record.value is not None}
        said = sorted({told(record) for record in values.values()})
        key = ", ".join(name)
        found.append(Beside(key=key, header=key, kind="device", values=shown, records=values, notes=tuple(said[:1])))
    return tuple(found)


def _differs(protocol: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[str, ...]:
    """The device, and whatever else of the protocol is not the table's own."""
    others = [str(protocol[name]) for name in sorted(protocol) if name != "device" and protocol[name] != own.get(name)]
    return (str(protocol.get("device")), *others)


def _newest_first(records: Iterable[Record]) -> list[Record]:
    return sorted(records, key=lambda record: str(record.provenance.get("time", "")), reverse=True)


def told(record: Record) -> str:
    """What stands behind a latency, in one line."""
    details = record.details
    placement = details["placement"]
    where = UNKNOWN if isinstance(placement, str) else ", ".join(
        f"{count} {name.replace('_', ' ')}" for name, count in placement["operations"].items()
    )  # fmt: skip
    samples = details["samples"]
    count = "samples unknown" if isinstance(samples, str) else f"{sum(map(len, samples))} samples"
    drift = details.get("drift")
    parts = [
        f"{details['device_model']} ({details['chip']}), {details['os_version']} {details['os_build']}",
        f"{details['precision']}, {record.protocol['compute_units']}",
        f"operations: {where}",
        f"{details['statistic']} of {count}, {details['warmup']} to warm up",
        *([f"drift {drift:.2f}"] if drift is not None else []),
        f"thermal {details['thermal_state']}, low power {details['low_power_mode']}",
        f"check {details['check']}",
        f"{details['date'][:10]}, {details['how']}",
    ]
    source = details["imported"]
    return ("imported, " if source is not None else "") + "; ".join(parts)

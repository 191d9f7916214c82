"""One cell's story as data: what a terminal's ``explain`` and the site both tell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import median

from repro.compare.cells import Cell, convention
from repro.compare.dense import OPTIONS
from repro.compare.tolerance import rounds_to, truncates_to
from repro.render.view import MEANINGS, REASONS, SIGNS
from repro.spec.metrics import scale
from repro.spec.parse import is_number
from repro.spec.tables import Row, Table

_COUNTED = ("params", "gmacs")


@dataclass(frozen=True, kw_only=True)
class Convention:
    """A count under one form and convention, and what the printed string says of it."""

    name: str
    value: str
    verdict: str
    used: bool
    reproduces: bool


@dataclass(frozen=True, kw_only=True)
class Story:
    """One cell of one table, told in full. Texts only; whoever shows them escapes them."""

    table: Table
    row: Row
    cell: Cell
    anchor: str
    title: str
    reported: str
    place: str
    sign: str
    meaning: str
    why: str
    measured: str
    difference: str
    facts: tuple[tuple[str, str], ...]
    conventions: tuple[Convention, ...]
    conclusion: str
    forms: tuple[str, ...]
    operators: tuple[tuple[str, tuple[str, ...]], ...]
    command: str


def story_of(table: Table, row: Row, cell: Cell, anchor: str) -> Story:
    """Gather what is known of a cell."""
    unit = cell.reported.unit or cell.column.unit
    forms, operators = operators_of(cell)
    counted = conventions_of(cell)
    return Story(
        table=table,
        row=row,
        cell=cell,
        anchor=anchor,
        title=f"Table {table.number}, {row.model}, {cell.column.header}" + (f" ({unit})" if unit else ""),
        reported=cell.reported.text or ("lost in extraction" if cell.reported.lost else "nothing printed"),
        place=_place(table, cell),
        sign=SIGNS.get(cell.status or "", ""),
        meaning=MEANINGS.get(cell.status or "", ""),
        why=_why(cell),
        measured="" if cell.measured is None else f"{cell.measured:f}",
        difference="" if cell.difference is None else f"{cell.difference:+f}",
        facts=tuple(_facts(row, cell)),
        conventions=counted,
        conclusion=conclusion_of(cell, counted) if counted else "",
        forms=forms,
        operators=operators,
        command=command_of(table, row, cell),
    )


def command_of(table: Table, row: Row, cell: Cell) -> str:
    """The command line that measures the cell again, safe to paste into a shell."""
    options = {"accuracy": "--imagenet", **OPTIONS}
    if cell.column.kind.kind in options:
        return f"repro evaluate {table.number} {options[cell.column.kind.kind]} DIR"
    model = row.model.replace("[", "[[]").replace("*", "[*]").replace("?", "[?]")
    return f"repro table {table.number} --only {shlex.quote(model)} --metrics {cell.metric} --refresh"


def conventions_of(cell: Cell) -> tuple[Convention, ...]:
    """A count under every form and convention that its record holds."""
    record = cell.record
    if record is None or record.error is not None or cell.metric not in _COUNTED or not record.details:
        return ()
    unit = cell.reported.unit or cell.column.unit
    used = convention(cell.metric, cell.protocol)
    exponent = -6 if cell.metric == "params" else -9
    found = []
    for name, count in record.details["forms" if cell.metric == "params" else "macs"].items():
        value = Decimal(count).scaleb(exponent) * scale(cell.metric, unit)
        verdict = _verdict(value, cell.reported.text)
        found.append(
            Convention(
                name=name,
                value=f"{value:.6f}",
                verdict=verdict,
                used=name == used,
                reproduces=verdict.startswith("="),
            )
        )
    return tuple(found)


def conclusion_of(cell: Cell, counted: Sequence[Convention]) -> str:
    """Which conventions reproduce the printed string."""
    if not is_number(cell.reported.text):
        return "The paper prints no number here."
    names = [item.name for item in counted if item.reproduces]
    if names:
        return f"Reproduce the printed {cell.reported.text}: {', '.join(names)}."
    return f"No convention reproduces the printed {cell.reported.text}."


def operators_of(cell: Cell) -> tuple[tuple[str, ...], tuple[tuple[str, tuple[str, ...]], ...]]:
    """The forms of a record, and by operator its multiply-adds in each of them."""
    record = cell.record
    if record is None or record.error is not None or cell.metric != "gmacs" or "operators" not in record.details:
        return (), ()
    operators: dict[str, dict[str, int]] = record.details["operators"]
    names = sorted({name for counts in operators.values() for name in counts})
    lines = [(name, tuple(f"{counts.get(name, 0):,}" for counts in operators.values())) for name in names]
    return tuple(operators), tuple(lines)


def _verdict(value: Decimal, printed: str | None) -> str:
    if not is_number(printed) or printed is None:
        return ""
    if rounds_to(value, printed):
        return f"= {printed}"
    difference = value - Decimal(printed)
    return f"{difference:+.4f}" + (" (cut off, not rounded)" if truncates_to(value, printed) else "")


def _place(table: Table, cell: Cell) -> str:
    reported = cell.reported
    parts = [f"{table.source.document}, line {reported.line}" if reported.line else ""]
    parts.append(f"extracted as {reported.extracted!r}" if reported.extracted else "")
    parts.append("from the running text" if reported.from_text else "")
    parts.append(reported.note or "")
    return "; ".join(part for part in parts if part)


def _why(cell: Cell) -> str:
    reason = REASONS.get(cell.reason or "", "")
    parts = [cell.reason or "", cell.message or reason]
    return ": ".join(part for part in parts if part)


def _facts(row: Row, cell: Cell) -> list[tuple[str, str]]:
    """Everything else, as pairs of a name and a text."""
    facts = [("Protocol", ", ".join(f"{name} {value}" for name, value in cell.protocol.items()))]
    if row.variant is not None:
        arguments = "".join(f", {name}={value!r}" for name, value in row.variant.arguments.items())
        facts.append(("Variant", f"{row.variant.builder}: {row.variant.model}{arguments}"))
    facts += _evidence(cell)
    record = cell.record
    if record is None:
        return [(name, text) for name, text in facts if text]
    if len(record.samples) > 1:
        low, high = min(record.samples), max(record.samples)
        middle = median(record.samples)
        facts.append(("Samples", f"{len(record.samples)}; median {middle:.4g}, {low:.4g} to {high:.4g}"))
    form = str(cell.protocol.get("form", "folded"))
    if check := record.details.get("cross_check", {}).get(form):
        agree = "they agree" if check["fvcore"] == check["flop_counter"] else "they DISAGREE"
        counts = f"fvcore {check['fvcore']:,}, FlopCounterMode {check['flop_counter']:,}"
        facts.append(("Two counters", f"{counts}: {agree}"))
    if interval := record.details.get("interval", {}).get("top1"):
        facts.append(("95% interval", f"{interval[0]:.2f} to {interval[1]:.2f}"))
    made = record.provenance
    facts.append(("Record", record.id + (" (stale)" if cell.stale else "")))
    facts.append(("Versions", ", ".join(f"{name} {value}" for name, value in record.versions.items())))
    facts.append(("Source", record.subject.source))
    facts.append(("Made", f"{made.get('time')} by repro {made.get('repro')} ({made.get('commit') or 'installed'})"))
    facts.append(("On", ", ".join(str(made[name]) for name in ("cpu", "os", "python") if made.get(name))))
    return [(name, text) for name, text in facts if text]


def _evidence(cell: Cell) -> list[tuple[str, str]]:
    evidence = cell.evidence
    if evidence is None:
        return []
    deviation = evidence.deviation
    changed = deviation.protocol.of(deviation.measure or "gmacs")
    under = ", ".join(f"{name} {value}" for name, value in changed.items()) or "the row's own protocol"
    value = "not measured" if evidence.value is None else f"{evidence.value:f}"
    verdict = "holds" if evidence.holds else f"does not hold: {evidence.why_not}"
    record = f" (record {evidence.record})" if evidence.record else ""
    return [
        ("Deviation", f"{deviation.reason}: {deviation.says}"),
        ("Evidence", f"{deviation.measure} under {under}: {value}, stated {deviation.equals}: {verdict}{record}"),
    ]

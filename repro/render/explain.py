"""One cell's whole story."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from repro.compare.cells import Cell
from repro.compare.dense import OPTIONS
from repro.render.story import command_of, conclusion_of, conventions_of, operators_of
from repro.render.terminal import WIDTH, paint
from repro.render.view import MEANINGS, SIGNS
from repro.spec.manifest import Checkpoint
from repro.spec.metrics import METRICS
from repro.spec.tables import Row, Table

_INDENT = " " * 10
_DEEPER = " " * 12


def explain(table: Table, row: Row, cell: Cell, checkpoints: Sequence[Checkpoint] = ()) -> str:
    """Value, protocol, conventions side by side, counts by operator, versions, and the command that repeats it.

    Of an accuracy, also what was released and what others published of it, each figure under its own source.
    """
    parts = [f"Table {table.number}, {row.model}, {cell.column.header} ({cell.reported.unit or cell.column.unit})"]
    parts.append(_reported(table, cell))
    if cell.status is not None:
        line = f"status    {SIGNS[cell.status]} {cell.status}: {MEANINGS[cell.status]}"
        parts.append(paint(line, cell.status) + _because(cell))
    if cell.measured is not None:
        difference = "" if cell.difference is None else f"   difference {cell.difference:+f}"
        parts.append(f"measured  {cell.measured:f}{difference}")
    if cell.protocol:
        parts.append("protocol  " + ", ".join(f"{name} {value}" for name, value in cell.protocol.items()))
    if row.variant is not None:
        arguments = "".join(f", {name}={value!r}" for name, value in row.variant.arguments.items())
        parts.append(f"variant   {row.variant.builder}: {row.variant.model}{arguments}")
    blocks = ["\n".join(parts)]
    if cell.evidence is not None:
        blocks.append(_evidence(cell))
    record = cell.record
    accuracy, dense = cell.column.kind.kind == "accuracy", cell.column.kind.kind in OPTIONS
    if (accuracy or dense) and checkpoints:
        blocks.append(_checkpoints(checkpoints))
    if record is not None:
        if accuracy and record.error is None:
            blocks.append(_interval(cell))
        if dense and record.error is None:
            blocks.append(_evaluated(cell))
        if cell.metric in ("params", "gmacs") and record.error is None:
            blocks.append(_conventions(cell))
        if cell.metric == "gmacs" and record.error is None:
            blocks += [_operators(cell), _counters(cell)]
        blocks.append(_provenance(cell))
    blocks.append(f"repeat    {command_of(table, row, cell)}")
    return "\n\n".join(blocks) + "\n"


def _checkpoints(checkpoints: Sequence[Checkpoint]) -> str:
    lines = []
    for item in checkpoints:
        state = item.paper_row.replace("_", " ")
        schedule = f", {item.schedule}" if item.schedule else ""
        lines.append(f"weights   {item.id}: {state}{schedule}" + (f", {item.source.place}" if item.source else ""))
        for text in (item.reason, item.protocol_note):
            lines += [textwrap.fill(text, WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)] if text else []
        if item.looked:
            lines.append(f"{_INDENT}looked in {'; '.join(item.looked)}")
        for figure in (*([item.official] if item.official else []), *item.others):
            top5 = f", top-5 {figure.top5}" if figure.top5 else ""
            protocol = f" at {figure.protocol}" if figure.protocol else ""
            name = "top-1" if figure.top1 else "mIoU" if figure.miou else "AP box / mask"
            lines.append(f"{_INDENT}source: {figure.source}: {name} {figure.text}{top5}{protocol}")
            lines.append(textwrap.fill(figure.where, WIDTH, initial_indent=_DEEPER, subsequent_indent=_DEEPER))
    return "\n".join(lines)


def _evaluated(cell: Cell) -> str:
    """What else an evaluation of a detector or segmenter found, and on what."""
    record = cell.record
    assert record is not None
    details = record.details
    found = ", ".join(f"{METRICS[name].header} {details[name]:.2f}" for name in METRICS if name in details)
    protocol = record.protocol
    return (
        f"found     {found}\n"
        f"images    {protocol['dataset']}, {details['images']:,} images, pipeline {protocol['pipeline']}; "
        f"fingerprint {details['fingerprint'][:16]}\n"
        f"run       {protocol['precision']} on {details['device']}, backbone {details['backbone']}; "
        f"weights SHA-256 {details['sha256'][:16]}"
    )


def _interval(cell: Cell) -> str:
    record = cell.record
    assert record is not None
    details = record.details
    low, high = details["interval"]["top1"]
    size = details["preprocessing"]["input_size"]
    return (
        f"accuracy  {details['correct']['top1']:,} of {details['images']:,} images right; 95% interval {low:.2f} to "
        f"{high:.2f}; top-5 {details['top5']:.3f}; {details['skipped']} skipped\n"
        f"images    {record.protocol['dataset']}, {size[1]}x{size[2]}, crop {details['preprocessing']['crop_pct']:g}, "
        f"{details['preprocessing']['interpolation']}; fingerprint {details['fingerprint'][:16]}\n"
        f"run       {record.protocol['precision']} on {details['device']}, batch {details['batch_size']}, "
        f"{details['form']}; weights SHA-256 {details['sha256'][:16]}"
    )


def _reported(table: Table, cell: Cell) -> str:
    reported = cell.reported
    text = reported.text or ("lost in extraction" if reported.lost else "nothing printed")
    place = f"   {table.source.document}, line {reported.line}" if reported.line else ""
    extracted = f" (extracted as {reported.extracted!r})" if reported.extracted else ""
    from_text = " (from the running text)" if reported.from_text else ""
    note = f"\n          {reported.note}" if reported.note else ""
    return f"reported  {text}{extracted}{from_text}{place}{note}"


def _because(cell: Cell) -> str:
    why = ": ".join(part for part in (cell.reason, cell.message) if part)
    return "\n" + textwrap.fill(why, WIDTH, initial_indent="          ", subsequent_indent="          ") if why else ""


def _evidence(cell: Cell) -> str:
    evidence = cell.evidence
    assert evidence is not None
    deviation = evidence.deviation
    changed = deviation.protocol.of(deviation.measure or "gmacs")
    under = ", ".join(f"{name} {value}" for name, value in changed.items()) or "the row's own protocol"
    verdict = "holds" if evidence.holds else f"does not hold: {evidence.why_not}"
    value = "not measured" if evidence.value is None else f"{evidence.value:f}"
    return (
        f"deviation {deviation.reason}: {deviation.says}\n"
        f"evidence  {deviation.measure} under {under}: {value}, stated {deviation.equals}: {verdict}"
        + (f" (record {evidence.record})" if evidence.record else "")
    )


def _conventions(cell: Cell) -> str:
    unit = cell.reported.unit or cell.column.unit
    counted = conventions_of(cell)
    lines = [["→" if item.used else "", item.name, item.value, item.verdict] for item in counted]
    table = tabulate(lines, headers=["", "convention", unit, "printed?"], tablefmt="simple", disable_numparse=True)
    return f"{table}\n{textwrap.fill(conclusion_of(cell, counted), WIDTH)}"


def _operators(cell: Cell) -> str:
    forms, operators = operators_of(cell)
    align = ["left", *("right" for _ in forms)]
    lines = [[name, *counts] for name, counts in operators]
    table = tabulate(lines, headers=["operator", *forms], tablefmt="simple", colalign=align, disable_numparse=True)
    return f"Multiply-adds by operator (norms, pooling and resampling as fvcore counts them)\n{table}"


def _counters(cell: Cell) -> str:
    record = cell.record
    assert record is not None
    form = str(cell.protocol.get("form", "folded"))
    check: dict[str, int] = record.details["cross_check"][form]
    agree = "agree" if check["fvcore"] == check["flop_counter"] else "DISAGREE"
    return (
        f"Matrix products, {form}, by two independent counters: "
        f"fvcore {check['fvcore']:,}, torch FlopCounterMode {check['flop_counter']:,}: they {agree}."
    )


def _provenance(cell: Cell) -> str:
    record = cell.record
    assert record is not None
    made: dict[str, Any] = dict(record.provenance)
    versions = ", ".join(f"{name} {value}" for name, value in record.versions.items())
    lines = [
        f"record    {record.id}" + (" (stale)" if cell.stale else ""),
        f"versions  {versions}",
        f"source    {record.subject.source}",
        f"made      {made.get('time')} by repro {made.get('repro')} ({made.get('commit') or 'installed'})",
        f"on        {made.get('cpu')}, {made.get('os')}, Python {made.get('python')}",
    ]
    return "\n".join(lines)

"""The formats of ``repro verify``."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree as Xml

from tabulate import tabulate

from repro.compare.cells import COMPARED, Cell
from repro.compare.verify import Finding, Verdict
from repro.render.engine import markdown
from repro.render.terminal import WIDTH, paint
from repro.render.view import MEANINGS, SIGNS

SCHEMA = 1


def _number(value: Any) -> str:
    return "" if value is None else f"{float(value):.6g}"


def _signed(value: Any) -> str:
    return "" if value is None else f"{float(value):+.4g}"


def _why(cell: Cell) -> str:
    """Reason and message; for a difference nobody explains, what the spec says was tried."""
    why = ": ".join(part for part in (cell.reason, cell.message) if part)
    return why or (cell.reported.note or "" if cell.status == "outside" else "")


def _lines(verdict: Verdict) -> list[list[str]]:
    return [
        [
            str(finding.table.number),
            finding.row.model,
            finding.what,
            finding.cell.reported.text or "",
            _number(finding.cell.measured),
            _signed(finding.cell.difference),
            f"{SIGNS[finding.cell.status or '']} {finding.cell.status}",
            _why(finding.cell),
        ]
        for finding in verdict.off
    ]


_HEADS = ["Table", "Row", "Metric", "Paper", "Measured", "Difference", "Status", "Why"]


def terminal(verdict: Verdict) -> str:
    """Summary, then what is off."""
    parts = []
    summary = verdict.summary()
    counted = [
        [f"{SIGNS[status]} {status}", str(count), MEANINGS[status]] for status, count in summary.items() if count
    ]
    parts.append(str(tabulate(counted, tablefmt="plain", disable_numparse=True)))
    if reasons := verdict.reasons():
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        parts.append(textwrap.fill(f"Not measured: {listed}", WIDTH, subsequent_indent="  "))
    if verdict.off:
        lines = _lines(verdict)
        with_why = any(line[-1] for line in lines)
        shown = []
        for line, finding in zip(lines, verdict.off, strict=True):
            line[1] = textwrap.shorten(line[1], 28, placeholder="…")
            line[3] = textwrap.shorten(line[3], 20, placeholder="…")
            line[6] = paint(line[6], finding.cell.status)
            line[7] = textwrap.shorten(line[7], 30, placeholder="…")
            shown.append(line if with_why else line[:-1])
        heads = _HEADS if with_why else _HEADS[:-1]
        parts.append(str(tabulate(shown, headers=heads, tablefmt="simple", disable_numparse=True)))
    parts.append(standing(verdict))
    return "\n\n".join(parts) + "\n"


def standing(verdict: Verdict) -> str:
    """One line: how many of the compared cells hold."""
    summary = verdict.summary()
    compared = sum(summary[status] for status in COMPARED)
    if verdict.exit_code == 3:
        return "Nothing could be compared."
    hold = sum(summary[status] for status in ("match", "within", "explained"))
    return f"{hold} of {compared} compared cells hold at tolerance {verdict.tolerance}; {len(verdict.off)} are off."


def markdown_report(verdict: Verdict) -> str:
    """The same for GitHub."""
    summary = verdict.summary()
    parts = ["# Verification", "", standing(verdict), "", "| Status | Cells | Meaning |", "|:--|--:|:--|"]
    parts += [
        f"| {markdown(SIGNS[status])} {markdown(status)} | {count} | {MEANINGS[status]} |"
        for status, count in summary.items()
        if count
    ]
    if reasons := verdict.reasons():
        parts += ["", "Not measured: " + ", ".join(f"{markdown(name)} {count}" for name, count in reasons.items())]
    if verdict.off:
        parts += ["", "| " + " | ".join(_HEADS) + " |", "|--:|:--|:--|--:|--:|--:|:--|:--|"]
        parts += ["| " + " | ".join(markdown(text) for text in line) + " |" for line in _lines(verdict)]
    return "\n".join(parts) + "\n"


def json_report(verdict: Verdict) -> str:
    """Every cell with a status, the summary and the exit code."""
    data = {
        "schema": SCHEMA,
        "tolerance": str(verdict.tolerance),
        "exit_code": verdict.exit_code,
        "summary": verdict.summary(),
        "not_measured": verdict.reasons(),
        "off": [_finding(finding) for finding in verdict.off],
        "cells": [_finding(finding) for finding in verdict.findings],
    }
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finding(finding: Finding) -> dict[str, Any]:
    cell = finding.cell
    return {
        "table": finding.table.number,
        "model": finding.row.model,
        "metric": cell.metric,
        "reported": cell.reported.text,
        "measured": None if cell.measured is None else float(cell.measured),
        "difference": None if cell.difference is None else float(cell.difference),
        "status": cell.status,
        "reason": cell.reason,
        "message": cell.message or None,
        "note": cell.reported.note,
        "record": None if cell.record is None else cell.record.id,
        **({"part": finding.part} if finding.part else {}),
    }


def junit(verdict: Verdict) -> str:
    """Each cell as a test: off cells fail, failed measurements are errors, unmeasured ones are skipped."""
    root = Xml.Element("testsuites", name="repro verify")
    suites: dict[int, Xml.Element] = {}
    off = {id(finding.cell) for finding in verdict.off}
    for finding in verdict.findings:
        number = finding.table.number
        if number not in suites:
            suites[number] = Xml.SubElement(root, "testsuite", name=f"Table {number}")
        name = f"{finding.row.model} {finding.what}"
        case = Xml.SubElement(suites[number], "testcase", classname=f"table_{number:02d}", name=_xml(name))
        cell = finding.cell
        text = f"paper {cell.reported.text}, measured {_number(cell.measured)} ({_signed(cell.difference)})"
        if cell.status == "failed":
            Xml.SubElement(case, "error", type="failed", message=_xml(_why(cell)))
        elif id(cell) in off:
            Xml.SubElement(case, "failure", type=cell.status or "", message=_xml(f"{text} {_why(cell)}".strip()))
        elif cell.status in ("not_measured", "not_reported"):
            Xml.SubElement(case, "skipped", message=_xml(f"{cell.status}: {_why(cell)}".rstrip(": ")))
    for suite in (root, *suites.values()):
        cases = list(suite.iter("testcase"))
        suite.set("tests", str(len(cases)))
        for kind, plural in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            if suite is root and kind == "skipped":
                continue
            suite.set(plural, str(sum(case.find(kind) is not None for case in cases)))
    Xml.indent(root)
    return Xml.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _xml(text: str) -> str:
    """Text without the control characters that XML 1.0 cannot hold."""
    return "".join(character for character in text if character >= " " or character in "\t\n")


def github(verdict: Verdict) -> str:
    """Workflow commands: an annotation at the spec's line for each cell that is off."""
    lines = []
    for finding in verdict.off:
        cell = finding.cell
        level = "warning" if cell.status == "not_measured" else "error"
        text = f"paper {cell.reported.text}, measured {_number(cell.measured)}: {cell.status} {_why(cell)}".strip()
        path = _property(str(finding.table.path))
        title = _property(f"Table {finding.table.number} {finding.row.model} {finding.what}")
        lines.append(f"::{level} file={path},line={finding.row.spec_line},title={title}::{_data(text)}")
    lines.append(f"::notice title=repro verify::{_data(standing(verdict))}")
    return "\n".join(lines) + "\n"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


FORMATS: dict[str, tuple[str, Callable[[Verdict], str]]] = {
    "terminal": (".txt", terminal),
    "markdown": (".md", markdown_report),
    "json": (".json", json_report),
    "junit": (".xml", junit),
    "github": (".github.txt", github),
}

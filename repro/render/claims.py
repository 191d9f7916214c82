"""The formats of ``repro claims``."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from typing import Any

from repro.compare.claims import REASONS, ClaimResult, ClaimsResult, Finding
from repro.render.engine import markdown
from repro.render.terminal import WIDTH, paint

SCHEMA = 1
SIGNS = {"holds": "✓", "does_not_hold": "✗", "cannot_be_checked_here": "·"}
_COLOURS = {"holds": "match", "does_not_hold": "outside", "cannot_be_checked_here": "not_measured"}
_FEW = 4  # findings of one claim that a terminal shows


def _words(status: str) -> str:
    return status.replace("_", " ")


def why(result: ClaimResult) -> str:
    """The reason of a claim that cannot be checked, and what it means."""
    reason = result.reason or ""
    return f"{reason} ({REASONS[reason]})" if reason in REASONS else reason


def finding_text(finding: Finding) -> str:
    """``79.7 - 80.4 = -0.7; stated -0.7``."""
    relation = "" if finding.relation == "=" else f"{finding.relation} "
    stated = f"stated {relation}{finding.stated}"
    verdict = {True: "", False: ": no", None: f": {finding.reason}"}[finding.holds]
    single = (
        finding.sources and " " not in finding.found
    )  # an operation shows its numbers, a cell does not say its name
    return f"{f'{finding.sources[0]}: ' if single else ''}{finding.found}; {stated}{verdict}"


def _shown(result: ClaimResult) -> list[str]:
    """The findings to show: those that fail first, and how many more there are."""
    ordered = sorted(result.evidence, key=lambda finding: finding.holds is not False)
    lines = [finding_text(finding) for finding in ordered[:_FEW]]
    if more := len(ordered) - len(lines):
        agree = sum(finding.holds is True for finding in ordered[_FEW:])
        lines.append(f"and {more} more, {agree} of which agree")
    return lines


def standing(result: ClaimsResult) -> str:
    """One line: how many claims stand how."""
    summary = result.summary()
    counted = ", ".join(f"{count} {_words(status)}" for status, count in summary.items() if count)
    return f"{len(result.results)} claims: {counted}"


def terminal(result: ClaimsResult) -> str:
    """Each claim with its line of the source, its words and its evidence."""
    blocks = []
    for item in result.results:
        claim = item.claim
        head = f"{SIGNS[item.status]} {claim.id}  {_words(item.status)}" + (f": {why(item)}" if item.reason else "")
        lines = [paint(head, _COLOURS[item.status])]
        lines.append(_wrapped(f"line {claim.line}: {claim.says}"))
        lines += [_wrapped(line) for line in _shown(item)]
        lines += [_wrapped(claim.note)] if claim.note else []
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, standing(result)]) + "\n"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="    ", subsequent_indent="      ")


def markdown_report(result: ClaimsResult) -> str:
    """One table of all claims."""
    source = result.claims.source
    lines = [
        f"# Claims of {markdown(source.paper)}",
        "",
        f"{standing(result)}. Lines are those of {markdown(source.document)}.",
    ]
    lines += ["", "| Claim | Line | Says | Status | Evidence |", "|:--|--:|:--|:--|:--|"]
    for item in result.results:
        evidence = [*map(markdown, _shown(item)), *([markdown(item.claim.note)] if item.claim.note else [])]
        status = f"{markdown(SIGNS[item.status])} {_words(item.status)}" + (f": {why(item)}" if item.reason else "")
        cells = [
            markdown(item.claim.id),
            str(item.claim.line),
            markdown(item.claim.says),
            status,
            "<br>".join(evidence),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def json_report(result: ClaimsResult) -> str:
    """Every claim, the summary and the exit code."""
    data = {
        "schema": SCHEMA,
        "exit_code": result.exit_code,
        "summary": result.summary(),
        "claims": [_claim(item) for item in result.results],
    }
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _claim(item: ClaimResult) -> dict[str, Any]:
    return {
        "claim": item.claim.id,
        "kind": item.claim.kind,
        "line": item.claim.line,
        "says": item.claim.says,
        "status": item.status,
        "reason": item.reason,
        "note": item.claim.note,
        "evidence": [
            {
                "found": finding.found,
                "relation": finding.relation,
                "stated": finding.stated,
                "holds": finding.holds,
                "reason": finding.reason,
                "sources": list(finding.sources),
                "records": list(finding.records),
            }
            for finding in item.evidence
        ],
    }


FORMATS: dict[str, tuple[str, Callable[[ClaimsResult], str]]] = {
    "terminal": (".txt", terminal),
    "markdown": (".md", markdown_report),
    "json": (".json", json_report),
}

"""The formats of the drift report."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from repro.compare.drift import Amount, Change, Drift
from repro.render.engine import markdown
from repro.render.terminal import WIDTH, paint

SCHEMA = 1
_FEW = 6  # cells of one change that are named


def _number(value: Decimal | None) -> str:
    return "nothing" if value is None else f"{value:f}"


def amount_text(amount: Amount) -> str:
    """``8.879128 -> 8.901000 M (+0.25%)``."""
    share = "" if amount.share is None else f" ({amount.share:+.2%})"
    name = f"{amount.name}: " if amount.name else ""
    return f"{name}{_number(amount.before)} -> {_number(amount.now)} {amount.unit}{share}"


def what(change: Change) -> str:
    """Which measurement: ``iformer_m params (input_size 224)``."""
    under = ", ".join(f"{name} {value}" for name, value in change.protocol.items())
    return f"{change.variant} {change.metric}" + (f" ({under})" if under else "")


def cells_text(change: Change) -> str:
    """The cells that show it, and how they stand now."""
    shown = [f"{use}" + (f" now {use.status}" if use.status else "") for use in change.uses[:_FEW]]
    more = len(change.uses) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def standing(drift: Drift) -> str:
    """One line: what was measured, and what drifted."""
    if not drift.measured:
        return "Nothing could be measured."
    failed = f", {drift.failed} failed" if drift.failed else ""
    quiet = [change for change in drift.changes if not change.beyond_noise]
    noise = f" {len(quiet)} moved within noise." if quiet else ""
    moved = f"{drift.unchanged} as before, {len(drift.beyond_noise)} drifted.{noise}"
    return f"{drift.measured} measurements{failed}: {moved} {drift.carried} records of other machines kept as they are."


def terminal(drift: Drift) -> str:
    """Each change with its rows, amounts and causes."""
    blocks = []
    for change in drift.changes:
        kind = change.kind if change.beyond_noise else f"{change.kind}, within noise"
        colour = "outside" if change in drift.beyond_noise else "not_measured"
        lines = [paint(f"{kind}: {what(change)}", colour)]
        lines += [f"    {amount_text(amount)}" for amount in change.shown]
        lines += [_wrapped(change.message)] if change.message else []
        lines += [_wrapped(f"shown by {cells_text(change)}")] if change.uses else []
        lines += [_wrapped(f"with {', '.join(change.causes)}")] if change.causes else []
        blocks.append("\n".join(lines))
    if drift.moved:
        blocks.append(_wrapped(f"Versions that moved: {', '.join(drift.moved)}").strip())
    return "\n\n".join([*blocks, standing(drift)]) + "\n"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="    ", subsequent_indent="      ")


def markdown_report(drift: Drift) -> str:
    """The same for a pull request or a step summary."""
    lines = ["# Drift", "", standing(drift)]
    if drift.changes:
        lines += ["", "| What | Was, is now | Cells | With |", "|:--|:--|:--|:--|"]
    for change in drift.changes:
        kind = change.kind if change.beyond_noise else f"{change.kind}, within noise"
        amounts = [markdown(amount_text(amount)) for amount in change.shown] + (
            [markdown(change.message)] if change.message else []
        )
        cells = [
            f"{kind}: {markdown(what(change))}",
            "<br>".join(amounts),
            markdown(cells_text(change)),
            markdown(", ".join(change.causes)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if drift.moved:
        lines += ["", f"Versions that moved: {markdown(', '.join(drift.moved))}"]
    if drift.warnings:
        lines += ["", *(f"- {markdown(warning)}" for warning in drift.warnings)]
    return "\n".join(lines) + "\n"


def _amount(amount: Amount) -> dict[str, Any]:
    return {
        "convention": amount.name or None,
        "before": None if amount.before is None else float(amount.before),
        "now": None if amount.now is None else float(amount.now),
        "unit": amount.unit,
        "share": amount.share,
    }


def json_report(drift: Drift) -> str:
    """Every change, the counts and the exit code of ``--check``."""
    data = {
        "schema": SCHEMA,
        "exit_code": drift.exit_code,
        "measured": drift.measured,
        "failed": drift.failed,
        "unchanged": drift.unchanged,
        "carried": drift.carried,
        "moved": list(drift.moved),
        "changes": [
            {
                "kind": change.kind,
                "beyond_noise": change.beyond_noise,
                "variant": change.variant,
                "metric": change.metric,
                "protocol": dict(change.protocol),
                "amounts": [_amount(amount) for amount in change.amounts],
                "cells": [{"table": use.table, "model": use.model, "status": use.status} for use in change.uses],
                "causes": list(change.causes),
                "message": change.message or None,
            }
            for change in drift.changes
        ],
    }
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: dict[str, tuple[str, Callable[[Drift], str]]] = {
    "terminal": (".txt", terminal),
    "markdown": (".md", markdown_report),
    "json": (".json", json_report),
}

"""The formats of ``repro recover``."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from tabulate import tabulate

from repro.compare.recover import Candidate, Change, Recovery
from repro.render.terminal import WIDTH, paint
from repro.render.view import shown_number

SCHEMA = 1
_SHOWN = 10  # baselines that a terminal shows


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _knobs(knobs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in knobs.items())


def _numbers(values: Mapping[str, Decimal], decimals: int = 3) -> str:
    return ", ".join(f"{metric} {shown_number(value, decimals)}" for metric, value in values.items())


def terminal(recovery: Recovery, counted: int, seconds: float) -> str:
    """What was searched, what agrees, or what comes nearest."""
    table = recovery.table
    assert table.search is not None
    heads = [["Row", "printed"]]
    heads += [
        [row.model, ", ".join(f"{item.metric} {item.text} {item.unit}" for item in recovery.printed[row.model])]
        for row in recovery.rows
    ]
    blocks = [f"Table {table.number}, changes to {table.search.base}"]
    blocks.append(str(tabulate(heads[1:], headers=heads[0], tablefmt="simple", disable_numparse=True)))
    rate = f"{counted / seconds:.0f} a second" if seconds > 0 else "at once"
    together = " together" if len(recovery.rows) > 1 else ""
    if recovery.agreeing:
        count = len(recovery.agreeing)
        verdict = paint(
            f"{count} baseline{'s agree' if count > 1 else ' agrees'} with all printed values{together}", "match"
        )
        candidates = recovery.agreeing
    else:
        verdict = paint(f"no configuration agrees with all printed values{together}; the nearest:", "outside")
        candidates = recovery.nearest
    blocks.append(f"{counted} configurations counted in {seconds:.1f} s ({rate}): {verdict}")
    blocks += [_candidate(candidate, recovery) for candidate in candidates[:_SHOWN]]
    if more := len(candidates) - _SHOWN:
        blocks += [f"and {more} more (--format json lists all)"] if more > 0 else []
    return "\n\n".join(blocks) + "\n"


def _candidate(candidate: Candidate, recovery: Recovery) -> str:
    lines = [textwrap.fill(_knobs(candidate.baseline) or "the base itself", WIDTH, subsequent_indent="  ")]
    for row in recovery.rows:
        for change in candidate.changes[row.model]:
            what = _knobs(change.knobs) or "the baseline itself"
            share = "" if change.agrees else f" (off by {100 * change.distance:.2f}%)"
            text = f"{row.model}: {what}: {_numbers(change.values)}{share}"
            lines.append(textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="    "))
    return "\n".join(lines)


def json_report(recovery: Recovery, counted: int, seconds: float) -> str:
    """Everything that was found."""
    table = recovery.table
    assert table.search is not None
    data = {
        "schema": SCHEMA,
        "table": table.number,
        "base": table.search.base,
        "tolerance": str(recovery.tolerance),
        "rows": [
            {
                "model": row.model,
                "printed": {
                    item.metric: {"reported": item.text, "unit": item.unit} for item in recovery.printed[row.model]
                },
            }
            for row in recovery.rows
        ],
        "counted": counted,
        "seconds": round(seconds, 3),
        "exit_code": recovery.exit_code,
        "agreeing": [_data(candidate) for candidate in recovery.agreeing],
        "nearest": [_data(candidate) for candidate in recovery.nearest],
    }
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _data(candidate: Candidate) -> dict[str, Any]:
    return {
        "baseline": dict(candidate.baseline),
        "rows": {model: [_change(change) for change in changes] for model, changes in candidate.changes.items()},
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "knobs": dict(change.knobs),
        "measured": {metric: float(value) for metric, value in change.values.items()},
        "agrees": change.agrees,
        "distance": float(change.distance),
    }


FORMATS: dict[str, Callable[[Recovery, int, float], str]] = {"terminal": terminal, "json": json_report}

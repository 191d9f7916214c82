"""What ``repro latency`` prints."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import click
from tabulate import tabulate

_WIDTH = 100


def terminal(report: Mapping[str, Any]) -> str:
    """Latencies with their spread, what stands behind them, and loud lines where something is wrong."""
    lines = []
    for item in report["latencies"]:
        height, width = item["input_size"]
        size = str(height) if height == width else f"{height}x{width}"
        if item["error"] is not None:
            lines.append([item["variant"], size, "failed", "", "", item["error"]["reason"]])
            continue
        spread, drift = item["spread"], item["drift"]
        lines.append(
            [
                item["variant"],
                size,
                f"{item['value']:.3f}",
                f"{spread['lower']:.3f} to {spread['upper']:.3f}",
                "" if drift is None else f"{drift:.2f}",
                "on record" if item["on_record"] else "measured",
            ]
        )
    heads = ("Variant", "Size", "Latency (ms)", "Middle half", "Drift", "")
    parts = [str(tabulate(lines, headers=heads, tablefmt="simple", disable_numparse=True))] if lines else []
    for item in report["latencies"]:
        parts += [click.style(f"! {item['variant']}: {text}", fg="red", bold=True) for text in item["warnings"]]
        if item["error"] is not None:
            parts.append(f"{item['variant']}: {item['error']['reason']}: {item['error']['message']}")
    told = {item["told"] for item in report["latencies"] if item["told"] is not None}
    parts += [textwrap.fill(text, _WIDTH, subsequent_indent="  ") for text in sorted(told)] if len(told) <= 4 else []
    parts += [f"{name}: {error['reason']}: {error['message']}" for name, error in report["failures"].items()]
    return "\n\n".join(parts or ["nothing was measured"]) + "\n"


def as_json(report: Mapping[str, Any]) -> str:
    """The whole report as JSON."""
    return json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Mapping[str, Any]], str]] = {"terminal": terminal, "json": as_json}

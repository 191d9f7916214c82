"""What ``repro evaluate`` prints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tabulate import tabulate

_SHOWN_PAIRS = 10


def terminal(report: Mapping[str, Any]) -> str:
    """Accuracies with their 95% Wilson intervals, then what tells the models apart."""
    data, protocol = report["dataset"], report["protocol"]
    lines = []
    for item in report["checkpoints"]:
        low, high = item["interval"]["top1"]
        size = item["preprocessing"]["input_size"]
        how = f"{size[1]}x{size[2]} crop {item['preprocessing']['crop_pct']:g} {item['preprocessing']['interpolation']}"
        lines.append(
            [item["checkpoint"], f"{item['top1']:.3f}", f"{low:.2f} to {high:.2f}", f"{item['top5']:.3f}",
             item["official"] or "", how, item["paper_row"] or "local weights"]
        )  # fmt: skip
    headers = ["Checkpoint", "Top-1", "95% interval", "Top-5", "Published", "Images", "Paper's row"]
    parts = [
        f"{data['name']}: {data['images']:,} images, {data['classes']} classes ({data['layout']}); "
        f"{protocol['precision']} on {protocol['device']}, {protocol['form']}",
        tabulate(lines, headers=headers, tablefmt="simple", disable_numparse=True),
    ]
    if report["skipped"]:
        parts.append(f"{len(report['skipped'])} images could not be decoded and are in no figure.")
    pairs = sorted(report["differences"], key=lambda pair: -abs(pair["points"]))[:_SHOWN_PAIRS]
    if pairs:
        rows = [
            [p["first"], p["second"], f"{p['points']:+.3f}", p["only_first"], p["only_second"], f"{p['p_value']:.2g}"]
            for p in pairs
        ]
        heads = ["First", "Second", "Points", "Only first right", "Only second right", "McNemar p"]
        parts.append(tabulate(rows, headers=heads, tablefmt="simple", disable_numparse=True))
    return "\n\n".join(parts) + "\n"


def as_json(report: Mapping[str, Any]) -> str:
    """The whole report as JSON."""
    return json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Mapping[str, Any]], str]] = {"terminal": terminal, "json": as_json}

"""What ``repro evaluate --coco DIR --ade20k DIR`` prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tabulate import tabulate

from repro.render.accuracy import as_json

_DETECTION = ("ap_box", "ap50_box", "ap75_box", "ap_mask", "ap50_mask", "ap75_mask")
_SEGMENTATION = ("miou", "pixel_accuracy", "mean_accuracy")
_HEADERS = {
    "detection": ["AP box", "AP50 box", "AP75 box", "AP mask", "AP50 mask", "AP75 mask"],
    "segmentation": ["mIoU", "Pixel acc.", "Mean acc."],
}


def terminal(report: Mapping[str, Any]) -> str:
    """A table for detectors and one for segmenters."""
    parts = []
    for task, metrics in (("detection", _DETECTION), ("segmentation", _SEGMENTATION)):
        found = [item for item in report["checkpoints"] if item["task"] == task]
        if not found:
            continue
        data = report["datasets"][task]
        lines = [
            [item["checkpoint"], *(f"{item['metrics'][name]:.2f}" for name in metrics), item["official"] or "",
             item["schedule"] or "", item["pipeline"], item["paper_row"] or "local weights"]
            for item in found
        ]  # fmt: skip
        headers = ["Checkpoint", *_HEADERS[task], "Published", "Schedule", "Images", "Paper's row"]
        parts.append(f"{data['name']}: {data['images']:,} images, {data['classes']} classes")
        parts.append(tabulate(lines, headers=headers, tablefmt="simple", disable_numparse=True))
    return "\n\n".join(parts) + "\n"


FORMATS: dict[str, Callable[[Mapping[str, Any]], str]] = {"terminal": terminal, "json": as_json}

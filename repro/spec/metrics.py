"""The metrics a table can print: their units, their better direction, and what needs what to be measured."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One kind of number (or, where ``descriptive``, of text) that a column prints."""

    key: str
    header: str
    unit: str
    better: str | None  # "lower", "higher" or None
    descriptive: bool = False
    kind: str = ""  # what measures it: count, latency, accuracy, detection, segmentation


def _metric(key: str, header: str, unit: str, better: str, kind: str) -> Metric:
    return Metric(key=key, header=header, unit=unit, better=better, kind=kind)


def _text(key: str, header: str, unit: str = "") -> Metric:
    return Metric(key=key, header=header, unit=unit, better=None, descriptive=True)


METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        _metric("params", "Params", "M", "lower", "count"),
        _metric("gmacs", "GMACs", "G", "lower", "count"),
        _metric("latency", "Latency", "ms", "lower", "latency"),
        _metric("top1", "Top-1", "%", "higher", "accuracy"),
        _metric("ap_box", "AP box", "%", "higher", "detection"),
        _metric("ap50_box", "AP50 box", "%", "higher", "detection"),
        _metric("ap75_box", "AP75 box", "%", "higher", "detection"),
        _metric("ap_mask", "AP mask", "%", "higher", "detection"),
        _metric("ap50_mask", "AP50 mask", "%", "higher", "detection"),
        _metric("ap75_mask", "AP75 mask", "%", "higher", "detection"),
        _metric("miou", "mIoU", "%", "higher", "segmentation"),
        _text("resolution", "Reso.", "px"),
        _text("epochs", "Epochs"),
        _text("year", "Year"),
        _text("setting", "Setting"),
    )
}

# How many of the base unit one printed unit is; a metric is stored in its own unit of the table above.
_SCALE: dict[str, dict[str, Decimal]] = {
    "params": {"M": Decimal(1), "K": Decimal(1000)},
    "gmacs": {"G": Decimal(1), "M": Decimal(1000)},
    "latency": {"ms": Decimal(1), "us": Decimal(1000), "s": Decimal("0.001")},
}


def units(metric: str) -> tuple[str, ...]:
    """The units in which a table may print ``metric``."""
    return tuple(_SCALE.get(metric, {METRICS[metric].unit: Decimal(1)}))


def scale(metric: str, unit: str) -> Decimal:
    """Factor from the unit in which ``metric`` is measured to the unit that a column prints."""
    return _SCALE.get(metric, {}).get(unit, Decimal(1))

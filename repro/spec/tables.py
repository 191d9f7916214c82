"""What a paper's table says: its rows, columns, printed strings and the protocol behind them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from repro.spec.metrics import METRICS, Metric

# as_trained: every branch and head that training had. reparameterised: branches merged, distilled heads averaged.
# folded: reparameterised, and every BatchNorm that directly follows or precedes a linear operator folded into it.
# folded_two_heads: folded, but the second head of a distilled model kept, as some sources count.
FORMS = ("as_trained", "reparameterised", "folded", "folded_two_heads")
# macs: convolutions, linear layers and all matrix products, attention's included.
# macs+norms: and normalisation, pooling and resampling as fvcore counts them.
# macs-attention: without the products of two activations. fvcore: its default handles, fused attention dropped.
COUNTINGS = ("macs", "macs+norms", "macs-attention", "fvcore")
# Other programs' counts, as trained and with their own conventions; optional packages, asked for by deviations.
COUNTERS = ("thop", "ptflops")

InputSize = tuple[int, int]

_APPLIES = {
    "count": ("input_size", "batch_size", "form", "counting"),
    "latency": ("input_size", "batch_size", "precision", "form", "device", "compute_units"),
    "accuracy": ("input_size", "precision", "dataset", "split", "crop", "interpolation"),
    "detection": ("detection_dataset", "detection_head", "precision"),
    "segmentation": ("segmentation_dataset", "segmentation_head", "precision"),
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything that changes a metric's value; ``None`` where the paper and the spec say nothing."""

    input_size: InputSize | None = None
    batch_size: int | None = None
    precision: str | None = None
    form: str | None = None
    counting: str | None = None
    device: str | None = None
    compute_units: str | None = None
    dataset: str | None = None
    split: str | None = None
    crop: str | None = None
    interpolation: str | None = None
    detection_dataset: str | None = None
    detection_head: str | None = None
    segmentation_dataset: str | None = None
    segmentation_head: str | None = None
    metrics: Mapping[str, Protocol] = field(default_factory=dict)

    def over(self, base: Protocol) -> Protocol:
        """This protocol's values where it has any, else those of ``base``."""
        values = {name: _or(getattr(self, name), getattr(base, name)) for name in _SCALARS}
        both = {name: own.over(base.metrics[name]) for name, own in self.metrics.items() if name in base.metrics}
        return Protocol(**values, metrics={**base.metrics, **self.metrics, **both})

    def of(self, metric: str) -> dict[str, Any]:
        """The part of the protocol that ``metric`` depends on, as plain data."""
        own = self.metrics[metric].over(self) if metric in self.metrics else self
        names = _APPLIES.get(METRICS[metric].kind, ())
        if metric == "params":
            names = ("input_size", "form")
        plain = {name: getattr(own, name) for name in names if getattr(own, name) is not None}
        if "input_size" in plain:
            plain["input_size"] = plain_size(plain["input_size"])
        return plain


_SCALARS = tuple(item.name for item in fields(Protocol) if item.name != "metrics")


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def plain_size(size: InputSize) -> int | list[int]:
    """An input size as JSON shows it: one number for a square."""
    return size[0] if size[0] == size[1] else list(size)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How to build one model. ``arguments`` go to the builder as keywords."""

    id: str
    builder: str
    model: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One metric of a table, in the unit and with the decimals that it prints."""

    metric: str
    unit: str
    header: str
    decimals: int
    better: str | None
    descriptive: bool
    inline: bool = False  # shown in brackets behind the model's name, as papers print years
    group: str | None = None  # the upper level of a two-level head

    @property
    def kind(self) -> Metric:
        """The metric behind the column."""
        return METRICS[self.metric]


@dataclass(frozen=True, kw_only=True)
class Reported:
    """What the paper printed in one cell, and where. ``text`` is ``None`` where it printed nothing or it was lost."""

    text: str | None
    line: int | None = None  # line of the source document
    extracted: str | None = None  # how the extraction garbled it
    unit: str | None = None  # where it differs from the column's
    note: str | None = None
    lost: bool = False
    from_text: bool = False  # the running text says it, the table's cell is lost


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model variant as the paper prints it."""

    model: str
    group: int
    cells: Mapping[str, Reported]
    variant: Variant | None = None
    protocol: Protocol = field(default_factory=Protocol)
    marks: tuple[str, ...] = ()
    cite: str | None = None
    label: str | None = None  # LaTeX, where the name needs more than escaping
    spec_line: int = 0

    def reported(self, metric: str) -> Reported:
        """The printed cell of ``metric``; a cell the row does not have was not reported."""
        return self.cells.get(metric, Reported(text=None))


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of an architecture table: ``Conv-BN-GELU 5x5 s2 d16``, ``SHMA hd64`` or ``FFN r2``."""

    op: str
    kernel: int | None = None
    stride: int | None = None
    width: int | None = None
    head_dim: int | None = None
    ratio: int | None = None

    def __str__(self) -> str:
        parts = [self.op]
        if self.kernel is not None:
            parts.append(f"{self.kernel}x{self.kernel}")
        parts += [f"s{self.stride}"] if self.stride is not None else []
        parts += [f"d{self.width}"] if self.width is not None else []
        parts += [f"hd{self.head_dim}"] if self.head_dim is not None else []
        parts += [f"r{self.ratio}"] if self.ratio is not None else []
        return " ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Layers in order, ``repeat`` times."""

    layers: tuple[Layer, ...]
    repeat: int = 1
    line: int | None = None

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self.layers))}] x {self.repeat}"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One row of an architecture table."""

    name: str
    output_size: str
    downsampling: str
    models: Mapping[str, tuple[Block, ...]]


@dataclass(frozen=True, kw_only=True)
class Search:
    """The configurations that a table's rows may be, where the paper prints what they cost but not what they are.

    A configuration is ``base``, of the module ``space``, with one value of each knob of ``baseline`` and, over those,
    one value of each knob that the row changes.
    """

    space: str
    base: str
    baseline: Mapping[str, tuple[Any, ...]]
    rows: Mapping[str, Mapping[str, tuple[Any, ...]]]


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """A stated reason why a cell differs, with evidence that the pipeline measures.

    ``measure`` is a metric of the row's own variant, or of ``variant`` where one is named, with ``protocol``'s values
    over the cell's own. The evidence holds when the value, in ``unit`` or the column's, rounds (or, with
    ``truncated``, truncates) to ``equals``.
    """

    row: str
    metric: str
    reason: str
    says: str
    measure: str | None = None
    protocol: Protocol = field(default_factory=Protocol)
    variant: Variant | None = None
    equals: str | None = None
    unit: str | None = None
    truncated: bool = False
    decimals: int | None = None
    cell: tuple[int, str, str] | None = None  # table, row and metric of the printed cell that ``equals`` quotes
    spec_line: int = 0


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the printed strings were read."""

    paper: str
    document: str
    section: str | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of a paper."""

    number: int
    title: str
    source: Source
    protocol: Protocol
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    groups: Mapping[int, str] = field(default_factory=dict)
    marks: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    lost: str | None = None
    architecture: tuple[Stage, ...] = ()
    deviations: tuple[Deviation, ...] = ()
    search: Search | None = None
    path: Path = Path()

    def column(self, metric: str) -> Column | None:
        """The column that prints ``metric``."""
        return next((column for column in self.columns if column.metric == metric), None)

    def protocol_of(self, row: Row, metric: str) -> dict[str, Any]:
        """The protocol of one cell: the table's, the printed resolution, then the row's own overrides."""
        base = self.protocol
        if (size := printed_size(row.reported("resolution").text)) is not None:
            base = Protocol(input_size=size).over(base)
        return row.protocol.over(base).of(metric)


def printed_size(text: str | None) -> InputSize | None:
    """Read ``224`` or ``512x512`` (height x width, pixels) as an input size."""
    match = re.fullmatch(r"([0-9]{1,6})(?:\s*[x×]\s*([0-9]{1,6}))?", text or "")
    return (int(match[1]), int(match[2] or match[1])) if match else None

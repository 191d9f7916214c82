"""Read a table spec. docs/specs.md describes the language, table.schema.json beside this file tells it to editors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

from repro.spec.metrics import METRICS, units
from repro.spec.reader import Node, Reader, suggestion
from repro.spec.tables import (
    COUNTERS,
    COUNTINGS,
    FORMS,
    Block,
    Column,
    Deviation,
    InputSize,
    Layer,
    Protocol,
    Reported,
    Row,
    Search,
    Source,
    Stage,
    Table,
    Variant,
    printed_size,
)

SCHEMA = 1
BUILDERS = ("timm", "torchvision", "python")
REASONS = (
    "protocol_mismatch",
    "different_weights",
    "source_differs",
    "paper_inconsistent",
    "unit_slip",
)
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
_COMPARED = [name for name, metric in METRICS.items() if not metric.descriptive]
T = TypeVar("T")


def load_table(path: Path) -> Table:
    """Read and check one table spec.

    Raises
    ------
    InputError
        With every mistake of the file, each as ``file:line: path: message``.
    """
    reader, root = Reader.open(path)
    table = _table(root, path)
    reader.finish()
    return table


def _optional(entries: Mapping[str, Node], key: str, read: Callable[[Node], T], default: T) -> T:
    return read(entries[key]) if key in entries else default


def _texts(entries: Mapping[str, Node], key: str) -> str | None:
    return entries[key].text() if key in entries else None


def _table(root: Node, path: Path) -> Table:
    entries = root.keys(
        ("schema", "table", "title", "source", "columns", "rows"),
        ("protocol", "groups", "marks", "notes", "lost", "variants", "architecture", "deviations", "search"),
    )
    if "schema" in entries and (version := entries["schema"].integer(1)) != SCHEMA:
        entries["schema"].problem(f"schema {version} is not known; this release reads schema {SCHEMA}")
    mistakes = len(root.reader.problems)
    columns = _columns(entries["columns"]) if "columns" in entries else ()
    # With a broken column every row's cell of it would be one more mistake: those are told once the columns are right.
    checked = columns if columns and len(root.reader.problems) == mistakes else None
    variants = read_variants(entries["variants"]) if "variants" in entries else {}
    marks = _named_texts(entries["marks"]) if "marks" in entries else {}
    rows = _rows(entries["rows"], checked, variants, marks) if "rows" in entries else ()
    return Table(
        number=_optional(entries, "table", lambda node: node.integer(1), 1),
        title=_optional(entries, "title", Node.text, ""),
        source=_optional(entries, "source", read_source, Source(paper="", document="")),
        protocol=_optional(entries, "protocol", read_protocol, Protocol()),
        columns=columns,
        rows=rows,
        groups=_optional(entries, "groups", _groups, {}),
        marks=marks,
        notes=_optional(entries, "notes", _list_of_texts, ()),
        lost=_texts(entries, "lost"),
        architecture=_optional(entries, "architecture", lambda node: _architecture(node, rows), ()),
        deviations=_optional(entries, "deviations", lambda node: _deviations(node, rows, checked, variants), ()),
        search=_optional(entries, "search", lambda node: _search(node, rows), None),
        path=path,
    )


def read_source(node: Node) -> Source:
    """Where printed strings were read."""
    entries = node.keys(("paper", "document"), ("section",))
    return Source(
        paper=_optional(entries, "paper", Node.text, ""),
        document=_optional(entries, "document", Node.text, ""),
        section=_texts(entries, "section"),
    )


def _named_texts(node: Node) -> dict[str, str]:
    return {name: value.text() for name, value in node.entries().items()}


def _list_of_texts(node: Node) -> tuple[str, ...]:
    return tuple(item.text() for item in node.items())


def _groups(node: Node) -> dict[int, str]:
    groups = {}
    for name, value in node.entries().items():
        if not re.fullmatch(r"[1-9][0-9]{0,8}", name):
            value.problem(f"a group is a whole number of at least 1, not {name!r}")
            continue
        groups[int(name)] = value.text()
    return groups


def _columns(node: Node) -> tuple[Column, ...]:
    columns: dict[str, Column] = {}
    for item in node.items():
        entries = item.keys(("metric",), ("unit", "header", "decimals", "better", "inline", "group"))
        if "metric" not in entries or (name := entries["metric"].choice(METRICS)) not in METRICS:
            continue
        if name in columns:
            item.problem(f"a second column for {name!r}")
            continue
        metric = METRICS[name]
        columns[name] = Column(
            metric=name,
            unit=_optional(entries, "unit", lambda value, name=name: value.choice(units(name)), metric.unit),  # type: ignore[misc]
            header=_optional(entries, "header", Node.text, metric.header),
            decimals=_optional(entries, "decimals", Node.integer, 0 if metric.descriptive else 1),
            better=_optional(entries, "better", lambda value: value.choice(("lower", "higher")), metric.better),
            descriptive=metric.descriptive,
            inline=_optional(entries, "inline", Node.truth, False),
            group=_texts(entries, "group"),
        )
    if not columns:
        node.problem("a table needs at least one column")
    return tuple(columns.values())


def read_variants(node: Node) -> dict[str, Variant]:
    """Variants by id."""
    return {name: _variant(value, name) for name, value in node.entries().items()}


def _variant(node: Node, name: str) -> Variant:
    entries = node.keys(("builder",), ("model", "arguments"))
    arguments = entries["arguments"].plain() if "arguments" in entries else {}
    if not isinstance(arguments, dict):
        entries["arguments"].problem("must be a mapping")
        arguments = {}
    builder = _optional(entries, "builder", lambda value: value.choice(BUILDERS), "")
    model = _optional(entries, "model", Node.text, name)
    if builder == "python" and not re.fullmatch(r"[\w.]+:[\w.]+", model):
        (entries.get("model") or node).problem(f"the python builder takes 'module:function', not {model!r}")
    if not re.fullmatch(r"[\w.+-]+", name):
        node.problem(f"a variant's id is made of letters, digits and '._+-', not {name!r}")
    return Variant(id=name, builder=builder, model=model, arguments=arguments)


def _size(node: Node) -> InputSize:
    size = printed_size(node.text())
    if size is None or min(size) < 1:
        node.problem(f"an input size is '224' or '480x640' (height x width), not {node.text()!r}")
        return (1, 1)
    return size


_PROTOCOL: dict[str, Callable[[Node], object]] = {
    "input_size": _size,
    "batch_size": lambda node: node.integer(1),
    "precision": lambda node: node.choice(("float32", "float16", "bfloat16", "int8")),
    "form": lambda node: node.choice(FORMS),
    "counting": lambda node: node.choice(COUNTINGS),
    "compute_units": lambda node: node.choice(("all", "cpu_and_neural_engine", "cpu_and_gpu", "cpu_only")),
    **dict.fromkeys(
        (
            "device",
            "dataset",
            "split",
            "crop",
            "interpolation",
            "detection_dataset",
            "detection_head",
            "segmentation_dataset",
            "segmentation_head",
        ),
        Node.text,
    ),
}


def read_protocol(node: Node, nested: bool = True) -> Protocol:
    """A protocol, with sections for single metrics where ``nested``."""
    compared = _COMPARED if nested else []
    entries = node.keys((), [*_PROTOCOL, *compared])
    values = {key: read(entries[key]) for key, read in _PROTOCOL.items() if key in entries}
    metrics = {name: read_protocol(entries[name], nested=False) for name in compared if name in entries}
    return Protocol(**values, metrics=metrics)  # type: ignore[arg-type]


def _rows(
    node: Node, columns: tuple[Column, ...] | None, variants: Mapping[str, Variant], marks: Mapping[str, str]
) -> tuple[Row, ...]:
    rows: dict[str, Row] = {}
    for item in node.items():
        entries = item.keys(("model", "cells"), ("group", "variant", "protocol", "marks", "cite", "label", "line"))
        model = _optional(entries, "model", Node.text, "")
        if "model" in entries and model in rows:
            item.problem(f"a second row {model!r}; rows are told apart by their model")
            continue
        line = _optional(entries, "line", lambda value: value.integer(1), None)
        rows[model] = Row(
            model=model,
            group=_optional(entries, "group", lambda value: value.integer(1), 1),
            cells=_optional(entries, "cells", lambda value, line=line: _cells(value, columns, line), {}),  # type: ignore[misc]
            variant=_optional(entries, "variant", lambda value: _named_variant(value, variants), None),
            protocol=_optional(entries, "protocol", read_protocol, Protocol()),
            marks=_optional(entries, "marks", lambda value: _marks(value, marks), ()),
            cite=_texts(entries, "cite"),
            label=_texts(entries, "label"),
            spec_line=item.line,
        )
    if not rows:
        node.problem("a table needs at least one row")
    return tuple(rows.values())


def _marks(node: Node, known: Mapping[str, str]) -> tuple[str, ...]:
    found = []
    for item in node.items():
        found.append(item.text())
        if found[-1] not in known:
            item.problem(f"unknown mark {found[-1]!r}; the table's marks are {', '.join(known) or 'none'}")
    return tuple(found)


def _named_variant(node: Node, variants: Mapping[str, Variant]) -> Variant | None:
    name = node.text()
    if name not in variants:
        node.problem(f"unknown variant {name!r}{suggestion(name, variants)}")
    return variants.get(name)


def _cells(node: Node, columns: tuple[Column, ...] | None, line: int | None) -> dict[str, Reported]:
    if columns is None:
        return {}
    by_metric = {column.metric: column for column in columns}
    cells = {}
    for name, value in node.keys((), list(by_metric)).items():
        cells[name] = _cell(value, by_metric[name], line)
    return cells


def _cell(node: Node, column: Column, line: int | None) -> Reported:
    place = node
    if not node.is_mapping:
        cell = Reported(text=node.text(), line=line)
    else:
        entries = node.keys((), ("reported", "line", "extracted", "unit", "note", "lost", "from_text"))
        place = entries.get("reported", node)
        cell = Reported(
            text=_texts(entries, "reported"),
            line=_optional(entries, "line", lambda value: value.integer(1), line),
            extracted=_texts(entries, "extracted"),
            unit=_optional(entries, "unit", lambda value: value.choice(units(column.metric)), None),
            note=_texts(entries, "note"),
            lost=_optional(entries, "lost", Node.truth, False),
            from_text=_optional(entries, "from_text", Node.truth, False),
        )
        if cell.lost and cell.text is not None:
            node.problem("a cell that was lost in extraction cannot have a reported value")
    if cell.text is not None and cell.line is None:
        node.problem("a printed value needs the source's line: give the row or the cell a 'line'")
    if cell.text is not None and not column.descriptive and not is_number(cell.text) and cell.text not in ("Failed",):
        place.problem(f"must be the printed number or 'Failed', not {cell.text!r}")
    return cell


def is_number(text: str | None) -> bool:
    """Whether a printed string is a number that a measurement can be compared with."""
    return text is not None and _NUMBER.fullmatch(text) is not None and Decimal(text).is_finite()


def _architecture(node: Node, rows: tuple[Row, ...]) -> tuple[Stage, ...]:
    stages = []
    models = [row.model for row in rows]
    for item in node.items():
        entries = item.keys(("stage", "output_size", "downsampling", "models"))
        by_model = entries["models"].keys(models) if "models" in entries else {}
        stages.append(
            Stage(
                name=_optional(entries, "stage", Node.text, ""),
                output_size=_optional(entries, "output_size", Node.text, ""),
                downsampling=_optional(entries, "downsampling", Node.text, ""),
                models={name: tuple(_block(block) for block in value.items()) for name, value in by_model.items()},
            )
        )
    return tuple(stages)


def _search(node: Node, rows: tuple[Row, ...]) -> Search | None:
    entries = node.keys(("space", "base", "baseline", "rows"))
    models = [row.model for row in rows]
    by_row = {}
    for model, value in (entries["rows"].entries() if "rows" in entries else {}).items():
        if model not in models:
            value.problem(f"no row {model!r} in this table{suggestion(model, models)}")
        by_row[model] = _knobs(value)
    return Search(
        space=_optional(entries, "space", Node.text, ""),
        base=_optional(entries, "base", Node.text, ""),
        baseline=_optional(entries, "baseline", _knobs, {}),
        rows=by_row,
    )


def _knobs(node: Node) -> dict[str, tuple[object, ...]]:
    """Knobs of a configuration, each with the values to try."""
    knobs = {}
    for name, value in node.entries().items():
        values = tuple(item.plain() for item in value.items())
        if not values:
            value.problem("needs a list of at least one value to try")
        knobs[name] = values
    return knobs


def _block(node: Node) -> Block:
    entries = node.keys(("layers",), ("repeat", "line"))
    return Block(
        layers=tuple(_layer(layer) for layer in entries["layers"].items()) if "layers" in entries else (),
        repeat=_optional(entries, "repeat", lambda value: value.integer(1), 1),
        line=_optional(entries, "line", lambda value: value.integer(1), None),
    )


def _layer(node: Node) -> Layer:
    numbers = ("kernel", "stride", "width", "head_dim", "ratio")
    entries = node.keys(("op",), numbers)
    given = {name: entries[name].integer(1) for name in numbers if name in entries}
    return Layer(op=_optional(entries, "op", Node.text, ""), **given)


def _deviations(
    node: Node, rows: tuple[Row, ...], columns: tuple[Column, ...] | None, variants: Mapping[str, Variant]
) -> tuple[Deviation, ...]:
    by_model = {row.model: row for row in rows}
    compared = _COMPARED if columns is None else [column.metric for column in columns if not column.descriptive]
    found: dict[tuple[str, str], Deviation] = {}
    for item in node.items():
        entries = item.keys(("row", "metric", "reason", "says", "evidence"))
        row = _optional(entries, "row", Node.text, "")
        metric = _optional(entries, "metric", lambda value: value.choice(compared), "")
        if "row" in entries and row not in by_model:
            entries["row"].problem(f"no row {row!r} in this table{suggestion(row, by_model)}")
        if row in by_model and (row, metric) in found:
            item.problem(f"a second deviation for {row} {metric}")
            continue
        found[row, metric] = _evidence(
            entries.get("evidence"),
            variants,
            Deviation(
                row=row,
                metric=metric,
                reason=_optional(entries, "reason", lambda value: value.choice(REASONS), ""),
                says=_optional(entries, "says", Node.text, ""),
                spec_line=item.line,
            ),
        )
    return tuple(found.values())


def _printed_cell(node: Node) -> tuple[int, str, str]:
    entries = node.keys(("table", "row", "metric"))
    return (
        _optional(entries, "table", lambda value: value.integer(1), 1),
        _optional(entries, "row", Node.text, ""),
        _optional(entries, "metric", lambda value: value.choice(_COMPARED), ""),
    )


def _evidence(node: Node | None, variants: Mapping[str, Variant], claim: Deviation) -> Deviation:
    if node is None:
        return claim
    entries = node.keys(("measure", "equals"), (*_PROTOCOL, "variant", "unit", "truncated", "decimals", "cell"))
    readers: dict[str, Callable[[Node], object]] = dict(_PROTOCOL)
    readers["counting"] = lambda value: value.choice((*COUNTINGS, *COUNTERS))
    values = {key: read(entries[key]) for key, read in readers.items() if key in entries}
    measure = _optional(entries, "measure", lambda value: value.choice(_COMPARED), "")
    return Deviation(
        row=claim.row,
        metric=claim.metric,
        reason=claim.reason,
        says=claim.says,
        measure=measure,
        protocol=Protocol(**values),  # type: ignore[arg-type]
        variant=_optional(entries, "variant", lambda value: _named_variant(value, variants), None),
        equals=_optional(entries, "equals", Node.number, "0"),
        unit=_optional(entries, "unit", lambda value: value.choice(units(measure)) if measure in METRICS else "", None),
        truncated=_optional(entries, "truncated", Node.truth, False),
        decimals=_optional(entries, "decimals", Node.integer, None),
        cell=_optional(entries, "cell", _printed_cell, None),
        spec_line=claim.spec_line,
    )

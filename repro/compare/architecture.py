"""An architecture table beside the architecture that was walked: stage by stage, model by model, block by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from repro.compare.records import Records
from repro.measure.needs import Need, architecture_need
from repro.results.record import Record
from repro.spec.tables import Block, Layer, Row, Stage, Table


@dataclass(frozen=True, kw_only=True)
class StructureCell:
    """One printed part of a stage of one model: its output size, or one block.

    ``reported`` and ``measured`` are ``None`` where one side has a block more than the other.
    """

    row: Row
    stage: str
    part: str  # "output size" or "block 2"
    reported: Block | str | None
    measured: Block | str | None
    status: str
    reason: str | None = None
    message: str = ""
    record: Record | None = None

    @property
    def name(self) -> str:
        """Where it stands: ``Stage 3, block 2``."""
        return f"{self.stage}, {self.part}"


def text(part: Block | str | None) -> str | None:
    """A part in one line, as the paper prints it but for the brackets' height."""
    return None if part is None else str(part)


def same(reported: Block | str | None, measured: Block | str | None) -> bool:
    """Whether two parts are equal: layers in order and repeats; where a block was printed does not matter."""
    if isinstance(reported, Block) and isinstance(measured, Block):
        return (reported.layers, reported.repeat) == (measured.layers, measured.repeat)
    return reported == measured


def architecture_needs(table: Table, rows: Sequence[Row]) -> list[Need]:
    """The walks behind an architecture table's rows."""
    found = [architecture_need(table, row) for row in rows if _printed(table, row)]
    return [need for need in found if isinstance(need, Need)]


def compare_architecture(table: Table, rows: Sequence[Row], records: Records) -> tuple[StructureCell, ...]:
    """Every part of every stage that the paper prints for the given rows, in printed order."""
    cells: list[StructureCell] = []
    for row in rows:
        if not _printed(table, row):
            continue
        need = architecture_need(table, row)
        found = records.find(need) if isinstance(need, Need) else None
        if not isinstance(need, Need):
            cells += _unmeasured(table, row, "not_measured", need.reason, need.hint)
        elif found is None:
            cells += _unmeasured(table, row, "not_measured", "not_run", "no record yet; run without --no-measure")
        elif found.stale:
            cells += _unmeasured(table, row, "not_measured", "stale", "walked with other versions")
        elif found.record.error is not None:
            error = found.record.error
            cells += _unmeasured(table, row, "failed", error["reason"], error["message"])
        else:
            cells += _row(table, row, found.record)
    order = {stage.name: index for index, stage in enumerate(table.architecture)}
    return tuple(sorted(cells, key=lambda cell: order.get(cell.stage, len(order))))


def summary(cells: Sequence[StructureCell]) -> dict[str, int]:
    """How many parts have each status that occurs."""
    return dict(Counter(cell.status for cell in cells))


def _printed(table: Table, row: Row) -> bool:
    return any(row.model in stage.models for stage in table.architecture)


def _size(output_size: str, downsampling: str) -> str:
    return f"{output_size} ({downsampling})".replace("x", "×")


def _parts(stage: Stage, row: Row) -> list[Block | str]:
    return [_size(stage.output_size, stage.downsampling), *stage.models.get(row.model, ())]


def _unmeasured(table: Table, row: Row, status: str, reason: str, message: str) -> list[StructureCell]:
    return [
        StructureCell(
            row=row,
            stage=stage.name,
            part=_part(index),
            reported=part,
            measured=None,
            status=status,
            reason=reason,
            message=message,
        )
        for stage in table.architecture
        if row.model in stage.models
        for index, part in enumerate(_parts(stage, row))
    ]


def _part(index: int) -> str:
    return "output size" if index == 0 else f"block {index}"


def _row(table: Table, row: Row, record: Record) -> list[StructureCell]:
    walked = {stage["stage"]: _walked(stage) for stage in record.details["stages"]}
    printed = {stage.name: _parts(stage, row) for stage in table.architecture if row.model in stage.models}
    cells = []
    for name in dict.fromkeys((*printed, *walked)):
        for index, (ours, theirs) in enumerate(zip_longest(printed.get(name, []), walked.get(name, []))):
            equal = same(ours, theirs)
            message = ""
            if not equal:
                message = f"{name}, {_part(index)}: the model has {text(theirs) or 'no such block'}"
                if ours is None:
                    message += ", the table has no such block"
            cells.append(
                StructureCell(
                    row=row,
                    stage=name,
                    part=_part(index),
                    reported=ours,
                    measured=theirs,
                    status="match" if equal else "outside",
                    message=message,
                    record=record,
                )
            )
    return cells


def _walked(stage: Mapping[str, Any]) -> list[Block | str]:
    blocks = [
        Block(layers=tuple(Layer(**layer) for layer in block["layers"]), repeat=block["repeat"])
        for block in stage["blocks"]
    ]
    return [_size(stage["output_size"], stage["downsampling"]), *blocks]

"""An architecture table as every format shows it: stages down, models across, blocks as the paper prints them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from repro.compare.architecture import StructureCell, summary, text
from repro.compare.cells import COMPARED, TableResult
from repro.render.view import SIGNS
from repro.spec.tables import Block


@dataclass(frozen=True, kw_only=True)
class ShownBlock:
    """One block as text: its layers and how often they come; where the model differs, what it has instead."""

    cell: StructureCell
    lines: tuple[str, ...]
    times: str
    measured_lines: tuple[str, ...]
    measured_times: str
    sign: str

    @property
    def differs(self) -> bool:
        """Whether both sides are to be shown."""
        return self.cell.status == "outside"


@dataclass(frozen=True, kw_only=True)
class ShownStage:
    """One stage: its name, its output size, and its blocks, one line of models after the other."""

    name: str
    size: str
    sizes: tuple[StructureCell, ...]  # those that differ from what is printed
    lines: tuple[tuple[ShownBlock | None, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The whole table."""

    models: tuple[str, ...]
    stages: tuple[ShownStage, ...]
    verdict: str


def _lines(part: Block | str | None) -> tuple[tuple[str, ...], str]:
    if part is None:
        return (), ""
    if isinstance(part, str):
        return (part,), ""
    return tuple(re.sub(r"\b(\d+)x\1\b", r"\1×\1", str(layer)) for layer in part.layers), f"× {part.repeat}"


def _shown(cell: StructureCell) -> ShownBlock:
    lines, times = _lines(cell.reported)
    measured, measured_times = _lines(cell.measured)
    return ShownBlock(
        cell=cell,
        lines=lines,
        times=times,
        measured_lines=measured,
        measured_times=measured_times,
        sign=SIGNS[cell.status],
    )


def architecture_of(result: TableResult) -> Architecture | None:
    """Lay the architecture out; ``None`` for a table without one."""
    if not result.architecture:
        return None
    models = tuple(dict.fromkeys(cell.row.model for cell in result.architecture))
    stages = []
    for name in dict.fromkeys(cell.stage for cell in result.architecture):
        own = [cell for cell in result.architecture if cell.stage == name]
        sizes = [cell for cell in own if cell.part == "output size"]
        blocks = {model: [cell for cell in own if cell.row.model == model and cell not in sizes] for model in models}
        longest = max(len(cells) for cells in blocks.values())
        stages.append(
            ShownStage(
                name=name,
                size=next((str(cell.reported) for cell in sizes if cell.reported is not None), "–"),
                sizes=tuple(cell for cell in sizes if cell.status == "outside"),
                lines=tuple(
                    tuple(_shown(blocks[model][index]) if index < len(blocks[model]) else None for model in models)
                    for index in range(longest)
                ),
            )
        )
    counted = ", ".join(f"{count} {status}" for status, count in summary(result.architecture).items())
    compared = sum(cell.status in COMPARED for cell in result.architecture)
    return Architecture(models=models, stages=tuple(stages), verdict=f"{counted}; {compared} parts compared")


def _in_cell(block: ShownBlock | None) -> str:
    """A block in a terminal's cell: repeats and standing in its last line, the model's own below."""
    if block is None:
        return ""
    lines = [*block.lines[:-1], " ".join((*block.lines[-1:], block.times, block.sign)).strip()]
    if block.differs:
        lines += ["measured:", *block.measured_lines[:-1]]
        lines.append(" ".join((*block.measured_lines[-1:], block.measured_times)).strip() or "no such block")
    return "\n".join(lines)


def terminal(architecture: Architecture, width: int) -> str:
    """Grids of as many models as ``width`` holds."""
    models = list(architecture.models)
    grids = []
    while models:
        count = len(models)
        while count > 1 and _width(_grid(architecture, models[:count])) > width:
            count -= 1
        grids.append(_grid(architecture, models[:count]))
        models = models[count:]
    notes = [f"Output size: {line}" for line in size_notes(architecture)]
    return "\n\n".join([*grids, *notes, f"Architecture: {architecture.verdict}"])


def size_notes(architecture: Architecture) -> list[str]:
    """Where a model's maps are of another size than printed."""
    return [f"{cell.row.model}: {cell.message}" for stage in architecture.stages for cell in stage.sizes]


def _width(grid: str) -> int:
    return max(map(len, grid.splitlines()))


def _grid(architecture: Architecture, models: Sequence[str]) -> str:
    positions = [architecture.models.index(model) for model in models]
    lines: list[list[str]] = []
    for stage in architecture.stages:
        for index, blocks in enumerate(stage.lines):
            head = [stage.name, stage.size] if index == 0 else ["", ""]
            lines.append([*head, *(_in_cell(blocks[position]) for position in positions)])
    heads = ["Stage", "Output size", *models]
    return str(tabulate(lines, headers=heads, tablefmt="simple", disable_numparse=True))


def as_data(result: TableResult) -> list[dict[str, Any]]:
    """The ``architecture`` of the table's JSON: one object a compared part."""
    return [
        {
            "stage": cell.stage,
            "model": cell.row.model,
            "part": cell.part,
            "reported": text(cell.reported),
            "measured": text(cell.measured),
            "status": cell.status,
            "reason": cell.reason,
            "record": None if cell.record is None else cell.record.id,
        }
        for cell in result.architecture
    ]

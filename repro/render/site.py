"""The report: a static site of compared tables that needs no server and no network.

Every page is made from the same texts as the other formats, through templates that escape by default.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from repro.compare.cells import COMPARED, STATUSES, TableResult
from repro.compare.claims import ClaimsResult
from repro.compare.verify import Verdict
from repro.render import claims as claims_render
from repro.render import verdict as verdict_render
from repro.render.architecture import architecture_of
from repro.render.engine import render
from repro.render.formats import FORMATS
from repro.render.story import Story, story_of
from repro.render.view import MEANINGS, REASONS, SIGNS, ShownCell, ShownRow, View, verdict, view_of
from repro.results.record import digest
from repro.spec.tables import Row

DOWNLOADS = ("latex", "latex-measured", "markdown", "csv", "json")


@dataclass(frozen=True, kw_only=True)
class SitePlot:
    """A plot that is to be shown on the site: an inline drawing, and what its points say."""

    anchor: str
    title: str
    text: str
    svg: str
    table: int | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that the site tells."""

    results: tuple[TableResult, ...]
    verdict: Verdict
    claims: ClaimsResult | None = None
    abilities: str = ""  # what this machine can measure, as text
    warnings: tuple[str, ...] = ()
    plots: tuple[SitePlot, ...] = ()
    no_plots: str = ""  # why there are none


@dataclass(frozen=True, kw_only=True)
class PageCell:
    """One cell of a table's page; ``story`` is ``None`` for cells that are shown and never compared."""

    shown: ShownCell
    story: Story | None


@dataclass(frozen=True, kw_only=True)
class PageRow:
    """One row of a table's page and the page of its model."""

    shown: ShownRow
    page: str
    cells: tuple[PageCell, ...]

    @property
    def statuses(self) -> str:
        """The statuses that occur in the row, for filtering."""
        return " ".join(dict.fromkeys(cell.shown.cell.status for cell in self.cells if cell.shown.cell.status))


@dataclass(frozen=True, kw_only=True)
class TablePage:
    """A table with links to its models' pages."""

    result: TableResult
    view: View
    groups: tuple[tuple[str, tuple[PageRow, ...]], ...]
    architecture: Any

    @property
    def name(self) -> str:
        """The page's file."""
        return table_page(self.result.table.number)

    @property
    def standing(self) -> dict[str, int]:
        """How many cells have each status, an architecture's parts included."""
        counted = Counter(self.result.summary())
        counted.update(cell.status for cell in self.result.architecture)
        return {status: counted[status] for status in STATUSES}


@dataclass(frozen=True, kw_only=True)
class ModelPage:
    """One model in all tables."""

    name: str  # the page's file
    names: tuple[str, ...]  # as the tables print it
    variant: str | None
    rows: tuple[tuple[TablePage, PageRow], ...]

    @property
    def standing(self) -> dict[str, int]:
        """How many of its cells have each status."""
        counted = Counter(cell.shown.cell.status for _, row in self.rows for cell in row.cells)
        return {status: counted[status] for status in STATUSES}


@dataclass(frozen=True, kw_only=True)
class Missing:
    """One reason why cells were not measured, and which."""

    reason: str
    meaning: str
    cells: tuple[tuple[str, str, str], ...] = field(default=())  # page, table and metric, how many rows


def table_page(number: int) -> str:
    """The file of a table's page."""
    return f"table_{number:02d}.html"


def subject(row: Row) -> str:
    """What makes rows of several tables one model: the variant that is built, else the printed name."""
    return f"variant {row.variant.id}" if row.variant is not None else f"model {row.model}"


def page_names(rows: Sequence[Row]) -> dict[str, str]:
    """A file name for each model, of its variant or printed name, and a digest where that is not unique."""
    plain = {subject(row): _plain(row.model if row.variant is None else row.variant.id) for row in rows}
    taken = Counter(plain.values())
    return {
        key: f"model_{name}.html" if name and taken[name] == 1 else f"model_{name}_{digest(key, 8)}.html"
        for key, name in plain.items()
    }


def _plain(text: str) -> str:
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_]+", "-", ascii_only).strip("-")[:60]


def _table(result: TableResult, pages: Mapping[str, str]) -> TablePage:
    view = view_of(result)
    groups = []
    number = count()
    for name, rows in view.groups:
        shown_rows = []
        for shown in rows:
            index = next(number)
            cells = []
            for cell in shown.cells:
                anchor = f"t{result.table.number}-r{index}-{cell.cell.metric}"
                compared = cell.cell.status is not None
                story = story_of(result.table, shown.row, cell.cell, anchor) if compared else None
                cells.append(PageCell(shown=cell, story=story))
            shown_rows.append(PageRow(shown=shown, page=pages[subject(shown.row)], cells=tuple(cells)))
        groups.append((name, tuple(shown_rows)))
    return TablePage(result=result, view=view, groups=tuple(groups), architecture=architecture_of(result))


def _models(tables: Sequence[TablePage], pages: Mapping[str, str]) -> list[ModelPage]:
    found: dict[str, list[tuple[TablePage, PageRow]]] = {}
    for table in tables:
        for _, rows in table.groups:
            for row in rows:
                found.setdefault(subject(row.shown.row), []).append((table, row))
    models = []
    for key, places in found.items():
        variant = places[0][1].shown.row.variant
        # An ablation calls a model by what was changed; the largest table calls it by its name.
        by_size = sorted(places, key=lambda place: -len(place[0].result.rows))
        models.append(
            ModelPage(
                name=pages[key],
                names=tuple(dict.fromkeys(row.shown.name for _, row in by_size)),
                variant=None if variant is None else variant.id,
                rows=tuple(places),
            )
        )
    return sorted(models, key=lambda model: (model.names[0].casefold(), model.name))


def _missing(tables: Sequence[TablePage]) -> list[Missing]:
    found: dict[str, Counter[tuple[str, str]]] = {}
    for table in tables:
        for _, cell in table.result.cells:
            if cell.status in ("not_measured", "failed"):
                place = (table.name, f"Table {table.result.table.number}, {cell.column.header}")
                found.setdefault(cell.reason or cell.status or "", Counter())[place] += 1
    ordered = sorted(found.items(), key=lambda item: -item[1].total())
    return [
        Missing(
            reason=reason,
            meaning=REASONS.get(reason, ""),
            cells=tuple((page, text, str(number)) for (page, text), number in places.items()),
        )
        for reason, places in ordered
    ]


def _made(results: Sequence[TableResult]) -> dict[str, Any]:
    """What the shown records were made with, and between when: read from the records alone."""
    records = {cell.record.id: cell.record for result in results for _, cell in result.cells if cell.record is not None}
    versions: dict[str, set[str]] = {}
    for record in records.values():
        for name, value in record.versions.items():
            versions.setdefault(name, set()).add(str(value))
    times = sorted(str(record.provenance.get("time", "")) for record in records.values())
    machines = sorted(
        {", ".join(str(record.provenance.get(name, "?")) for name in ("cpu", "os")) for record in records.values()}
    )
    return {
        "count": len(records),
        "versions": {name: ", ".join(sorted(values)) for name, values in sorted(versions.items())},
        "first": times[0][:10] if times else "",
        "last": times[-1][:10] if times else "",
        "machines": machines,
    }


def pages(report: Report, folders: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Every file of the site: its name and its text."""
    names = page_names([row.row for result in report.results for row in result.rows])
    tables = [_table(result, names) for result in report.results]
    models = _models(tables, names)
    papers = list(dict.fromkeys(result.table.source.paper for result in report.results))
    shared: dict[str, Any] = {
        "report": report,
        "tables": tables,
        "papers": papers,
        "signs": SIGNS,
        "meanings": MEANINGS,
        "compared": COMPARED,
        "statuses": STATUSES,
        "by_number": {table.result.table.number: table for table in tables},
    }

    def page(template: str, **own: Any) -> str:
        return render(f"site/{template}.html", folders, **shared, **own)

    yield (
        "index.html",
        page(
            "index",
            models=models,
            made=_made(report.results),
            summary=report.verdict.summary(),
            standing=verdict_render.standing(report.verdict),
            claims_standing=None if report.claims is None else claims_render.standing(report.claims),
        ),
    )
    for table in tables:
        number = table.result.table.number
        plots = [plot for plot in report.plots if plot.table == number]
        files = [(name, f"table_{number:02d}{FORMATS[name].suffix}") for name in DOWNLOADS]
        # An estimate is no measurement: it has a column of the page, and stands in no file that a paper takes in.
        plain = replace(table.result, beside=tuple(item for item in table.result.beside if item.kind != "estimate"))
        yield table.name, page("table", page=table, files=files, verdict=verdict(table.standing), plots=plots)
        for name, file in files:
            yield f"downloads/{file}", FORMATS[name].make(plain, folders)
    for model in models:
        yield model.name, page("model", model=model)
    yield "missing.html", page("missing", missing=_missing(tables))
    yield "plots.html", page("plots")
    if report.claims is not None:
        yield (
            "claims.html",
            page(
                "claims",
                standing=claims_render.standing(report.claims),
                claim_signs=claims_render.SIGNS,
                why=claims_render.why,
                finding=claims_render.finding_text,
            ),
        )
        for name, (suffix, make) in claims_render.FORMATS.items():
            if name != "terminal":
                yield f"downloads/claims{suffix}", make(report.claims)
    for name in ("markdown", "json", "junit"):
        suffix, make_verdict = verdict_render.FORMATS[name]
        yield f"downloads/verify{suffix}", make_verdict(report.verdict)
    for asset in ("site.css", "site.js"):
        yield asset, asset_text(asset, folders)


def asset_text(name: str, folders: Sequence[Path]) -> str:
    """A file that is copied as it is, the project's own before the shipped one."""
    return next(path for folder in folders if (path := folder / "site" / name).is_file()).read_text(encoding="utf-8")

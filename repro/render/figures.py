"""What the plots show, as data: points, fronts and bands, without a plotting library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from repro.compare.cells import Cell, TableResult
from repro.compare.tolerance import Bound
from repro.spec.metrics import METRICS, scale
from repro.spec.parse import is_number
from repro.spec.tables import Row

_ENOUGH = 5  # points that make a plot
_WIDE = 5  # times between the least and the largest cost that ask for a logarithmic axis
COSTS = ("latency", "params", "gmacs")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point: where it lies, whose it is and what it says."""

    x: float
    y: float
    model: str
    table: int
    row: Row
    text: str


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one kind; ``front`` are those that no other one beats, by rising cost."""

    name: str
    points: tuple[Point, ...]
    front: tuple[Point, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One plot. ``diagonal`` asks for the line of equal values, with the tolerance's band about it."""

    name: str
    title: str
    text: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    table: int | None = None
    diagonal: bool = False
    band: Bound | None = None
    zero: bool = False  # a line at y = 0
    logarithmic_x: bool = False
    logarithmic_y: bool = False
    categories: tuple[str, ...] = ()  # names of x = 0, 1, ...


def pareto(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points that cost less than every one that is as good, by rising cost."""
    front: list[Point] = []
    for point in sorted(points, key=lambda item: (item.x, -item.y, item.model)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return tuple(front)


def figures(results: Sequence[TableResult]) -> list[Figure]:
    """Every plot that these tables have enough points for."""
    found = []
    for result in results:
        for cost in COSTS:
            found += _accuracy(result, cost)
        found += _estimate(result)
    found += _reported_measured(results)
    found += _deviation(results)
    return found


def _cells(result: TableResult) -> Iterable[tuple[Row, dict[str, Cell]]]:
    for row in result.rows:
        yield row.row, {cell.metric: cell for cell in row.cells}


def _in_unit(cell: Cell, value: Decimal) -> float:
    """A value in the column's unit: a cell may print another."""
    unit = cell.reported.unit or cell.column.unit
    return float(value / scale(cell.metric, unit) * scale(cell.metric, cell.column.unit))


def _reported(cell: Cell | None) -> float | None:
    if cell is None or cell.reported.text is None or not is_number(cell.reported.text):
        return None
    return _in_unit(cell, Decimal(cell.reported.text))


def _measured(cell: Cell | None) -> float | None:
    # An accuracy of other weights than the paper's is shown in the table, and is no point of its figure.
    return (
        None
        if cell is None or cell.measured is None or cell.reason == "different_recipe"
        else _in_unit(cell, cell.measured)
    )


def _accuracy(result: TableResult, cost: str) -> list[Figure]:
    columns = {column.metric: column for column in result.table.columns}
    if cost not in columns or "top1" not in columns:
        return []
    x_column, y_column = columns[cost], columns["top1"]
    series = []
    for name, value in (("reported", _reported), ("measured", _measured)):
        points = []
        for row, cells in _cells(result):
            x, y = value(cells.get(cost)), value(cells.get("top1"))
            if x is None or y is None:
                continue
            text = (
                f"{row.model}\n{x_column.header} {x:g} {x_column.unit}, {y_column.header} {y:g} {y_column.unit}\n{name}"
            )
            points.append(Point(x=x, y=y, model=row.model, table=result.table.number, row=row, text=text))
        series.append(Series(name=name, points=tuple(points), front=pareto(points)))
    if max(len(item.points) for item in series) < _ENOUGH:
        return []
    costs = [point.x for item in series for point in item.points]
    missing = [item.name for item in series if not item.points]
    return [
        Figure(
            name=f"table-{result.table.number:02d}-top1-{cost}",
            title=f"Table {result.table.number}: {y_column.header} against {x_column.header}",
            text="Lines join the models that no other one beats."
            + (f" No row has both values {missing[0]} here." if missing else ""),
            x_label=f"{x_column.header} ({x_column.unit})",
            y_label=f"{y_column.header} ({y_column.unit})",
            series=tuple(item for item in series if item.points),
            logarithmic_x=min(costs) > 0 and max(costs) > _WIDE * min(costs),
            table=result.table.number,
        )
    ]


def _estimate(result: TableResult) -> list[Figure]:
    """Estimated latencies, which are never compared, against printed ones."""
    column = result.table.column("latency")
    made = []
    for beside in result.beside:
        if beside.kind != "estimate" or column is None:
            continue
        points = []
        for row, cells in _cells(result):
            reported = _reported(cells.get("latency"))
            if reported is None or row.model not in beside.values:
                continue
            value = float(beside.values[row.model]) * float(scale("latency", column.unit))
            text = f"{row.model}\nprinted {reported:g} {column.unit}, estimated {value:.3g} {column.unit}"
            points.append(Point(x=reported, y=value, model=row.model, table=result.table.number, row=row, text=text))
        if len(points) < _ENOUGH:
            continue
        positive = min(min(point.x, point.y) for point in points) > 0
        made.append(
            Figure(
                name=f"table-{result.table.number:02d}-estimate-latency",
                title=f"Table {result.table.number}: estimated against printed {column.header}",
                text=" ".join(["On the line the two are equal; an estimate is no measurement.", *beside.notes]),
                x_label=f"printed ({column.unit})",
                y_label=f"estimated ({column.unit})",
                series=(Series(name="estimated", points=tuple(points)),),
                table=result.table.number,
                diagonal=True,
                logarithmic_x=positive,
                logarithmic_y=positive,
            )
        )
    return made


def _pairs(results: Sequence[TableResult]) -> dict[str, list[tuple[TableResult, Row, Cell, float, float]]]:
    """By metric, every cell with a printed and a measured number, in the metric's own unit."""
    found: dict[str, list[tuple[TableResult, Row, Cell, float, float]]] = {}
    for result in results:
        for row, cell in result.cells:
            if cell.difference is None or cell.measured is None or cell.reported.text is None:
                continue
            factor = scale(cell.metric, cell.reported.unit or cell.column.unit)
            pair = float(Decimal(cell.reported.text) / factor), float(cell.measured / factor)
            found.setdefault(cell.metric, []).append((result, row, cell, *pair))
    return found


def _reported_measured(results: Sequence[TableResult]) -> list[Figure]:
    made = []
    for metric, pairs in _pairs(results).items():
        kind = METRICS[metric]
        by_status: dict[str, list[Point]] = {}
        for result, row, cell, reported, measured in pairs:
            text = (
                f"{row.model}, Table {result.table.number}\nreported {reported:g} {kind.unit}, "
                f"measured {measured:g} {kind.unit}\n{cell.status}"
            )
            point = Point(x=reported, y=measured, model=row.model, table=result.table.number, row=row, text=text)
            by_status.setdefault(cell.status or "", []).append(point)
        if len(pairs) < _ENOUGH:
            continue
        positive = min(min(item[3], item[4]) for item in pairs) > 0
        bound = results[0].tolerance.of(metric)
        made.append(
            Figure(
                name=f"reported-measured-{metric}",
                title=f"{kind.header}: reported against measured",
                text=f"On the line the two are equal; the band is the tolerance, {bound}."
                if bound.value
                else "On the line the two are equal.",
                x_label=f"reported ({kind.unit})",
                y_label=f"measured ({kind.unit})",
                series=tuple(
                    Series(name=status, points=tuple(by_status[status]))
                    for status in ("match", "within", "explained", "outside")
                    if status in by_status
                ),
                diagonal=True,
                band=bound,
                logarithmic_x=positive,
                logarithmic_y=positive,
            )
        )
    return made


def _deviation(results: Sequence[TableResult]) -> list[Figure]:
    pairs = _pairs(results)
    by_status: dict[str, list[Point]] = {}
    for position, (metric, items) in enumerate(pairs.items()):
        spread = max(len(items) - 1, 1)
        for index, (result, row, cell, reported, measured) in enumerate(items):
            if not reported:
                continue
            share = 100 * (measured - reported) / reported
            text = f"{row.model}, Table {result.table.number}\n{METRICS[metric].header} {share:+.2f}%\n{cell.status}"
            x = position + 0.7 * (index / spread - 0.5)  # side by side in the tables' order, so that none hides another
            point = Point(x=x, y=share, model=row.model, table=result.table.number, row=row, text=text)
            by_status.setdefault(cell.status or "", []).append(point)
    if sum(map(len, by_status.values())) < _ENOUGH:
        return []
    return [
        Figure(
            name="deviation",
            title="Deviation by metric",
            text="Measured less reported, as a share of what is reported, in the tables' order.",
            x_label="",
            y_label="deviation (%)",
            series=tuple(
                Series(name=status, points=tuple(by_status[status]))
                for status in ("match", "within", "explained", "outside")
                if status in by_status
            ),
            zero=True,
            categories=tuple(METRICS[metric].header for metric in pairs),
        )
    ]


def only_table(found: Sequence[Figure], number: int) -> list[Figure]:
    """The plots of one table, and its points in those of all tables."""
    chosen = []
    for figure in found:
        if figure.table == number:
            chosen.append(figure)
        elif figure.table is None:
            series = tuple(
                replace(item, points=tuple(point for point in item.points if point.table == number))
                for item in figure.series
            )
            chosen.append(replace(figure, series=tuple(item for item in series if item.points)))
    return [figure for figure in chosen if figure.series]

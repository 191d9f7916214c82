"""Which configurations of a search space agree with what a table prints in a row, or in several rows together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from typing import Any

from repro.compare.tolerance import Tolerance, rounds_to
from repro.errors import UsageError
from repro.spec.metrics import scale
from repro.spec.parse import is_number
from repro.spec.reader import suggestion
from repro.spec.tables import Row, Table

Knobs = Mapping[str, Any]
Counter = Callable[[Knobs], tuple[int, int] | None]
COUNTED = ("params", "gmacs")


@dataclass(frozen=True, kw_only=True)
class Printed:
    """A printed value that a configuration can be held to."""

    metric: str
    text: str
    unit: str


@dataclass(frozen=True, kw_only=True)
class Change:
    """What one row changes of a baseline, and what that costs; values are in the printed units."""

    knobs: Knobs
    values: Mapping[str, Decimal]
    agrees: bool
    distance: Decimal  # the largest difference from a printed value, as a share of it


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A baseline, and for each row the changes that agree (or, where none does, the nearest one)."""

    baseline: Knobs
    changes: Mapping[str, tuple[Change, ...]]

    @property
    def distance(self) -> Decimal:
        """The farthest row's."""
        return max(min(change.distance for change in changes) for changes in self.changes.values())


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What a search found: baselines under which every row agrees, else the nearest ones."""

    table: Table
    rows: tuple[Row, ...]
    printed: Mapping[str, tuple[Printed, ...]]
    tolerance: Tolerance
    agreeing: tuple[Candidate, ...]
    nearest: tuple[Candidate, ...]

    @property
    def exit_code(self) -> int:
        """0 when a configuration agrees, 1 when none does."""
        return 0 if self.agreeing else 1


def printed_values(table: Table, row: Row) -> tuple[Printed, ...]:
    """The counts that a row prints."""
    found = []
    for column in table.columns:
        reported = row.reported(column.metric)
        if column.metric in COUNTED and is_number(reported.text) and reported.text is not None:
            found.append(Printed(metric=column.metric, text=reported.text, unit=reported.unit or column.unit))
    return tuple(found)


def rows_of(table: Table, models: Sequence[str]) -> tuple[Row, ...]:
    """The rows to recover.

    Raises
    ------
    UsageError
        For a table without a search space, a row that it does not have or does not search, or that prints no count.
    """
    if table.search is None:
        raise UsageError(f"table {table.number} has no 'search' section in its spec")
    known = {row.model: row for row in table.rows}
    for model in models:
        if model not in known:
            raise UsageError(f"no row {model!r} in table {table.number}{suggestion(model, known)}")
        if model not in table.search.rows:
            searched = ", ".join(table.search.rows)
            raise UsageError(f"table {table.number} searches no configuration of {model!r}; of {searched}")
        if not printed_values(table, known[model]):
            raise UsageError(f"{model!r} prints no params and no GMACs to agree with")
    return tuple(known[model] for model in dict.fromkeys(models))


def recover(table: Table, rows: Sequence[Row], count: Counter, tolerance: Tolerance, nearest: int = 5) -> Recovery:
    """Go through a table's search space.

    Parameters
    ----------
    count
        Parameters and multiply-adds of the base with some knobs changed, or ``None`` where they make no model.
    nearest
        How many baselines to keep where none agrees.
    """
    search = table.search
    assert search is not None
    printed = {row.model: printed_values(table, row) for row in rows}
    # A knob that every row sets is no part of the baseline: its values there would only repeat the same models.
    own = [set(search.rows[row.model]) for row in rows]
    shared = {name: values for name, values in search.baseline.items() if not all(name in names for names in own)}
    agreeing: list[Candidate] = []
    others: list[Candidate] = []
    for baseline in _combinations(shared):
        changes = {}
        for row in rows:
            tried = _changes(baseline, search.rows[row.model], count, printed[row.model], tolerance)
            if not tried:
                break
            hits = tuple(change for change in tried if change.agrees)
            changes[row.model] = hits or (min(tried, key=lambda change: change.distance),)
        if len(changes) < len(rows):
            continue
        candidate = Candidate(baseline=baseline, changes=changes)
        agrees = all(change.agrees for found in changes.values() for change in found)
        (agreeing if agrees else others).append(candidate)
    others.sort(key=lambda candidate: candidate.distance)
    return Recovery(
        table=table,
        rows=tuple(rows),
        printed=printed,
        tolerance=tolerance,
        agreeing=tuple(sorted(agreeing, key=lambda candidate: candidate.distance)),
        nearest=() if agreeing else tuple(others[:nearest]),
    )


def _combinations(knobs: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*knobs.values()):
        yield dict(zip(knobs, values, strict=True))


def _changes(
    baseline: Knobs,
    knobs: Mapping[str, Sequence[Any]],
    count: Counter,
    printed: Sequence[Printed],
    tolerance: Tolerance,
) -> list[Change]:
    found = []
    for change in _combinations(knobs):
        counts = count({**baseline, **change})
        if counts is None:
            continue
        values = {item.metric: _value(item, counts) for item in printed}
        found.append(
            Change(
                knobs=change,
                values=values,
                agrees=all(_agrees(item, values[item.metric], tolerance) for item in printed),
                distance=max(_distance(item, values[item.metric]) for item in printed),
            )
        )
    return found


def _value(item: Printed, counts: tuple[int, int]) -> Decimal:
    count, exponent = (counts[0], -6) if item.metric == "params" else (counts[1], -9)
    return Decimal(count).scaleb(exponent) * scale(item.metric, item.unit)


def _agrees(item: Printed, value: Decimal, tolerance: Tolerance) -> bool:
    """As ``repro verify`` has it: rounds to the printed string, or lies inside the tolerance."""
    printed = Decimal(item.text)
    return rounds_to(value, item.text) or tolerance.of(item.metric).allows(value - printed, printed)


def _distance(item: Printed, value: Decimal) -> Decimal:
    printed = Decimal(item.text)
    return abs(value - printed) / abs(printed) if printed else abs(value)

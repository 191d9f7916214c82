"""What moved between two sets of records: by how much, beyond noise or not, and which version changed with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from statistics import median
from typing import Any

from repro.compare.cells import Cell, TableResult, compare, convention, needs
from repro.compare.records import Records
from repro.compare.tolerance import exact
from repro.measure.needs import Need, need_of
from repro.results.record import Record, canonical
from repro.spec.metrics import METRICS
from repro.spec.tables import Row, Table

KINDS = ("changed", "failed", "recovered", "appeared")
# A median that moved by less than this share, or by less than three robust standard deviations, did not move.
NOISE_SHARE = 0.02
_NOISE_DEVIATIONS = 3 * 1.4826
_ENOUGH = 5  # samples that tell how much a value scatters


@dataclass(frozen=True, kw_only=True)
class Amount:
    """One number of a record, before and now; ``name`` is a convention, or empty where a record has one number."""

    name: str
    before: Decimal | None
    now: Decimal | None
    unit: str

    @property
    def difference(self) -> Decimal | None:
        """Now less before."""
        return None if self.before is None or self.now is None else self.now - self.before

    @property
    def share(self) -> float | None:
        """The difference as a share of what was before."""
        return float(self.difference / self.before) if self.difference is not None and self.before else None


@dataclass(frozen=True, kw_only=True)
class Use:
    """A cell that shows the record: its table, row and status now, and the convention it stands under."""

    table: int
    model: str
    status: str | None
    convention: str = ""

    def __str__(self) -> str:
        return f"Table {self.table}, {self.model}"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One measurement that is not what it was."""

    kind: str
    variant: str
    metric: str
    protocol: Mapping[str, Any]
    amounts: tuple[Amount, ...]
    uses: tuple[Use, ...]
    causes: tuple[str, ...]
    beyond_noise: bool = True
    message: str = ""

    @property
    def shown(self) -> tuple[Amount, ...]:
        """The amounts that cells show; the first ones where only other conventions moved."""
        used = {use.convention for use in self.uses}
        return tuple(amount for amount in self.amounts if amount.name in used) or self.amounts[:1]


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What a regeneration found."""

    changes: tuple[Change, ...]
    measured: int  # measurements that gave a value
    failed: int
    unchanged: int
    carried: int  # records that this machine does not measure, kept as they are
    moved: tuple[str, ...] = ()  # version changes over all records, whether or not a value moved with them
    warnings: tuple[str, ...] = field(default=())

    @property
    def beyond_noise(self) -> tuple[Change, ...]:
        """The changes that are drift: values that moved, and measurements that no longer succeed."""
        return tuple(change for change in self.changes if change.beyond_noise and change.kind in ("changed", "failed"))

    @property
    def exit_code(self) -> int:
        """3 nothing could be measured, 1 something drifted, 0 all is as it was."""
        if not self.measured:
            return 3
        return 1 if self.beyond_noise else 0


def _place(variant: str, metric: str, protocol: Mapping[str, Any]) -> str:
    return canonical([variant, metric, dict(protocol)])


def place_of(record: Record) -> str:
    """What two records of one measurement share, whatever the versions and however the variant is built."""
    return _place(record.subject.variant, record.metric, record.protocol)


def place_of_need(need: Need) -> str:
    """The same of a measurement that is asked for."""
    return _place(need.subject.variant, need.metric, need.protocol)


def newest(records: Iterable[Record]) -> dict[str, Record]:
    """The record of each measurement: one with a value before a failed one, then the latest."""
    found: dict[str, Record] = {}
    for record in sorted(records, key=lambda item: (item.error is None, str(item.provenance.get("time", "")))):
        found[place_of(record)] = record
    return found


def numbers(record: Record | None) -> dict[str, Decimal]:
    """A record's numbers by name, in the metric's own unit."""
    if record is None or record.error is not None or record.value is None:
        return {}
    counts = record.details.get({"params": "forms", "gmacs": "macs"}.get(record.metric, ""))
    if not counts:
        return {"": exact(record.value)}
    exponent = -6 if record.metric == "params" else -9
    return {name: Decimal(count).scaleb(exponent) for name, count in counts.items()}


def within_noise(before: Record, now: Record) -> bool:
    """Whether two medians differ by no more than the samples' own scatter; one number alone has none."""
    if len(before.samples) < _ENOUGH or len(now.samples) < _ENOUGH:
        return False
    middle = median(before.samples), median(now.samples)
    spread = max(
        median(abs(sample - centre) for sample in record.samples)
        for record, centre in zip((before, now), middle, strict=True)
    )
    return abs(middle[1] - middle[0]) <= max(_NOISE_DEVIATIONS * spread, NOISE_SHARE * abs(middle[0]))


def _parts(source: str) -> dict[str, str]:
    """``repro casvit.py 1f2e, timm 1.0.31`` by name: ``this code (casvit.py)`` and ``timm``."""
    found = {}
    for part in source.split(", "):
        kind, _, rest = part.partition(" ")
        name, _, digest = rest.rpartition(" ")
        if kind == "repro":
            found[f"this code ({name})"] = digest
        elif kind == "python":
            found[f"the models' code ({name or rest})"] = digest if name else ""
        else:
            found[kind] = rest
    return found


def causes(before: Record, now: Record) -> tuple[str, ...]:
    """Which versions moved between two records of one measurement, those that define the value first."""
    moved = _moved({**before.versions, **_parts(before.subject.source)}, {**now.versions, **_parts(now.subject.source)})
    for name in ("builder", "model", "arguments"):
        then, after = getattr(before.subject, name), getattr(now.subject, name)
        if then != after:
            moved.append(f"the spec's {name} {then} -> {after}")
    if moved:
        return tuple(dict.fromkeys(moved))
    then, after = before.provenance, now.provenance
    moved = _moved(then.get("packages", {}), after.get("packages", {}))
    moved += _moved(
        {"this code": then.get("commit"), "repro": then.get("repro")},
        {"this code": after.get("commit"), "repro": after.get("repro")},
    )
    names = ("python", "os", "machine", "cpu")
    moved += _moved({name: then.get(name) for name in names}, {name: after.get(name) for name in names})
    return tuple(f"perhaps {text}" for text in moved) or ("no version moved",)


def _moved(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = [*before, *(name for name in now if name not in before)]
    return [
        f"{name} {before.get(name) or 'absent'} -> {now.get(name) or 'absent'}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _uses(results: Sequence[TableResult]) -> dict[str, list[Use]]:
    """The cells that show each measurement, a deviation's evidence included."""
    found: dict[str, list[Use]] = {}
    for result in results:
        for row, cell in result.cells:
            need = need_of(result.table, row, cell.metric)
            if isinstance(need, Need):
                found.setdefault(place_of_need(need), []).append(_use(result.table, row, cell))
            for other in needs([result.table], {result.table.number: [row]}, [cell.metric]):
                if isinstance(need, Need) and place_of_need(other) == place_of_need(need):
                    continue
                found.setdefault(place_of_need(other), []).append(_use(result.table, row, cell))
        for part in result.architecture:
            if part.record is not None:
                use = Use(table=result.table.number, model=part.row.model, status=part.status)
                uses = found.setdefault(place_of(part.record), [])
                if use not in uses:
                    uses.append(use)
    return found


def _use(table: Table, row: Row, cell: Cell) -> Use:
    counted = cell.metric in ("params", "gmacs")
    name = convention(cell.metric, cell.protocol) if counted else ""
    return Use(table=table.number, model=row.model, status=cell.status, convention=name)


def drift(
    before: Mapping[str, Record],
    now: Mapping[str, Record],
    tables: Sequence[Table],
    records: Records,
    *,
    carried: int = 0,
    warnings: Sequence[str] = (),
) -> Drift:
    """Compare two sets of records by place; ``records`` is where the tables' cells are looked up now."""
    uses = _uses([compare(table, records) for table in tables])
    changes = []
    moved: dict[str, None] = {}
    unchanged = 0
    for place, record in sorted(now.items()):
        old = before.get(place)
        if old is not None:
            moved |= dict.fromkeys(item for item in causes(old, record) if "->" in item and "perhaps" not in item)
        change = _change(old, record, tuple(uses.get(place, ())))
        if change is None:
            unchanged += 1
        else:
            changes.append(change)
    order = {kind: index for index, kind in enumerate(KINDS)}
    changes.sort(key=lambda item: (not item.beyond_noise, order[item.kind], -_size(item), item.variant, item.metric))
    return Drift(
        changes=tuple(changes),
        measured=sum(record.error is None for record in now.values()),
        failed=sum(record.error is not None for record in now.values()),
        unchanged=unchanged,
        carried=carried,
        moved=tuple(moved),
        warnings=tuple(warnings),
    )


def _size(change: Change) -> float:
    return max((abs(amount.share or 0) for amount in change.amounts), default=0)


def _change(old: Record | None, now: Record, uses: tuple[Use, ...]) -> Change | None:
    if old is not None and old.error is not None and now.error is not None:
        return None
    then, after = numbers(old), numbers(now)
    unit = METRICS[now.metric].unit if now.metric in METRICS else now.unit
    amounts = tuple(
        Amount(name=name, before=then.get(name), now=after.get(name), unit=unit)
        for name in dict.fromkeys([*then, *after])
        if then.get(name) != after.get(name)
    )
    message = ""
    if now.error is not None:
        kind, message = "failed", ": ".join(str(now.error[name]) for name in ("reason", "message") if now.error[name])
    elif old is None:
        kind = "appeared"
    elif old.error is not None:
        kind = "recovered"
    else:
        kind = "changed"
        other = {name: value for name, value in now.details.items() if name not in ("forms", "macs")}
        same = {name: old.details.get(name) for name in other}
        if not amounts and now.metric in ("gmacs", "architecture", "operators") and canonical(other) != canonical(same):
            message = f"the same total, made up otherwise: {', '.join(sorted(other))}"
        if not amounts and not message:
            return None
    return Change(
        kind=kind,
        variant=now.subject.variant,
        metric=now.metric,
        protocol=dict(now.protocol),
        amounts=amounts,
        uses=uses,
        causes=() if old is None else causes(old, now),
        beyond_noise=old is None or now.error is not None or not within_noise(old, now),
        message=message,
    )
